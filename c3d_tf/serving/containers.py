# SPDX-License-Identifier: Apache-2.0
"""One file with many frames, inside a graph: Motion-JPEG in AVI, and animated GIF.

Both are walked block by block before anything is decoded, as far as the frames that are wanted; what lies
behind them costs only its bytes. Sources: Microsoft's AVI RIFF file reference and OpenDML 1.02 for AVI
files beyond 1 GB; the GIF89a specification.
"""

import tensorflow as tf

from c3d_tf.data import resize
from c3d_tf.serving import images

MAX_BLOCKS = 1 << 16      # of one file, walked one by one at some 50 µs each
_TOO_MANY = f' is chopped into more than {MAX_BLOCKS} blocks'
MAX_GIF_PIXELS = 1 << 27  # of a GIF's frames together, as they are decoded at once: 384 MiB


def avi_frames(video: tf.Tensor, name: tf.Tensor, limit: int) -> tf.Tensor:
    """Splits an AVI into the images of its video stream.

    Empty chunks, by which recorders say that a frame was dropped, are left out, as FFmpeg does.

    Args:
      video: string [], the file's bytes.
      name: string [], what to call it in a message.
      limit: how many frames are wanted; no chunk behind them is looked at.

    Returns:
      string [F], 1 <= F <= limit.

    Raises (in the graph):
      InvalidArgument: it is no AVI, it ends within a frame, or it holds no or two streams of frames.
    """
    length = tf.cast(tf.strings.length(video), tf.int64)
    head = images.peek(video, tf.constant(0, tf.int64), 12)
    sound = _is(head, 0, 'RIFF') & _is(head, 8, 'AVI ')
    with images.require(sound, name, ' is no AVI file: ', tf.strings.as_string(length), ' bytes'):
        start = tf.zeros([], tf.int64)

    def step(position, count, places):
        head = images.peek(video, position, 12)
        size = images.number(head, 4, 4, big_endian=False)
        # These lists hold what we look for; other chunks and lists are stepped over, to an even place.
        inside = (_is(head, 0, 'RIFF') | _is(head, 0, 'LIST') & (_is(head, 8, 'movi') | _is(head, 8, 'rec ')))
        frame = (_is(head, 2, 'dc') | _is(head, 2, 'db')) & (size > 0)
        places = places.write(count, tf.stack([position, size]))  # what is no frame is written over
        position += tf.where(inside, tf.constant(12, tf.int64), 8 + size + size % 2)
        return position, count + tf.cast(frame, tf.int32), places

    def going(position, count, _):
        return (position + 8 <= length) & (count < limit)

    places = tf.TensorArray(tf.int64, size=0, dynamic_size=True, element_shape=[2])
    position, count, places = tf.while_loop(going, step, (start, tf.constant(0), places),
                                            maximum_iterations=MAX_BLOCKS)
    with images.require(~going(position, count, places), name, _TOO_MANY):
        sound = count > 0
    with images.require(sound, name, ' holds no video frame'):
        first, size = tf.unstack(places.stack()[:count], axis=1)
    streams = tf.strings.substr(video, first, tf.fill(tf.shape(first), tf.constant(2, tf.int64)))
    with images.require(tf.reduce_all(tf.equal(streams, streams[0])), name, ' holds more than one video stream'):
        last = (first + 8 + size)[-1]
    with images.require(last <= length, name, ' is cut: it ends in the middle of frame ',
                        tf.strings.as_string(count - 1)):
        return tf.strings.substr(video, first + 8, size)


def gif_frames(gif: tf.Tensor, name: tf.Tensor, limit: int, size: tuple[int, int]) -> tf.Tensor:
    """Decodes the first frames of an animated GIF.

    Args:
      gif: string [], the file's bytes.
      name: string [], what to call it in a message.
      limit: how many frames are wanted; those behind them are not decoded.
      size: height and width that the frames are resized to.

    Returns:
      uint8 [F, height, width, 3], RGB, 1 <= F <= limit. The times between the frames are not looked at.

    Raises (in the graph):
      InvalidArgument: it is no GIF, it ends within a frame, it has no frame, or it is too large.
    """
    length = tf.strings.length(gif)
    head = images.peek(gif, tf.constant(0, tf.int64), 13)
    with images.require(_is(head, 0, 'GIF8'), name, ' is no GIF file: ', tf.strings.as_string(length),
                        ' bytes'):
        data = tf.pad(tf.io.decode_raw(gif, tf.uint8), [[0, 512]])  # so that no block reads past the end
    screen = tf.stack([_short(head, 6), _short(head, 8)])
    count, end, extent = _walk_gif(data, length, name, 13 + _palette(head[10]), screen, limit)
    with images.require(count > 0, name, ' holds no frame'):
        sound = end <= length
    with images.require(sound, name, ' is cut: it ends in the middle of frame ',
                        tf.strings.as_string(count - 1)):
        pixels = tf.reduce_prod(tf.cast(extent, tf.int64))
        sound = (pixels <= images.MAX_PIXELS) & (pixels * tf.cast(count, tf.int64) <= MAX_GIF_PIXELS)
    with images.require(sound, name, ' is too large: ', tf.strings.as_string(count), ' frames of ',
                        tf.strings.as_string(extent[1]), 'x', tf.strings.as_string(extent[0]),
                        f' pixels, at most {MAX_GIF_PIXELS} in all and {images.MAX_PIXELS} of one are decoded'):
        wanted = tf.strings.join([tf.strings.substr(gif, 0, end), ';'])  # the trailer
    return resize.bilinear(tf.ensure_shape(tf.io.decode_gif(wanted), [None, None, None, 3]), size)


def _walk_gif(data, length, name, start, screen, limit: int):
    """Walks the blocks of a GIF to the end of frame `limit`.

    Returns:
      int32: the frames that have begun, the place behind the last of them, and the largest (width, height).
    """

    def inside(position):  # the data of a frame or an extension: sub-blocks, the last of them empty
        full = tf.cast(data[position:-256:256] == 255, tf.int32)  # writers fill all but the last
        position += 256 * tf.argmin(tf.pad(full, [[0, 1]]), output_type=tf.int32)
        size = tf.cast(data[tf.minimum(position, length)], tf.int32)
        return position + 1 + size, size > 0

    def block(position):  # what stands before such data
        head = data[position:position + 10]
        frame = tf.equal(head[0], 0x2c)
        return position + tf.where(frame, 11 + _palette(head[9]), 2), frame, _short(head, 5), _short(head, 7)

    def step(position, within, count, frame, end, extent):
        behind, more = inside(position)
        entered, begins, width, height = block(position)
        # A block that is neither a frame nor an extension is the trailer, or what nobody may read.
        known = begins | tf.equal(data[position], 0x21)
        closed = within & ~more & frame
        extent = tf.where(~within & begins, tf.maximum(extent, tf.stack([width, height])), extent)
        count += tf.cast(~within & begins, tf.int32)
        end = tf.where(closed, behind, tf.where(~within & begins, length + 1, end))
        position = tf.where(within, behind, tf.where(known, entered, length))
        return position, tf.where(within, more, known), count, tf.where(within, frame, begins), end, extent

    def going(position, within, count, *_):
        return (position < length) & (within | (count < limit))

    state = (start, False, 0, False, 0, screen)
    state = tuple(tf.convert_to_tensor(value) for value in state)
    state = tf.while_loop(going, step, state, maximum_iterations=MAX_BLOCKS)
    with images.require(~going(*state), name, _TOO_MANY):
        _, _, count, _, end, extent = (tf.identity(value) for value in state)
    return count, end, extent


def _is(head: tf.Tensor, first: int, letters: str) -> tf.Tensor:
    return tf.reduce_all(tf.equal(head[first:first + len(letters)], list(letters.encode())))


def _short(head: tf.Tensor, first: int) -> tf.Tensor:
    return tf.cast(images.number(head, first, 2, big_endian=False), tf.int32)


def _palette(packed: tf.Tensor) -> tf.Tensor:
    """Returns the bytes of the colour table that a byte of flags announces."""
    packed = tf.cast(packed, tf.int32)
    return tf.where(packed >= 128, 3 * tf.bitwise.left_shift(2, packed % 8), 0)
