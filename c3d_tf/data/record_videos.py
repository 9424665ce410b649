# SPDX-License-Identifier: Apache-2.0
"""Videos inside records: where each lies, and its frames; only what is asked for is read."""

import functools
import struct
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.lib.io import tf_record  # the only reader of TensorFlow's that can start anywhere

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
        for offset, length, name in _records(path, count):
            place = int(part.videos[number])
            names[place] = names[place] or name
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
        try:
            example = tf.train.SequenceExample.FromString(_record(path, offset))
        except Exception as error:  # a wrong sum, the file's end, or protobuf's own kind
            raise video.VideoError(f'{path} is damaged at byte {offset} ({errors.plain(error)})') from error
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


def _record(path: str, offset: int) -> bytes:
    """Returns the record whose data begin at the offset; its sums are checked."""
    return tf_record.tf_record_random_reader(path).read(offset - _HEADER.size)[0]


def _records(path: str, count: int) -> Iterator[tuple[int, int, str]]:
    """Yields (offset, length, video's name) of every record; the images are jumped over."""
    size, offset = storage.getsize(path), _HEADER.size
    with storage.open(path, 'rb') as file:
        for _ in range(count):
            file.seek(offset - _HEADER.size)
            try:
                length = _HEADER.unpack(file.read(_HEADER.size))[0]
                if offset + length + _FOOTER > size:
                    raise ValueError(f'a record of {length} bytes in a file of {size}')
                name = _context(file, length).feature[records.MEDIA_ID].bytes_list.value[0]
            except Exception as error:  # protobuf has a kind of its own
                raise errors.RunError(f'{path} is damaged near byte {offset} ({error}); delete it and run '
                                      '--mode=prepare again, which makes that file anew') from error
            yield offset, length, name.decode(errors='surrogateescape')
            offset += length + _FOOTER + _HEADER.size


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
