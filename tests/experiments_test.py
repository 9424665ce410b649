# SPDX-License-Identifier: Apache-2.0
"""Every flagfile of experiments/ runs on a miniature of its data set; only sizes and steps change."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from c3d_tf import flags
from c3d_tf import main
from c3d_tf import models
from c3d_tf.data import moving_shapes
from c3d_tf.data import preprocess
from c3d_tf.weights import artefact
from tests import conftest
from tests import datasets_test

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = ['--frame_size=24x32', '--crop_size=20', '--width=0.05', '--batch_size=4', '--steps=2',
         '--eval_batch_size=4']


def _moving_shapes(each=1):
    moving_shapes.write('data/moving_shapes/videos', train_per_class=each, test_per_class=each, num_workers=1)
    # The real one has 640 videos; the flagfile finds this one complete.
    path = pathlib.Path('data/moving_shapes/videos/.moving_shapes.json')
    text = path.read_text().replace(f'train_per_class": {each}', 'train_per_class": 60')
    path.write_text(text.replace(f'test_per_class": {each}', 'test_per_class": 20'))


def _two_of_each_shape():
    _moving_shapes(2)  # pairs of the same action need two


def _own_videos():
    for name in ('a', 'b'):
        for i in range(5):
            conftest.counting_video(f'data/own/videos/{name}/{i}.avi', 18)
    pathlib.Path('data/own/videos/a/broken.avi').write_bytes(b'')


def _sports1m():
    for name in ('aaa.mp4', 'bbb.mkv', 'ccc.mp4'):  # the fourth is gone from the web
        conftest.counting_video(f'data/sports1m/videos/{name}', 60)
    datasets_test.sports1m_lists(pathlib.Path('data/sports1m/lists'))


def _ucf101():
    """The official lists' layout: two classes, groups g01 (test) and g08 (train)."""
    root = pathlib.Path('data/ucf101')
    (root / 'lists').mkdir(parents=True)
    classes = ('ApplyEyeMakeup', 'HandstandPushups')
    listed = {'train': [], 'test': []}
    for number, name in enumerate(classes, 1):
        for split, group in (('train', 8), ('test', 1)):
            for clip in (1, 2):
                file = f'{name}/v_{name.replace("stand", "Stand")}_g{group:02d}_c{clip:02d}.avi'
                conftest.counting_video(root / 'videos' / file, 36)
                listed[split].append(f'{file} {number}' if split == 'train' else file)
    (root / 'lists/classInd.txt').write_text(''.join(f'{i} {n}\n' for i, n in enumerate(classes, 1)))
    for split, lines in listed.items():
        (root / f'lists/{split}list01.txt').write_text('\n'.join(lines) + '\n')
    _pretrained(len(classes))


def _hmdb51():
    root = pathlib.Path('data/hmdb51')
    (root / 'lists').mkdir(parents=True)
    for name in ('brush_hair', 'wave'):
        lines = []
        for film, flag in (('Film_A', 1), ('Film_B', 2), ('Film_C', 0)):
            file = f'{film}_{name}_h_nm_np1_fr_goo_0.avi'
            conftest.counting_video(root / 'videos' / name / file, 20)
            lines.append(f'{file} {flag} \n')
        (root / f'lists/{name}_test_split1.txt').write_text(''.join(lines))
    _pretrained(2)


def _pretrained(classes):
    """What import_weights will leave: here random weights of the thin net."""
    spec = preprocess.Preprocessing((24, 32), 20, 16, 1, np.zeros((), np.float32))
    net = models.build('c3d', num_classes=487, crop_size=20, width=0.05)
    artefact.save('weights/sports1m.keras', artefact.Artefact(net, spec, ('x',) * 487, {}))


MINIATURES = {
    'quickstart': (_moving_shapes, 8),
    'moving_shapes_depth_1': (_moving_shapes, 8),
    'moving_shapes_depth_3': (_moving_shapes, 8),
    'paper_on_moving_shapes': (_two_of_each_shape, None),
    'own_videos': (_own_videos, None),
    'sports1m': (_sports1m, 1),
    'ucf101_scratch': (_ucf101, 4),
    'ucf101_finetune': (_ucf101, 4),
    'hmdb51': (_hmdb51, 2),
    **{f'depth_study/{name}': (_ucf101, 4) for name in
       ('common', 'all', 'depth_1', 'depth_3', 'depth_5', 'depth_7', 'increasing', 'decreasing')},
    'depth_study/small': (_own_videos, None),
    'depth_study/moving_shapes': (_moving_shapes, None),
    **{f'resolution_study/{name}': (_ucf101, 4) for name in ('net_64', 'net_128', 'net_256')},
}

STUDIES = ('depth_study/all', 'depth_study/small', 'depth_study/moving_shapes')


def test_every_flagfile_has_a_miniature():
    found = {str(path.relative_to(ROOT / 'experiments').with_suffix(''))
             for path in (ROOT / 'experiments').rglob('*.flags')}
    assert found == MINIATURES.keys()


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """A working folder for each kind of data; flagfiles of the same data share it, and its records."""
    return {make: tmp_path_factory.mktemp(make.__name__) for make, _ in MINIATURES.values()}


@pytest.mark.parametrize('name', MINIATURES)
def test_flagfile(name, folders, monkeypatch):
    make, test_videos = MINIATURES[name]
    monkeypatch.chdir(folders[make])
    if not os.path.lexists('experiments'):
        os.symlink(ROOT / 'experiments', 'experiments')
        make()
    # Six networks from three seeds are minutes even in miniature.
    two = ['--models=depth_1,increasing', '--seeds=0'] if name in STUDIES else []
    assert main.main(['c3d_tf', f'--flagfile=experiments/{name}.flags', *SMALL, *two]) == 0
    f = flags.Flags().values
    f(['c3d_tf', f'--flagfile=experiments/{name}.flags'])
    run = pathlib.Path(f.workdir)
    if 'evaluate' in f.mode:
        result = json.loads((run / 'evaluate.json').read_text())
        assert test_videos in (None, result['videos'])
    if 'study' in f.mode:
        assert json.loads((run / 'study.json').read_text())['networks'].keys() == {'depth_1', 'increasing'}
    if 'export' in f.mode:
        assert pathlib.Path(f.export_dir, '1/saved_model.pb').exists()
    if 'svm' in f.mode:
        left = {'svm.json', 'compactness.png', 'tsne.png', 'similarity.json', 'roc.png', 'figures/figures.json'}
        assert all((run / name).exists() for name in left)


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
