# SPDX-License-Identifier: Apache-2.0
"""Full disks, folders that vanish, damaged checkpoints, records and locks: named, and worth that file at most."""

import contextlib
import json
import os
import pathlib
import shutil
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from c3d_tf import main
from c3d_tf.common import errors
from c3d_tf.common import locks
from c3d_tf.training import checkpoints
from c3d_tf.weights import artefact
from tests import kill_test

small = kill_test.small


def _main(verb, given, *more):
    return main.main(['c3d_tf', f'--mode={verb}', *(word.format(**given) for word in kill_test.VERBS[verb]), *more])


@contextlib.contextmanager
def _disk(path: pathlib.Path, kilobytes: int):
    path.mkdir()
    if os.geteuid() or os.system(f'mount -t tmpfs -o size={kilobytes}k none {path}'):
        pytest.skip('needs the right to mount a small disk')
    try:
        yield
    finally:
        os.system(f'umount {path}')


# Kilobytes that do not suffice: in one case for the first file, in the other for a later one.
@pytest.mark.parametrize('verb, kilobytes', [('evaluate', 8), ('features', 8), ('import_weights', 200), *(
    pytest.param(*case, marks=pytest.mark.soak) for case in (
        ('prepare', 8), ('train', 8), ('train', 700), ('export', 8), ('export', 400)))])
def test_a_full_disk(verb, kilobytes, small, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with _disk(tmp_path / 'out', kilobytes):
        assert _main(verb, small) == 1
        said = capfd.readouterr().err
        assert 'no space' in said.lower() and 'out' in said, said
        if (tmp_path / 'out').exists():
            kill_test.contents(tmp_path / 'out')
        os.system(f'mount -o remount,size=100m {tmp_path}/out')
        assert _main(verb, small) == 0
        for _ in kill_test.files_of(tmp_path / 'out', finished=True):
            pass


@pytest.fixture
def records(small, tmp_path) -> pathlib.Path:
    shutil.copytree(f'{small["root"]}/records', tmp_path / 'records')
    return tmp_path / 'records'


def _weights(path):
    return artefact.load(f'{path}/model.keras').model.get_weights()


def _flip(path, at=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


DAMAGE = {
    'a bit of the data': lambda folder: _flip(folder / 'ckpt-3.data-00000-of-00001'),
    'half of the data': lambda folder: os.truncate(folder / 'ckpt-3.data-00000-of-00001', 2000),
    'no data': lambda folder: (folder / 'ckpt-3.data-00000-of-00001').unlink(),
    'half of the index': lambda folder: os.truncate(folder / 'ckpt-3.index', 100),
    'the list': lambda folder: (folder / 'checkpoint').write_bytes(b'\xff{'),
    'no list': lambda folder: (folder / 'checkpoint').unlink(),
}


@pytest.mark.parametrize('what', DAMAGE)
def test_the_newest_checkpoint_that_can_be_read(what, tmp_path, capsys):
    value = tf.Variable(tf.zeros(1000))
    checkpoint = tf.train.Checkpoint(value=value)
    assert not checkpoints.restore(checkpoint, str(tmp_path))
    for step in (1, 2, 3):
        value.assign(tf.fill([1000], float(step)))
        checkpoints.save(checkpoint, str(tmp_path), step, 2)
    DAMAGE[what](tmp_path)
    assert checkpoints.restore(checkpoint, str(tmp_path))
    step = 3 if 'list' in what else 2
    assert value.numpy().tolist() == [step] * 1000
    said = capsys.readouterr().out
    assert (f'{tmp_path}/ckpt-3 is damaged (' in said and f'goes back to {tmp_path}/ckpt-2' in said) == (step == 2)
    for step in (3, 4):
        checkpoints.save(checkpoint, str(tmp_path), step, 2)
    assert sorted(path.name for path in tmp_path.glob('*.index')) == ['ckpt-3.index', 'ckpt-4.index']
    assert tf.train.latest_checkpoint(str(tmp_path)) == f'{tmp_path}/ckpt-4'


@pytest.mark.parametrize('folder', ['out/checkpoints', 'checkpoints', '.'])
def test_the_folder_may_be_relative(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = tf.Variable(0.0)
    checkpoint = tf.train.Checkpoint(value=value)
    for step in (1, 2, 3):
        value.assign(step)
        checkpoints.save(checkpoint, folder, step, 2)
    value.assign(0)
    assert [*checkpoints.find(folder)] == [2, 3]
    assert checkpoints.restore(checkpoint, folder) and value.numpy() == 3
    assert pathlib.Path(tf.train.latest_checkpoint(folder)) == pathlib.Path(folder, 'ckpt-3')


def test_what_a_damaged_checkpoint_came_from_is_kept(tmp_path):
    checkpoint = tf.train.Checkpoint(value=tf.Variable(1.0))
    for step in (6, 12):
        checkpoints.save(checkpoint, str(tmp_path), step, 2)
    os.truncate(tmp_path / 'ckpt-12.index', 10)
    assert checkpoints.restore(checkpoint, str(tmp_path))
    checkpoints.save(checkpoint, str(tmp_path), 9, 2)  # stopped there
    (tmp_path / 'ckpt-3.data-00000-of-00001').touch()
    assert checkpoints.restore(checkpoint, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'checkpoint', *(f'ckpt-{step}.{part}' for step in (6, 9) for part in ('data-00000-of-00001', 'index'))]


def test_nobody_starts_anew_unasked(tmp_path):
    checkpoint = tf.train.Checkpoint(value=tf.Variable(1.0))
    for step in (1, 2):
        checkpoints.save(checkpoint, str(tmp_path), step, 2)
        os.truncate(tmp_path / f'ckpt-{step}.index', 10)
    with pytest.raises(errors.RunError, match=f'none of the 2 checkpoints in {tmp_path} can be read; delete'):
        checkpoints.restore(checkpoint, str(tmp_path))


def test_a_damaged_checkpoint_costs_its_own_steps(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert _main('train', small) == 0
    expected, out = _weights('out'), tmp_path / 'out'
    (out / 'model.keras').unlink()  # as a run that was killed before its end
    said = json.loads((out / 'train.json').read_text())
    (out / 'train.json').write_text(json.dumps({'status': 'running', 'settings': said['settings']}))
    _flip(out / 'checkpoints/ckpt-60.data-00000-of-00001')
    assert _main('train', small) == 0
    said = capsys.readouterr().out
    assert 'ckpt-60 is damaged (' in said and 'goes back to out/checkpoints/ckpt-56' in said
    assert 'continues at step 56 of 60' in said
    for ours, theirs in zip(_weights('out'), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_damaged_record_costs_its_shard(small, records, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shard = records / 'train-00000-of-00001.tfrecord'
    before = {path.name: path.read_bytes() for path in records.iterdir()}
    times = {name: (records / name).stat().st_mtime_ns for name in before}
    _flip(shard)
    given = {**small, 'root': tmp_path}
    shutil.copy(f'{small["root"]}/model.keras', tmp_path)
    assert _main('train', given) == 1
    assert f'{shard} is damaged (corrupted record at ' in capsys.readouterr().err
    assert _main('evaluate', given, '--split=train') == 1
    assert f'{shard} is damaged (corrupted record at ' in capsys.readouterr().err
    words = [f'--weights={tmp_path}/model.keras', f'--records={records}', '--split=train', '--output=features']
    assert main.main(['c3d_tf', '--mode=features', '--layers=prob', *words]) == 1
    said = capsys.readouterr().err
    assert '1 videos could not be read' in said and f'{shard} is damaged at byte ' in said
    assert json.loads((tmp_path / 'features/features.json').read_text())['skipped'] == 1

    os.truncate(shard, 1000)  # also at the edge of a record: its length is in the index
    assert _main('train', given) == 1 and f'{shard} is gone or not as long as it was' in capsys.readouterr().err
    lists = [f'--{name}_list={small["root"]}/{name}.txt' for name in ('train', 'test')]
    words = [f'--videos={small["videos"]}', '--dataset=list', *lists, '--val_fraction=0.2', '--frame_size=24x32',
             '--max_failures=-1', '--num_workers=1', f'--records={records}']
    assert main.main(['c3d_tf', '--mode=prepare', *words]) == 0
    assert f'{shard} is gone or not as long as it was (1 such files)' in capsys.readouterr().out
    (records / 'prepare.flags').unlink()
    assert {path.name: path.read_bytes() for path in records.iterdir()} == before
    test = 'test-00000-of-00001.tfrecord'
    assert (records / test).stat().st_mtime_ns == times[test]


@pytest.mark.soak
def test_records_that_vanish(small, records, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = {**small, 'root': tmp_path}

    def vanish():
        while not (tmp_path / 'out/checkpoints/ckpt-7.index').exists():
            time.sleep(0.01)
        records.rename(tmp_path / 'elsewhere')

    thread = threading.Thread(target=vanish, daemon=True)
    thread.start()
    assert _main('train', given) == 1
    thread.join()
    said = capsys.readouterr().err
    assert f'{records}/train-00000-of-00001.tfrecord' in said and 'No such file' in said
    (tmp_path / 'elsewhere').rename(records)
    assert _main('train', given) == 0 and 'continues at step' in capsys.readouterr().out


def test_videos_whose_mount_was_away_are_tried_again(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mount = tmp_path / 'videos'  # a folder that is renamed: its files' own times stay, as those of a mount
    shutil.copytree(small['videos'], mount)
    shutil.copy(mount / '0.avi', tmp_path / 'here.avi')
    (tmp_path / 'all.txt').write_text('here.avi\n' + ''.join(f'videos/{i}.avi\n' for i in range(12)))
    words = ['c3d_tf', '--mode=features', f'--weights={small["root"]}/model.keras', '--layers=prob',
             '--output=out', f'--input={tmp_path}/all.txt']
    mount.rename(tmp_path / 'away')
    assert main.main(words) == 1
    assert '12 videos could not be read' in capsys.readouterr().err
    (tmp_path / 'away').rename(mount)
    assert main.main(words) == 0
    assert '13 of 13 videos' in capsys.readouterr().out


def test_a_lock_that_was_being_written_by_a_killed_process(tmp_path):
    with locks.Locks(str(tmp_path / 'locks'), 600) as held:
        path = tmp_path / 'locks' / f'{locks.digest("video")}.lock'
        path.parent.mkdir()
        path.touch()
        assert not held.take('video')  # it may be written just now
        os.utime(path, (time.time() - 11,) * 2)
        assert held.take('video')
