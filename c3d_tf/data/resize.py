# SPDX-License-Identifier: Apache-2.0
"""Resizes frames inside a TensorFlow graph to the very bytes that OpenCV's resize gives."""

import tensorflow as tf

# A tap is a weight in 1/2048 and a pair of taps sums to 2048. The horizontal sum is cut by 4 bits
# so that sum times tap stays small: 255 * 2048 / 16 * 2048 < 2^26. Of the 2^(11 - 4 + 11) = 2^18
# that then scale a pixel, 16 bits are cut from each row's product and 2 from the rows' sum.
_TAP_ONE = 2048
_SUM_SHIFT = 4
_PRODUCT_SHIFT = 16
_ROWS_SHIFT = 2


def _taps(
    source: tf.Tensor, target: int, at_border: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Finds the two source positions, and their weights, of each target position on one axis.

    Args:
        source: int32 [], the source's length on the axis, 1 or more.
        target: The target's length, 1 or more.
        at_border: Whether a position off the source's ends takes the border pixel alone. If not,
            the border pixel is taken twice and its two products are rounded apart.

    Returns:
        Four int32 [target]: the low and the high position, 0 to source - 1, and the low and the
        high tap, 0 to 2048.
    """
    # The steps and their types are OpenCV's, so that fractions close to a tie round alike.
    scale = 1.0 / (target / tf.cast(source, tf.float64))
    position = tf.cast((tf.range(target, dtype=tf.float64) + 0.5) * scale - 0.5, tf.float32)
    floor = tf.floor(position)
    fraction = position - floor
    low = tf.cast(floor, tf.int32)
    if at_border:
        fraction = tf.where((low < 0) | (low >= source - 1), 0.0, fraction)
    return (
        tf.clip_by_value(low, 0, source - 1),
        tf.clip_by_value(low + 1, 0, source - 1),
        tf.cast(tf.round((1.0 - fraction) * _TAP_ONE), tf.int32),
        tf.cast(tf.round(fraction * _TAP_ONE), tf.int32),
    )


def _interpolate(frames: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Interpolates between the four source pixels around each target pixel.

    Args:
        frames: uint8 [..., H, W, C], 0 to 255.
        size: Target height and width.

    Returns:
        uint8 [..., height, width, C], 0 to 255.
    """
    height, width = size
    shape = tf.shape(frames)
    source_height, source_width, channels = shape[-3], shape[-2], shape[-1]
    # The two axes differ at the ends, as they do in OpenCV.
    top, bottom, top_tap, bottom_tap = _taps(source_height, height, at_border=False)
    left, right, left_tap, right_tap = _taps(source_width, width, at_border=True)

    # One flat pixel axis lets a gather fetch rows and columns at once, and a flat row of
    # width * C values lets the taps broadcast along a long inner axis; both are for speed.
    pixels = tf.reshape(frames, [-1, source_height * source_width, channels])
    left_tap, right_tap = tf.repeat(left_tap, channels), tf.repeat(right_tap, channels)

    def fetch(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        index = tf.reshape(rows[:, tf.newaxis] * source_width + columns, [-1])
        fetched = tf.gather(pixels, index, axis=1)
        return tf.cast(tf.reshape(fetched, [-1, height, width * channels]), tf.int32)

    def product(rows: tf.Tensor, tap: tf.Tensor) -> tf.Tensor:
        across = fetch(rows, left) * left_tap + fetch(rows, right) * right_tap
        across = tf.bitwise.right_shift(across, _SUM_SHIFT)
        return tf.bitwise.right_shift(across * tap[:, tf.newaxis], _PRODUCT_SHIFT)

    half = 1 << (_ROWS_SHIFT - 1)
    total = product(top, top_tap) + product(bottom, bottom_tap) + half
    resized = tf.cast(tf.bitwise.right_shift(total, _ROWS_SHIFT), tf.uint8)
    return tf.reshape(resized, tf.concat([shape[:-3], [height, width, channels]], axis=0))


def bilinear(frames: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Resizes frames as cv2.resize with its default INTER_LINEAR does, bit for bit.

    Args:
        frames: uint8 [..., H, W, C] of known rank, 0 to 255; any dimension may be dynamic. C is
            1, 3 or 4: on other counts OpenCV rounds an exact halving half to even, up to 1 off.
        size: Target height and width.

    Returns:
        uint8 [..., height, width, C], 0 to 255.

    Raises:
        TypeError: The frames are not uint8.
    """
    if frames.dtype != tf.uint8:
        raise TypeError(f'frames must be uint8, not {frames.dtype.name}')
    source = frames.shape[-3:-1].as_list()
    if source == list(size):
        return frames
    if None in source:
        # The sums would give the same frames back; the branch only saves them.
        same = tf.reduce_all(tf.equal(tf.shape(frames)[-3:-1], size))
        resized = tf.cond(same, lambda: frames, lambda: _interpolate(frames, size))
    else:
        resized = _interpolate(frames, size)
    return tf.ensure_shape(resized, [*frames.shape[:-3], *size, frames.shape[-1]])
