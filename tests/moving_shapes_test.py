# SPDX-License-Identifier: Apache-2.0
"""Tests of the moving-shapes data set."""

import hashlib
import os
import pathlib
import subprocess
import sys

import av
import numpy as np
import pytest

from c3d_tf.data import moving_shapes

PAIRS = list(zip(moving_shapes.CLASSES[::2], moving_shapes.CLASSES[1::2]))


def _render(label, seed, *, height=64, width=80, num_frames=16):
    return moving_shapes.render(label, np.random.default_rng(seed), height=height, width=width,
                                num_frames=num_frames)


def _snapshot(directory):
    return {path: path.stat().st_mtime_ns for path in pathlib.Path(directory).rglob('*')
            if path.is_file()}


def _masks(frames):
    """Returns which pixels differ strongly from the background, bool [T, H, W]."""
    luma = frames.mean(-1)
    return np.abs(luma - np.median(luma, axis=(1, 2), keepdims=True)) > 25


def _mean_on_circle(weights):
    """Returns the mean index under weights [T, N] along a wrapped axis of N, unwrapped, [T]."""
    size = weights.shape[1]
    angles = 2 * np.pi * np.arange(size) / size
    return np.unwrap(np.angle(weights @ np.exp(1j * angles))) * size / (2 * np.pi)


@pytest.fixture(scope='module', name='data_set')
def _data_set(tmp_path_factory):
    directory = tmp_path_factory.mktemp('moving_shapes')
    moving_shapes.write(str(directory), train_per_class=4, test_per_class=2, num_workers=1)
    return directory


@pytest.mark.parametrize('forward,reverse', PAIRS)
def test_reverse_class_is_time_reverse(forward, reverse):
    frames = _render(forward, 5, num_frames=24)
    assert frames.shape == (24, 64, 80, 3) and frames.dtype == np.uint8
    np.testing.assert_array_equal(_render(reverse, 5, num_frames=24), frames[::-1])
    assert not np.array_equal(_render(forward, 6, num_frames=24), frames)


def test_motion_is_as_labelled():
    for label in moving_shapes.CLASSES:
        for seed in range(6):
            masks = _masks(_render(label, seed))
            x = _mean_on_circle(masks.sum(1))
            y = _mean_on_circle(masks.sum(2))
            dx, dy = np.diff(x), np.diff(y)
            message = f'{label}, seed {seed}'
            if label in ('left', 'right'):
                assert 2 < (1 if label == 'right' else -1) * dx.mean() < 5, message
                assert abs(dy.mean()) < 0.3, message
            elif label in ('up', 'down'):  # Down the screen is up the rows.
                assert 2 < (1 if label == 'down' else -1) * dy.mean() < 5, message
                assert abs(dx.mean()) < 0.3, message
            elif label in ('clockwise', 'counter_clockwise'):
                assert np.hypot(dx, dy).mean() > 2, message
                # Turns of the velocity; from x (right) to y (down) is clockwise on the screen.
                turn = np.sum(dx[:-1] * dy[1:] - dy[:-1] * dx[1:])
                assert (1 if label == 'clockwise' else -1) * turn > 0, message
            else:
                # The median ignores the one jump that a clip may have.
                growth = np.median(np.diff(np.sqrt(masks.sum((1, 2)))))
                assert (1 if label == 'grow' else -1) * growth > 0.2, message


def test_shape_is_brighter_as_often_as_darker():
    signs = []
    for seed in range(200):
        luma = _render('up', seed, num_frames=1).mean(-1)
        signs.append(luma[_masks(luma[..., None])].mean() > np.median(luma))
    assert 0.4 < np.mean(signs) < 0.6


@pytest.mark.parametrize('label,width', [('sideways', 80), ('left', 40)])
def test_render_rejects(label, width):
    with pytest.raises(ValueError, match='sideways|40'):
        _render(label, 0, width=width)


def test_written_files(data_set):
    found, counts = set(), {}
    for path in sorted(data_set.glob('*/*/*')):
        split, label = path.parts[-3:-1]
        assert path.stem.rpartition('_')[0] == label
        counts[split, label] = counts.get((split, label), 0) + 1
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format='rgb24') for frame in container.decode(stream)]
            found.add((stream.codec_context.name, path.suffix[1:], stream.width, stream.height,
                       int(stream.average_rate)))
        # What was rendered is what is decoded, up to what the encoder loses.
        key = [0, moving_shapes.SPLITS.index(split), moving_shapes.CLASSES.index(label),
               int(path.stem.rpartition('_')[2])]
        rng = np.random.default_rng(key)
        fmt = moving_shapes.FORMATS[rng.integers(len(moving_shapes.FORMATS))]
        num_frames = rng.integers(moving_shapes.MIN_FRAMES, moving_shapes.MAX_FRAMES + 1)
        expected = moving_shapes.render(label, rng, height=fmt.height, width=fmt.width,
                                        num_frames=num_frames)
        assert len(frames) == num_frames
        assert np.abs(np.float32(frames) - expected).mean() < 8
    assert counts == {(split, label): count for split, count in (('train', 4), ('test', 2))
                      for label in moving_shapes.CLASSES}
    assert found == {('mpeg4', 'avi', 160, 120, 25), ('h264', 'mp4', 128, 96, 30),
                     ('h264', 'mp4', 176, 144, 30)}


def test_no_two_videos_are_equal(data_set):
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in data_set.glob('*/*/*')]
    assert len(digests) == len(set(digests)) == 48


def test_second_write_writes_nothing(data_set):
    before = _snapshot(data_set)
    moving_shapes.write(str(data_set), train_per_class=4, test_per_class=2, num_workers=1)
    assert _snapshot(data_set) == before


def test_other_parameters_are_refused(data_set):
    before = _snapshot(data_set)
    with pytest.raises(ValueError, match="'seed': 0.*'seed': 1"):
        moving_shapes.write(str(data_set), train_per_class=4, test_per_class=2, seed=1)
    assert _snapshot(data_set) == before


def test_interrupted_write_is_resumed(tmp_path, monkeypatch):
    arguments = {'train_per_class': 1, 'test_per_class': 0, 'num_workers': 1}
    render, calls = moving_shapes.render, []

    def fail_at_fourth(label, *args, **kwargs):
        calls.append(label)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return render(label, *args, **kwargs)

    monkeypatch.setattr(moving_shapes, 'render', fail_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        moving_shapes.write(str(tmp_path), **arguments)
    assert not (tmp_path / '.moving_shapes.json').exists()
    videos = {path: path.stat().st_mtime_ns for path in tmp_path.glob('*/*/*')}
    assert len(videos) == 3
    with pytest.raises(ValueError, match="'seed': 0.*'seed': 1"):
        moving_shapes.write(str(tmp_path), seed=1, **arguments)
    moving_shapes.write(str(tmp_path), **arguments)
    assert (tmp_path / '.moving_shapes.json').exists()
    assert len(calls) == 4 + 5
    assert {path: path.stat().st_mtime_ns for path in videos} == videos
    assert len(list(tmp_path.glob('*/*/*'))) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.moving_shapes.json', 'test',
                                                                'train']


def test_worker_processes_write_the_same_files(data_set, tmp_path):
    # In a process of its own, as the workers import the main module, here the test runner's.
    code = ('import sys; from c3d_tf.data import moving_shapes; moving_shapes.write('
            'sys.argv[1], train_per_class=1, test_per_class=1, num_workers=2); '
            'print("tensorflow" in sys.modules)')
    root = pathlib.Path(moving_shapes.__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    result = subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=True,
                            env={**os.environ, 'PYTHONPATH': path}, stdout=subprocess.PIPE)
    assert result.stdout.decode().strip() == 'False'
    names = [path.relative_to(tmp_path) for path in tmp_path.glob('*/*/*')]
    assert len(names) == 16
    for name in names:
        assert (tmp_path / name).read_bytes() == (data_set / name).read_bytes()


def test_linear_model_of_mean_frame_is_at_chance():
    def features(split, count):
        means = [_render(label, [split, c, i], height=48, width=64).mean(0)
                 for c, label in enumerate(moving_shapes.CLASSES) for i in range(count)]
        pooled = np.reshape(means, (len(means), 12, 4, 16, 4, 3)).mean((2, 4))
        return pooled.reshape(len(means), -1) / 64 - 2, np.repeat(np.arange(8), count)

    train_x, train_y = features(0, 50)
    test_x, test_y = features(1, 20)
    for ridge in (1, 10, 100):
        # The dual form of ridge regression on one-hot targets, with a bias.
        kernel = train_x @ train_x.T + 1
        dual = np.linalg.solve(kernel + ridge * np.eye(len(kernel)), np.eye(8)[train_y])
        predicted = np.argmax((test_x @ train_x.T + 1) @ dual, axis=1)
        accuracy = np.mean(predicted == test_y)
        assert accuracy <= 0.25, f'ridge {ridge}'
