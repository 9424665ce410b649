# SPDX-License-Identifier: Apache-2.0
"""Which videos a data set holds, their labels and their split: lists and folders in, examples out."""

import collections
import dataclasses
import hashlib
import os
import re
import urllib.parse

from c3d_tf.common import errors
from c3d_tf.data import moving_shapes

SPLITS = ('train', 'val', 'test')


@dataclasses.dataclass(frozen=True, order=True)
class Example:
    """One video with its labels.

    Attributes:
      path: the video file.
      labels: class indices, one or (Sports-1M) several.
      group: what must not be on two sides of a split, e.g. the film that a clip was cut from.
      split: one of SPLITS.
    """

    path: str
    labels: tuple[int, ...]
    group: str
    split: str


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The examples of all splits, sorted by path.

    Attributes:
      name: a key of DATASETS.
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
        return os.path.relpath(example.path, self.root)


def load(
    name: str,
    *,
    videos: str,
    lists: str = '',
    train_list: str = '',
    test_list: str = '',
    group_regex: str = '',
    val_fraction: float = 0.0,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Returns the data set `name`.

    Args:
      name: a key of DATASETS.
      videos: the folder that holds the video files.
      lists: the folder that holds the data set's official lists.
      train_list: for 'list', a file with a line `path label` per video; paths are below `videos`.
      test_list: for 'list', the same for the test split.
      group_regex: the group of a video is the regex's first match in its file stem (its first
        capture where it has one); '' makes every video a group of its own.
      val_fraction: for 'folder' and 'list', the share of groups that becomes the val split.
      test_fraction: for 'folder', the share of groups that becomes the test split.
      seed: seeds the split of groups, and the labels of moving_shapes' videos.

    Raises:
      errors.UsageError: a folder, list or class is missing, empty or contradicts itself.
    """
    if name not in DATASETS:
        raise errors.UsageError(f'--dataset={name}: expected one of {", ".join(DATASETS)}')
    if not 0 <= val_fraction < 1 or not 0 <= test_fraction < 1 or val_fraction + test_fraction >= 1:
        raise errors.UsageError('--val_fraction and --test_fraction: expected shares from 0 up to 1, '
                                f'less than 1 together; got {val_fraction} and {test_fraction}')
    arguments = dict(
        videos=videos, lists=lists, train_list=train_list, test_list=test_list,
        group=_grouping(group_regex), val_fraction=val_fraction, test_fraction=test_fraction,
        seed=seed,
    )
    dataset = DATASETS[name](**arguments)
    _check(dataset)
    return dataset


def _folder(*, videos, group, val_fraction, test_fraction, seed, **_) -> Dataset:
    """`videos/CLASS/file`, or `videos/SPLIT/CLASS/file`; every file is tried, whatever its name."""
    _require_folder(videos, '--videos')
    given = [split for split in SPLITS if os.path.isdir(os.path.join(videos, split))]
    roots = {split: os.path.join(videos, split) for split in given} or {'': videos}
    classes = sorted({name for root in roots.values() for name in _subfolders(root)})
    examples = []
    for split, root in roots.items():
        for index, name in enumerate(classes):
            files = _files(os.path.join(root, name))
            if not files:
                raise errors.UsageError(f'{os.path.join(root, name)}: the class has no videos'
                                        f'{" in split " + split if split else ""}')
            for path in files:
                key = group(path)
                part = split or _draw_split(key, val_fraction, test_fraction, seed)
                examples.append(Example(path, (index,), key, part))
    if 'train' in given and 'val' not in given:
        examples = _with_validation(examples, val_fraction, seed)
    return Dataset('folder', videos, tuple(classes), tuple(sorted(examples)))


def _list(*, videos, lists, train_list, test_list, group, val_fraction, seed, **_) -> Dataset:
    """Text lists of `path label`, the label a number or a name.

    Names of classes come from `lists/classes.txt` (lines `index name`) where there is one.
    """
    _require_folder(videos, '--videos')
    if not train_list and not test_list:
        raise errors.UsageError('--dataset=list needs --train_list or --test_list: '
                                'a text file with a line `path label` per video')
    rows = []
    for split, path in (('train', train_list), ('test', test_list)):
        rows += [(split, *row) for row in _read_pairs(path)] if path else []
    names_file = os.path.join(lists or os.path.dirname(train_list or test_list), 'classes.txt')
    if os.path.exists(names_file):
        classes = _read_class_names(names_file)
    elif all(label.isdigit() for _, _, label in rows):
        classes = tuple(str(i) for i in range(1 + max(int(label) for _, _, label in rows)))
    else:
        classes = tuple(sorted({label for _, _, label in rows}))
    index = {name: i for i, name in enumerate(classes)}
    examples = []
    for split, name, label in rows:
        if label not in index and not (label.isdigit() and int(label) < len(classes)):
            raise errors.UsageError(f'{train_list if split == "train" else test_list}: {name} has '
                                    f'label {label!r}; expected one of the {len(classes)} classes '
                                    f'of {names_file}')
        number = index[label] if label in index else int(label)
        path = os.path.join(videos, name)
        examples.append(Example(path, (number,), group(path), split))
    if examples and not any(os.path.exists(example.path) for example in examples):
        raise errors.UsageError(f'none of the {len(examples)} videos of {train_list or test_list} '
                                f'exists; the first was looked for at {examples[0].path}. '
                                'Set --videos to the folder that the listed paths start from.')
    return Dataset('list', videos, classes, tuple(sorted(_with_validation(examples, val_fraction, seed))))


def _sports1m(*, videos, lists, group, val_fraction, seed, **_) -> Dataset:
    """The lists of the DeepVideo project: `URL label,label…` a line, files named by video id."""
    wanted = ('train_partition.txt', 'test_partition.txt', 'labels.txt')
    missing = [name for name in wanted if not os.path.isfile(os.path.join(lists or '.', name))]
    if not os.path.isdir(videos or '.') or not lists or missing:
        raise errors.UsageError(
            f'Sports-1M was looked for in --videos={videos} (files named VIDEO_ID.mp4 or the like) '
            f'and --lists={lists} ({", ".join(wanted)}; missing: {", ".join(missing) or "none"}).\n'
            'The lists are in the folder "original" of the sports-1m-dataset repository of '
            'gtoderici on GitHub, labels.txt beside it; the videos are fetched from YouTube by id.')
    classes = tuple(_read_lines(os.path.join(lists, 'labels.txt')))
    by_id = {os.path.splitext(os.path.basename(path))[0]: path for path in _files(videos)}
    examples = []
    for split in ('train', 'test'):
        for url, text in _read_pairs(os.path.join(lists, f'{split}_partition.txt')):
            identity = urllib.parse.parse_qs(urllib.parse.urlparse(url).query).get('v', [''])[0]
            if not identity:
                raise errors.UsageError(f'{split}_partition.txt: no video id (?v=…) in {url!r}')
            labels = tuple(int(label) for label in text.split(','))
            path = by_id.get(identity, os.path.join(videos, f'{identity}.mp4'))
            examples.append(Example(path, labels, group(path), split))
    if examples and not by_id:
        raise errors.UsageError(f'--videos={videos}: the folder has no files; '
                                f'expected videos named by their id, e.g. {examples[0].path}')
    return Dataset('sports1m', videos, classes, tuple(sorted(_with_validation(examples, val_fraction, seed))))


def _moving_shapes(*, videos, val_fraction, seed, **_) -> Dataset:
    """The embedded data set, written to `videos` where it is not there yet."""
    if not videos:
        raise errors.UsageError('--dataset=moving_shapes needs --videos: the folder to write it to')
    try:
        moving_shapes.write(videos, seed=seed)
    except ValueError as error:
        raise errors.UsageError(str(error)) from error
    examples = [
        Example(path, (index,), path, split)
        for split in ('train', 'test')
        for index, name in enumerate(moving_shapes.CLASSES)
        for path in _files(os.path.join(videos, split, name))
    ]
    return Dataset('moving_shapes', videos, moving_shapes.CLASSES,
                   tuple(sorted(_with_validation(examples, val_fraction, seed))))


DATASETS = {
    'folder': _folder,
    'list': _list,
    'sports1m': _sports1m,
    'moving_shapes': _moving_shapes,
}


def _grouping(regex: str):
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise errors.UsageError(f'--group_regex={regex}: {error}') from error

    def group(path: str) -> str:
        stem = os.path.splitext(os.path.basename(path))[0]
        match = pattern.search(stem) if regex else None
        if match is None:
            return path
        return match.group(1 if pattern.groups else 0)

    return group


def _draw_split(group: str, val_fraction: float, test_fraction: float, seed: int) -> str:
    # A hash and no shuffle: a video that is added later moves no other one to another split.
    digest = hashlib.sha256(f'{seed}:{group}'.encode()).digest()
    place = int.from_bytes(digest[:8], 'big') / 2**64
    if place < test_fraction:
        return 'test'
    return 'val' if place < test_fraction + val_fraction else 'train'


def _with_validation(examples: list[Example], val_fraction: float, seed: int) -> list[Example]:
    """Moves a share of the training groups to the val split."""
    return [
        dataclasses.replace(example, split=_draw_split(example.group, val_fraction, 0, seed))
        if example.split == 'train' else example
        for example in examples
    ]


def _check(dataset: Dataset) -> None:
    for example in dataset.examples:
        for label in example.labels:
            if not 0 <= label < len(dataset.class_names):
                raise errors.UsageError(f'{example.path}: label {label} is outside the '
                                        f'{len(dataset.class_names)} classes')
    sides = collections.defaultdict(set)
    for example in dataset.examples:
        sides[example.group].add(example.split)
    leaks = sorted(group for group, splits in sides.items() if len(splits) > 1)
    if leaks:
        raise errors.UsageError(f'{len(leaks)} groups are in more than one split, e.g. '
                                f'{", ".join(leaks[:3])}: a test on them would measure memory')
    if not dataset.examples:
        raise errors.UsageError(f'the data set {dataset.name} is empty')


def _require_folder(path: str, flag: str) -> None:
    if not path:
        raise errors.UsageError(f'{flag} is not set: expected the folder of the videos')
    if not os.path.isdir(path):
        raise errors.UsageError(f'{flag}={path}: no such folder')


def _subfolders(path: str) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    if not names:
        raise errors.UsageError(f'{path}: expected a folder per class, found none')
    return names


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return []
    return sorted(entry.path for entry in os.scandir(path) if not entry.is_dir())


def _read_lines(path: str) -> list[str]:
    try:
        with open(path, encoding='utf-8') as file:
            return [line.strip() for line in file if line.strip()]
    except FileNotFoundError as error:
        raise errors.UsageError(f'{path}: no such list') from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise errors.UsageError(f'{path}: not a text file ({error})') from error


def _read_pairs(path: str) -> list[tuple[str, str]]:
    """Reads `path label` lines; the path may hold blanks, the label may not."""
    pairs = []
    for number, line in enumerate(_read_lines(path), 1):
        parts = line.replace('\\', '/').rsplit(maxsplit=1)
        if len(parts) != 2:
            raise errors.UsageError(f'{path}, line {number}: expected `path label`, got {line!r}')
        pairs.append((parts[0], parts[1]))
    return pairs


def _read_class_names(path: str) -> tuple[str, ...]:
    """Reads `index name` lines; the indices must be 0, 1, 2 …"""
    rows = [line.split(maxsplit=1) for line in _read_lines(path)]
    if [row[0] for row in rows] != [str(i) for i in range(len(rows))] or any(
            len(row) != 2 for row in rows):
        raise errors.UsageError(f'{path}: expected lines `index name` with indices 0, 1, 2 …')
    return tuple(row[1] for row in rows)
