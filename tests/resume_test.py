# SPDX-License-Identifier: Apache-2.0
"""A run that is killed goes on to the bits of the unbroken run: real processes, real `kill -9`."""

import glob
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from c3d_tf import prepare
from c3d_tf.data import datasets
from c3d_tf.data import moving_shapes
from c3d_tf.weights import artefact
from tests import conftest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Everything that has a state or a random choice, and weights large enough that writing them takes time.
RECIPE = ['--mode=train', '--model=depth_3', '--width=0.4', '--batch_norm', '--initializer=he',
          '--crop_size=20', '--mean=channel', '--dropout=0.3', '--flip', '--random_crop', '--min_scale=0.7',
          '--colour=0.2', '--rand_augment=2', '--mixup=0.2', '--max_stride=2', '--momentum=0.9', '--ema=0.9',
          '--learning_rate=0.001', '--batch_size=4', '--steps=40', '--checkpoint_every=6', '--log_every=5']


@pytest.fixture(scope='module')
def flags(tmp_path_factory):
    root = tmp_path_factory.mktemp('resume')
    for i in range(22):
        label = moving_shapes.CLASSES[i % 2]
        frames = moving_shapes.render(label, np.random.default_rng(i), height=48, width=64, num_frames=40)
        conftest.write_video(root / f'v/{"train" if i < 18 else "val"}/{label}/{i}.avi', frames)
    prepare.prepare(datasets.load('folder', videos=str(root / 'v')), str(root / 'r'), frame_size=(24, 32))
    return [*RECIPE, f'--records={root}/r']


def _start(flags, workdir):
    return subprocess.Popen([sys.executable, '-m', 'c3d_tf.main', *flags, f'--workdir={workdir}'], cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _kill_when(process, condition):
    deadline = time.monotonic() + 120
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    assert process.poll() is None, process.stdout.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_runs_end_with_the_same_bits(flags, tmp_path):
    whole = _start(flags, tmp_path / 'whole')
    said, _ = whole.communicate()
    assert whole.returncode == 0, said
    workdir = tmp_path / 'killed'
    checkpoints = workdir / 'checkpoints'

    def newest():
        return max([int(path.rsplit('-', 1)[1][:-6]) for path in glob.glob(f'{checkpoints}/ckpt-*.index')],
                   default=0)

    def writing():
        return glob.glob(f'{checkpoints}/.writing-*/*')
    for _ in range(5):  # while the first checkpoint is being written, a moment that may be missed
        _kill_when(_start(flags, workdir), writing)
        if writing():
            break
        shutil.rmtree(workdir)
    assert writing() and newest() == 0

    _kill_when(_start(flags, workdir), lambda: newest() >= 6)  # after the first checkpoint
    assert not (workdir / 'model.keras').exists()

    # Inside an epoch of five steps: some steps after the checkpoint at 12.
    seen = []
    def a_little_later():
        if newest() >= 12:
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() - seen[0] > 0.3
    _kill_when(_start(flags, workdir), a_little_later)

    while not writing():  # while a later one is
        _kill_when(_start(flags, workdir), writing)
    before = newest()

    last = _start(flags, workdir)
    said, _ = last.communicate()
    assert last.returncode == 0, said
    assert f'train: continues at step {before} of 40' in said
    for name in ('model.keras', 'best.keras'):
        one, other = (artefact.load(str(tmp_path / run / name)) for run in ('whole', 'killed'))
        assert one.provenance == other.provenance
        for a, b in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
