# SPDX-License-Identifier: Apache-2.0
"""RandAugment (Cubuk et al., 2020) for clips: each change is the same for all frames, as flicker and
shaking would look like motion."""

import numpy as np
import tensorflow as tf

from c3d_tf.data import clips

GREY = 128.0  # what comes into the picture from beyond its edge
_SMOOTH = np.float32([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13  # as PIL's ImageFilter.SMOOTH


def apply(clip: tf.Tensor, transform: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Changes all frames of a clip alike.

    What the picture's own values decide (the average for contrast, the darkest and lightest for
    auto_contrast) is of the whole clip as well.

    Args:
      clip: float32 [T, H, W, 3], 0 … 255.
      transform: int, place in `clips.TRANSFORMS`.
      strength: float32, -1 … 1; 0 leaves the clip as it is. The sign says which way, where there are
        two.

    Returns:
      float32 [T, H, W, 3], 0 … 255.
    """
    s, amount = strength, tf.abs(strength)
    height, width = (tf.cast(size, tf.float32) for size in tf.unstack(tf.shape(clip)[1:3]))
    angle = s * np.pi / 6
    grey = tf.image.rgb_to_grayscale
    changes = {
        'identity': lambda: clip,
        'brightness': lambda: clip * (1 + 0.9 * s),
        'contrast': lambda: _blend(tf.reduce_mean(grey(clip)), clip, 1 + 0.9 * s),
        'saturation': lambda: _blend(grey(clip), clip, 1 + 0.9 * s),
        'sharpness': lambda: _blend(_smooth(clip), clip, 1 + 0.9 * s),
        'posterize': lambda: _posterize(clip, 4 * amount),
        'solarize': lambda: tf.where(clip < 256 * (1 - amount), clip, 255 - clip),
        'auto_contrast': lambda: _blend(clip, _stretch(clip), amount),
        'rotate': lambda: _warp(clip, [[tf.cos(angle), -tf.sin(angle)], [tf.sin(angle), tf.cos(angle)]]),
        'shear_x': lambda: _warp(clip, [[1, 0.3 * s], [0, 1]]),
        'shear_y': lambda: _warp(clip, [[1, 0], [0.3 * s, 1]]),
        'translate_x': lambda: _warp(clip, [[1, 0], [0, 1]], x=0.3 * s * width),
        'translate_y': lambda: _warp(clip, [[1, 0], [0, 1]], y=0.3 * s * height),
    }
    changed = tf.switch_case(tf.cast(transform, tf.int32), [changes[name] for name in clips.TRANSFORMS])
    return tf.clip_by_value(tf.ensure_shape(changed, clip.shape), 0, 255)


def _blend(one, other, share) -> tf.Tensor:
    """Returns `one` at share 0, `other` at 1, more of what tells them apart beyond."""
    return one + (other - one) * share


def _smooth(clip: tf.Tensor) -> tf.Tensor:
    padded = tf.pad(clip, [[0, 0], [1, 1], [1, 1], [0, 0]], 'SYMMETRIC')
    kernel = np.tile(_SMOOTH[:, :, None, None], [1, 1, 3, 1])
    return tf.nn.depthwise_conv2d(padded, kernel, [1, 1, 1, 1], 'VALID')


def _posterize(clip: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Drops the lowest bits of every value, rounded to a whole number of them."""
    step = 2 ** tf.round(bits)
    return tf.floor(clip / step) * step


def _stretch(clip: tf.Tensor) -> tf.Tensor:
    """Maps the darkest value of each colour to 0 and the lightest to 255."""
    low, high = (reduce(clip, axis=(0, 1, 2)) for reduce in (tf.reduce_min, tf.reduce_max))
    return tf.where(high > low, (clip - low) * 255 / tf.maximum(high - low, 1), clip)


def _warp(clip: tf.Tensor, matrix, x=0.0, y=0.0) -> tf.Tensor:
    """Takes the pixel at p, counted from the middle, from matrix·p + (x, y), bilinearly."""
    (a, b), (c, d) = matrix
    size = tf.shape(clip)[1:3]
    middle_y, middle_x = tf.unstack((tf.cast(size, tf.float32) - 1) / 2)
    row = [a, b, middle_x - a * middle_x - b * middle_y + x,
           c, d, middle_y - c * middle_x - d * middle_y + y, 0, 0]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=clip, transforms=[tf.stack([tf.cast(value, tf.float32) for value in row])],
        output_shape=size, fill_value=GREY, interpolation='BILINEAR', fill_mode='CONSTANT')
