# SPDX-License-Identifier: Apache-2.0
"""Records → batches: shards are interleaved, records shuffled encoded, only chosen frames decoded."""

import numpy as np
import tensorflow as tf

from c3d_tf.data import clips
from c3d_tf.data import preprocess
from c3d_tf.data import records

SHUFFLE_BYTES = 256 << 20  # encoded records that wait in memory for their turn


def read_clips(
    split: records.Split, record: np.ndarray, start: np.ndarray, *, clip_length: int, stride: int = 1
) -> tf.data.Dataset:
    """Returns the chosen clips as they are stored, uint8 [clip_length, H, W, 3], in record order.

    Args:
      split: the records.
      record, start: int64 [C] as `clips.choose` returns them.
      clip_length, stride: see `clips.indices`.
    """
    counts = np.bincount(record, minlength=len(split.frames))
    splits = tf.constant(np.concatenate([[0], np.cumsum(counts)]))
    starts = tf.constant(start)

    def clip(row):
        return _decode(row['images'], starts[row['clip']], clip_length, stride, 'loop')

    return _rows(split, splits, np.arange(len(split.files))).map(clip, tf.data.AUTOTUNE, deterministic=True)


def for_training(
    split: records.Split,
    spec: preprocess.Preprocessing,
    *,
    batch_size: int,
    epoch: int,
    choice: str = 'random',
    skip: int = 0,
    seed: int = 0,
    worker: tuple[int, int] = (0, 1),
    **choices,
) -> tf.data.Dataset:
    """Returns one epoch of clips in an order of its own.

    Args:
      split: the records.
      spec: sizes and mean.
      batch_size: clips a step over all replicas; the last batch of the epoch may be smaller.
      epoch: with `seed` decides every random choice, and with TensorFlow's global seed the order.
      choice: 'random', one clip from anywhere in each record; or 'all', every clip of a list of clips
        that follow one another, as the paper cuts UCF101.
      skip: batches at the start of the epoch that an earlier run has used already.
      seed: see `epoch`.
      worker: this one's number and how many there are: of every batch it takes the rows that are left
        over by that number. A batch with too few rows lends it the first one: see `share`.
      **choices: crops, flip and other arguments of `clips.plan`.

    Returns:
      batches of (clips float32 [B, T, S, S, 3], labels int32 [B], records int64 [B]).
    """
    # A record is its own video here: every record gives its clips each epoch.
    plan = clips.plan(split.frames, np.arange(len(split.frames)), choice=choice, count=1, seed=seed,
                      epoch=epoch, **_sizes(spec), **choices)
    table = _Table(plan)
    order = np.random.default_rng([seed, epoch, 1]).permutation(len(split.files))
    row_bytes = max(split.num_bytes // max(len(split.frames), 1), 1)
    buffer = int(np.clip(SHUFFLE_BYTES // row_bytes, 16, len(plan.start) + 1))
    rows = _rows(split, tf.constant(plan.splits), order)
    rows = rows.shuffle(buffer, seed=_small_seed(seed, epoch), reshuffle_each_iteration=False)
    rows = rows.skip(skip * batch_size)
    own_size = batch_size
    if worker[1] > 1:
        rows, own_size = _own_rows(rows, skip * batch_size, len(plan.start), batch_size, worker)

    def example(row):
        clip = table.clip(row, spec)
        labels = row['labels']
        # Several labels (Sports-1M): one is drawn for each epoch. The paper does not say; our choice.
        pick = tf.cast(table.draw(row) * tf.cast(tf.size(labels), tf.float32), tf.int32)
        return clip, tf.cast(labels[tf.minimum(pick, tf.size(labels) - 1)], tf.int32), row['record']

    return rows.map(example, tf.data.AUTOTUNE, deterministic=True).batch(own_size).prefetch(2)


def share(size: int, worker: tuple[int, int]) -> float:
    """Returns the weight of each of a worker's rows in the mean over a batch of `size` rows of all workers:
    0 where it has none of its own."""
    return (worker[0] < size) / size


def training_clips(split: records.Split, spec: preprocess.Preprocessing, choice: str) -> np.ndarray:
    """Returns int64 [R], how many clips each record gives to one epoch of `for_training`."""
    record, _ = clips.choose(
        split.frames, np.arange(len(split.frames)), choice=choice, clip_length=spec.clip_length,
        stride=spec.stride, short=spec.short, rng=np.random.default_rng(0))
    return np.bincount(record, minlength=len(split.frames))


def for_evaluation(
    split: records.Split,
    spec: preprocess.Preprocessing,
    *,
    batch_size: int,
    choice: str,
    count: int,
    step: int = 0,
    crops: str = 'centre',
    seed: int = 0,
) -> tf.data.Dataset:
    """Returns every chosen clip of every video once, all its crops after one another, in record order.

    No video is left out: where the spec says 'drop', which is for training, those shorter than a clip
    start over.

    Args:
      split: the records.
      spec: sizes and mean.
      batch_size: clips a batch; batches are full across videos, the last may be smaller.
      choice, count, step, crops, seed: see `clips.plan`.

    Returns:
      batches of (clips float32 [B, T, S, S, 3], records int64 [B]).
    """
    plan = clips.plan(
        split.frames, split.videos, choice=choice, count=count, step=step, crops=crops, seed=seed,
        **_sizes(spec) | {'short': 'loop' if spec.short == 'drop' else spec.short})
    table = _Table(plan)
    rows = _rows(split, tf.constant(plan.splits), np.arange(len(split.files)))
    chosen = rows.map(lambda row: (table.clip(row, spec), row['record']), tf.data.AUTOTUNE,
                      deterministic=True)
    return chosen.batch(batch_size).prefetch(2)


def read_labels(split: records.Split) -> tuple[list[str], list[list[int]]]:
    """Returns (names, labels) of the split's videos in record order; no frame is decoded."""
    names, labels = [], []
    first = set(np.flatnonzero(np.diff(split.videos, prepend=-1)))
    for row in _parsed(split, np.arange(len(split.files))).as_numpy_iterator():
        if row['record'] in first:
            names.append(row['name'].decode(errors='surrogateescape'))
            labels.append(row['labels'].tolist())
    return names, labels


def _sizes(spec: preprocess.Preprocessing) -> dict:
    return {'clip_length': spec.clip_length, 'stride': spec.stride, 'short': spec.short,
            'frame_size': spec.frame_size, 'crop_size': spec.crop_size}


class _Table:
    """A plan's columns as tensors; `row['clip']` is the line that belongs to a row."""

    def __init__(self, plan: clips.Plan):
        self._columns = {name: tf.constant(column) for name, column in plan._asdict().items()}

    def clip(self, row, spec: preprocess.Preprocessing) -> tf.Tensor:
        line = {name: column[row['clip']] for name, column in self._columns.items()}
        frames = _decode(row['images'], line['start'], spec.clip_length, line['stride'], spec.short)
        frames = tf.ensure_shape(frames, [spec.clip_length, *spec.frame_size, 3])
        return preprocess.crop(
            frames, line['top'], line['left'], line['side'], line['flip'], line['colour'], spec,
            zip(tf.unstack(line['transforms']), tf.unstack(line['strengths'])))

    def draw(self, row) -> tf.Tensor:
        return self._columns['draw'][row['clip']]


def _decode(images: tf.Tensor, start: tf.Tensor, clip_length: int, stride, short: str) -> tf.Tensor:
    chosen = clips.indices(start, tf.size(images, tf.int64), clip_length=clip_length, stride=stride,
                           short=short, minimum=tf.minimum)
    return tf.map_fn(records.decode_image, tf.gather(images, chosen), fn_output_signature=tf.uint8)


def _parsed(split: records.Split, shard_order: np.ndarray) -> tf.data.Dataset:
    """Yields parsed records with their number in the split, shards in the given order."""
    first = np.cumsum(split.shard_records) - split.shard_records

    def shard(file, number):
        return tf.data.TFRecordDataset(file, buffer_size=1 << 20).enumerate(number)

    shards = tf.data.Dataset.from_tensor_slices(
        (np.array(split.files)[shard_order], first[shard_order]))
    # In order where the order counts; a few shards side by side where it is shuffled anyway.
    shuffled = not np.array_equal(shard_order, np.arange(len(shard_order)))
    found = shards.interleave(shard, cycle_length=8 if shuffled else 1)

    def parse(number, serialized):
        example = records.parse(serialized)
        return {'record': number, 'images': example[records.IMAGE],
                'labels': example[records.LABEL_INDEX], 'name': example[records.MEDIA_ID]}

    return found.map(parse, tf.data.AUTOTUNE, deterministic=True)


def _rows(split: records.Split, splits: tf.Tensor, shard_order: np.ndarray) -> tf.data.Dataset:
    """Yields a row for every clip of every record: the record, still encoded, and its plan line."""

    def expand(row):
        lines = tf.range(splits[row['record']], splits[row['record'] + 1])
        return tf.data.Dataset.from_tensor_slices(lines).map(lambda line: {**row, 'clip': line})

    return _parsed(split, shard_order).flat_map(expand)


def _own_rows(rows: tf.data.Dataset, first: int, total: int, batch_size: int, worker: tuple[int, int]):
    """Returns a worker's rows of every batch, still encoded, and how many a whole batch gives it.

    Args:
      rows: of all workers, from `first` of the epoch's `total` on.
      first, total: see `rows`.
      batch_size: rows of a batch of all workers.
      worker: see `for_training`.
    """
    number, count = worker

    def own(position, _):
        place = position % batch_size
        size = tf.minimum(total - position + place, batch_size)  # the epoch's last batch may be smaller
        return (place % count == number) | ((place == 0) & (size <= number))

    return (rows.enumerate(first).filter(own).map(lambda _, row: row),
            max(-(-(batch_size - number) // count), 1))


def _small_seed(*numbers: int) -> int:
    return int(np.random.default_rng(numbers).integers(2**31))
