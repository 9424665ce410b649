# SPDX-License-Identifier: Apache-2.0
"""Encoded images inside a graph → frames; their size is known and bounded before a pixel is decoded.

A request comes from strangers: what is wrong with an image ends the request with a status that says
which image it is and why, and a few bytes cannot claim gigabytes. Core operations only.
"""

import tensorflow as tf

from c3d_tf.data import records
from c3d_tf.data import resize

MAX_PIXELS = 1 << 24          # of one image, 4096x4096: 48 MiB once decoded; 4K video passes
MAX_EXAMPLE_PIXELS = 1 << 31  # of one example's images together: 1,024 frames of 1080p
_MAX_SEGMENTS = 256           # a JPEG's segments before its size; cameras write about ten

_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8\xff'


def decode(encoded: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Decodes images one by one to frames of one size: memory is that of the frames, and of few images.

    Args:
      encoded: string [F], JPEG or PNG, of any sizes; their `sizes` are bounded already.
      size: height and width.

    Returns:
      uint8 [F, height, width, 3], RGB; the same bytes that records and evaluation see.
    """
    return tf.map_fn(lambda image: resize.bilinear(records.decode_image(image), size), encoded,
                     fn_output_signature=tf.TensorSpec([*size, 3], tf.uint8))


def sizes(encoded: tf.Tensor, names: tf.Tensor) -> tf.Tensor:
    """Reads the images' sizes from their headers, all images at once.

    Args:
      encoded: string [F].
      names: string [F], what to call each in a message.

    Returns:
      int64 [F, 2], height and width, each at least 1 and at most MAX_PIXELS together.

    Raises (in the graph):
      InvalidArgument: an image is neither JPEG nor PNG, its header is broken, or it is too large.
    """
    jpeg = tf.equal(tf.strings.substr(encoded, 0, len(_JPEG)), _JPEG)
    png = tf.equal(tf.strings.substr(encoded, 0, len(_PNG)), _PNG)
    length = tf.strings.as_string(tf.strings.length(encoded))
    with require(jpeg | png, names, ' is neither a JPEG nor a PNG: ', length, ' bytes'):
        found = tf.where(jpeg[:, None], _jpeg_sizes(encoded, jpeg), _png_sizes(encoded))
    # Each side alone first: the product of two sides of 32 bits need not fit.
    sound = tf.reduce_all((found > 0) & (found <= MAX_PIXELS), axis=1)
    with require(tf.reduce_all(found > 0, axis=1), names, ' has no size in its header: a broken or cut '
                 'file of ', length, ' bytes'):
        sound &= found[:, 0] * found[:, 1] <= MAX_PIXELS
    height, width = tf.unstack(tf.strings.as_string(found), axis=1)
    with require(sound, names, ' is too large: ', height, 'x', width, f' pixels, at most {MAX_PIXELS} are '
                 'decoded'):
        return tf.identity(found)


def require(sound: tf.Tensor, *parts) -> tf.control_dependencies:
    """Returns the context in which all of `sound` is known to be true.

    Args:
      sound: bool [F] or [].
      parts: of the message, each a str or a string tensor of that shape; the message is that of the first
        which is not sound.
    """
    sound = tf.reshape(sound, [-1])
    worst = tf.argmin(tf.concat([tf.cast(sound, tf.int32), [0]], axis=0))  # past the end if all are sound
    said = [part if isinstance(part, str) else tf.concat([tf.reshape(part, [-1]), ['']], axis=0)[worst]
            for part in parts]
    return tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(sound), [tf.strings.join(said)])])


def number(bytes_read: tf.Tensor, first: int, count: int, *, big_endian: bool) -> tf.Tensor:
    """Returns the number, int64 [...], in bytes `first` … `first + count` of uint8 [..., B]."""
    places = range(count - 1, -1, -1) if big_endian else range(count)
    weights = tf.constant([256 ** place for place in places], tf.int64)
    return tf.reduce_sum(tf.cast(bytes_read[..., first:first + count], tf.int64) * weights, axis=-1)


def peek(encoded: tf.Tensor, position: tf.Tensor, count: int) -> tf.Tensor:
    """Returns uint8 [..., count], the bytes from `position` on; zeros behind the end.

    Args:
      encoded: string [...].
      position: int64 [...], from 0; it may lie behind the end.
      count: how many bytes.
    """
    position = tf.minimum(position, tf.cast(tf.strings.length(encoded), tf.int64))  # it must not lie beyond
    some = tf.strings.substr(encoded, position, tf.fill(tf.shape(position), tf.constant(count, tf.int64)))
    return tf.io.decode_raw(some, tf.uint8, fixed_length=count)


def _png_sizes(encoded: tf.Tensor) -> tf.Tensor:
    head = peek(encoded, tf.zeros(tf.shape(encoded), tf.int64), 24)  # IHDR comes first, by the standard
    named = tf.reduce_all(tf.equal(head[:, 12:16], list(b'IHDR')), axis=1)
    width, height = (number(head, first, 4, big_endian=True) for first in (16, 20))
    return tf.where(named[:, None], tf.stack([height, width], axis=1), 0)


def _jpeg_sizes(encoded: tf.Tensor, jpeg: tf.Tensor) -> tf.Tensor:
    """Walks the segments of all images at once, to the one that states the size; 0 where there is none."""

    def step(position, looking, found):
        head = peek(encoded, position, 9)
        code = tf.cast(head[:, 1], tf.int32)
        # FF FF is a fill byte; C0 … CF are frames but for C4, C8 and CC; from DA on there are pixels.
        fill = tf.equal(code, 0xff)
        frame = (code >= 0xc0) & (code <= 0xcf) & (code != 0xc4) & (code != 0xc8) & (code != 0xcc)
        other = ~frame & ~fill & (code >= 0xc4) & (code != 0xd8) & (code != 0xd9) & (code != 0xda)
        marked = looking & tf.equal(head[:, 0], 0xff)
        size = tf.stack([number(head, first, 2, big_endian=True) for first in (5, 7)], axis=1)
        found = tf.where((marked & frame)[:, None], size, found)
        position += tf.where(fill, tf.ones_like(position), 2 + number(head, 2, 2, big_endian=True))
        return position, marked & (fill | other), found

    start = tf.fill(tf.shape(encoded), tf.constant(len(_JPEG) - 1, tf.int64))
    found = tf.zeros([tf.shape(encoded)[0], 2], tf.int64)
    return tf.while_loop(lambda position, looking, found: tf.reduce_any(looking), step,
                         (start, jpeg, found), maximum_iterations=_MAX_SEGMENTS)[2]
