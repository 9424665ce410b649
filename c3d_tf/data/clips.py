# SPDX-License-Identifier: Apache-2.0
"""Which frames make a clip: every choice of an epoch as one numpy table, made before any decoding.

A choice is a pure function of (seed, epoch, record, view), so an epoch can be rebuilt at any time and
on any machine. Frames are chosen on encoded records; only chosen frames are ever decoded.
"""

from typing import NamedTuple

import numpy as np

CHOICES = ('random', 'uniform', 'all')
SHORT = ('loop', 'repeat_last', 'drop')  # what becomes of a video shorter than a clip
CROPS = ('centre', 'random', 'three', 'ten')
# What RandAugment draws from; `randaugment.apply` says what each does.
TRANSFORMS = ('identity', 'brightness', 'contrast', 'saturation', 'sharpness', 'posterize', 'solarize',
              'auto_contrast', 'rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y')


class Plan(NamedTuple):
    """The clips of one pass over R records, C in all, sorted by record.

    Attributes:
      splits: int64 [R + 1]; the clips of record r are splits[r] … splits[r + 1].
      start: int64 [C], the clip's first frame within its record.
      stride: int64 [C], frames of the record from one frame of the clip to the next.
      top, left, side: int64 [C], the square that is cut from the record's frames, in pixels; where its
        side is not the network's, the clip is resized.
      flip: bool [C], whether the clip is mirrored.
      colour: float32 [C, 3], factors of brightness, contrast and saturation.
      draw: float32 [C] in 0 … 1; picks one of several labels.
      transforms: int64 [C, N], places in TRANSFORMS, applied one after another.
      strengths: float32 [C, N] in -1 … 1, how much and which way of each.
    """

    splits: np.ndarray
    start: np.ndarray
    stride: np.ndarray
    top: np.ndarray
    left: np.ndarray
    side: np.ndarray
    flip: np.ndarray
    colour: np.ndarray
    draw: np.ndarray
    transforms: np.ndarray
    strengths: np.ndarray


def extent(clip_length: int, stride: int) -> int:
    """Returns how many frames a clip spans: 16 at stride 1, 31 at stride 2."""
    return (clip_length - 1) * stride + 1


def indices(start, num_frames, *, clip_length: int, stride, short: str = 'loop', minimum=np.minimum):
    """Returns int64 [clip_length], the clip's frames.

    Works on numpy integers, and on tensors with tf.minimum.

    Args:
      start: the first frame.
      num_frames: of the record.
      clip_length: frames of the clip.
      stride: from one frame to the next.
      short: 'loop' starts a video over that ends before the clip does, 'repeat_last' holds its last
        frame; with 'drop' such clips are never chosen.
      minimum: np.minimum or tf.minimum.
    """
    chosen = start + stride * np.arange(clip_length, dtype=np.int64)
    return minimum(chosen, num_frames - 1) if short == 'repeat_last' else chosen % num_frames


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
    short: str = 'loop',
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
      short: 'drop' chooses no clip of a record that is shorter than one; see `indices`.
      rng: the source of 'random'.

    Returns:
      (record, start): int64 [C] each, sorted by record.
    """
    # Possible starts of each record; a record shorter than a clip has one, at its first frame.
    room = np.maximum(frames - extent(clip_length, stride) + 1, 0 if short == 'drop' else 1)
    if choice == 'all':
        step = step or clip_length
        clips = (room + step - 1) // step
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
    begin, length, first = begin[length > 0], length[length > 0], first[length > 0]
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
    max_stride: int = 0,
    short: str = 'loop',
    frame_size: tuple[int, int],
    crop_size: int,
    crops: str = 'centre',
    min_scale: float = 1.0,
    flip: bool = False,
    colour: float = 0.0,
    rand_augment: int = 0,
    rand_magnitude: float = 0.0,
    seed: int = 0,
    epoch: int = 0,
) -> Plan:
    """Returns every choice of one epoch; see `choose` for the first arguments.

    Args:
      max_stride: where larger than `stride`, each clip's stride is drawn from stride … max_stride, as
        far as its record is long enough.
      frame_size: (height, width) of the records' frames.
      crop_size: side of the square that the network sees.
      crops: 'centre', with the offset rounded down: rows 8 and columns 29 of 128x171 as the original's
        test crop; 'random', any offset with the same chance, one for the whole clip; 'three', at both
        ends and the middle of the longer side; 'ten', four corners and the centre, each also mirrored.
      min_scale: for 'random', the square's side is drawn from min_scale·H … H, H being the frames'
        shorter side, and resized to crop_size; 1 cuts crop_size as it is.
      flip: mirrors half of the clips.
      colour: brightness, contrast and saturation are multiplied by 1 − colour … 1 + colour.
      rand_augment: transforms drawn for each clip, the same for all its frames (RandAugment, Cubuk et
        al., 2020).
      rand_magnitude: their strength, 0 … 10, the same for all; its sign is drawn.
      seed: with `epoch` the source of all that is random.
    """
    rng = np.random.default_rng([seed, epoch])
    record, start = choose(frames, videos, choice=choice, count=count, step=step,
                           clip_length=clip_length, stride=stride, short=short, rng=rng)
    strides = np.full(len(start), stride)
    if max_stride > stride:
        longest = np.maximum((frames[record] - 1) // max(clip_length - 1, 1), stride)
        strides = rng.integers(stride, np.minimum(longest, max_stride) + 1)
        # The start was drawn for the shortest clip: a longer one begins earlier by what it needs.
        start = np.clip(start, 0, np.maximum(frames[record] - extent(clip_length, strides), 0))
    flips = rng.random(len(start)) < 0.5 if flip else np.zeros(len(start), bool)
    side = np.full(len(start), crop_size)
    height, width = frame_size
    if crops == 'random':
        if min_scale < 1:
            side = np.rint(rng.uniform(min_scale, 1, len(start)) * min(height, width)).astype(np.int64)
        top = rng.integers(0, height - side + 1)
        left = rng.integers(0, width - side + 1)
    else:
        views = np.array(_views(crops, height - crop_size, width - crop_size))  # [V, (top, left, flip)]
        record, start, strides, side = (np.repeat(x, len(views)) for x in (record, start, strides, side))
        top, left, mirrored = np.tile(views, (len(flips), 1)).T
        flips = np.repeat(flips, len(views)) ^ mirrored.astype(bool)
    factors = rng.uniform(1 - colour, 1 + colour, (len(start), 3)) if colour else np.ones((len(start), 3))
    draw = rng.random(len(start), dtype=np.float32)
    # Last, so that everything else is drawn the same with it and without.
    drawn = (len(start), rand_augment)
    transforms = rng.integers(len(TRANSFORMS), size=drawn)
    strengths = rng.choice([-1, 1], drawn) * (rand_magnitude / 10)
    return Plan(
        splits=np.concatenate([[0], np.cumsum(np.bincount(record, minlength=len(frames)))]),
        start=start, stride=strides, top=top, left=left, side=side, flip=flips,
        colour=factors.astype(np.float32), draw=draw, transforms=transforms,
        strengths=strengths.astype(np.float32))


def _views(crops: str, spare_height: int, spare_width: int) -> list[tuple[int, int, bool]]:
    """Returns (top, left, mirrored) of each crop of a frame."""
    centre = (spare_height // 2, spare_width // 2)
    if crops == 'centre':
        return [(*centre, False)]
    if crops == 'three':
        if spare_width >= spare_height:
            return [(centre[0], left, False) for left in (0, centre[1], spare_width)]
        return [(top, centre[1], False) for top in (0, centre[0], spare_height)]
    if crops != 'ten':
        raise ValueError(f'crops {crops!r}: expected one of {", ".join(CROPS)}')
    corners = [(top, left) for top in (0, spare_height) for left in (0, spare_width)]
    return [(*place, mirrored) for mirrored in (False, True) for place in (*corners, centre)]
