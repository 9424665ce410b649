# SPDX-License-Identifier: Apache-2.0
"""A loss that blows up: which is one, where the run goes back to, and that a stopped run does the same."""

import json
import math
import pathlib
import signal

import numpy as np
import pytest

from c3d_tf import prepare
from c3d_tf import train
from c3d_tf.common import errors
from c3d_tf.data import datasets
from c3d_tf.training import curve as curves
from c3d_tf.training import guard as guards
from c3d_tf.training import trainer as trainers
from c3d_tf.weights import artefact

RECIPE = train.Recipe(model='depth_3', width=0.03, crop_size=20, clip_length=8, mean='channel', batch_size=2,
                      steps=28, learning_rate=1e-4, dropout=0.3, max_loss_ratio=50.0, max_skips=2)


def test_a_loss_is_bad_beside_the_last_ones():
    guard = guards.Guard(3.0, 2)
    for step in range(guards.FEWEST):
        assert guard.bad(step, 100.0 if step == 4 else 1.0) == ''  # too few to compare with
    assert guard.bad(10, math.nan) == 'the loss of step 11 is not a number'
    assert guard.bad(10, math.inf) and guard.bad(10, 2.9) == ''
    assert guard.bad(11, 3.1) == 'the loss of step 12 is 3.1, over 3 times the median of the last 11, 1'
    for step in range(12, 12 + guards.WINDOW):
        assert guard.bad(step, 2.0) == ''
    assert guard.bad(70, 5.9) == ''  # the first ones are forgotten


def test_where_a_run_goes_back_to():
    guard = guards.Guard(3.0, 2)
    assert guard.place(21, [8, 16, 19], 8) == 16  # not where it was stopped: others were not
    assert guard.place(16, [8, 16, 19], 8) == 8  # the very next loss was bad
    assert guard.place(25, [20], 8) == 20
    assert guard.place(16, [16], 8) is None
    with guard.skipping(16):
        pass
    assert guard.place(21, [8, 16], 8) == 8  # bad once
    with guard.skipping(21):
        pass
    assert guard.skipped == [16, 21] and guard.place(30, [8, 24], 8) is None  # two were enough


@pytest.fixture(scope='module')
def records_dir(folder, tmp_path_factory):
    target = str(tmp_path_factory.mktemp('guard') / 'records')
    prepare.prepare(datasets.load('folder', videos=str(folder)), target, frame_size=(24, 32))
    return target


@pytest.fixture
def explosions(monkeypatch):
    """Makes the weights of some updates' results huge, as a bad batch does at a high rate."""
    steps = {}
    update = trainers.Trainer.train_step

    def exploding(self, step, *args, **options):
        sums = update(self, step, *args, **options)
        if step in steps:
            for variable in self.model.trainable_variables:
                variable.assign(variable * steps[step])
        return sums

    monkeypatch.setattr(trainers.Trainer, 'train_step', exploding)
    return steps


def _weights(workdir):
    return artefact.load(f'{workdir}/model.keras').model.get_weights()


def test_a_run_goes_back_and_on_and_a_stopped_one_does_the_same(records_dir, tmp_path, explosions, capsys):
    explosions |= {20: 30.0}
    result = train.fit(records_dir, str(tmp_path / 'whole'), RECIPE, checkpoint_every=8, log_every=5)
    said = capsys.readouterr().out
    assert 'the loss of step 22 is' in said and 'back to the weights of step 16' in said
    assert result['steps'] == 28 and result['skipped_steps'] == [21] and result['loss'] < 10

    class Killed(Exception):
        pass

    add = curves.Curve.add

    def ended(self, step, *args):
        if ends and step == ends[0]:
            ends.pop(0)
            if ends:
                signal.raise_signal(signal.SIGTERM)
            else:
                raise Killed
        add(self, step, *args)

    # Stopped and saved before the bad batch; then killed behind it, so that no checkpoint knows of it.
    ends = [18, 23]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves.Curve, 'add', ended)
        for error in (errors.Interrupted, Killed):
            with pytest.raises(error):
                train.fit(records_dir, str(tmp_path / 'stopped'), RECIPE, checkpoint_every=8, log_every=5)
    assert 'continues at step 18' in capsys.readouterr().out
    again = train.fit(records_dir, str(tmp_path / 'stopped'), RECIPE, checkpoint_every=8, log_every=5)
    assert again['skipped_steps'] == [21]
    for a, b in zip(_weights(tmp_path / 'whole'), _weights(tmp_path / 'stopped'), strict=True):
        np.testing.assert_array_equal(a, b)


def test_enough_is_enough(records_dir, tmp_path, explosions):
    explosions |= dict.fromkeys((9, 13, 18), math.nan)
    with pytest.raises(errors.RunError, match='the loss of step 20 is not a number, .* or --max_skips is reached'):
        train.fit(records_dir, str(tmp_path), RECIPE, checkpoint_every=8, log_every=5)
    assert json.loads(pathlib.Path(tmp_path / 'train.json').read_text())['status'] == 'running'
    assert not (tmp_path / 'model.keras').exists()
