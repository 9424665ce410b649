# SPDX-License-Identifier: Apache-2.0
"""Damaged lists, records and videos: refused with a message or read whole; no crash, no hang, no other error.

    python -m pytest -m soak tests/fuzz_data_test.py -s       50,000 mutants, with their coverage
"""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _fuzz(kind, count, folder, *more, seed=0):
    folder.mkdir()
    child = subprocess.run([sys.executable, '-m', 'tests.fuzz_data', kind, str(count), str(seed), str(folder), *more],
                           cwd=ROOT, capture_output=True, text=True, timeout=300 + count)
    assert child.returncode == 0, f'{child.stdout}\n{child.stderr[-3000:]}\nthe mutant is in {folder}'
    *said, last = child.stdout.strip().split('\n')
    result = json.loads(last)
    print(f'\n{kind}: {result}', *said, sep='\n  ')
    assert result['mutants'] == count and result['megabytes'] < 1500
    assert any(key.startswith('refused') for key in result)
    return result


@pytest.mark.parametrize('kind, count', [('lists', 1500), ('videos', 250), ('records', 100)])
def test_mutants(kind, count, tmp_path):
    _fuzz(kind, count, tmp_path / 'fuzz')


@pytest.mark.soak
@pytest.mark.parametrize('kind, count', [('lists', 30_000), ('videos', 15_000), ('records', 5_000),
                                         ('matrices', 300)])
def test_many_mutants(kind, count, tmp_path):
    _fuzz(kind, count, tmp_path / 'fuzz', seed=1)
    _fuzz(kind, 1_000, tmp_path / 'traced', 'trace', seed=2)
