# SPDX-License-Identifier: Apache-2.0
"""Every ```bash block of README and docs/, executed in order in a fresh copy of the project; make test-docs."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')), ROOT / 'export/README.md']
pytestmark = pytest.mark.docs


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    """The tracked files as a newcomer has them; the environment is the one that the tests run in."""
    folder = tmp_path_factory.mktemp('fresh') / 'c3d_tf'
    tracked = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, tracked.decode().split('\0')):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
            (folder / name).chmod((ROOT / name).stat().st_mode)
    os.symlink(sys.prefix, folder / '.venv')
    # Set up already; `make` would do it again where the requirements are newer than this file.
    os.utime(folder / 'requirements.txt', (0, 0))
    os.utime(folder / 'pyproject.toml', (0, 0))
    (pathlib.Path(sys.prefix) / 'ready').touch()
    return folder


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page(page, copy):
    blocks = [block for block in re.findall(r'^```bash\n(.*?)^```', page.read_text(), re.S | re.M)
              if block.strip() != 'make test']  # this is it
    if not blocks:
        pytest.skip('has no bash block')
    script = '\n'.join(['set -euo pipefail', f'. {copy}/.venv/bin/activate', *blocks])
    environment = {**os.environ, 'PYTHONPATH': str(copy)}  # the copy's code, not that of the environment
    done = subprocess.run(['bash', '-c', script], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f'{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
