# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import tensorflow as tf

from c3d_tf.data import clips
from c3d_tf.data import randaugment

_apply = tf.function(randaugment.apply)


def _noise(frames=5):
    """One frame of noise, again and again."""
    frame = np.random.default_rng(0).integers(0, 256, (1, 20, 26, 3)).astype(np.float32)
    return np.repeat(frame, frames, axis=0)


def _changed(name, strength, clip):
    place = clips.TRANSFORMS.index(name)
    return _apply(tf.constant(clip), tf.constant(place), tf.constant(strength, tf.float32)).numpy()


@pytest.mark.parametrize('name', clips.TRANSFORMS)
def test_every_transform(name):
    clip = _noise()
    for strength in (-1.0, -0.3, 0.3, 1.0):
        out = _changed(name, strength, clip)
        assert out.shape == clip.shape and out.min() >= 0 and out.max() <= 255
        assert (out == out[:1]).all()  # equal frames stay equal: no flicker
        assert np.array_equal(out, clip) == (name == 'identity')
    np.testing.assert_allclose(_changed(name, 0.0, clip), clip, atol=1e-3)


@pytest.mark.parametrize('name', ['contrast', 'auto_contrast'])
def test_what_the_picture_decides_is_of_the_whole_clip(name):
    """A bright frame among dark ones: each pixel's new value follows from its old one alone."""
    clip = np.stack([np.full((8, 9, 3), value, np.float32) for value in (50, 50, 100)])
    clip[:, 0, 0] = 100, 100, 100
    out = _changed(name, 1.0, clip)
    assert len(np.unique(out[clip == 50])) == len(np.unique(out[clip == 100])) == 1


def test_the_picture_moves_by_what_the_strength_says():
    clip = np.zeros((2, 20, 30, 3), np.float32)
    clip[:, 5, 12] = 255
    out = _changed('translate_x', 1.0, clip)  # 0.3 of the width: 9 pixels to the left
    assert (out[:, 5, 3] == 255).all() and (out[:, :, 21:] == randaugment.GREY).all()
    out = _changed('translate_y', -0.5, clip)  # 3 pixels down
    assert (out[:, 8, 12] == 255).all() and (out[:, :3] == randaugment.GREY).all()
    out = _changed('rotate', 1.0, clip)
    row, column = np.unravel_index(out[0, :, :, 0].argmax(), (20, 30))
    # (dx, dy) = (-2.5, -4.5) from the middle, turned by 30 degrees.
    dx, dy = column - 14.5, row - 9.5
    assert np.hypot(dx, dy) == pytest.approx(np.hypot(-2.5, -4.5), abs=0.8)
    turned = np.degrees(np.arctan2(dy, dx) - np.arctan2(-4.5, -2.5))
    assert abs(turned) == pytest.approx(30, abs=10)


@pytest.mark.parametrize(('name', 'strength', 'value', 'expected'), [
    ('brightness', 1.0, 100, 190), ('brightness', -1.0, 100, 10), ('posterize', 1.0, 127, 112),
    ('solarize', 0.5, 127, 127), ('solarize', 0.5, 128, 127), ('solarize', -0.5, 200, 55)])
def test_values_by_hand(name, strength, value, expected):
    clip = np.full((2, 4, 5, 3), value, np.float32)
    np.testing.assert_allclose(_changed(name, strength, clip), expected, rtol=1e-6)
