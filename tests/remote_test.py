# SPDX-License-Identifier: Apache-2.0
"""Every verb on ram:// in one process, which proves that no `open` and no `os` is left on such paths; and
the refusal of what nothing serves."""

import builtins
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
from c3d_tf.common import files
from c3d_tf.common import locks
from c3d_tf.common import storage
from c3d_tf.data import descriptors

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
    assert main.main(['c3d_tf', *arguments]) == 0, arguments


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
    _run('--flagfile=ram://run/train.flags')
    said = capfd.readouterr().out
    assert 'ram://records is complete: 8 videos, 0 skipped' in said
    assert 'ram://run/model.keras is trained already' in said


@pytest.mark.parametrize(('words', 'expected'), [
    (['--mode=train', '--records=foo://records', '--workdir=w'], 'foo:// is served by no package'),
    (['--mode=train', '--records=s3://bucket/records', '--workdir=w'], 'needs the package tensorflow-io'),
    (['--mode=svm', '--features=f,az://account/container/f', '--workdir=w'], 'requirements-io.txt'),
    (['--mode=train', '--records=ram://nowhere', '--workdir=w'], 'ram://nowhere: no index.json there'),
    (['--mode=predict', '--weights=ram://no.keras', '--input=ram://no.avi'], 'ram://no.avi: no such file'),
])
def test_wrong_paths_end_with_the_remedy(words, expected, capfd):
    assert main.main(['c3d_tf', *words]) == 2
    assert expected in capfd.readouterr().err


def test_a_remote_file_is_a_file_of_python(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / 'x').write_bytes(content)
    storage.copy(str(tmp_path / 'x'), 'ram://reader/x')
    with storage.open('ram://reader/x', 'rb') as file:
        assert file.read(3) == content[:3] and file.tell() == 3
        assert file.seek(-5, os.SEEK_END) == len(content) - 5 and file.read() == content[-5:]
        assert file.seek(2_000_000) == 2_000_000 and file.read(9) == content[2_000_000:2_000_009]
        assert file.seek(1) == 1 and file.read() == content[1:]
    with pytest.raises(FileNotFoundError):
        storage.open('ram://reader/nothing')


def test_folders_are_as_those_of_os(tmp_path):
    for root in (str(tmp_path), 'ram://tree'):
        for name in ('a/x.txt', 'a/b/y.txt', 'z[1]?.txt'):
            storage.makedirs(os.path.dirname(f'{root}/{name}'))
            files.write_text(f'{root}/{name}', 'long text')
            files.write_text(f'{root}/{name}', 'text')
    for function in (
            lambda root: sorted(storage.listdir(root)),
            lambda root: sorted((entry.name, entry.is_dir(), entry.path[len(root):])
                                for entry in storage.scandir(root)),
            lambda root: sorted((folder[len(root):], sorted(below), sorted(names))
                                for folder, below, names in storage.walk(root)),
            lambda root: [folder[len(root):] for folder, _, _ in storage.walk(root, topdown=False)],
            lambda root: [path[len(root):] for path in storage.glob(f'{root}/{storage.escape("z[1]?")}.*')],
            lambda root: storage.relpath(f'{root}/a/b', f'{root}/a'),
            lambda root: storage.relpath(root, f'{root}/a'),
            lambda root: storage.commonpath([f'{root}/a/b', f'{root}/a/c'])[len(root):],
            lambda root: storage.getsize(f'{root}/a/x.txt'),
            lambda root: [storage.isfile(f'{root}/{name}') for name in ('a', 'a/x.txt', 'a/n')],
            lambda root: [storage.isdir(f'{root}/{name}') for name in ('a', 'a/x.txt', 'a/n')]):
        assert function(str(tmp_path)) == function('ram://tree')


def test_two_processes_do_not_share_a_lock_for_long():
    with locks.Locks('ram://locks', 60) as one, locks.Locks('ram://locks', 60) as other:
        assert one.take('a') and not other.take('a') and other.take('b')
        files.write_json(one._path('a'), other._owner)  # as when both had seen none
        assert not one.owns('a')
        one.release('a')
        assert not other.free(locks.digest('a'))


def test_descriptors_below_a_folder_are_cleared():
    for name in ('a/b/x', 'y'):
        with files.replacing(f'ram://clear/{name}.npz') as temporary:
            with open(temporary, 'wb') as file:
                np.savez(file, protocol=json.dumps({'made_by': 'c3d_tf features'}))
    files.write_text('ram://clear/a/notes.txt', 'not ours')
    descriptors.clear('ram://clear/')
    assert [names for _, _, names in storage.walk('ram://clear')] == [[], ['notes.txt'], []]
