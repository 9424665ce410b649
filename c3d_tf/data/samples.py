# SPDX-License-Identifier: Apache-2.0
"""What a classifier of descriptors learns and is tested on: labelled videos, or clips with an object."""

import collections
import csv
import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np

from c3d_tf.common import errors
from c3d_tf.common import storage
from c3d_tf.data import datasets
from c3d_tf.data import pipeline
from c3d_tf.data import records


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Labelled videos or clips, and which of them train and test.

    Attributes:
      dataset: its name.
      class_names: in order of their index.
      names: N names of videos; the clips of one video share it.
      labels: N tuples of class indices; the first is learnt, any of them is a hit.
      groups: N names of what must stay on one side of a split.
      splits: the title, int64 training samples and int64 test samples of each.
      paths: name → video file, where known.
      clips: int64 [N], number of the clip in its video; None where samples are whole videos.
    """

    dataset: str
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    groups: tuple[str, ...]
    splits: tuple[tuple[str, np.ndarray, np.ndarray], ...]
    paths: dict[str, str]
    clips: np.ndarray | None = None

    @property
    def unit(self) -> str:
        return 'videos' if self.clips is None else 'clips'

    @property
    def first_labels(self) -> np.ndarray:
        """Returns int64 [N], what is learnt."""
        return np.array([own[0] for own in self.labels], np.int64)

    def keep(self, wanted: Callable[[int], bool]) -> 'Samples':
        """Returns the samples whose number is wanted."""
        return self.repeat(np.array([wanted(i) for i in range(len(self.names))], np.int64))

    def repeat(self, counts: np.ndarray) -> 'Samples':
        """Returns counts[i] copies of sample i, in order; 0 drops it."""
        source = np.repeat(np.arange(len(self.names)), counts)
        splits = tuple((title, *(np.flatnonzero(np.isin(source, side)) for side in sides))
                       for title, *sides in self.splits)
        return dataclasses.replace(
            self, names=tuple(self.names[i] for i in source), splits=splits,
            labels=tuple(self.labels[i] for i in source), groups=tuple(self.groups[i] for i in source),
            clips=None if self.clips is None else self.clips[source])


def of_datasets(folds: Sequence[datasets.Dataset]) -> Samples:
    """Returns the videos of a data set, each of its folds a split; val videos train.

    Args:
      folds: the same data set, once for each of its official splits.
    """
    rows, splits = {}, []
    for dataset in folds:
        sides = {'train': [], 'test': []}
        for example in dataset.examples:
            name = dataset.media_id(example)
            row = rows.setdefault(name, (len(rows), example))
            if row[1].labels != example.labels:
                raise errors.UsageError(f'{name} has other labels in another fold of {dataset.name}')
            sides['test' if example.split == 'test' else 'train'].append(row[0])
        splits.append((f'split {len(splits) + 1}', *(np.array(sides[key], np.int64) for key in sides)))
    return Samples(
        dataset=folds[0].name, class_names=folds[0].class_names, names=tuple(rows),
        labels=tuple(example.labels for _, example in rows.values()),
        groups=tuple(example.group for _, example in rows.values()), splits=tuple(splits),
        paths={name: example.path for name, (_, example) in rows.items()})


@records.names_damage
def of_records(directory: str) -> Samples:
    """Returns the videos of records; each is its own group, since records do not keep groups."""
    index = records.read_index(directory)
    names, labels, sides = [], [], {'train': [], 'test': []}
    for split, part in index.data['splits'].items():
        if not part['videos']:
            continue
        own, own_labels = pipeline.read_labels(index.split(split))
        sides['test' if split == 'test' else 'train'] += range(len(names), len(names) + len(own))
        names += own
        labels += map(tuple, own_labels)
    return Samples(
        dataset=index.data['dataset'], class_names=index.class_names, names=tuple(names),
        labels=tuple(labels), groups=tuple(names),
        splits=(('split 1', *(np.array(sides[key], np.int64) for key in sides)),), paths={})


def leave_one_out(samples: Samples) -> Samples:
    """Returns the same samples, each group left out once and tested by what all others teach."""
    members = collections.defaultdict(list)
    for number, group in enumerate(samples.groups):
        members[group].append(number)
    every = np.arange(len(samples.names))
    splits = [(group, np.setdiff1d(every, own), np.array(own)) for group, own in members.items()]
    return dataclasses.replace(samples, splits=tuple(splits))


def objects_of_clips(samples: Samples, path: str, starts: dict[str, np.ndarray], *,
                     clip_length: int = 16, stride: int = 1) -> Samples:
    """Returns the clips that show an object, in place of the videos.

    A clip's object is the one that most of its frames show, the first by name where two tie. A clip
    whose object has fewer than half of the frames (8 of 16) is dropped, in training and test: the
    paper's rule for the egocentric objects of Ren and Philipose.

    Args:
      samples: videos; their own labels are not used.
      path: a CSV of video, frame (from 0), object; frames without a line show none.
      starts: name → int64 [C], the first frame of each clip.
      clip_length, stride: which frames of the video a clip has; see `clips.indices`.

    Raises:
      errors.UsageError: the file is missing, or a line is no such thing.
    """
    shown = _read_objects(path)
    class_names = tuple(sorted({thing for frames in shown.values() for thing in frames.values()}))
    index = {thing: number for number, thing in enumerate(class_names)}
    counts = np.array([len(starts[name]) for name in samples.names])
    clips = samples.repeat(counts)
    labels, number = [], np.concatenate([np.arange(count) for count in counts])
    for name, clip in zip(clips.names, number):
        frames = shown.get(name) or shown.get(os.path.splitext(name)[0], {})
        first = int(starts[name][clip])
        clip_frames = range(first, first + clip_length * stride, stride)
        things = collections.Counter(frames[frame] for frame in clip_frames if frame in frames)
        thing, most = min(things.items(), key=lambda item: (-item[1], item[0]), default=('', 0))
        labels.append((index[thing],) if 2 * most >= clip_length else ())
    clips = dataclasses.replace(clips, labels=tuple(labels), clips=number, class_names=class_names)
    kept = clips.keep(lambda i: bool(labels[i]))
    if not kept.names:
        raise errors.UsageError(f'--frames_labels={path}: no clip shows an object in half of its '
                                f'{clip_length} frames; are its videos those of the lists '
                                f'({samples.names[0]}, …)?')
    return kept


def _read_objects(path: str) -> dict[str, dict[int, str]]:
    """Returns video → frame → object."""
    shown = collections.defaultdict(dict)
    try:
        with storage.open(path, newline='', encoding='utf-8-sig') as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not row or number == 1 and len(row) > 1 and not _is_number(row[1]):
                    continue  # the first line may be a header
                if len(row) != 3 or not _is_number(row[1]):
                    raise errors.UsageError(f'--frames_labels={path}, line {number}: expected video, '
                                            f'frame (from 0), object; got {",".join(row)!r}')
                video, frame, thing = (cell.strip() for cell in row)
                if thing and shown[video].setdefault(int(frame), thing) != thing:
                    raise errors.UsageError(f'--frames_labels={path}, line {number}: frame {frame} of '
                                            f'{video} has two objects')
    except OSError as error:
        raise errors.UsageError(f'--frames_labels={path}: {error.strerror}') from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise errors.UsageError(f'--frames_labels={path}: not a text file of commas ({error})') from error
    return shown


def _is_number(text: str) -> bool:
    return text.strip().isdecimal() and len(text) < 20
