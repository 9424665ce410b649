# SPDX-License-Identifier: Apache-2.0
"""Pairs of videos that show the same action or not, in folds that share no class; no TensorFlow.

A CSV with the header `a,b,same,fold`, ASLAN's own View2.mat, or drawn from labelled videos.
"""

import collections
import csv
import dataclasses
import io
import subprocess
import sys
from collections.abc import Mapping

import numpy as np

from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage

COLUMNS = ('a', 'b', 'same', 'fold')
CLASSES = ('class_a', 'class_b')  # columns that may follow; with them leaks are found
_ASLAN = 'action_splits_pairs'  # the matrix in View2.mat
_LOAD = ('import sys, numpy, scipy.io; numpy.save(sys.stdout.buffer, numpy.nan_to_num(numpy.asarray('
         'scipy.io.loadmat(sys.argv[1])[sys.argv[2]], float)))')
_VIDEOS_PER_CLASS = 50  # of a fold's candidates, so that all pairs of them fit into memory


@dataclasses.dataclass(frozen=True)
class Pairs:
    """P pairs in the order of their file.

    Attributes:
      a, b: P media ids each.
      same: bool [P], whether both show the same action.
      folds: P names of folds; all pairs of a fold are tested together.
      classes: P (class of a, class of b), or none where the file does not tell.
    """

    a: tuple[str, ...]
    b: tuple[str, ...]
    same: np.ndarray
    folds: tuple[str, ...]
    classes: tuple[tuple[str, str], ...] = ()

    def take(self, keep: np.ndarray) -> 'Pairs':
        """Returns the pairs where `keep`, bool [P], is set."""
        rows = np.flatnonzero(keep)

        def chosen(column):
            return tuple(column[i] for i in rows) if column else ()

        return Pairs(chosen(self.a), chosen(self.b), self.same[rows], chosen(self.folds),
                     chosen(self.classes))


def read(path: str) -> Pairs:
    """Returns the pairs of a CSV, or of ASLAN's View2.mat.

    Raises:
      errors.UsageError: the file is missing or is neither; in a CSV, a fold lacks one of the two kinds,
        or a video or a class is in several folds, so that the test would not be on unseen actions.
    """
    if not storage.isfile(path):
        raise errors.UsageError(f'--pairs={path}: no such file; expected a CSV with the header '
                                f'{",".join(COLUMNS)}, or ASLAN\'s View2.mat')
    if path.lower().endswith('.mat'):
        return _read_mat(path)  # the official splits are what they are
    pairs = _read_csv(path)
    _check(path, pairs)
    return pairs


def write(path: str, pairs: Pairs) -> None:
    """Writes the CSV that `read` takes, with the classes where they are known."""
    with files.replacing(path) as temporary:
        with open(temporary, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
            writer = csv.writer(file, lineterminator='\n')
            writer.writerow(COLUMNS + (CLASSES if pairs.classes else ()))
            for i, (a, b, same, fold) in enumerate(zip(pairs.a, pairs.b, pairs.same, pairs.folds)):
                writer.writerow([a, b, int(same), fold, *(pairs.classes[i] if pairs.classes else ())])


def draw(
    labels: Mapping[str, str],
    *,
    groups: Mapping[str, str] | None = None,
    folds: int = 10,
    pairs_per_fold: int = 600,
    seed: int = 0,
) -> Pairs:
    """Returns pairs in ASLAN's manner: each class in one fold, half of a fold's pairs of one class.

    Args:
      labels: media id → class.
      groups: media id → what it was cut from. Two videos of one group are never a pair: they look alike
        whatever they show.
      folds: how many; each gets two classes or more.
      pairs_per_fold: even; fewer where a fold's videos do not give as many, half and half all the same.
      seed: seeds which classes share a fold, and which pairs are drawn.

    Raises:
      errors.UsageError: too few classes, or a class without two videos that may be a pair.
    """
    groups = groups or {}
    members = collections.defaultdict(list)
    for name in sorted(labels):
        members[labels[name]].append(name)
    if folds < 2 or len(members) < 2 * folds:
        raise errors.UsageError(
            f'--pair_folds={folds}: expected 2 to {len(members) // 2} for {len(members)} classes: '
            'two folds or more, each with two classes of its own')
    for name, own in sorted(members.items()):
        if len({groups.get(video, video) for video in own}) < 2:
            raise errors.UsageError(
                f'class {name!r} has {len(own)} video(s), all of one source ({own[0]}), so that no pair '
                'of it can be made; give it videos of another source, or leave the class out')
    rng = np.random.default_rng(seed)
    order = rng.permutation(sorted(members))
    rows = []
    for fold in range(folds):
        own = [str(name) for name in order[fold::folds]]
        drawn = _draw_fold(own, members, groups, pairs_per_fold // 2, rng)
        rows += [(*row, str(fold + 1)) for row in drawn]
    return Pairs(tuple(row[0] for row in rows), tuple(row[1] for row in rows),
                 np.array([row[2] for row in rows]), tuple(row[3] for row in rows),
                 tuple((labels[row[0]], labels[row[1]]) for row in rows))


def _draw_fold(class_names, members, groups, each: int, rng) -> list[tuple[str, str, bool]]:
    """Returns as many pairs of one class as of two, at most `each`."""
    videos = [video for name in class_names
              for video in rng.permutation(members[name])[:_VIDEOS_PER_CLASS].tolist()]
    label = np.repeat(np.arange(len(class_names)),
                      [min(len(members[name]), _VIDEOS_PER_CLASS) for name in class_names])
    _, group = np.unique([groups.get(video, video) for video in videos], return_inverse=True)
    a, b = np.triu_indices(len(videos), 1)
    apart = group[a] != group[b]
    same = label[a] == label[b]
    candidates = [np.flatnonzero(apart & same), np.flatnonzero(apart & ~same)]
    count = min(each, *map(len, candidates))
    rows = []
    for kind, found in zip((True, False), candidates):
        for i in rng.choice(found, count, replace=False):
            rows.append((videos[a[i]], videos[b[i]], kind))
    return rows


def _read_csv(path: str) -> Pairs:
    with storage.open(path, newline='', encoding='utf-8-sig', errors='surrogateescape') as file:
        try:
            rows = list(csv.reader(file))
        except csv.Error as error:
            raise errors.UsageError(f'{path}: not a text file of commas ({error})') from error
    header = [name.strip() for name in rows[0]] if rows else []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise errors.UsageError(f'{path}: no column {", ".join(missing)} in its first line; expected '
                                f'the header {",".join(COLUMNS)}')
    table = []
    for number, row in enumerate(rows[1:], 2):
        if not any(value.strip() for value in row):
            continue
        if len(row) != len(header):
            raise errors.UsageError(f'{path}, line {number}: expected {len(header)} values, got '
                                    f'{len(row)}')
        values = {name: value.strip() for name, value in zip(header, row)}
        if values['same'] not in ('0', '1'):
            raise errors.UsageError(f'{path}, line {number}: same is {values["same"]!r}; expected 1 for '
                                    'the same action, 0 for another')
        table.append(values)
    classes = ()
    if all(name in header for name in CLASSES):
        classes = tuple((row[CLASSES[0]], row[CLASSES[1]]) for row in table)
    return Pairs(tuple(row['a'] for row in table), tuple(row['b'] for row in table),
                 np.array([row['same'] == '1' for row in table], bool),
                 tuple(row['fold'] for row in table), classes)


def _read_mat(path: str) -> Pairs:
    """Reads View2.mat: 600 pairs x (id, id, same, action, action) x 10 splits, as its ReadMe says."""
    # SciPy's reader ends the process on some damaged files, so it gets one of its own.
    with storage.local(path) as copy:
        done = subprocess.run([sys.executable, '-c', _LOAD, copy, _ASLAN], capture_output=True)
    reason = done.stderr.decode(errors='replace').strip().split('\n')[-1] or 'the reader crashed'
    if not done.returncode:
        matrix = np.load(io.BytesIO(done.stdout), allow_pickle=False)
        reason = f'its shape is {matrix.shape}'
    if done.returncode or matrix.ndim != 3 or matrix.shape[1] != 5 or not np.isin(matrix[:, 2], (0, 1)).all():
        raise errors.UsageError(f'--pairs={path}: expected ASLAN\'s View2.mat with a matrix {_ASLAN} of '
                                f'(pairs, 5, folds) ({reason}); of another file make a CSV')
    pairs, _, folds = matrix.shape
    rows = matrix.transpose(2, 0, 1).reshape(-1, 5).astype(int)
    a, b = (tuple(f'{i:04d}' for i in column) for column in rows[:, :2].T)
    return Pairs(a, b, rows[:, 2] == 1, tuple(str(i + 1) for i in np.repeat(np.arange(folds), pairs)),
                 tuple((str(a), str(b)) for a, b in rows[:, 3:]))


def _check(path: str, pairs: Pairs) -> None:
    kinds, where = collections.defaultdict(set), {}
    for i, (a, b, same, fold) in enumerate(zip(pairs.a, pairs.b, pairs.same.tolist(), pairs.folds)):
        kinds[fold].add(same)
        own = [('video', a), ('video', b)]
        if pairs.classes:
            one, other = pairs.classes[i]
            own += [('class', one), ('class', other)]
            if (one == other) != same:
                raise errors.UsageError(f'{path}: the pair {a}, {b} of classes {one}, {other} has '
                                        f'same={int(same)}; one of them is wrong')
        for what, name in own:
            if where.setdefault((what, name), fold) != fold:
                raise errors.UsageError(
                    f'{path}: {what} {name!r} is in folds {where[what, name]} and {fold}; the test must '
                    'be on classes that were not in training, so each belongs to one fold')
    if len(kinds) < 2:
        raise errors.UsageError(f'{path}: expected two folds or more, to train on all but one; it has '
                                f'{len(kinds)}')
    for fold, own in kinds.items():
        if len(own) < 2:
            raise errors.UsageError(f'{path}: fold {fold} has only pairs with same={int(own.pop())}; '
                                    'expected both kinds in each')
