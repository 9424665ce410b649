# SPDX-License-Identifier: Apache-2.0
"""Every flagfile of experiments/ runs on a miniature of its data set; only sizes and steps change."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from c3d_tf import main
from c3d_tf.data import moving_shapes
from tests import conftest
from tests import datasets_test

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = ['--frame_size=24x32', '--crop_size=20', '--width=0.05', '--batch_size=4', '--steps=2',
         '--eval_batch_size=4']


def _moving_shapes(monkeypatch):
    monkeypatch.setattr(moving_shapes.write, '__kwdefaults__',
                        {**moving_shapes.write.__kwdefaults__, 'train_per_class': 1, 'test_per_class': 1})


def _own_videos(monkeypatch):
    for name in ('a', 'b'):
        for i in range(5):
            conftest.counting_video(f'data/own/videos/{name}/{i}.avi', 18)
    pathlib.Path('data/own/videos/a/broken.avi').write_bytes(b'')


def _sports1m(monkeypatch):
    for name in ('aaa.mp4', 'bbb.mkv', 'ccc.mp4'):  # the fourth is gone from the web
        conftest.counting_video(f'data/sports1m/videos/{name}', 60)
    datasets_test.sports1m_lists(pathlib.Path('data/sports1m/lists'))


MINIATURES = {
    'quickstart': (_moving_shapes, 8),
    'moving_shapes_depth_1': (_moving_shapes, 8),
    'moving_shapes_depth_3': (_moving_shapes, 8),
    'own_videos': (_own_videos, None),
    'sports1m': (_sports1m, 1),
}


def test_every_flagfile_has_a_miniature():
    found = {str(path.relative_to(ROOT / 'experiments').with_suffix(''))
             for path in (ROOT / 'experiments').rglob('*.flags')}
    assert found == MINIATURES.keys()


@pytest.mark.parametrize('name', MINIATURES)
def test_flagfile(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / 'experiments', 'experiments')
    make, test_videos = MINIATURES[name]
    make(monkeypatch)
    assert main.main(['c3d_tf', f'--flagfile=experiments/{name}.flags', *SMALL]) == 0
    run, = (path for path in pathlib.Path('runs').iterdir())
    result = json.loads((run / 'evaluate.json').read_text())
    assert test_videos in (None, result['videos'])
    assert (pathlib.Path('export') / run.name / '1' / 'saved_model.pb').exists()


def test_sports1m_without_data_says_what_is_missing_within_five_seconds(tmp_path):
    shutil.copytree(ROOT / 'experiments', tmp_path / 'experiments')
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, '-m', 'c3d_tf.main', '--flagfile=experiments/sports1m.flags'],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert time.monotonic() - started < 5
    assert done.returncode == 2
    for part in ('--videos=data/sports1m/videos', 'data/sports1m/lists', 'train_partition.txt',
                 'sports-1m-dataset'):
        assert part in done.stderr
