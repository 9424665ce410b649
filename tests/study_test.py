# SPDX-License-Identifier: Apache-2.0
"""Several networks trained alike, and what may be said of their difference."""

import json

import numpy as np
import pytest

from c3d_tf import main
from c3d_tf import prepare
from c3d_tf import study
from c3d_tf import train
from c3d_tf.common import errors
from c3d_tf.data import datasets
from c3d_tf.data import moving_shapes
from c3d_tf.training import history
from c3d_tf.weights import artefact

RECIPE = train.Recipe(model='depth_3', width=0.03, crop_size=24, clip_length=8, mean='channel', head='pool',
                      batch_norm=True, epochs=2, batch_size=8, optimizer='adam')


@pytest.fixture(scope='module')
def records(tmp_path_factory):
    root = tmp_path_factory.mktemp('study')
    moving_shapes.write(str(root / 'videos'), train_per_class=2, test_per_class=1, num_workers=1)
    prepare.prepare(datasets.load('folder', videos=str(root / 'videos')), str(root / 'records'),
                    frame_size=(28, 28), clip_length=8)
    return str(root / 'records')


def test_every_network_from_every_seed(records, tmp_path):
    command = ['c3d_tf', '--mode=study', f'--records={records}', f'--workdir={tmp_path}', '--models=depth_1,depth_3',
               '--seeds=3,5', '--width=0.03', '--crop_size=24', '--clip_length=8', '--mean=channel', '--head=pool',
               '--batch_norm', '--epochs=2', '--batch_size=8', '--optimizer=adam', '--histograms=1']
    assert main.main(command) == 0
    result = json.loads((tmp_path / study.RESULT).read_text())
    for name in ('depth_1', 'depth_3'):
        curves = [history.read(str(tmp_path / name / f'seed_{seed}'), 'test_accuracy') for seed in (3, 5)]
        rows = np.array([values for _, values in curves])
        assert curves[0][0] == result['steps'] and len(result['steps']) == 2
        own = result['networks'][name]
        np.testing.assert_allclose(own['mean'], rows.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(own['standard_error'], abs(rows[0] - rows[1]) / 2, atol=1e-6)
        for run in (tmp_path / name).iterdir():
            assert b'fc8/kernel' in b''.join(file.read_bytes() for file in run.glob('tensorboard/train/events.out.*'))
    assert (tmp_path / study.FIGURE).read_bytes().startswith(b'\x89PNG')
    assert '--models=depth_1,depth_3' in (tmp_path / 'study.flags').read_text()
    before = (tmp_path / 'depth_1/seed_3/model.keras').stat().st_mtime_ns
    assert main.main(command) == 0  # nothing is trained again
    assert (tmp_path / 'depth_1/seed_3/model.keras').stat().st_mtime_ns == before


def test_watching_changes_no_weight(records, tmp_path):
    runs = [str(tmp_path / name) for name in ('watched', 'not')]
    train.fit(records, runs[0], RECIPE, watch='test')
    train.fit(records, runs[1], RECIPE)
    left, right = (artefact.load(f'{run}/{train.MODEL}').model.get_weights() for run in runs)
    assert all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))
    assert history.read(runs[1], 'test_accuracy') == ([], [])
    with pytest.raises(errors.UsageError, match='--watch=val.*no video in that split'):
        train.fit(records, str(tmp_path / 'other'), RECIPE, watch='val')


def test_differences_are_paired_by_seed():
    last = {'a': np.array([0.50, 0.60, 0.70]), 'b': np.array([0.40, 0.50, 0.59]), 'c': np.array([0.7, 0.3, 0.6])}
    pairs = {(pair['better'], pair['worse']): pair for pair in study._differences(last)}
    assert pairs['a', 'b']['mean'] == pytest.approx(0.31 / 3, abs=1e-6)
    # Differences 0.10, 0.10, 0.11: deviation 0.1/√300, over √3.
    assert pairs['a', 'b']['standard_error'] == pytest.approx(0.1 / 30, abs=1e-6)
    assert pairs['a', 'b']['told_apart'] and not pairs['a', 'c']['told_apart']
    assert [pair['standard_error'] for pair in study._differences({'a': np.array([1.0]), 'b': np.array([0.5])})] == [None]


@pytest.mark.parametrize('wrong, message', [
    ({'networks': ['depth_2']}, 'depth_2: expected some of'),
    ({'seeds': []}, '--seeds is empty'),
])
def test_wrong_use(records, tmp_path, wrong, message):
    with pytest.raises(errors.UsageError, match=message):
        study.study(records, str(tmp_path), RECIPE, **{'networks': ['depth_1'], 'seeds': [0], **wrong})
