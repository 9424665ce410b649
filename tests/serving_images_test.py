# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest
import tensorflow as tf

from c3d_tf.data import preprocess
from c3d_tf.data import video
from c3d_tf.data import windows
from c3d_tf.serving import images
from c3d_tf.serving import signatures
from tests import serving_files

IMAGE = serving_files.clip(1, 53, 71)[0]


def _with_segments(encoded: bytes, segments: bytes) -> bytes:
    return encoded[:2] + segments + encoded[2:]


def _png(*, depth=np.uint8, channels=3, interlaced=False) -> bytes:
    value = np.random.default_rng(0).integers(0, np.iinfo(depth).max, (53, 71, channels), depth)
    return cv2.imencode('.png', value)[1].tobytes()


ENCODED = {
    'jpeg': serving_files.jpeg(IMAGE),
    'progressive': serving_files.jpeg(IMAGE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    'grey': cv2.imencode('.jpg', IMAGE[..., 0])[1].tobytes(),
    'an EXIF thumbnail, which has a size of its own': _with_segments(
        serving_files.jpeg(IMAGE), b'\xff\xe1\x02\x02' + serving_files.jpeg(IMAGE[:5, :4])[:512].ljust(512)),
    'fill bytes': _with_segments(serving_files.jpeg(IMAGE), b'\xff\xff\xff\xff\xfe\x00\x04ok'),
    'bytes behind the end': serving_files.jpeg(IMAGE) + bytes(1000),
    'png': serving_files.png(IMAGE),
    'png grey': _png(channels=1), 'png alpha': _png(channels=4), 'png of 16 bits': _png(depth=np.uint16),
}


def _sizes(*encoded):
    names = tf.constant([f'image {i}' for i in range(len(encoded))], tf.string)
    return images.sizes(tf.constant(list(encoded), tf.string), names)


@pytest.mark.parametrize('kind', ENCODED)
def test_sizes_are_known_without_decoding(kind):
    other = serving_files.png(IMAGE[:7, :5])
    np.testing.assert_array_equal(_sizes(other, ENCODED[kind], other), [[7, 5], [53, 71], [7, 5]])


@pytest.mark.parametrize('kind', ['jpeg', 'progressive', 'grey', 'png', 'bytes behind the end'])
@pytest.mark.parametrize('size', [(53, 71), (24, 32), (128, 171)])
def test_frames_are_opencvs_to_the_byte(kind, size):
    found = images.decode(tf.constant([ENCODED[kind]] * 2), size)
    expected = cv2.resize(serving_files.decoded(ENCODED[kind]), size[::-1])
    np.testing.assert_array_equal(found, [expected] * 2)


@pytest.mark.parametrize('kind', ['png grey', 'png alpha', 'png of 16 bits'])
def test_every_png_is_three_channels_of_bytes(kind):
    assert images.decode(tf.constant([ENCODED[kind]]), (53, 71)).shape == (1, 53, 71, 3)


@pytest.mark.parametrize(('broken', 'reason'), [
    (b'', 'image 1 is neither a JPEG nor a PNG: 0 bytes'),
    (b'BM' + bytes(60), 'image 1 is neither'),
    (ENCODED['jpeg'][:3], 'image 1 has no size in its header'),
    (ENCODED['jpeg'][:100], 'image 1 has no size in its header'),
    (ENCODED['png'][:20], 'image 1 has no size'),
    (ENCODED['png'].replace(b'IHDR', b'JHDR'), 'image 1 has no size'),
    (_with_segments(ENCODED['jpeg'], b'\xff\xda\x00\x02'), 'image 1 has no size'),      # pixels come first
    (_with_segments(ENCODED['jpeg'], b'\xff\xe0\x00\x02' * 300), 'image 1 has no size'),  # 300 empty segments
    (_with_segments(ENCODED['jpeg'], b'\xff\xfe\x00\x02\x00\x00'), 'image 1 has no size'),
    (ENCODED['png'][:16] + b'\xff' * 8 + ENCODED['png'][24:], 'image 1 is too large: 4294967295x4294967295'),
    (ENCODED['png'][:16] + bytes(8) + ENCODED['png'][24:], 'image 1 has no size'),
])
def test_what_is_wrong_is_said(broken, reason):
    with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
        _sizes(ENCODED['jpeg'], broken, ENCODED['png'])


def test_the_limit_of_an_image(monkeypatch):
    monkeypatch.setattr(images, 'MAX_PIXELS', 53 * 71)
    assert _sizes(ENCODED['jpeg']).shape == (1, 2)
    monkeypatch.setattr(images, 'MAX_PIXELS', 53 * 71 - 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match='image 0 is too large: 53x71 pixels, at most 3762'):
        _sizes(ENCODED['jpeg'])


def test_the_limit_of_an_example(monkeypatch):
    frames, lengths = tf.constant([ENCODED['jpeg']] * 5), tf.constant([2, 3])
    table = tf.constant([[0, 1, 0, 1], [2, 3, 2, 4]])
    monkeypatch.setattr(images, 'MAX_EXAMPLE_PIXELS', 3 * 53 * 71)
    np.testing.assert_array_equal(signatures._bounded(frames, lengths, table), table)
    monkeypatch.setattr(images, 'MAX_EXAMPLE_PIXELS', 3 * 53 * 71 - 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match='example 1 is too large: 11289 pixels'):
        signatures._bounded(frames, lengths, table)


@pytest.mark.parametrize('short', ['loop', 'repeat_last', 'drop'])
@pytest.mark.parametrize('stride', [1, 3])
def test_clips_are_those_of_evaluation(short, stride):
    """The table against windows.cut, by which videos are read; 'drop' is for training alone."""
    lengths, max_clips = [1, 3, 4, 10, 11, 12, 40, 100], 4
    spec = preprocess.Preprocessing((8, 8), 8, 4, stride, np.zeros(()), short)
    table, examples = signatures.clip_table(tf.constant(lengths), spec, max_clips)
    found, first = [], 0
    for number, length in enumerate(lengths):
        frames = [video.Frame(image=np.array(first + i), time=i) for i in range(length)]
        cut = windows.cut(frames, clip_length=4, stride=stride, step=0,
                          short='loop' if short == 'drop' else short)
        found += [(number, one.images.tolist()) for one in list(cut)[:max_clips]]
        first += length
    assert found == list(zip(examples.numpy().tolist(), table.numpy().tolist()))
