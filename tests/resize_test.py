# SPDX-License-Identifier: Apache-2.0
"""Holds the in-graph resize to the bytes of cv2.resize."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from c3d_tf.data import resize

# Source height and width, target height and width.
_SIZES = {
    'down': (240, 320, 128, 171),
    'down to square': (240, 320, 112, 112),
    'down, odd': (241, 319, 113, 57),
    '4K': (2160, 3840, 128, 171),
    'up': (90, 120, 128, 171),
    'up, odd': (7, 5, 31, 64),
    'wider and lower': (240, 100, 128, 171),
    'narrower and higher': (100, 320, 128, 171),
    'half': (256, 342, 128, 171),
    'half of height only': (256, 320, 128, 171),
    'double': (64, 85, 128, 170),
    'same': (128, 171, 128, 171),
    'same height': (128, 320, 128, 171),
    'same width': (240, 171, 128, 171),
    'one row': (1, 50, 16, 30),
    'one column': (50, 1, 16, 30),
    'one pixel': (1, 1, 8, 9),
    'to one pixel': (37, 41, 1, 1),
}


def _noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Draws uint8 noise, 0 to 255, of a shape."""
    return rng.integers(0, 256, shape, dtype=np.uint8)


def _smooth(height: int, width: int, channels: int) -> np.ndarray:
    """Draws one uint8 [height, width, channels] frame of slow waves, 0 to 255."""
    y, x, channel = np.mgrid[:height, :width, :channels]
    return np.rint(127.5 + 127.5 * np.sin(x / (9 + channel) + y / 13)).astype(np.uint8)


def _by_opencv(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 [T, H, W, C] to [T, *size, C]; cv2 drops a channel axis of 1."""
    resized = [cv2.resize(frame, size[::-1]) for frame in frames]
    return np.stack(resized).reshape(len(frames), *size, frames.shape[-1])


@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('sizes', _SIZES.values(), ids=_SIZES.keys())
def test_equals_opencv(sizes: tuple[int, int, int, int], channels: int) -> None:
    height, width, *size = sizes
    rng = np.random.default_rng(0)
    frames = np.stack([_noise(rng, height, width, channels), _smooth(height, width, channels)])
    resized = resize.bilinear(tf.constant(frames), tuple(size))
    assert resized.dtype == tf.uint8
    np.testing.assert_array_equal(resized, _by_opencv(frames, tuple(size)))


@pytest.mark.parametrize('seed', range(40))
def test_equals_opencv_on_random_sizes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width, *size = (int(side) for side in rng.integers(1, 400, 4))
    frames = _noise(rng, 1, height, width, (1, 3)[seed % 2])
    resized = resize.bilinear(tf.constant(frames), tuple(size))
    np.testing.assert_array_equal(resized, _by_opencv(frames, tuple(size)))


def test_takes_dynamic_sizes() -> None:
    rng = np.random.default_rng(0)
    spec = tf.TensorSpec([None, None, None, None], tf.uint8)
    resized = tf.function(lambda frames: resize.bilinear(frames, (32, 43)), input_signature=[spec])
    assert resized.get_concrete_function().output_shapes.as_list() == [None, 32, 43, None]
    for shape in [(2, 60, 80, 3), (1, 32, 43, 3), (3, 32, 50, 1), (1, 9, 200, 3), (1, 64, 86, 3)]:
        frames = _noise(rng, *shape)
        np.testing.assert_array_equal(resized(frames), _by_opencv(frames, (32, 43)))
    assert resized(np.zeros((0, 60, 80, 3), np.uint8)).shape == (0, 32, 43, 3)


def test_takes_any_leading_dimensions() -> None:
    frames = _noise(np.random.default_rng(0), 2, 3, 24, 30, 3)
    expected = _by_opencv(frames.reshape(6, 24, 30, 3), (17, 19)).reshape(2, 3, 17, 19, 3)
    np.testing.assert_array_equal(resize.bilinear(tf.constant(frames), (17, 19)), expected)
    one = resize.bilinear(tf.constant(frames[0, 0]), (17, 19))
    np.testing.assert_array_equal(one, expected[0, 0])


def test_runs_in_a_dataset() -> None:
    rng = np.random.default_rng(0)
    clips = [_noise(rng, 2, 24, 30, 3), _noise(rng, 2, 50, 12, 3), _noise(rng, 2, 17, 19, 3)]
    spec = tf.TensorSpec([None, None, None, 3], tf.uint8)
    dataset = tf.data.Dataset.from_generator(lambda: clips, output_signature=spec)
    dataset = dataset.map(lambda frames: resize.bilinear(frames, (17, 19)))
    assert dataset.element_spec.shape.as_list() == [None, 17, 19, 3]
    for frames, resized in zip(clips, dataset, strict=True):
        np.testing.assert_array_equal(resized, _by_opencv(frames, (17, 19)))


def test_runs_in_a_saved_model(tmp_path) -> None:
    module = tf.Module()
    spec = tf.TensorSpec([None, None, None, None, 3], tf.uint8)
    module.resize = tf.function(lambda x: resize.bilinear(x, (17, 19)), input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for shape in [(1, 2, 24, 30, 3), (1, 2, 17, 19, 3)]:
        frames = _noise(np.random.default_rng(0), *shape)
        np.testing.assert_array_equal(loaded.resize(frames)[0], _by_opencv(frames[0], (17, 19)))


def test_refuses_other_types() -> None:
    with pytest.raises(TypeError, match='uint8'):
        resize.bilinear(tf.zeros([1, 8, 8, 3]), (4, 4))
