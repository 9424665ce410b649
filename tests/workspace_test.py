# SPDX-License-Identifier: Apache-2.0
"""The map, the flagfiles and the commands in the Markdown are true; imports point down."""

import ast
import pathlib
import re
import shlex
import subprocess
import tomllib

import pytest

from c3d_tf import flags
from c3d_tf import main

ROOT = pathlib.Path(__file__).resolve().parents[1]
VERBS = {'prepare', 'train', 'study', 'evaluate', 'predict', 'features', 'svm', 'similarity',
         'visualize', 'report', 'import_weights', 'export', 'benchmark'}
MARKDOWN = sorted(path for path in ROOT.rglob('*.md') if '.venv' not in str(path))


def _tracked():
    out = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if out.returncode:
        pytest.skip('not a git checkout')
    return out.stdout.split()


def _tree():
    """Returns the files that WORKSPACE.md shows below c3d_tf/, by their indentation."""
    shown, room = set(), ''
    for line in (ROOT / 'WORKSPACE.md').read_text().split('```')[1].splitlines():
        match = re.match(r'( {2,4})([\w.]+/?)', line)
        if not match:
            continue
        indent, name = len(match[1]), match[2]
        if name.endswith('/'):
            room = name
        elif name.endswith('.py'):
            shown.add(f'c3d_tf/{room if indent == 4 else ""}{name}')
    return shown


def test_the_map_shows_every_module_and_no_other():
    modules = {path for path in _tracked() if path.startswith('c3d_tf/') and path.endswith('.py')
               and (path == 'c3d_tf/__init__.py' or not path.endswith('__init__.py'))}
    assert _tree() == modules


def test_the_map_shows_everything_at_the_top():
    text = (ROOT / 'WORKSPACE.md').read_text()
    for name in {path.split('/')[0] for path in _tracked()}:
        assert name in text, name


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def test_imports_point_down():
    for path in (ROOT / 'c3d_tf').rglob('*.py'):
        module = str(path.relative_to(ROOT).with_suffix('')).replace('/', '.')
        found = set(_imports(path))
        ours = {name.split('.')[1] for name in found if name.startswith('c3d_tf.')}
        in_room = len(module.split('.')) > 2
        if in_room:
            assert not ours & (VERBS | {'main', 'flags'}), module
        if module.startswith('c3d_tf.common.'):
            assert ours <= {'common'}, module
        if module.startswith('c3d_tf.models'):
            assert ours <= {'models'}, module
        if module.startswith('c3d_tf.models') or module in (
                'c3d_tf.data.video', 'c3d_tf.data.clips', 'c3d_tf.data.moving_shapes',
                'c3d_tf.data.datasets', 'c3d_tf.data.lists', 'c3d_tf.data.sources'):
            assert not any(name.split('.')[0] == 'tensorflow' for name in found), module
        if module not in ('c3d_tf.main', 'c3d_tf.flags'):
            assert not any(name.startswith('absl') for name in found), module


def test_no_module_has_become_two():
    for path in (ROOT / 'c3d_tf').rglob('*.py'):
        assert len(path.read_text().splitlines()) <= 350, path


def _commands():
    for path in MARKDOWN:
        for block in re.findall(r'```(?:bash|console)\n(.*?)```', path.read_text(), re.S):
            for line in block.splitlines():
                if 'c3d_tf.main' in line:
                    yield path.name, line
    for path in sorted((ROOT / 'experiments').rglob('*.flags')):
        for line in path.read_text().splitlines():
            if line.startswith('#   python -m c3d_tf.main'):
                yield path.name, line[4:]


@pytest.mark.parametrize(('where', 'command'), list(_commands()))
def test_every_printed_command_parses(where, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.split('|')[0])
    f = flags.Flags().values
    assert f(words[2:])[1:] == [] and set(f.mode) <= main.MODES.keys() and f.mode


def test_make_targets_in_the_readme_exist():
    makefile = (ROOT / 'Makefile').read_text()
    for target in re.findall(r'^make (\w+)', (ROOT / 'README.md').read_text(), re.M):
        assert f'\n{target}: setup' in makefile


@pytest.mark.parametrize('path', MARKDOWN, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r'\]\(([^)#]+)', path.read_text()):
        assert target.startswith('http') or (path.parent / target).exists(), target


def test_pins_and_ranges_name_the_same_packages():
    pinned = {re.split('==', line)[0] for line in (ROOT / 'requirements.txt').read_text().splitlines()
              if line and not line.startswith('#')}
    ranges = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['dependencies']
    assert pinned == {re.split('[<>=]', line)[0] for line in ranges} | {'pytest', 'playwright'}


def test_every_verb_has_its_module_and_flags():
    assert VERBS == main.MODES.keys() == flags.VERBS.keys()
    for verb in VERBS:
        assert (ROOT / f'c3d_tf/{verb}.py').exists() and len(flags.Flags().of(verb)) > 6
