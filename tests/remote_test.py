# SPDX-License-Identifier: Apache-2.0
"""Every verb on ram:// in one process, which proves that no `open` and no `os` is left on such paths; and
the refusal of what nothing serves."""

import builtins
import contextlib
import glob
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf

from c3d_tf import main
from c3d_tf.common import storage

TINY = ['--width=0.03', '--crop_size=32', '--clip_length=8', '--batch_size=4', '--steps=2', '--log_every=1']


def _is_ours() -> bool:
    """Tells whether the call comes from this project or a library it uses, and not from TensorFlow."""
    frame = sys._getframe(2)
    while (root := frame.f_globals['__name__'].split('.')[0]) not in ('c3d_tf', 'tensorflow', 'tests'):
        frame = frame.f_back
    return root == 'c3d_tf'


@pytest.fixture
def guarded(monkeypatch):
    """Fails on a path with a scheme that reaches Python's own functions for local files."""
    def guard(module, name):
        real = getattr(module, name)

        def checked(*arguments, **options):
            for value in arguments[:2]:
                if isinstance(value, (str, os.PathLike)) and '://' in os.fspath(value) and _is_ours():
                    raise AssertionError(f'{module.__name__}.{name}({value!r})')
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, checked)

    for module, names in {
            builtins: ['open'], io: ['open'], glob: ['glob', 'iglob'],
            os: ['open', 'stat', 'lstat', 'listdir', 'scandir', 'walk', 'makedirs', 'mkdir', 'remove', 'unlink',
                 'rename', 'replace', 'rmdir', 'utime', 'access', 'link', 'symlink'],
            os.path: ['exists', 'lexists', 'isfile', 'isdir', 'getsize', 'getmtime', 'abspath', 'realpath',
                      'normpath', 'commonpath'],
            shutil: ['copyfile', 'copytree', 'move', 'rmtree']}.items():
        for name in names:
            guard(module, name)


def _run(*arguments) -> None:
    import time; t=time.time()
    assert main.main(['c3d_tf', *arguments]) == 0, arguments
    open('/tmp/pr2/times','a').write(f'{time.time()-t:.1f} {arguments[0]}\n')


@pytest.fixture(scope='module')
def videos(folder) -> str:
    """Four classes of videos in this process's memory."""
    for split, names in {'train': ('ball/a.avi', 'water/c.avi'), 'test': ('ball/e.avi', 'water/f.mp4')}.items():
        for name in names:
            for number in (1, 2):
                target = f'ram://videos/{split}/{os.path.dirname(name)}_{number}/{os.path.basename(name)}'
                tf.io.gfile.makedirs(os.path.dirname(target))
                tf.io.gfile.copy(str(folder / split / name), target)
    return 'ram://videos'


def test_every_verb(videos, guarded, capfd):
    prepare = ['--mode=prepare', '--dataset=folder', f'--videos={videos}', '--records=ram://records',
               '--frame_size=36x40', '--clip_length=8']
    train = ['--mode=train', '--records=ram://records', '--workdir=ram://run', *TINY]
    _run(*prepare)
    _run(*train, '--checkpoint_every=1')
    _run('--mode=evaluate', '--records=ram://records', '--workdir=ram://run')
    _run('--mode=report', '--workdir=ram://run')
    _run('--mode=export', '--workdir=ram://run', '--export_dir=ram://export')
    _run('--mode=predict', '--workdir=ram://run', f'--input={videos}/test/ball_1/e.avi', '--json')
    for file_format in ('npz', 'hdf5', 'caffe'):
        _run('--mode=features', '--weights=ram://run/model.keras', f'--input={videos}',
             f'--output=ram://features/{file_format}', f'--format={file_format}')
    _run('--mode=features', '--weights=ram://run/model.keras', '--records=ram://records', '--split=train',
         '--output=ram://features/records')
    svm = ['--dataset=folder', f'--videos={videos}']
    _run('--mode=svm', '--features=ram://features/npz', *svm, '--workdir=ram://svm', '--embed=4', '--pca=2')
    _run('--mode=similarity', '--features=ram://features/hdf5', *svm, '--workdir=ram://pairs', '--pair_folds=2',
         '--pairs_per_fold=2', '--similarity_layers=fc6')
    _run('--mode=visualize', '--workdir=ram://run', f'--input={videos}/test', '--layers=conv1a', '--maps=1',
         '--top=1')
    capfd.readouterr()
    _run(*prepare)
    _run(*train)
    said = capfd.readouterr().out
    assert 'ram://records is complete: 8 videos, 0 skipped' in said
    assert 'ram://run/model.keras is trained already' in said
