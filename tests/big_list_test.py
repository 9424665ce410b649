# SPDX-License-Identifier: Apache-2.0
"""A list of 100,000 videos of which 20 are there: planned in a minute and 500 MB, reported to the last one.

    python -m pytest -m soak tests/big_list_test.py -s       prepare's whole work on it
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from c3d_tf.data import records
from tests import conftest

ROOT = pathlib.Path(__file__).resolve().parents[1]
LISTED, EVERY, CLASSES = 100_000, 5_000, 7  # one of EVERY is there
# What prepare and features do before the first video. TensorFlow alone takes more than 500 MB: its import
# is measured apart.
PLANNING = '''
import json, pathlib, re, sys, time
from c3d_tf import prepare
from c3d_tf.data import datasets, encode_video, inputs, local_runner

def most():
    return int(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1]) / 1024

root = sys.argv[1]
before, started = most(), time.monotonic()
dataset = datasets.load('list', videos=f'{root}/videos', train_list=f'{root}/train.txt')
prepare._describe(dataset, encode_video.Settings((24, 32), 'jpeg', 16, 304, 0, 0, 2.0, 0))
tasks = prepare._plan(dataset, f'{root}/records')
todo = [task for task in tasks if not task.finished()]
prepared, started_again = time.monotonic() - started, time.monotonic()
_, found = inputs.find(f'{root}/videos/all.txt', size=(24, 32))
print(json.dumps({'prepare': prepared, 'features': time.monotonic() - started_again,
                  'megabytes': most() - before, 'examples': len(dataset.examples),
                  'planned': sum(len(task.examples) for task in todo), 'found': len(found)}))
'''


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('big_list')
    names = [f'class_{i % CLASSES}/v{i:06d}.avi' for i in range(LISTED)]
    for name in names[::EVERY]:
        conftest.counting_video(root / 'videos' / name, 20, size=(24, 32))
    (root / 'train.txt').write_text(''.join(f'{name} {i % CLASSES}\n' for i, name in enumerate(names)))
    (root / 'videos/all.txt').write_text('\n'.join(names))
    return root


def test_planning(root):
    child = subprocess.run([sys.executable, '-c', PLANNING, str(root)], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    measured = json.loads(child.stdout)
    print(measured)
    assert measured['examples'] == measured['planned'] == measured['found'] == LISTED
    assert measured['prepare'] < 60 and measured['features'] < 60
    assert measured['megabytes'] < 500


@pytest.mark.soak
def test_the_whole_work(root):
    def run():
        child = subprocess.run(
            [sys.executable, '-m', 'c3d_tf.main', '--mode=prepare', '--dataset=list', f'--videos={root}/videos',
             f'--train_list={root}/train.txt', f'--records={root}/records', '--frame_size=24x32',
             '--max_failures=-1'], cwd=ROOT, capture_output=True, text=True)
        assert child.returncode == 0, child.stderr
        return child.stdout

    assert f'20 of {LISTED} videos, {LISTED - 20} skipped' in run()
    index = records.read_index(str(root / 'records'))
    assert (index.data['found'], index.data['taken'], index.data['splits']['train']['videos']) == (LISTED, 20, 20)
    there = np.arange(0, LISTED, EVERY)
    assert index.data['splits']['train']['videos_per_class'] == np.bincount(there % CLASSES).tolist()
    assert sum(len(shard['records']) for shard in index.data['splits']['train']['shards']) == 20
    skipped = [json.loads(line) for line in (root / 'records/skipped.jsonl').open()]
    assert {skip['reason'] for skip in skipped} == {'no such file'}
    missing = {f'{root}/videos/class_{i % CLASSES}/v{i:06d}.avi' for i in range(LISTED) if i % EVERY}
    assert len(skipped) == LISTED - 20 and {skip['path'] for skip in skipped} == missing
    assert 'is complete: 20 videos' in run()
