# SPDX-License-Identifier: Apache-2.0
"""Which videos a data set holds, their labels and their split: lists and folders in, examples out."""

import collections
import dataclasses
import hashlib
import math
import os
import re
import tempfile

from c3d_tf.common import errors
from c3d_tf.common import storage
from c3d_tf.data import lists as official
from c3d_tf.data import moving_shapes
from c3d_tf.data import sources

SPLITS = official.SPLITS


@dataclasses.dataclass(frozen=True, order=True)
class Example:
    """One video, or a part of one, with its labels.

    Attributes:
      path: what `sources.frames` reads: a video file, a folder of frame images, a TFDS example.
      labels: class indices, one or (Sports-1M) several.
      group: what must not be on two sides of a split, e.g. the film that a clip was cut from.
      split: one of SPLITS.
      start, end: seconds; only frames with start <= time < end are taken.
    """

    path: str
    labels: tuple[int, ...]
    group: str
    split: str
    start: float = 0.0
    end: float = math.inf

    @property
    def source(self) -> str:
        """The path, with `#start-end` behind it where only a part is taken."""
        if (self.start, self.end) == (0.0, math.inf):
            return self.path
        return f'{self.path}#{self.start:.12g}-{self.end:.12g}'


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The examples of all splits, sorted by path.

    Attributes:
      name: a key of DATASETS, or tfds:NAME.
      root: the folder that names of videos are relative to.
      class_names: in order of their index.
      examples: sorted by path.
    """

    name: str
    root: str
    class_names: tuple[str, ...]
    examples: tuple[Example, ...]

    def media_id(self, example: Example) -> str:
        """Returns the video's name in records and results: its path below the root."""
        return _below(example.source, self.root)


def load(
    name: str,
    *,
    videos: str,
    lists: str = '',
    train_list: str = '',
    val_list: str = '',
    test_list: str = '',
    fold: int = 1,
    groups: str = '',
    group_regex: str = '',
    val_fraction: float = 0.0,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Returns the data set `name`.

    Args:
      name: a key of DATASETS, or tfds:NAME.
      videos: the folder that holds the video files; for tfds, its data_dir.
      lists: the folder that holds the data set's official lists.
      train_list, val_list, test_list: for 'list', files with a line `path label` per video, paths
        below `videos`; for 'csv' and 'c3d_lst', see `lists.table` and `lists.c3d_lst`.
      fold: for 'ucf101' and 'hmdb51', which of the three official splits.
      groups: a CSV or TSV file with a header; its first two columns are a video's path below `videos`
        and its group.
      group_regex: the group of a video is the regex's first match in its file stem (its first
        capture where it has one). Without a match, and without `groups`, the group is what the list
        says, or else the video itself: its path without the ending.
      val_fraction: the share of the training groups that becomes the val split, where there is none.
      test_fraction: for a 'folder' without splits, the share of groups that becomes the test split.
      seed: seeds the split of groups, and the labels of moving_shapes' videos.

    Raises:
      errors.UsageError: a folder, list or class is missing, empty or contradicts itself.
    """
    is_tfds = name.startswith('tfds:')
    if name not in DATASETS and not is_tfds:
        raise errors.UsageError(f'--dataset={name}: expected one of {", ".join(DATASETS)}, tfds:NAME')
    if not 0 <= val_fraction < 1 or not 0 <= test_fraction < 1 or val_fraction + test_fraction >= 1:
        raise errors.UsageError('--val_fraction and --test_fraction: expected shares from 0 up to 1, '
                                f'less than 1 together; got {val_fraction} and {test_fraction}')
    if name in ('folder', 'list', 'csv', 'ucf101', 'hmdb51'):
        _require_folder(videos)
    group = _grouping(videos, groups, group_regex)
    class_names, rows = (_tfds if is_tfds else DATASETS[name])(
        name=name, videos=videos, lists=lists, train_list=train_list, val_list=val_list,
        test_list=test_list, fold=fold, seed=seed)
    has_val = any(row.split == 'val' for row in rows)
    examples = set()  # a list that names a video twice in the same way means it once
    for row in rows:
        key, split = group(row), row.split
        if not split:
            split = _draw_split(key, val_fraction, test_fraction, seed)
        elif split == 'train' and not has_val:
            split = _draw_split(key, val_fraction, 0, seed)
        examples.add(Example(row.path, row.labels, key, split, row.start, row.end))
    in_order = sorted(examples, key=lambda e: (e.path, e.start, e.end, e.labels))
    dataset = Dataset(name, videos, class_names, tuple(in_order))
    _check(dataset)
    return dataset


def _folder(*, videos, **_) -> tuple[tuple[str, ...], list[official.Row]]:
    """`videos/CLASS/video`, or `videos/SPLIT/CLASS/video`.

    A video is a file, every one of them and whatever its name, or a folder of frame images.
    """
    given = [split for split in SPLITS if storage.isdir(os.path.join(videos, split))]
    roots = {split: os.path.join(videos, split) for split in given} or {'': videos}
    classes = sorted({name for root in roots.values() for name in _subfolders(root)})
    rows = []
    for split, root in roots.items():
        for index, name in enumerate(classes):
            folder = os.path.join(root, name)
            paths = _entries(folder)
            if not paths:
                raise errors.UsageError(f'{folder}: the class has no videos'
                                        f'{" in split " + split if split else ""}')
            if all(sources.is_image(path) for path in paths):
                raise errors.UsageError(f'{folder}: expected the videos of a class, found the images of '
                                        f'one; they belong into {os.path.join(root, "CLASS", name)}')
            rows += [official.Row(path, (index,), split) for path in paths]
    return tuple(classes), rows


def _moving_shapes(*, videos, seed, **_) -> tuple[tuple[str, ...], list[official.Row]]:
    """The embedded data set, written to `videos` where it is not there yet."""
    if not videos:
        raise errors.UsageError('--dataset=moving_shapes needs --videos: the folder to write it to')
    try:
        _write_moving_shapes(videos, seed)
    except ValueError as error:
        raise errors.UsageError(str(error)) from error
    return moving_shapes.CLASSES, [
        official.Row(path, (index,), split)
        for split in ('train', 'test')
        for index, name in enumerate(moving_shapes.CLASSES)
        for path in _entries(os.path.join(videos, split, name))
    ]


def _write_moving_shapes(videos: str, seed: int) -> None:
    """Writes the data set to a folder; to a remote one by way of a local one."""
    if not storage.scheme(videos):
        moving_shapes.write(videos, seed=seed)
        return
    done = os.path.join(videos, moving_shapes.DONE)
    with tempfile.TemporaryDirectory() as folder:
        if storage.exists(done):
            storage.copy(done, os.path.join(folder, moving_shapes.DONE))  # then nothing is made
        moving_shapes.write(folder, seed=seed)
        storage.copytree(folder, videos)  # DONE last


def _tfds(*, name, videos, **_) -> tuple[tuple[str, ...], list[official.Row]]:
    names, examples = sources.tfds_examples(name.removeprefix('tfds:'), videos)
    return names, [official.Row(*example) for example in examples]


DATASETS = {
    'folder': _folder,
    'list': official.pairs,
    'csv': official.table,
    'ucf101': official.ucf101,
    'hmdb51': official.hmdb51,
    'sports1m': official.sports1m,
    'c3d_lst': official.c3d_lst,
    'moving_shapes': _moving_shapes,
}


def _grouping(root: str, groups: str, regex: str):
    """Returns the function from a row to its group: see `load`."""
    listed = official.read_groups(groups) if groups else None
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise errors.UsageError(f'--group_regex={regex}: {error}') from error

    def group(row: official.Row) -> str:
        name = _below(row.path, root)
        if listed is not None:
            if name not in listed:
                raise errors.UsageError(f'--groups={groups}: no group for {name}; expected a line for '
                                        'every video, its path below --videos in the first column')
            return listed[name]
        stem = os.path.splitext(os.path.basename(name))[0]
        match = pattern.search(stem) if regex else None
        if match and (found := match.group(1 if pattern.groups else 0)):
            return found
        # Where we draw the split, x.avi and x.mp4 of one folder stay together. Below the root, so that
        # the draw is the same wherever the folder lies.
        return row.group or (name if row.split else os.path.splitext(name)[0])

    return group


def _below(path: str, root: str) -> str:
    """Returns the path as seen from the root, or as it is where it lies elsewhere."""
    relative = storage.relpath(path, root or '.')
    return path if relative.startswith(os.pardir + os.sep) else relative


def _draw_split(group: str, val_fraction: float, test_fraction: float, seed: int) -> str:
    # A hash and no shuffle: a video that is added later moves no other one to another split.
    digest = hashlib.sha256(f'{seed}:{group}'.encode(errors='surrogateescape')).digest()
    place = int.from_bytes(digest[:8], 'big') / 2**64
    if place < test_fraction:
        return 'test'
    return 'val' if place < test_fraction + val_fraction else 'train'


def _check(dataset: Dataset) -> None:
    if not dataset.examples:
        raise errors.UsageError(f'the data set {dataset.name} is empty')
    sides = collections.defaultdict(set)
    for example in dataset.examples:
        sides[example.group].add(example.split)
    leaks = [f'{group} ({", ".join(sorted(splits))})'
             for group, splits in sorted(sides.items()) if len(splits) > 1]
    if leaks:
        raise errors.UsageError(f'groups in more than one split ({len(leaks)}): {", ".join(leaks[:3])}'
                                f'{" …" if len(leaks) > 3 else ""}: a test on them would measure memory')
    seen = set()
    for example in dataset.examples:
        for label in example.labels:
            if not 0 <= label < len(dataset.class_names):
                raise errors.UsageError(f'{example.path}: label {label} is outside the '
                                        f'{len(dataset.class_names)} classes')
        if example.source in seen:
            raise errors.UsageError(f'{example.source} is listed twice, with different labels')
        seen.add(example.source)


def _require_folder(path: str) -> None:
    if not path:
        raise errors.UsageError('--videos is not set: expected the folder of the videos')
    if not storage.isdir(path):
        raise errors.UsageError(f'--videos={path}: no such folder')


def _subfolders(path: str) -> list[str]:
    names = sorted(entry.name for entry in storage.scandir(path) if entry.is_dir())
    if not names:
        raise errors.UsageError(f'{path}: expected a folder per class, found none')
    return names


def _entries(path: str) -> list[str]:
    """Returns the files, and the folders that are not hidden."""
    if not storage.isdir(path):
        return []
    return sorted(entry.path for entry in storage.scandir(path)
                  if not entry.is_dir() or not entry.name.startswith('.'))
