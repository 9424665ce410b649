# SPDX-License-Identifier: Apache-2.0
import contextlib
import csv
import functools
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from c3d_tf import features
from c3d_tf import main
from c3d_tf import models
from c3d_tf import prepare
from c3d_tf.common import errors
from c3d_tf.common import locks
from c3d_tf.data import datasets
from c3d_tf.data import decoders
from c3d_tf.data import inputs
from c3d_tf.data import preprocess
from c3d_tf.data import sources
from c3d_tf.data import video
from c3d_tf.weights import artefact
from tests import conftest

ROOT = pathlib.Path(main.__file__).resolve().parents[1]
SIZE = (24, 32)


def _artefact(path, *, short='loop', stride=1, width=0.05, provenance=None) -> str:
    keras.utils.set_random_seed(1)
    model = models.build('c3d', num_classes=5, crop_size=20, width=width, initializer='he')
    rng = np.random.default_rng(0)
    spec = preprocess.Preprocessing(SIZE, 20, 16, stride, rng.random((16, *SIZE, 3), np.float32) * 99, short)
    names = tuple(f'class_{i}' for i in range(5))
    artefact.save(str(path), artefact.Artefact(model, spec, names, provenance or {}))
    return str(path)


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> str:
    """A thin C3D with a mean volume, whose fc layers have the names of the original's Sports-1M file."""
    names = {'fc6': 'fc6-1', 'fc7': 'fc7-1', 'fc8': 'fc8-1'}
    return _artefact(tmp_path_factory.mktemp('weights') / 'model.keras', provenance={'source_names': names})


@pytest.fixture(scope='module')
def noise(tmp_path_factory) -> pathlib.Path:
    """Videos in which no two frames are alike, and files that are none."""
    root = tmp_path_factory.mktemp('noise')
    rng = np.random.default_rng(0)
    for name, frames in {'a/one.avi': 41, 'a/two.mp4': 33, 'b/three.avi': 16, 'b/short.avi': 7}.items():
        conftest.write_video(root / name, rng.integers(0, 256, (frames, *SIZE, 3), np.uint8),
                             codec='libx264' if name.endswith('mp4') else 'mpeg4')
    return root


def _extract(output, weights, videos='', **options):
    return features.extract(str(output), weights, videos=str(videos),
                            **{'batch_size': 4, 'num_workers': 2, **options})


def _load(path) -> dict:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def _tree(output) -> dict:
    """Every result by its path, but what tells of the run itself."""
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(pathlib.Path(output).rglob('*'))
            if path.is_file() and path.suffix != '.flags'}


def _expected(weights, path, layer, starts):
    """Layer by layer without features' code: all frames at once, one clip after the other."""
    net = artefact.load(weights)
    images = np.stack([frame.image for frame in sources.frames(str(path), size=SIZE)])
    images = images[np.arange(max(len(images), 16)) % len(images)]
    clips = preprocess.for_inference(tf.constant(np.stack([images[s:s + 16] for s in starts])), net.preprocessing)
    return keras.Model(net.model.input, net.model.get_layer(layer).output)(clips).numpy()


@pytest.fixture(scope='module')
def done(weights, noise, tmp_path_factory):
    output = tmp_path_factory.mktemp('features')
    _extract(output, weights, noise, layers=('fc6-1', 'prob', 'conv5b', 'pool2'))
    return output


def test_a_clip_is_what_the_network_gives_for_its_frames(done, weights, noise):
    found = _load(done / 'a/one.npz')
    assert found['start_frame'].tolist() == [0, 8, 16, 24] and found['start_frame'].dtype == np.int64
    np.testing.assert_allclose(found['time'], [0, 0.32, 0.64, 0.96])
    fc6 = _expected(weights, noise / 'a/one.avi', 'fc6', [0, 8, 16, 24])
    assert found['fc6'].dtype == np.float32 and found['fc6'].shape == (4, 205)
    np.testing.assert_allclose(found['fc6'], fc6, rtol=1e-5, atol=1e-5 * np.abs(fc6).max())
    logits = _expected(weights, noise / 'a/one.avi', 'fc8', [0, 8, 16, 24])
    np.testing.assert_allclose(found['prob'], tf.nn.softmax(logits), rtol=1e-4)
    assert len(set(found['pool2'].shape[1:])) == 3  # no axis can be taken for another but H and W
    for layer in ('conv5b', 'pool2'):
        value = _expected(weights, noise / 'a/one.avi', layer, [0, 8, 16, 24]).transpose(0, 4, 1, 2, 3)
        assert found[layer].shape == value.shape
        np.testing.assert_allclose(found[layer], value, rtol=1e-4, atol=1e-5 * np.abs(value).max())


def test_the_descriptor_of_a_video_is_the_mean_of_length_one(done):
    for layer in ('fc6', 'conv5b'):
        found = _load(done / 'a/two.npz')
        mean = found[layer].astype(np.float64).mean(axis=0).ravel()
        np.testing.assert_allclose(found[f'video_{layer}'], mean / np.linalg.norm(mean), rtol=1e-5, atol=1e-8)
        assert np.linalg.norm(found[f'video_{layer}']) == pytest.approx(1, abs=1e-6)


def test_tails_are_dropped_and_short_videos_start_over(done, weights, noise):
    assert _load(done / 'b/three.npz')['start_frame'].tolist() == [0]
    assert _load(done / 'a/two.npz')['start_frame'].tolist() == [0, 8, 16]  # of 33 frames
    short = _load(done / 'b/short.npz')
    np.testing.assert_allclose(short['fc6'], _expected(weights, noise / 'b/short.avi', 'fc6', [0]), rtol=1e-4,
                               atol=1e-5)
    protocol = json.loads(str(short['protocol']))
    assert (protocol['frames'], protocol['clips'], protocol['settings']['step']) == (7, 1, 8)
    result = json.loads((done / 'features.json').read_text())
    assert (result['videos'], result['clips'], result['skipped']) == (4, 9, 0)
    assert not [path for path in done.rglob('*') if path.name in ('locks', '.work', '.skipped')]


def test_a_video_gives_the_same_bits_alone_and_among_others(done, weights, noise, tmp_path):
    """In batches of one size; a batch of another size may take another kernel."""
    _extract(tmp_path, weights, noise / 'a/two.mp4', layers=('fc6', 'prob', 'conv5b', 'pool2'))
    alone, among = _load(tmp_path / 'two.npz'), _load(done / 'a/two.npz')
    for key in alone.keys() - {'protocol'}:
        np.testing.assert_array_equal(alone[key], among[key])


def test_one_decoder_and_three_give_the_same_arrays(done, weights, noise, tmp_path):
    _extract(tmp_path, weights, noise, layers=('fc6', 'prob', 'conv5b', 'pool2'), num_workers=1)
    for path in tmp_path.rglob('*.npz'):
        other = _load(done / path.relative_to(tmp_path))
        for key, value in _load(path).items():
            np.testing.assert_array_equal(value, other[key])


@pytest.mark.parametrize('pool', ['max', 'conv_pooling'])
def test_pools(pool, weights, noise, tmp_path):
    _extract(tmp_path, weights, noise / 'a/one.avi', layers=('fc6', 'pool2'), pool=pool)
    found = _load(tmp_path / 'one.npz')
    for layer, axes in (('fc6', 0), ('pool2', 0 if pool == 'max' else (0, 2))):
        value = found[layer].max(axis=axes).ravel()
        np.testing.assert_allclose(found[f'video_{layer}'], value / np.linalg.norm(value), rtol=1e-5, atol=1e-8)
    assert found['video_pool2'].size == np.prod(found['pool2'].shape[1:]) // (1 if pool == 'max' else 8)


def test_a_stride_and_the_policy_for_short_videos(noise, tmp_path):
    weights = _artefact(tmp_path / 'w.keras', short='drop', stride=2)
    with pytest.raises(errors.RunError, match='2 videos could not be read, 0 are tolerated'):
        _extract(tmp_path / 'out', weights, noise)
    result = _extract(tmp_path / 'out', weights, noise, max_failures=2)
    assert (result['videos'], result['skipped'], result['settings']['step']) == (2, 2, 16)
    found = _load(tmp_path / 'out/a/one.npz')  # a clip spans 31 of its 41 frames
    assert found['start_frame'].tolist() == [0]
    net = artefact.load(weights)
    images = np.stack([frame.image for frame in sources.frames(str(noise / 'a/one.avi'), size=SIZE)])
    expected = keras.Model(net.model.input, net.model.get_layer('fc6').output)(
        preprocess.for_inference(tf.constant(images[None, :31:2]), net.preprocessing))
    np.testing.assert_allclose(found['fc6'], expected, rtol=1e-4, atol=1e-5)
    reasons = [json.loads(line)['reason'] for line in (tmp_path / 'out/skipped.jsonl').read_text().splitlines()]
    assert reasons == ['7 frames, a clip needs 31', '16 frames, a clip needs 31']


def test_hdf5_is_one_file_that_grows(done, weights, noise, tmp_path):
    videos = tmp_path / 'videos'
    shutil.copytree(noise / 'a', videos / 'a')
    layers = {'layers': ('fc6', 'prob', 'conv5b', 'pool2'), 'file_format': 'hdf5'}
    _extract(tmp_path / 'out', weights, videos, **layers)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'features.h5', 'features.json', 'skipped.jsonl']
    shutil.copytree(noise / 'b', videos / 'b')
    (videos / 'a/two.mp4').unlink()  # what was done stays
    assert _extract(tmp_path / 'out', weights, videos, **layers)['videos'] == 3
    with h5py.File(tmp_path / 'out/features.h5') as file:
        for name in ('a/one', 'a/two', 'b/three', 'b/short'):
            expected = _load(done / f'{name}.npz')
            assert set(file[name]) == set(expected)
            for key in expected.keys() - {'protocol'}:
                np.testing.assert_array_equal(file[name][key][()], expected[key])
            assert json.loads(file[name]['protocol'].asstr()[()])['video'] == name
    before = (tmp_path / 'out/features.h5').stat().st_mtime_ns
    _extract(tmp_path / 'out', weights, videos, **layers)
    assert (tmp_path / 'out/features.h5').stat().st_mtime_ns == before
    (tmp_path / 'out/features.h5').write_bytes((tmp_path / 'out/features.h5').read_bytes()[:1000])
    _extract(tmp_path / 'out', weights, videos, **layers)
    with h5py.File(tmp_path / 'out/features.h5') as file:
        np.testing.assert_array_equal(file['a/one']['fc6'][()], _load(done / 'a/one.npz')['fc6'])


@pytest.mark.parametrize('kind', ['video', 'frm'])
def test_blobs_have_the_names_and_headers_of_the_original(kind, weights, shared, tmp_path):
    name = 'v_ApplyEyeMakeup_g01_c01'
    path = shared / f'golden/input/{name}.avi'
    if kind == 'frm':
        with tarfile.open(shared / f'golden/input/{name}_frames.tar.gz') as archive:
            archive.extractall(tmp_path / 'frames', filter='data')
        path = tmp_path / 'frames' / name
    options = {'layers': ('fc6-1', 'fc7', 'pool5', 'prob'), 'step': 16}
    _extract(tmp_path / 'blobs', weights, path, **options, file_format='caffe')
    _extract(tmp_path / 'npz', weights, path, **options)
    arrays = _load(tmp_path / f'npz/{name}.npz')
    folder = tmp_path / 'blobs' / name
    golden = shared / f'golden/tool_output_{kind}' / name
    assert {p.name for p in folder.iterdir()} == {p.name for p in golden.iterdir()} | {'.complete.json'}
    for number, start in enumerate(sorted({p.stem for p in golden.iterdir()})):
        for blob in ('fc6-1', 'fc7-1', 'pool5', 'prob'):
            data = (folder / f'{start}.{blob}').read_bytes()
            ours = struct.unpack('<5i', data[:20])
            theirs = struct.unpack('<5i', (golden / f'{start}.{blob}').read_bytes()[:20])
            value = arrays[blob.removesuffix('-1')][number]
            assert ours == (1, *value.shape, *[1] * (4 - value.ndim))
            assert [n == 1 for n in ours[:1] + ours[2:3]] == [n == 1 for n in theirs[:1] + theirs[2:3]]
            np.testing.assert_array_equal(np.frombuffer(data[20:], '<f4'), value.ravel())


def test_blobs_are_done_again_where_one_is_gone(weights, noise, tmp_path):
    _extract(tmp_path, weights, noise, file_format='caffe')
    before = _tree(tmp_path)
    (tmp_path / 'a/one/000008.fc6-1').unlink()
    _extract(tmp_path, weights, noise, file_format='caffe')
    assert _tree(tmp_path) == before
    _extract(tmp_path, weights, noise, file_format='npz', overwrite=True)
    assert sorted(path.name for path in tmp_path.rglob('*') if path.is_file()) == [
        'features.json', 'one.npz', 'short.npz', 'skipped.jsonl', 'three.npz', 'two.npz']


def test_the_same_command_does_nothing_twice(weights, noise, tmp_path, capsys):
    _extract(tmp_path, weights, noise)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.npz')}
    (tmp_path / 'own.npz').write_bytes(b'of the user')
    _extract(tmp_path, weights, noise)
    assert 'features: 4 of 4 are there already' in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}
    (tmp_path / 'a/one.npz').write_bytes((tmp_path / 'a/one.npz').read_bytes()[:-100])  # it does not open
    _extract(tmp_path, weights, noise)
    assert '3 of 4 are there already' in capsys.readouterr().out
    assert len(_load(tmp_path / 'a/one.npz')['fc6']) == 4
    with pytest.raises(errors.UsageError, match='step: was 8, now 16'):
        _extract(tmp_path, weights, noise, step=16)
    assert len(_load(tmp_path / 'a/one.npz')['fc6']) == 4
    _extract(tmp_path, weights, noise, step=16, overwrite=True)
    assert len(_load(tmp_path / 'a/one.npz')['fc6']) == 2
    assert (tmp_path / 'own.npz').read_bytes() == b'of the user'
    with pytest.raises(errors.UsageError, match='videos: was'):  # or its x.avi would be taken for ours
        _extract(tmp_path, weights, noise / 'a', step=16)


def test_png_records_give_the_bits_of_the_videos(weights, noise, tmp_path):
    shutil.copytree(noise, tmp_path / 'v/test')
    for max_frames in (304, 24):  # one record a video; several, which overlap
        target = tmp_path / f'r{max_frames}'
        prepare.prepare(datasets.load('folder', videos=str(tmp_path / 'v')), str(target), frame_size=SIZE,
                        frame_format='png', max_frames=max_frames, num_workers=1)
        _extract(tmp_path / f'out{max_frames}', weights, records_dir=str(target), step=5)
    _extract(tmp_path / 'videos', weights, tmp_path / 'v', step=5)
    names = sorted(str(path.relative_to(tmp_path / 'videos')) for path in (tmp_path / 'videos').rglob('*.npz'))
    assert names == ['test/a/one.npz', 'test/a/two.npz', 'test/b/short.npz', 'test/b/three.npz']
    for name in names:
        expected = _load(tmp_path / 'videos' / name)
        for output in ('out304', 'out24'):
            found = _load(tmp_path / output / name)
            for key in expected.keys() - {'protocol'}:
                np.testing.assert_array_equal(found[key], expected[key])


def test_no_clip_reaches_from_one_random_span_to_the_next(weights, tmp_path):
    conftest.counting_video(tmp_path / 'v/test/a/long.avi', 60)
    prepare.prepare(datasets.load('folder', videos=str(tmp_path / 'v')), str(tmp_path / 'r'), frame_size=SIZE,
                    test_clips_per_video=2, clip_seconds=0.7, seed=3, num_workers=1)
    _extract(tmp_path / 'out', weights, records_dir=str(tmp_path / 'r'), step=1)
    found = _load(tmp_path / 'out/test/a/long.npz')
    jumps = np.rint(np.diff(found['time']) * 25).astype(int)
    assert len(jumps) == 5 and (jumps == 1).sum() == 4 and jumps.max() > 16  # 18 frames give 3 clips, twice
    assert found['start_frame'].tolist() == [0, 1, 2, 18, 19, 20]


def test_every_odd_file_is_described_or_reported(weights, shared, tmp_path):
    """The verdicts are those of prepare."""
    with open(shared / 'data/odd/EXPECT.tsv', encoding='utf-8') as file:
        expected = {row['file']: int(row['pyav_frames'] or 0) for row in csv.DictReader(file, delimiter='\t')}
    shutil.copytree(shared / 'data/odd', tmp_path / 'odd')
    (tmp_path / 'odd/EXPECT.tsv').unlink()
    os.mkfifo(tmp_path / 'odd/x.mp4')
    result = _extract(tmp_path / 'out', weights, tmp_path / 'odd', max_failures=-1, video_timeout=5.0)
    frames = {}
    for path in (tmp_path / 'out').rglob('*.npz'):
        protocol = json.loads(str(_load(path)['protocol']))
        frames[os.path.relpath(protocol['path'], tmp_path)] = protocol['frames']
    assert frames == {name: count for name, count in expected.items() if count}
    skipped = [json.loads(line) for line in (tmp_path / 'out/skipped.jsonl').read_text().splitlines()]
    reasons = {os.path.relpath(skip['path'], tmp_path): skip['reason'] for skip in skipped}
    assert reasons.pop('odd/x.mp4') == 'timed out: no frame for 5 s'
    assert reasons.keys() == {name for name, count in expected.items() if not count}
    for name, reason in reasons.items():
        with pytest.raises(video.VideoError) as error:
            next(sources.frames(str(tmp_path / name)))
        assert str(error.value) == reason
    assert result['videos'] + result['skipped'] == result['found'] == len(expected) + 1


def _crash(path, after):
    yield from list(sources.frames(path, size=SIZE))[:after]
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang(path, after):
    yield from list(sources.frames(path, size=SIZE))[:after]
    time.sleep(600)


def test_a_decoder_that_crashes_or_hangs_costs_its_video_only(weights, noise, tmp_path, monkeypatch):
    path = str(noise / 'a/one.avi')
    found = [inputs.Video(f'{name}{i}', path, frames) for i in range(2) for name, frames in (
        ('crash', functools.partial(_crash, path, 30)), ('good', functools.partial(sources.frames, path, size=SIZE)),
        ('hang', functools.partial(_hang, path, 30)))]
    monkeypatch.setattr(inputs, 'find', lambda *_, **__: ('', found))
    result = _extract(tmp_path, weights, 'any', video_timeout=2.0, max_failures=4)
    assert (result['videos'], result['clips'], result['skipped']) == (2, 8, 4)
    reasons = {json.loads(line)['reason'] for line in (tmp_path / 'skipped.jsonl').read_text().splitlines()}
    assert reasons == {'the decoder crashed (SIGSEGV)', 'timed out: no frame for 2 s'}
    assert {path.name for path in tmp_path.glob('*.npz')} == {'good0.npz', 'good1.npz'}


def test_a_slow_network_is_no_reason_to_give_up_a_video(noise):
    path = str(noise / 'a/one.avi')
    jobs = iter([decoders.Job(i, functools.partial(sources.frames, path, size=SIZE)) for i in range(6)])
    rows, ends = [], []
    for batch in decoders.batches(
            lambda: next(jobs, None), clip_shape=(16, *SIZE, 3), batch_size=2, num_workers=2, video_timeout=0.7,
            cutting={'clip_length': 16, 'stride': 1, 'step': 8, 'short': 'loop'}):
        rows, ends = rows + batch.rows, ends + batch.ends
        time.sleep(1.5 if len(rows) <= 4 else 0)
    assert [(frames, reason) for _, frames, reason in ends] == [(41, '')] * 6
    assert sorted(row[:2] for row in rows) == [(i, start) for i in range(6) for start in (0, 8, 16, 24)]


def test_decoders_wait_for_a_slow_network(noise):
    path, given = str(noise / 'a/one.avi'), []

    def next_job():
        given.append(len(given))
        return decoders.Job(given[-1], functools.partial(sources.frames, path, size=SIZE)) if len(given) < 60 else None

    with contextlib.closing(decoders.batches(
            next_job, clip_shape=(16, *SIZE, 3), batch_size=4, num_workers=2, video_timeout=30,
            cutting={'clip_length': 16, 'stride': 1, 'step': 8, 'short': 'loop'})) as batches:
        next(batches)
        time.sleep(3)
        # Four clips a video and a batch: one taken, two that wait, one begun, and what each decoder has.
        assert len(given) <= 1 + decoders.WAITING + 1 + 2 + 1


def _command(weights, videos, output, *more):
    return [sys.executable, '-m', 'c3d_tf.main', '--mode=features', f'--weights={weights}', f'--input={videos}',
            f'--output={output}', '--layers=fc6,pool2', '--eval_batch_size=4', '--num_workers=2', *more]


@pytest.fixture(scope='module')
def many(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp('many')
    for i in range(40):
        conftest.counting_video(root / f'{"ab"[i % 2]}/{i:02d}.avi', 60)
    return root


@pytest.mark.parametrize('file_format', [pytest.param('npz', marks=pytest.mark.large), 'hdf5',
                                         pytest.param('caffe', marks=pytest.mark.large)])
def test_killed_in_the_middle_and_run_again_gives_the_same_arrays(file_format, weights, many, tmp_path):
    command = functools.partial(_command, weights, many)
    flag = f'--format={file_format}'
    subprocess.run(command(tmp_path / 'whole', flag), cwd=ROOT, check=True, capture_output=True)
    killed = tmp_path / 'killed'
    pattern = {'npz': '*/*.npz', 'hdf5': 'parts/*/*.npz', 'caffe': '*/*/.complete.json'}[file_format]
    for enough in (1, 12):
        process = subprocess.Popen(command(killed, flag), cwd=ROOT, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(killed.glob(pattern))) < enough:
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert not json.loads((killed / 'features.json').read_text())['complete']
        for path in killed.rglob('*.npz'):
            if '.work' not in path.parts:
                assert len(_load(path)['fc6']) == 6
    said = subprocess.run(command(killed, flag), cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert 0 < int(said.split('features: ')[1].split(' of 40 are there already')[0]) < 40
    whole, again = _tree(tmp_path / 'whole'), _tree(killed)
    assert whole.keys() == again.keys() and len(whole) > 2
    for name in whole:
        if not name.endswith('.h5'):
            assert whole[name] == again[name], name
    if file_format == 'hdf5':
        with h5py.File(tmp_path / 'whole/features.h5') as one, h5py.File(killed / 'features.h5') as other:
            for i in range(40):
                name = f'{"ab"[i % 2]}/{i:02d}'
                for key in ('fc6', 'pool2', 'start_frame', 'time', 'video_fc6', 'video_pool2'):
                    np.testing.assert_array_equal(one[name][key], other[name][key])


@pytest.mark.parametrize('file_format', ['npz', pytest.param('hdf5', marks=pytest.mark.large)])
def test_two_processes_share_the_list(file_format, weights, many, tmp_path):
    command = _command(weights, many, tmp_path / 'out', f'--format={file_format}')
    start = functools.partial(subprocess.Popen, command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True)
    seen = {}  # every version of every result that there ever was
    results = 'parts/[ab]/*.npz' if file_format == 'hdf5' else '[ab]/*.npz'

    def look_while(condition):
        while condition():
            with contextlib.suppress(FileNotFoundError):  # what was listed may be gone
                for path in (tmp_path / 'out').glob(results):
                    seen.setdefault(path.name, set()).add(path.stat().st_ino)

    both = [start()]
    look_while(lambda: not seen and both[0].poll() is None)
    both[0].send_signal(signal.SIGSTOP)  # it could have done all before the other is up
    both.append(start())
    look_while(lambda had=len(seen): len(seen) <= had + 2 and both[1].poll() is None)
    both[0].send_signal(signal.SIGCONT)
    look_while(lambda: any(process.poll() is None for process in both))
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    if file_format == 'npz':
        assert len(seen) == 40
    assert all(len(versions) == 1 for versions in seen.values())  # each done once
    assert json.loads((tmp_path / 'out/features.json').read_text())['clips'] == 240
    if file_format == 'hdf5':
        with h5py.File(tmp_path / 'out/features.h5') as file:
            assert len(file['a']) == len(file['b']) == 20
    assert not {'locks', '.work', 'parts'} & {path.name for path in (tmp_path / 'out').iterdir()}
    if file_format == 'npz':
        done = [int(line.split(' clips/s')[0].split()[-1].replace('.', '')) for text in said
                for line in text.splitlines() if ' clips/s' in line and ' in ' in line]
        assert len(done) == 2 and min(done) > 0  # both have worked


@pytest.mark.parametrize('stop', [os.kill, os.killpg])  # the command, or all of a job, as Slurm and systemd do
def test_an_interrupted_run_leaves_what_is_finished(stop, weights, many, tmp_path):
    process = subprocess.Popen(_command(weights, many, tmp_path), cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, start_new_session=True)
    while process.poll() is None and not list(tmp_path.glob('*/*.npz')):
        time.sleep(0.001)
    stop(process.pid, signal.SIGTERM)
    said, _ = process.communicate()
    assert process.returncode == errors.EXIT_INTERRUPTED, said
    assert not list(tmp_path.glob('.skipped/*'))
    assert list(tmp_path.glob('*/*.npz')) and not {'locks', '.work'} & {path.name for path in tmp_path.iterdir()}


def test_locks(tmp_path):
    with locks.Locks(str(tmp_path / 'locks'), 60) as ours, locks.Locks(str(tmp_path / 'locks'), 60) as theirs:
        assert ours.take('a') and not theirs.take('a') and theirs.take('b')
        path, = (p for p in (tmp_path / 'locks').iterdir() if p.samefile(ours._path('a')))
        owner = json.loads(path.read_text())
        assert owner['pid'] == os.getpid()
        os.utime(path, (time.time() - 61,) * 2)  # no sign of life
        path.write_text(json.dumps({**owner, 'host': 'elsewhere'}))
        assert not theirs.take('a')  # written just now
        os.utime(path, (time.time() - 61,) * 2)
        assert theirs.take('a') and theirs.owns('a') and not ours.owns('a')
        ours.release('a')
        assert theirs.owns('a')
        theirs.release('a')
        dead = subprocess.Popen(['true'])
        dead.wait()
        path.write_text(json.dumps({**owner, 'pid': dead.pid}))
        assert ours.take('a')  # at once: the process is dead on this host
        path.write_text(json.dumps({**owner, 'pid': 1}))
        assert not theirs.take('a')
    assert not (tmp_path / 'locks/b').exists()


def test_a_lock_is_touched_as_long_as_its_process_lives(tmp_path):
    with locks.Locks(str(tmp_path), 1) as ours, locks.Locks(str(tmp_path), 1) as theirs:
        assert ours.take('a')
        time.sleep(2.5)
        assert not theirs.take('a')


@pytest.mark.parametrize(('paths', 'names'), [
    (['a/x.avi', 'b/x.avi'], ['a/x', 'b/x']),
    (['x.avi', 'x.mp4', 'y.avi'], ['x.avi', 'x.mp4', 'y']),
    (['x.avi', 'x.mp4', 'x.avi.mkv'], ['x.avi', 'x.mp4', 'x.avi.mkv']),
    (['../../etc/x.avi', '/y.avi'], ['etc/x', 'y']),
    (['x.avi#1.5-2', 'x.avi#2-2.5'], ['x.avi#1.5-2', 'x.avi#2-2.5']),
])
def test_media_ids(paths, names):
    assert inputs.media_ids(paths, [False] * len(paths)) == names


def test_what_input_names(noise, tmp_path, monkeypatch):
    def names(given, **options):
        return [one.name for one in inputs.find(str(given), size=SIZE, **options)[1]]

    root = tmp_path / 'v'
    shutil.copytree(noise, root)
    (root / '.hidden').write_text('')
    (root / 'notes.txt').write_text('a/one.avi\n\nb/three.avi\nb/gone.avi\n')
    (root / 'c/frames.x').mkdir(parents=True)
    for i in range(3, 6):
        (root / f'c/frames.x/{i:06d}.jpg').write_bytes(b'')
    (root / 'c/up').symlink_to(root)
    assert names(root) == ['a/one', 'a/two', 'b/short', 'b/three', 'c/frames.x', 'notes']
    assert names(root, without=str(root / 'b')) == ['a/one', 'a/two', 'c/frames.x', 'notes']
    assert names(root / 'c/frames.x') == ['frames.x']
    assert inputs.find(str(root / 'c/frames.x'), size=SIZE)[1][0].first == 3
    assert names(root / 'a/one.avi') == ['one']
    assert names(root / '*/*.avi') == ['a/one', 'b/short', 'b/three']
    assert names(root / 'notes.txt') == ['a/one', 'b/gone', 'b/three']
    (tmp_path / 'list.txt').write_text('v/a/one.avi\n')
    monkeypatch.chdir(root / 'a')
    (tmp_path / 'list.txt').write_text('one.avi\n')
    assert names(tmp_path / 'list.txt') == ['one']
    (tmp_path / 'list.txt').write_text('nowhere.avi\n')
    for given, message in ((tmp_path / 'list.txt', 'none of its 1 videos exists'), ('gone', 'no such file or folder'),
                           ('*.none', 'no video there')):
        with pytest.raises(errors.UsageError, match=message):
            names(given)


def test_wrong_use_is_named(weights, noise, tmp_path, capsys):
    def run(*words):
        code = main.main(['c3d_tf', '--mode=features', f'--weights={weights}', *map(str, words)])
        return code, capsys.readouterr().err

    assert run(f'--input={noise}') == (2, 'c3d_tf: --output is not set: folder of the descriptors\n')
    assert 'expected a video file, a folder, a glob' in run(f'--output={tmp_path}')[1]
    code, said = run(f'--output={tmp_path}', f'--input={noise}', '--layers=fc9')
    assert code == 2 and 'fc9: no such layer; the network has conv1a, ' in said and 'fc8, prob' in said
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_length(tmp_path):
    """A layer of 0.33 MB a clip: kept in memory, 1500 clips would be 0.5 GB."""
    weights = _artefact(tmp_path / 'model.keras', width=0.2)
    script = ('import re, resource, sys\nfrom c3d_tf import main\nif __name__ == "__main__":\n'
              '    assert main.main(sys.argv[1:]) == 0\n'
              '    own = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])\n'
              '    print(own + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n')
    peaks = []
    image = np.zeros((*SIZE, 3), np.uint8)
    for clips in (50, 1500):
        path = conftest.write_video(tmp_path / f'{clips}.avi', [image] * (8 * clips + 8))
        words = _command(weights, path, tmp_path / f'out{clips}', '--layers=conv1a')[3:]
        done = subprocess.run([sys.executable, '-c', script, 'c3d_tf', *words], cwd=ROOT, check=True,
                              capture_output=True, text=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
        shutil.rmtree(tmp_path / f'out{clips}')
    assert peaks[1] < peaks[0] * 1.1, peaks
