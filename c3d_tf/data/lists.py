# SPDX-License-Identifier: Apache-2.0
"""Reads list files, the official ones of each data set and a user's own: class names and rows out."""

import csv
import math
import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from c3d_tf.common import errors
from c3d_tf.common import storage

SPLITS = ('train', 'val', 'test')


class Row(NamedTuple):
    """What a list says of one video.

    Attributes:
      path: the video; it need not exist.
      labels: class indices.
      split: one of SPLITS, or '' where the list leaves it open.
      group: what must stay on one side of a split, or '' where the list does not say.
      start, end: the seconds that are taken, `end` not among them.
    """

    path: str
    labels: tuple[int, ...]
    split: str
    group: str = ''
    start: float = 0.0
    end: float = math.inf


def pairs(*, videos, lists, train_list, val_list, test_list, **_) -> tuple[tuple[str, ...], list[Row]]:
    """Reads text lists of `path label`, the label a number or a name.

    Names of classes come from `classes.txt` (lines `index name`) in `lists`, or beside the first list.
    """
    files = _list_files('list', 'a text file with a line `path label` per video',
                        train_list, val_list, test_list)
    found = [(file, split, path, label) for split, file in files for path, label in _read_pairs(file)]
    names, index = _classes([label for *_, label in found], lists or os.path.dirname(files[0][1]))
    rows = [Row(os.path.join(videos, path), (index(label, f'{file}: {path}'),), split)
            for file, split, path, label in found]
    return names, _some_exist(rows, ' and '.join(file for _, file in files))


def table(*, videos, lists, train_list, val_list, test_list, **_) -> tuple[tuple[str, ...], list[Row]]:
    """Reads CSV lists with a header `path,label[,start,end][,split][,group]`; other columns are ignored.

    Start and end are seconds; an empty cell means the video's own. Several labels are separated by `;`.
    A split column decides over the flag that named the file. Classes are named as for `pairs`.
    """
    files = _list_files('csv', 'a CSV file with a header path,label', train_list, val_list, test_list)
    found = [(f'{file}, line {line}', split, row) for split, file in files
             for line, row in _read_table(file, ('path', 'label'))]
    texts = [[label.strip() for label in row['label'].split(';')] for *_, row in found]
    names, index = _classes([label for row in texts for label in row],
                            lists or os.path.dirname(files[0][1]))
    rows = []
    for (where, split, row), labels in zip(found, texts, strict=True):
        split = row.get('split', split)
        if split not in SPLITS:
            raise errors.UsageError(f'{where}: split {split!r}; expected one of {", ".join(SPLITS)}')
        start, end = _span(row.get('start', ''), row.get('end', ''), where)
        rows.append(Row(os.path.join(videos, _slashes(row['path'])),
                        tuple(index(label, where) for label in labels),
                        split, row.get('group', ''), start, end))
    return names, _some_exist(rows, ' and '.join(file for _, file in files))


def ucf101(*, videos, lists, fold, **_) -> tuple[tuple[str, ...], list[Row]]:
    """Reads UCF101's classInd.txt, trainlist0F.txt and testlist0F.txt.

    The lists, the folders and copies of the archive disagree on HandstandPushups and HandStandPushups,
    so files are found without regard to case.
    """
    _check_fold(fold)
    wanted = ('classInd.txt', f'trainlist0{fold}.txt', f'testlist0{fold}.txt')
    _require_lists('UCF101', lists, wanted, 'UCF101TrainTestSplits-RecognitionTask.zip')
    names = _read_class_names(os.path.join(lists, wanted[0]), first=1)
    classes = {name.lower(): (number, name) for number, name in enumerate(names)}
    on_disk = _ucf101_files(videos)
    rows = []
    for split, name in zip(('train', 'test'), wanted[1:]):
        file = os.path.join(lists, name)
        for line in read_lines(file):
            listed, *label = _slashes(line).split()  # the test lists have no label
            match = re.fullmatch(r'([^/]+)/(v_.+_(g\d+)_c\d+)\.\w+', listed)
            number, name = classes.get(match[1].lower() if match else '', (None, ''))
            if number is None or label not in ([], [str(number + 1)]):
                raise errors.UsageError(f'{file}: expected CLASS/v_CLASS_gNN_cNN.avi and its number in '
                                        f'{wanted[0]}, got {line!r}')
            path = on_disk.get(os.path.basename(listed).lower()) or on_disk.get(match[2].lower())
            rows.append(Row(path or os.path.join(videos, listed), (number,), split,
                            f'{name}_{match[3]}'))
    return names, _some_exist(rows, lists, f', and without its folder in {videos}')


def hmdb51(*, videos, lists, fold, **_) -> tuple[tuple[str, ...], list[Row]]:
    """Reads HMDB51's CLASS_test_splitF.txt: a line `file flag`, flag 1 train, 2 test, 0 in neither.

    File names hold characters such as # [ ] ; & ! and are taken as they are.
    """
    _check_fold(fold)
    ending = f'_test_split{fold}.txt'
    there = storage.listdir(lists) if storage.isdir(lists) else []
    names = tuple(sorted(name.removesuffix(ending) for name in there if name.endswith(ending)))
    if not names:
        _require_lists('HMDB51', lists, (f'CLASS{ending}',), 'the three splits of the HMDB51 page')
    rows = []
    for number, name in enumerate(names):
        list_file = os.path.join(lists, name + ending)
        # A file is named SOURCE_CLASS_properties_N.avi; the splits keep a source's clips together.
        source = re.compile(rf'(.+)_{re.escape(name)}_[a-z]_[a-z]+_np\d+_')
        for file, flag in _read_pairs(list_file):
            if flag not in ('0', '1', '2'):
                raise errors.UsageError(f'{list_file}: {file} has flag {flag!r}; expected 0, 1 or 2')
            if flag != '0':
                match = source.match(file)
                path = os.path.join(videos, name, file)
                frames = os.path.splitext(path)[0]
                if storage.isdir(frames) and not storage.exists(path):
                    path = frames
                rows.append(Row(path, (number,), 'train' if flag == '1' else 'test',
                                f'{name}/{match[1]}' if match else ''))
    return names, _some_exist(rows, lists)


def sports1m(*, videos, lists, **_) -> tuple[tuple[str, ...], list[Row]]:
    """Reads the lists of the DeepVideo project: `URL label,label…` a line, files named by video id."""
    wanted = ('train_partition.txt', 'test_partition.txt', 'labels.txt')
    missing = [name for name in wanted if not storage.isfile(os.path.join(lists or '.', name))]
    if not storage.isdir(videos) or not lists or missing:
        raise errors.UsageError(
            f'Sports-1M was looked for in --videos={videos} (files named VIDEO_ID.mp4 or the like) '
            f'and --lists={lists} ({", ".join(wanted)}; missing: {", ".join(missing) or "none"}).\n'
            'The lists are in the folder "original" of the sports-1m-dataset repository of '
            'gtoderici on GitHub, labels.txt beside it; the videos are fetched from YouTube by id.')
    names = tuple(read_lines(os.path.join(lists, 'labels.txt')))
    by_id = {os.path.splitext(name)[0]: os.path.join(videos, name) for name in storage.listdir(videos)}
    rows, found = [], 0
    for split in ('train', 'test'):
        for url, text in _read_pairs(os.path.join(lists, f'{split}_partition.txt')):
            identity = (re.findall(r'[?&]v=([^&#]+)', url) or [''])[0]
            if not identity or not re.fullmatch(r'\d{1,6}(,\d{1,6})*', text):
                raise errors.UsageError(f'{split}_partition.txt: expected `URL?v=ID label,label…`, '
                                        f'got {url!r} {text!r}')
            found += identity in by_id
            path = by_id.get(identity, os.path.join(videos, f'{identity}.mp4'))
            rows.append(Row(path, tuple(int(label) for label in text.split(',')), split))
    if rows and not found:
        raise errors.UsageError(f'--videos={videos}: the folder has none of the {len(rows)} listed '
                                f'videos; expected files named by their id, e.g. {rows[0].path}')
    return names, rows


def c3d_lst(*, videos, lists, train_list, val_list, test_list, **_) -> tuple[tuple[str, ...], list[Row]]:
    """Reads the original's lists: `folder start label` or `file start label`, a line a 16-frame clip.

    A video's lines become one row: which clips are cut from it is decided later. Names of classes come
    from `lists/classInd.txt` where there is one.
    """
    files = _list_files('c3d_lst', 'a file with lines `folder start label`',
                        train_list, val_list, test_list)
    rows = {}
    for split, file in files:
        for line, text in enumerate(read_lines(file), 1):
            # `file label`, without a start, is the original's form for temporal jitter.
            match = re.fullmatch(r'(.+?)/?(?:\s+(\d+))?\s+(\d{1,6})', _slashes(text))
            if not match:
                raise errors.UsageError(f'{file}, line {line}: expected `path start label`, '
                                        f'got {text!r}')
            key, labels = (split, match[1]), (int(match[3]),)
            if key not in rows:
                rows[key] = Row(_relocated(match[1], videos), labels, split)
            elif rows[key].labels != labels:
                raise errors.UsageError(f'{file}, line {line}: {match[1]} has label {match[3]}, '
                                        f'and {rows[key].labels[0]} in an earlier line')
    names_file = os.path.join(lists, 'classInd.txt')
    if lists and storage.exists(names_file):
        names = _read_class_names(names_file, first=1)
    else:
        names = _numbers(row.labels[0] for row in rows.values())
    return names, _some_exist(list(rows.values()), ' and '.join(file for _, file in files))


def read_groups(path: str) -> dict[str, str]:
    """Reads which group a video belongs to, from a CSV or TSV file with a header.

    Args:
      path: the file; its first column is the video's path below the folder of videos, its second the
        group, and further ones are ignored.
    """
    groups = {}
    for line, row in _read_table(path, ()):
        name, group = (list(row.values()) + ['', ''])[:2]
        name = storage.normpath(_slashes(name))
        if not group or groups.setdefault(name, group) != group:
            raise errors.UsageError(f'{path}, line {line}: expected one group of {name}, got {group!r} '
                                    f'and before {groups.get(name, "none")!r}')
    return groups


def _list_files(dataset: str, what: str, *paths: str) -> list[tuple[str, str]]:
    """Returns (split, file) for the lists that are given."""
    files = [(split, path) for split, path in zip(SPLITS, paths, strict=True) if path]
    if not files:
        raise errors.UsageError(f'--dataset={dataset} needs --train_list, --val_list or --test_list: '
                                f'{what}')
    return files


def _classes(texts: list[str], folder: str):
    """Returns the names of the classes, and a function from (label's text, its place) to its index."""
    file = os.path.join(folder, 'classes.txt')
    if storage.exists(file):
        names = _read_class_names(file, first=0)
    elif all(text.isdecimal() for text in texts):
        names = _numbers(int(text) for text in texts if _is_number(text))
    else:
        names = tuple(sorted(set(texts) - {''}))
    numbers = {name: i for i, name in enumerate(names)}

    def index(text: str, where: str) -> int:
        if text in numbers:
            return numbers[text]
        if _is_number(text) and int(text) < len(names):
            return int(text)
        raise errors.UsageError(f'{where} has label {text!r}; expected one of the {len(names)} classes '
                                f'{", ".join(names[:5])}{" …" if len(names) > 5 else ""}')

    return names, index


def _numbers(labels: Iterable[int]) -> tuple[str, ...]:
    """Returns the names of classes that have none: '0', '1', and so on."""
    return tuple(str(i) for i in range(1 + max(labels, default=-1)))


def _is_number(text: str) -> bool:
    """Returns whether it may be a class: there is a name for each up to the last."""
    return text.isdecimal() and len(text) < 7


def _span(start: str, end: str, where: str) -> tuple[float, float]:
    try:
        span = float(start or 0), float(end or 'inf')
    except ValueError:
        span = math.nan, math.nan
    if not 0 <= span[0] < span[1]:
        raise errors.UsageError(f'{where}: expected seconds 0 ≤ start < end, got {start!r} and {end!r}')
    return span


def _ucf101_files(videos: str) -> dict[str, str]:
    """Returns the paths of files and frame folders, in class folders or not, by name in lower case."""
    found = {}
    for entry in storage.scandir(videos):
        is_class = entry.is_dir() and not entry.name.lower().startswith('v_')
        inside = storage.scandir(entry.path) if is_class else [entry]
        found.update((item.name.lower(), item.path) for item in inside)
    return found


def _relocated(path: str, videos: str) -> str:
    """Returns where a listed path is found, itself or below `videos` with less and less of its start."""
    parts = path.split('/')
    below = [os.path.join(videos, *tail) for tail in (parts, parts[-2:], parts[-1:])] if videos else []
    return next((place for place in (path, *below) if storage.exists(place)), path)


def _some_exist(rows: list[Row], source: str, wanted: str = '') -> list[Row]:
    if rows and not any(storage.lexists(row.path) for row in rows):
        raise errors.UsageError(f'none of the {len(rows)} videos of {source} exists; the first was '
                                f'looked for at {rows[0].path}{wanted}. '
                                'Set --videos to the folder that the listed paths start from.')
    return rows


def _check_fold(fold: int) -> None:
    if fold not in (1, 2, 3):
        raise errors.UsageError(f'--fold={fold}: expected 1, 2 or 3, the official splits')


def _require_lists(dataset: str, lists: str, wanted: tuple[str, ...], source: str) -> None:
    missing = [name for name in wanted if not storage.isfile(os.path.join(lists or '.', name))]
    if missing or not lists:
        raise errors.UsageError(f"{dataset}'s lists were looked for in --lists={lists}; expected "
                                f'{", ".join(wanted)}, missing {", ".join(missing) or "none"}. '
                                f'They are in {source}.')


def _slashes(path: str) -> str:
    return path.replace('\\', '/')


def _text(path: str) -> str:
    try:
        with storage.open(path, encoding='utf-8-sig') as file:  # Excel puts a mark first
            return file.read()
    except FileNotFoundError as error:
        raise errors.UsageError(f'{path}: no such list') from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise errors.UsageError(f'{path}: not a text file ({error})') from error


def read_lines(path: str) -> list[str]:
    return [line.strip() for line in _text(path).split('\n') if line.strip()]


def _read_pairs(path: str) -> list[tuple[str, str]]:
    """Reads `path label` lines; the path may hold blanks, the label may not."""
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        parts = _slashes(line).rsplit(maxsplit=1)
        if len(parts) != 2:
            raise errors.UsageError(f'{path}, line {number}: expected `path label`, got {line!r}')
        rows.append((parts[0], parts[1]))
    return rows


def _read_table(path: str, needed: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Reads (line number, row by column) of a file with a header and commas or tabs between cells."""
    lines = _text(path).split('\n')
    delimiter = '\t' if '\t' in lines[0] else ','
    header = [name.strip() for name in next(csv.reader(lines[:1], delimiter=delimiter), [])]
    if set(needed) - set(header) or len(header) < 2:
        raise errors.UsageError(f'{path}: expected a header with the columns '
                                f'{",".join(needed) or "video,group"}; got {lines[0]!r}')
    reader = csv.DictReader(lines[1:], header, delimiter=delimiter)
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise errors.UsageError(f'{path}, line {reader.line_num + 1}: expected {len(header)} cells '
                                    'as in the header (a comma inside a cell needs quotes)')
        rows.append((reader.line_num + 1, {name: cell.strip() for name, cell in row.items()}))
    return rows


def _read_class_names(path: str, *, first: int) -> tuple[str, ...]:
    """Reads `index name` lines; the indices must count up from `first`."""
    rows = [line.split(maxsplit=1) for line in read_lines(path)]
    if any(len(row) != 2 or row[0] != str(i + first) for i, row in enumerate(rows)):
        raise errors.UsageError(f'{path}: expected lines `index name` with indices {first}, {first + 1} …')
    return tuple(row[1] for row in rows)
