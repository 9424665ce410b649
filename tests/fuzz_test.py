# SPDX-License-Identifier: Apache-2.0
"""Damaged weight files: only a UsageError comes out, in a second and half a gigabyte.

    python -m pytest -m soak tests/fuzz_test.py -s       100,000 mutants a parser, with their coverage
"""

import os
import pathlib
import random
import re
import signal
import time

import numpy as np
import pytest

from c3d_tf.common import errors
from c3d_tf.weights import caffe
from c3d_tf.weights import formats
from c3d_tf.weights import pickles
from c3d_tf.weights import torch
from tests import line_coverage
from tests import mutants

# Seeds and mutants; what reads them; a mutant is past the header if this function is reached: a blob's
# numbers are looked at, a pickle has been read.
PARSERS = {
    'caffe': (mutants.caffe_models, formats.read, (caffe, '_floats')),
    'zip': (mutants.torch_zips, formats.read, (pickles, 'tensors')),
    'legacy': (mutants.pickle_files, formats.read, (pickles, 'tensors')),
    'mean': (mutants.means, formats.read_mean, (caffe, '_floats')),
}


class TooSlow(BaseException):
    """Not an Exception: the parsers turn those into UsageErrors."""


@pytest.fixture
def limited():
    """Sets the time to compute, in seconds, until the next call."""
    def stop(*_):
        raise TooSlow
    old = signal.signal(signal.SIGPROF, stop)
    yield lambda seconds: signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, old)


def memory(name: str) -> float:
    """Returns megabytes that the process has (VmRSS) or had at most (VmHWM) since the last VmRSS."""
    if name == 'VmRSS':
        pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak starts from here
    return int(re.search(rf'{name}:\s+(\d+)', pathlib.Path('/proc/self/status').read_text())[1]) / 1024


def _same(a, b) -> bool:
    if isinstance(a, formats.Source):
        return a.format == b.format and a.arrays.keys() == b.arrays.keys() and all(
            np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays)
    return np.array_equal(a, b)


def _fuzz(name, count, path, limited, monkeypatch, seed=0):
    """Runs mutants, and prints how far they came."""
    make, read, (module, gate) = PARSERS[name]
    seeds, mutant = make()
    passed, function = 0, getattr(module, gate)

    def counted(*args):
        nonlocal reached
        reached = True
        return function(*args)
    monkeypatch.setattr(module, gate, counted)

    def parse(data):
        path.write_bytes(data)
        limited(1)
        return read(str(path))
    expected = [parse(data) for data in seeds]
    rng, before, start, slowest, valid = random.Random(seed), memory('VmRSS'), time.time(), 0, 0
    for i in range(count):
        reached, data, begun = False, mutant(rng), time.process_time()
        try:
            parse(data)
            valid += 1
        except errors.UsageError as error:
            assert str(path) in str(error)
        except BaseException:
            kept = pathlib.Path(f'{path}.{name}.{i}')
            kept.write_bytes(data)
            print(f'mutant {i} of {name} is kept as {kept}')
            raise
        slowest = max(slowest, time.process_time() - begun)
        passed += reached
    grown = memory('VmHWM') - before
    print(f'\n{name}: {count} mutants in {time.time() - start:.0f} s, '
          f'{passed / count:.1%} past the header, '
          f'{valid / count:.1%} valid, the slowest {slowest:.3f} s, {grown:.0f} MB more')
    assert grown < 500
    for data, value in zip(seeds, expected, strict=True):
        assert _same(parse(data), value)
    assert passed >= 0.1 * count


@pytest.fixture
def path(tmp_path):
    """A file in memory, where there is such a folder: it is written anew for every mutant."""
    folder = pathlib.Path('/dev/shm')
    path = (folder if folder.is_dir() else tmp_path) / f'c3d_tf_fuzz_{os.getpid()}'
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize('name', PARSERS)
@pytest.mark.filterwarnings('ignore')
def test_mutants(name, path, limited, monkeypatch):
    _fuzz(name, 2_000, path, limited, monkeypatch)


@pytest.mark.soak
@pytest.mark.filterwarnings('ignore')
def test_a_hundred_thousand_mutants(path, limited, monkeypatch):
    for name in PARSERS:
        with monkeypatch.context() as patch:
            _fuzz(name, 100_000, path, limited, patch, seed=1)
    coverage = line_coverage.Coverage(caffe, formats, pickles, torch)
    with coverage:  # tracing makes it slow: some of them only, and without the limit
        for name in PARSERS:
            with monkeypatch.context() as patch:
                _fuzz(name, 5_000, path, lambda _: limited(0), patch, seed=2)
    print(f'lines of functions that 5,000 of each ran:\n  {coverage.summary()}')
