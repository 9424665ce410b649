# SPDX-License-Identifier: Apache-2.0
"""`kill -9` at random moments of every verb: whole files only, and in the end those of an unbroken run.

    KILLS=30 python -m pytest -m soak tests/kill_test.py -s       30 kills a verb, on real video

Real processes: a verb and its workers are a process group, which is killed as a whole.
"""

import collections
import io
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import h5py
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from c3d_tf import models
from c3d_tf import prepare
from c3d_tf.data import datasets
from c3d_tf.data import preprocess
from c3d_tf.weights import artefact
from tests import conftest
from tests import weight_files

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZE = (24, 32)
# What an unbroken run may have otherwise: fields of JSON and curves that are times or rates.
TIMES = {'seconds', 'clips_per_second', 'input_wait', 'date_saved'}
UNFINISHED = ('.progress', '.work', 'locks')  # folders of what a run is at
IN_A_ROW = 5  # kills of one run before it may end

VERBS = {
    'prepare': ['--dataset=list', '--videos={videos}', '--train_list={root}/train.txt',
                '--test_list={root}/test.txt', '--val_fraction=0.2', '--frame_size=24x32', '--max_failures=-1',
                '--num_workers=2', '--records=out'],
    'train': ['--records={root}/records', '--workdir=out', '--model=c3d', '--width=0.03', '--crop_size=20',
              '--clip_length=8', '--mean=channel', '--initializer=he', '--dropout=0.3', '--flip',
              '--random_crop', '--ema=0.9', '--batch_size=4', '--steps=60', '--checkpoint_every=7',
              '--log_every=4'],
    'evaluate': ['--records={root}/records', '--weights={root}/model.keras', '--workdir=out', '--clips=4'],
    'features': ['--weights={root}/model.keras', '--input={videos}', '--layers=conv5b,prob', '--output=out',
                 '--max_failures=-1', '--num_workers=2'],
    'import_weights': ['--source={root}/caffe', '--mean={root}/mean.binaryproto', '--weights=out/model.keras'],
    'export': ['--weights={root}/model.keras', '--export_dir=out', '--layers=fc6'],
}


def _inputs(root, videos, train, test):
    """Writes what the verbs read: lists, records, weights."""
    for name, rows in (('train', train), ('test', test)):
        (root / f'{name}.txt').write_text(''.join(f'{row}\n' for row in rows))
    dataset = datasets.load('list', videos=str(videos), train_list=f'{root}/train.txt',
                            test_list=f'{root}/test.txt', val_fraction=0.2)
    prepare.prepare(dataset, f'{root}/records', frame_size=SIZE, max_failures=-1)
    model = models.build('c3d', num_classes=len(dataset.class_names), clip_length=8, crop_size=20, width=0.03)
    spec = preprocess.Preprocessing(SIZE, 20, 8, 1, np.full(3, 100, np.float32))
    artefact.save(f'{root}/model.keras', artefact.Artefact(model, spec, dataset.class_names, {}))
    weight_files.caffe_v1_0(root / 'caffe', weight_files.thin(filters=2))
    weight_files.mean_v1_0(root / 'mean.binaryproto', np.full((3, 16, 128, 171), 100, np.float32))
    return {'root': root, 'videos': videos}


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp('kill')
    rows = [f'{i}.avi {i % 2}' for i in range(12)]
    for i in range(12):
        conftest.counting_video(root / f'videos/{i}.avi', 20 + i)
    return _inputs(root, root / 'videos', rows[:8], rows[8:])


@pytest.fixture(scope='module')
def real(tmp_path_factory, shared):
    """A fifth of J-HMDB's twelve classes, copied, and a file that is no video."""
    root = tmp_path_factory.mktemp('kill_real')
    lists = [(shared / f'data/jhmdb12/{name}.txt').read_text().split('\n')[:-1:5] for name in ('train', 'test')]
    for row in lists[0] + lists[1]:
        name = row.rsplit(' ', 1)[0]
        (root / 'videos' / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shared / 'data/jhmdb12/videos' / name, root / 'videos' / name)
    (root / 'videos/broken.avi').write_bytes(b'no video')
    return _inputs(root, root / 'videos', [*lists[0], 'broken.avi 3'], lists[1])


class _Run:
    """A verb's process, and all that it starts."""

    def __init__(self, verb: str, given: dict, folder: pathlib.Path):
        folder.mkdir(exist_ok=True)
        self.began = time.monotonic()
        self._said = open(folder / 'said', 'w+', encoding='utf-8')
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'c3d_tf.main', f'--mode={verb}',
             *(word.format(**given) for word in VERBS[verb])],
            cwd=folder, env={**os.environ, 'PYTHONPATH': str(ROOT)}, stdout=self._said,
            stderr=subprocess.STDOUT, start_new_session=True)

    def kill_at(self, seconds: float) -> bool:
        """Kills all of it so long after its start; False where it had ended before."""
        try:
            self._process.wait(max(0, self.began + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            return True
        self.end()
        return False

    def stop_at(self, seconds: float, number: int) -> int:
        """Stops it as `kill` or a terminal does so long after its start; returns its exit code."""
        try:
            return self._process.wait(max(0, self.began + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            if number == signal.SIGINT:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)
            return self._process.wait(120)

    def end(self) -> float:
        """Waits for its end; returns how long it took."""
        code = self._process.wait(600)
        self._said.seek(0)
        assert code == 0, self._said.read()
        return time.monotonic() - self.began


def files_of(out: pathlib.Path, *, finished: bool):
    """Yields (name, path) of all files under their final names."""
    for path in sorted(out.rglob('*')):
        name = str(path.relative_to(out))
        unfinished = name.split('/')[0] in UNFINISHED or '.tmp' in name or '.writing-' in name
        if finished:
            assert not unfinished, f'{name} was left'
        if path.is_file() and not unfinished:
            yield name, path


def _tables(path: str) -> dict[str, bytes]:
    """Returns name → bytes of every variable of a checkpoint; all of it is read and its sums checked."""
    reader = tf.train.load_checkpoint(path)
    found = {}
    for name in reader.get_variable_to_shape_map():
        value = reader.get_tensor(name)
        if name != '_CHECKPOINTABLE_OBJECT_GRAPH':  # a message whose maps are in no order
            found[name] = value if isinstance(value, bytes) else value.tobytes()
    return found


def _h5(data: bytes) -> dict[str, bytes]:
    found = {}
    with h5py.File(io.BytesIO(data)) as file:
        file.visititems(lambda name, item: found.update({name: item[()].tobytes()})
                        if isinstance(item, h5py.Dataset) else None)
    return found


def _without_times(value):
    if isinstance(value, dict):
        return {key: _without_times(inner) for key, inner in value.items() if key not in TIMES}
    return [_without_times(inner) for inner in value] if isinstance(value, list) else value


def _curve(path: pathlib.Path) -> dict:
    """Returns (curve, text or picture, step) → value of an events file."""
    found = {}
    for event in tf.compat.v1.train.summary_iterator(str(path)):
        for value in event.summary.value:
            if value.tag not in TIMES:
                array = tf.make_ndarray(value.tensor)  # of text and pictures, objects
                found[value.tag, event.step] = array.tolist() if array.dtype == object else array.tobytes()
    return found


def _content(path: pathlib.Path):
    """Returns what must be equal of a file; raises where it is not whole."""
    data = path.read_bytes()
    assert data or path.suffix == '.jsonl', f'{path} is empty'
    match path.suffix:
        case '.json':
            return _without_times(json.loads(data))
        case '.jsonl':
            return [json.loads(line) for line in data.decode().splitlines()]
        case '.tfrecord':
            assert all(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())  # checks the sums
        case '.npy' | '.npz':
            np.load(path, allow_pickle=False)
        case '.png':
            PIL.Image.open(path).load()
        case '.keras':
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
                members = {name: archive.read(name) for name in archive.namelist()}
            arrays = _h5(members.pop('model.weights.h5'))
            return arrays, {name: _without_times(json.loads(member)) if name.endswith('.json') else member
                            for name, member in members.items()}
        case '.index':
            return _tables(str(path.with_suffix('')))
    return data


# Written anew by each run, or compared by way of another file.
_OTHERWISE = ('events.out.', 'checkpoint', '.data-', 'fingerprint.pb', 'saved_model.pb')


def contents(out: pathlib.Path) -> dict:
    """Returns the content of all files under their final names, each whole."""
    return {name: _content(path) for name, path in files_of(out, finished=False)
            if not any(other in path.name for other in _OTHERWISE)}


def _assert_same(out: pathlib.Path, whole: pathlib.Path) -> int:
    """Returns how many bytes were compared."""
    names = [{name for name, _ in files_of(folder, finished=True) if 'events.out.' not in name}
             for folder in (out, whole)]
    assert names[0] == names[1]
    ours, theirs = contents(out), contents(whole)
    for name, content in theirs.items():
        assert ours[name] == content, name
    curves = [collections.ChainMap(*(_curve(path) for path in sorted(folder.rglob('events.out.*'), reverse=True)))
              for folder in (out, whole)]
    # The clock says at which steps clips are drawn, and each start draws some; those of one step are the same.
    assert {tag for tag, _ in curves[0].keys() ^ curves[1].keys()} <= {'clips'}
    for key in curves[0].keys() & curves[1].keys():
        assert curves[0][key] == curves[1][key], key
    return sum(path.stat().st_size for name, path in files_of(whole, finished=True))


def _kill(verb: str, kills: int, given: dict, tmp_path: pathlib.Path, seed: int) -> None:
    """Kills runs of a verb `kills` times at random moments, lets them end, and compares."""
    whole, killed = tmp_path / 'whole', tmp_path / 'run'
    run = _Run(verb, given, killed)
    first = None
    while run._process.poll() is None:  # nothing is on disk until Python has read its modules
        if first is None and (killed / 'out').exists():
            first = time.monotonic() - run.began
        time.sleep(0.01)
    seconds = run.end()
    if verb == 'train':  # else every run would begin anew, and end alike
        assert len(list((killed / 'out/checkpoints').glob('ckpt-*.index'))) == 2
    killed.rename(whole)  # flagfiles have the folder's name: both are made in one of the same name
    rng, done, in_a_row, ends, compared = random.Random(seed), 0, 0, 0, 0
    while done < kills or in_a_row:
        run = _Run(verb, given, killed)
        moment = rng.uniform(0.9 * (first or 0), seconds) if done < kills and in_a_row < IN_A_ROW else 600
        if run.kill_at(moment):
            done, in_a_row = done + 1, in_a_row + 1
            if (killed / 'out').exists():
                contents(killed / 'out')
        else:
            compared += _assert_same(killed / 'out', whole / 'out')
            ends, in_a_row = ends + 1, 0
            shutil.rmtree(killed)
    print(f'\n{verb}: {done} kills between {0.9 * (first or 0):.1f} and {seconds:.1f} s, {ends} ends, '
          f'{compared:,} bytes equal')


@pytest.mark.parametrize('verb', ['prepare', 'import_weights'])
def test_killed(verb, small, tmp_path):
    _kill(verb, 1, small, tmp_path, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize('verb', VERBS)
def test_killed_often(verb, real, tmp_path):
    _kill(verb, int(os.environ.get('KILLS', '5')), real, tmp_path, seed=2)


@pytest.mark.soak
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('verb', VERBS)
def test_stopped(verb, number, real, tmp_path):
    seconds = _Run(verb, real, tmp_path / 'whole').end()
    rng, stops = random.Random(3), []
    for _ in range(3):
        moment = rng.uniform(0.3 * seconds, 0.9 * seconds)  # Python's own start is not ours
        stops.append((round(moment, 1), _Run(verb, real, tmp_path / 'run').stop_at(moment, number)))
    _Run(verb, real, tmp_path / 'run').end()
    list(files_of(tmp_path / 'run/out', finished=True))
    print(f'\n{verb}, {number.name}: exit codes by second {stops} of {seconds:.1f}')
    assert {code for _, code in stops} <= {0, 75} and stops[0][1] == 75
