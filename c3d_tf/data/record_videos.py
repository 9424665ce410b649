# SPDX-License-Identifier: Apache-2.0
"""Videos inside records: where each lies, and its frames; only what is asked for is read."""

import functools
import struct
from collections.abc import Iterator

import tensorflow as tf

from c3d_tf.common import errors
from c3d_tf.common import storage
from c3d_tf.data import inputs
from c3d_tf.data import records
from c3d_tf.data import sources
from c3d_tf.data import video

_HEADER = struct.Struct('<QI')  # of a TFRecord: the length and its checksum; the data's own follows it
_FOOTER = 4


def find(index: records.Index, split: str) -> list[inputs.Video]:
    """Returns the videos of a split in their order on disk.

    Raises:
      errors.UsageError: there is no such split.
      errors.RunError: a shard does not hold what the index says.
    """
    part = index.split(split)
    spans, names = [[] for _ in range(part.num_videos)], [''] * part.num_videos
    number = 0
    for path, count in zip(part.files, part.shard_records):
        for offset, length, context in _records(path, count):
            place = int(part.videos[number])
            names[place] = names[place] or context.feature[records.MEDIA_ID].bytes_list.value[0].decode(
                errors='surrogateescape')
            spans[place].append((path, offset, length))
            number += 1
    ids = inputs.media_ids(names, [False] * len(names))
    return [inputs.Video(name, path, functools.partial(frames, tuple(own)))
            for name, path, own in zip(ids, names, spans)]


def frames(spans: tuple[tuple[str, int, int], ...]) -> Iterator[video.Frame | None]:
    """Yields a video's frames; None where the next span does not follow on the last one.

    Spans overlap: what lies before the end of the last one is not given twice.

    Args:
      spans: (shard, offset, length) of the records of one video, in order.

    Raises:
      video.VideoError: not one frame could be decoded.
    """
    last = -1
    for path, offset, length in spans:
        with storage.open(path, 'rb') as file:
            file.seek(offset)
            try:
                example = tf.train.SequenceExample.FromString(file.read(length))
            except Exception as error:  # protobuf has a kind of its own
                raise video.VideoError(f'{path} is damaged at byte {offset} ({error})') from error
        lists = example.feature_lists.feature_list
        times = [feature.int64_list.value[0] for feature in lists[records.TIMESTAMP].feature]
        if times and 0 <= last < times[0]:
            yield None
        for time, feature in zip(times, lists[records.IMAGE].feature):
            if time <= last:
                continue
            # cv2 and decode_image of records give the same pixels; this one needs no graph.
            image = sources.decode_image(feature.bytes_list.value[0])
            if image is None:
                raise video.VideoError(f'the frame at {time / 1e6:g} s is no image that can be decoded')
            yield video.Frame(time, image)
            last = time
    if last < 0:
        raise video.VideoError('no frames')


def _records(path: str, count: int) -> Iterator[tuple[int, int, tf.train.Features]]:
    """Yields (offset, length, context) of every record; the images are jumped over."""
    with storage.open(path, 'rb') as file:
        for _ in range(count):
            header = file.read(_HEADER.size)
            offset = file.tell()
            if len(header) < _HEADER.size:
                raise errors.RunError(f'{path} is shorter than its index says; run --mode=prepare again')
            length = _HEADER.unpack(header)[0]
            yield offset, length, _context(file, length)
            file.seek(offset + length + _FOOTER)


def _context(file, length: int) -> tf.train.Features:
    start = file.read(min(length, 11))
    if start[:1] != b'\x0a':  # not the context first, as records.encode writes it: read all of it
        return tf.train.SequenceExample.FromString(start + file.read(length - len(start))).context
    size = shift = place = 0
    while True:  # a varint: seven bits a byte, the lowest first
        place += 1
        size |= (start[place] & 0x7F) << shift
        shift += 7
        if start[place] < 0x80:
            break
    rest = start[place + 1:]
    return tf.train.Features.FromString((rest + file.read(max(size - len(rest), 0)))[:size])
