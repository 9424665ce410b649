# SPDX-License-Identifier: Apache-2.0
"""The record format: its keys, writer, reader and index.

A record is a tf.train.SequenceExample with MediaSequence's keys and holds a span of one video as
encoded frames. Long videos become several records that follow one another in one shard, joined by
`clip/media_id`. A split is `<split>-NNNNN-of-NNNNN.tfrecord` shards; `index.json` tells their content.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage

IMAGE = 'image/encoded'                # feature list, bytes: one JPEG or PNG a frame
TIMESTAMP = 'image/timestamp'          # feature list, int64: µs, strictly increasing
FORMAT = 'image/format'                # context, bytes: 'jpeg' or 'png'
HEIGHT = 'image/height'                # context, int64
WIDTH = 'image/width'                  # context, int64
LABEL_INDEX = 'clip/label/index'       # context, int64 list
LABEL_TEXT = 'clip/label/text'         # context, bytes list
MEDIA_ID = 'clip/media_id'             # context, bytes: the same for all spans of a video
DATA_PATH = 'clip/data_path'           # context, bytes: the source file
START = 'clip/start/timestamp'         # context, int64: µs of the span's first frame
END = 'clip/end/timestamp'             # context, int64: µs of the span's last frame

INDEX = 'index.json'
MEAN = 'mean.npy'
SKIPPED = 'skipped.jsonl'


def shard_name(split: str, shard: int, shards: int) -> str:
    return f'{split}-{shard:05d}-of-{shards:05d}.tfrecord'


def encode(
    images: Sequence[bytes],
    times: Sequence[int],
    *,
    image_format: str,
    size: tuple[int, int],
    labels: Sequence[int],
    label_texts: Sequence[str],
    media_id: str,
    path: str,
) -> bytes:
    """Returns one serialized SequenceExample.

    Args:
      images: the encoded frames.
      times: their time stamps in µs.
      image_format: 'jpeg' or 'png'.
      size: (height, width) of the frames.
      labels: class indices.
      label_texts: their names.
      media_id: names the video among all of its data set.
      path: the video file the frames come from.
    """
    example = tf.train.SequenceExample()
    context = example.context.feature
    context[FORMAT].bytes_list.value.append(image_format.encode())
    context[HEIGHT].int64_list.value.append(size[0])
    context[WIDTH].int64_list.value.append(size[1])
    context[LABEL_INDEX].int64_list.value.extend(labels)
    context[LABEL_TEXT].bytes_list.value.extend(
        text.encode(errors='surrogateescape') for text in label_texts)
    # File names are bytes on disk; surrogateescape keeps odd ones as they are.
    context[MEDIA_ID].bytes_list.value.append(media_id.encode(errors='surrogateescape'))
    context[DATA_PATH].bytes_list.value.append(path.encode(errors='surrogateescape'))
    context[START].int64_list.value.append(times[0])
    context[END].int64_list.value.append(times[-1])
    lists = example.feature_lists.feature_list
    for image in images:
        lists[IMAGE].feature.add().bytes_list.value.append(image)
    for time in times:
        lists[TIMESTAMP].feature.add().int64_list.value.append(time)
    return example.SerializeToString(deterministic=True)


def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Parses one record in a graph.

    Returns:
      {IMAGE: string [T], LABEL_INDEX: int64 [L], MEDIA_ID: string []}
    """
    context, lists = tf.io.parse_single_sequence_example(
        serialized,
        context_features={
            LABEL_INDEX: tf.io.RaggedFeature(tf.int64),
            MEDIA_ID: tf.io.FixedLenFeature((), tf.string, default_value=''),
        },
        sequence_features={IMAGE: tf.io.FixedLenSequenceFeature((), tf.string)},
    )
    return {**context, **lists}


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Returns uint8 [H, W, 3] of one JPEG or PNG.

    INTEGER_ACCURATE is the DCT that cv2 and libjpeg use; TensorFlow's own default differs from it on
    half of all pixels.
    """
    return tf.io.decode_jpeg(encoded, channels=3, dct_method='INTEGER_ACCURATE')


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of one split in their order on disk.

    Attributes:
      files: shard paths.
      shard_records: int64 [S], records of each shard.
      frames: int64 [R], frames of each record.
      videos: int64 [R], number of each record's video, rising by one from 0.
    """

    files: tuple[str, ...]
    shard_records: np.ndarray
    frames: np.ndarray
    videos: np.ndarray

    @property
    def num_videos(self) -> int:
        return int(self.videos[-1]) + 1 if len(self.videos) else 0

    @property
    def num_bytes(self) -> int:
        return sum(storage.getsize(path) for path in self.files)


@dataclasses.dataclass(frozen=True)
class Index:
    """What `index.json` tells of a folder of records."""

    directory: str
    data: dict

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.data['class_names'])

    @property
    def frame_size(self) -> tuple[int, int]:
        return tuple(self.data['frame_size'])

    @property
    def channel_means(self) -> tuple[float, float, float]:
        """RGB means over all pixels of the training split."""
        return tuple(self.data['channel_means'])

    @property
    def fingerprint(self) -> str:
        """Returns a hash of all that decided the records."""
        return files.text_hash(json.dumps(self.data['settings'], sort_keys=True))

    def mean(self) -> np.ndarray:
        """Returns float32 [16, H, W, 3], the mean clip of the training split."""
        return np.load(storage.readable(os.path.join(self.directory, MEAN)), allow_pickle=False)

    def lost(self, *splits: str) -> list[str]:
        """Returns the paths of shards, of all splits where none is named, that are gone, cut or grown."""
        shards = [(os.path.join(self.directory, shard['file']), shard.get('bytes'))  # not in old indices
                  for name in splits or self.data['splits'] for shard in self.data['splits'][name]['shards']]
        return [path for path, size in shards
                if not storage.exists(path) or size not in (None, storage.getsize(path))]

    def split(self, name: str) -> Split:
        """Returns a split's records.

        Raises:
          errors.UsageError: there is no such split, or it is empty.
        """
        part = self.data['splits'].get(name)
        if not part or not part['videos']:
            have = [key for key, value in self.data['splits'].items() if value['videos']]
            raise errors.UsageError(f'{self.directory} has no videos in split {name!r}; '
                                    f'it has {", ".join(have) or "none at all"}')
        shards = part['shards']
        spans = np.concatenate([np.asarray(s['records'], np.int64) for s in shards])
        frames = np.concatenate([np.asarray(s['frames'], np.int64) for s in shards])
        paths = tuple(os.path.join(self.directory, s['file']) for s in shards)
        lost = self.lost(name)
        if lost:
            raise errors.RunError(f'{lost[0]} is gone or not as long as it was ({len(lost)} of {len(paths)} '
                                  'shards); run --mode=prepare again, which makes those anew')
        return Split(
            files=paths,
            shard_records=np.array([len(s['frames']) for s in shards], np.int64),
            frames=frames,
            videos=np.repeat(np.arange(len(spans)), spans),
        )


def read_index(directory: str) -> Index:
    """Returns the index of a folder of records.

    Raises:
      errors.UsageError: the folder has none.
    """
    if not directory:
        raise errors.UsageError('--records is not set: expected the folder that prepare wrote')
    data = files.read_json(os.path.join(directory, INDEX))
    if data is None:
        raise errors.UsageError(f'--records={directory}: no {INDEX} there; '
                                'run --mode=prepare with the same flags first')
    return Index(directory, data)


def names_damage(verb):
    """Wraps a function of a folder of records: where a record's sum is wrong, the error names the shard.

    TensorFlow's own error says at which byte, but not of which file: all are read to find it.
    """
    @functools.wraps(verb)
    def wrapped(directory: str, *args, **kwargs):
        try:
            return verb(directory, *args, **kwargs)
        except tf.errors.DataLossError as error:
            for path in storage.glob(os.path.join(storage.escape(directory), '*.tfrecord')):
                if reason := damage(path):
                    raise errors.RunError(
                        f'{path} is damaged ({reason}); delete it and run --mode=prepare again, which makes '
                        'that file anew') from error
            raise

    return wrapped


def damage(path: str) -> str:
    """Reads a whole shard; returns what is wrong with it, or ''."""
    try:
        for _ in tf.data.TFRecordDataset(path):
            pass
    except tf.errors.OpError as error:
        return errors.plain(error)
    return ''
