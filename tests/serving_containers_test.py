# SPDX-License-Identifier: Apache-2.0
import struct
import time

import numpy as np
import pytest
import tensorflow as tf

from c3d_tf.data import resize
from c3d_tf.serving import containers
from c3d_tf.serving import images
from tests import serving_files

CLIP = serving_files.clip(9, 48, 64)
INVALID = tf.errors.InvalidArgumentError


@tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)], autograph=False)
def _graph(video, limit):
    return containers.avi_frames(video, tf.constant('it'), limit)


def _split(video, limit=100):
    return _graph(video, limit).numpy().tolist()


def _chunk(name, payload):
    return name + struct.pack('<I', len(payload)) + payload + bytes(len(payload) % 2)


def _list(kind, payload, name=b'LIST'):
    return name + struct.pack('<I', len(payload) + 4) + kind + payload


FILES = {'plain': serving_files.avi(CLIP), 'with sound': serving_files.avi(CLIP, audio=True),
         'one frame': serving_files.avi(CLIP[:1])}


@pytest.mark.parametrize('kind', FILES)
@pytest.mark.parametrize('limit', [1, 4, 100])
def test_an_avi_is_split_as_ffmpeg_splits_it(kind, limit):
    packets = serving_files.packets(FILES[kind])
    assert len(packets) == (1 if kind == 'one frame' else 9)
    assert _split(FILES[kind], limit) == packets[:limit]


def test_lists_within_lists_and_files_beyond_a_gigabyte():
    """rec lists, index chunks, dropped frames, odd sizes; OpenDML goes on in a second RIFF."""
    frames = [b'\xff\xd8' + bytes([i]) * i for i in range(6)]
    head = _list(b'hdrl', _list(b'strl', _chunk(b'strh', b'00dc' + bytes(40)))) + _chunk(b'JUNK', b'00dc' * 9)
    first = _list(b'movi', _list(b'rec ', _chunk(b'01wb', b'sound') + _chunk(b'00dc', frames[0]))
                  + _chunk(b'00dc', b'') + _chunk(b'ix00', bytes(24)) + _chunk(b'00dc', frames[1])
                  + _chunk(b'00db', frames[2]))
    second = _list(b'movi', b''.join(_chunk(b'00dc', frame) for frame in frames[3:]))
    video = _list(b'AVI ', head + first + _chunk(b'idx1', bytes(32)), b'RIFF') + _list(b'AVIX', second, b'RIFF')
    assert _split(video) == frames


def test_frames_without_huffman_tables():
    """As many cameras write them: the standard's own tables are meant."""
    whole = serving_files.jpeg(CLIP[0])
    bare, place = whole[:2], 2
    while whole[place + 1] != 0xda:
        end = place + 2 + int.from_bytes(whole[place + 2:place + 4])
        bare += whole[place:end] if whole[place + 1] != 0xc4 else b''
        place = end
    bare += whole[place:]
    assert len(bare) < len(whole) - 300
    video = _list(b'AVI ', _list(b'movi', _chunk(b'00dc', bare)), b'RIFF')
    np.testing.assert_array_equal(images.decode(_graph(video, 9), (48, 64))[0], serving_files.decoded(whole))


@pytest.mark.parametrize(('video', 'reason'), [
    (b'', 'it is no AVI file: 0 bytes'),
    (b'RIFF\x04\x00\x00\x00WAVE', 'it is no AVI file'),
    (b'RIFF\x04\x00\x00\x00AVI ', 'it holds no video frame'),
    (FILES['plain'][:FILES['plain'].index(b'00dc', 4000) + 30], 'it is cut: it ends in the middle of frame 0'),
    (_list(b'AVI ', _list(b'movi', _chunk(b'00dc', b'a') + _chunk(b'01dc', b'b')), b'RIFF'),
     'it holds more than one video stream'),
    (b'RIFF\x04\x00\x00\x00AVI ' + b'JUNK\x00\x00\x00\x00' * (containers.MAX_BLOCKS + 9), 'chopped into more'),
])
def test_what_is_wrong_with_an_avi_is_said(video, reason):
    with pytest.raises(INVALID, match=reason):
        _split(video)


@tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)], autograph=False)
def _gif(gif, limit):
    return containers.gif_frames(gif, tf.constant('it'), limit, (48, 64))


GIFS = {
    'plain': serving_files.gif(CLIP),
    'own palettes, loops, comments': serving_files.gif(CLIP, loop=0, duration=40, comment=b'hello ' * 99),
    'frames that change a corner': serving_files.gif(
        [np.where(np.arange(64)[None, :, None] < 8 * i, 200, CLIP[0]).astype(np.uint8) for i in range(9)]),
    'one frame': serving_files.gif(CLIP[:1]),
}


@pytest.mark.parametrize('kind', GIFS)
@pytest.mark.parametrize('limit', [1, 4, 100])
def test_a_gif_is_decoded_as_pillow_decodes_it(kind, limit):
    expected = serving_files.gif_frames(GIFS[kind])
    assert len(expected) == (1 if kind == 'one frame' else 9)
    np.testing.assert_array_equal(_gif(GIFS[kind], limit), expected[:limit])


def test_a_gif_is_resized_as_the_other_frames():
    gif = serving_files.gif(serving_files.clip(2, 31, 90))
    expected = resize.bilinear(tf.constant(serving_files.gif_frames(gif)), (48, 64))
    np.testing.assert_array_equal(_gif(gif, 9), expected)


def _bare_gif(width, height, frames, screen=(1, 1)) -> bytes:
    """Frames that claim a size and hold one pixel's data."""
    head = b'GIF89a' + struct.pack('<HHBBB', *screen, 0x80, 0, 0) + bytes(6)
    frame = b',' + struct.pack('<HHHHB', 0, 0, width, height, 0) + b'\x02\x02\x44\x01\x00'
    return head + frame * frames + b';'


@pytest.mark.parametrize(('gif', 'reason'), [
    (b'', 'it is no GIF file: 0 bytes'),
    (b'GIF89a', 'it holds no frame'),
    (_bare_gif(1, 1, 0), 'it holds no frame'),
    (GIFS['plain'][:len(GIFS['plain']) // 2], 'it is cut: it ends in the middle of frame 4'),
    (_bare_gif(65535, 65535, 1), 'it is too large: 1 frames of 65535x65535'),
    (_bare_gif(1, 1, 1, screen=(65535, 65535)), 'it is too large: 1 frames of 65535x65535'),
    (_bare_gif(4096, 4096, 90), 'it is too large: 90 frames of 4096x4096'),
    (_bare_gif(1, 1, 1)[:-4] + b'\x01\x00' * containers.MAX_BLOCKS, 'chopped into more'),
])
def test_what_is_wrong_with_a_gif_is_said(gif, reason):
    with pytest.raises(INVALID, match=reason):
        _gif(gif, 100)


def test_frames_that_nobody_wants_cost_their_bytes_alone():
    frame = serving_files.jpeg(CLIP[0])
    video = _list(b'AVI ', _list(b'movi', _chunk(b'00dc', frame) * 10_000), b'RIFF')
    gif = GIFS['plain'][:-1] + _bare_gif(4096, 4096, 10_000)[19:]
    start = time.monotonic()
    assert len(_split(video, 16)) == 16 and len(_gif(gif, 9)) == 9
    assert time.monotonic() - start < 2
