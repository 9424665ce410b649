# SPDX-License-Identifier: Apache-2.0
"""Which frames make a clip: every choice of an epoch as one numpy table, made before any decoding.

A choice is a pure function of (seed, epoch, record, view), so an epoch can be rebuilt at any time and
on any machine. Frames are chosen on encoded records; only chosen frames are ever decoded.
"""

from typing import NamedTuple

import numpy as np

CHOICES = ('random', 'uniform', 'all')


class Plan(NamedTuple):
    """The clips of one pass over R records, C in all, sorted by record.

    Attributes:
      splits: int64 [R + 1]; the clips of record r are splits[r] … splits[r + 1].
      start: int64 [C], the clip's first frame within its record.
      top, left: int64 [C], the crop's offset in pixels of the record's frames.
      flip: bool [C], whether the clip is mirrored.
      draw: float32 [C] in 0 … 1; picks one of several labels.
    """

    splits: np.ndarray
    start: np.ndarray
    top: np.ndarray
    left: np.ndarray
    flip: np.ndarray
    draw: np.ndarray


def extent(clip_length: int, stride: int) -> int:
    """Returns how many frames a clip spans: 16 at stride 1, 31 at stride 2."""
    return (clip_length - 1) * stride + 1


def indices(start, num_frames, *, clip_length: int, stride: int):
    """Returns int64 [clip_length], the clip's frames; one that is too short starts over.

    Works on numpy integers and on tensors alike.
    """
    return (start + stride * np.arange(clip_length, dtype=np.int64)) % num_frames


def all_starts(num_frames: int, *, clip_length: int, step: int, stride: int = 1) -> np.ndarray:
    """Returns int64 [N]: clips every `step` frames, a tail shorter than a clip dropped.

    A video shorter than one clip gives one clip.
    """
    room = max(num_frames - extent(clip_length, stride), 0)
    return np.arange(0, room + 1, step, dtype=np.int64)


def choose(
    frames: np.ndarray,
    videos: np.ndarray,
    *,
    choice: str,
    count: int = 1,
    step: int = 0,
    clip_length: int,
    stride: int = 1,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses clips of every video; a video is one record, or several that follow one another.

    Args:
      frames: int64 [R], the frames of each record.
      videos: int64 [R], the video of each record: 0, 0, 1, 2, 2, 2, …
      choice: 'random': `count` starts a video, drawn independently; 'uniform': `count` starts evenly
        spread, the one of count 1 in the middle; 'all': every `step` frames.
      count: clips a video for 'random' and 'uniform'.
      step: frames from one start to the next for 'all'; 0 means a clip's length.
      clip_length: frames of a clip.
      stride: frames of the video from one frame of the clip to the next.
      rng: the source of 'random'.

    Returns:
      (record, start): int64 [C] each, sorted by record.
    """
    # Possible starts of each record; a record shorter than a clip has one, at its first frame.
    room = np.maximum(frames - extent(clip_length, stride), 0) + 1
    if choice == 'all':
        step = step or clip_length
        clips = (room - 1) // step + 1
        record = np.repeat(np.arange(len(frames)), clips)
        number = np.arange(clips.sum()) - np.repeat(np.cumsum(clips) - clips, clips)
        return record, number * step
    if choice not in CHOICES:
        raise ValueError(f'choice {choice!r}: expected one of {", ".join(CHOICES)}')
    # All records' possible starts on one line, so that a draw needs no loop over videos.
    line = np.concatenate([[0], np.cumsum(room)])
    first = np.flatnonzero(np.diff(videos, prepend=-1))  # the first record of every video
    begin = line[first]
    length = np.append(begin[1:], line[-1]) - begin
    if choice == 'random':
        place = rng.random((len(first), count))
    else:
        place = np.broadcast_to((np.arange(count) + 0.5) / count, (len(first), count))
    position = (begin[:, None] + np.floor(place * length[:, None]).astype(np.int64)).ravel()
    record = np.searchsorted(line, position, side='right') - 1
    order = np.argsort(record, kind='stable')
    return record[order], (position - line[record])[order]


def plan(
    frames: np.ndarray,
    videos: np.ndarray,
    *,
    choice: str,
    count: int = 1,
    step: int = 0,
    clip_length: int,
    stride: int = 1,
    frame_size: tuple[int, int],
    crop_size: int,
    random_crop: bool = False,
    flip: bool = False,
    seed: int = 0,
    epoch: int = 0,
) -> Plan:
    """Returns every choice of one epoch; see `choose` for the first arguments.

    Args:
      frame_size: (height, width) of the records' frames.
      crop_size: side of the square that the network sees.
      random_crop: any offset with the same chance, one for the whole clip; else the centre with the
        offset rounded down, rows 8 and columns 29 of 128x171 as the original's test crop.
      flip: mirrors half of the clips.
      seed: with `epoch` the source of all that is random.
    """
    rng = np.random.default_rng([seed, epoch])
    record, start = choose(frames, videos, choice=choice, count=count, step=step,
                           clip_length=clip_length, stride=stride, rng=rng)
    height, width = frame_size
    spare = np.array([height - crop_size, width - crop_size])
    if random_crop:
        offset = rng.integers(0, spare + 1, size=(len(start), 2))
    else:
        offset = np.broadcast_to(spare // 2, (len(start), 2))
    return Plan(
        splits=np.concatenate([[0], np.cumsum(np.bincount(record, minlength=len(frames)))]),
        start=start,
        top=offset[:, 0],
        left=offset[:, 1],
        flip=rng.random(len(start)) < 0.5 if flip else np.zeros(len(start), bool),
        draw=rng.random(len(start), dtype=np.float32),
    )
