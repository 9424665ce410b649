# SPDX-License-Identifier: Apache-2.0
"""A stream of frames → its clips, one after another: memory stays flat however long the video is."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from c3d_tf.data import clips
from c3d_tf.data import video


class Window(NamedTuple):
    """One clip of a video.

    Attributes:
      start: its first frame's number, from 0.
      time, end: seconds of its first and its last frame.
      images: uint8 [clip_length, H, W, 3].
    """

    start: int
    time: float
    end: float
    images: np.ndarray


def cut(
    frames: Iterable[video.Frame | None], *, clip_length: int, stride: int, short: str, step: int
) -> Iterator[Window]:
    """Yields a clip every `step` frames; a tail shorter than a clip is dropped, as by the original.

    A video shorter than one clip gives one clip.

    Args:
      frames: all of one size. None stands for a gap: what lies behind it is cut like another video,
        though its frames' numbers go on.
      clip_length, stride, short: see `clips.indices`.
      step: frames from one start to the next; 0 means a clip's extent.

    Raises:
      video.VideoError: the video is shorter than a clip, and `short` is 'drop'.
    """
    extent = clips.extent(clip_length, stride)
    step = step or extent
    first = count = start = 0  # the frame behind the last gap, all frames, the next clip's first
    held, some = [], False

    def window(chosen):
        return Window(start, held[0].time * 1e-6, held[-1].time * 1e-6,
                      np.stack([held[i].image for i in chosen]))

    def shorter():
        if 0 < count - first < extent and short != 'drop':
            yield window(clips.indices(0, len(held), clip_length=clip_length, stride=stride,
                                       short=short))

    for frame in frames:
        if frame is None:
            yield from shorter()
            held, first, start = [], count, count
            continue
        if count >= start:
            held.append(frame)
        count += 1
        if len(held) == extent:
            yield window(range(0, extent, stride))
            some = True
            held = held[step:]
            start += step
    yield from shorter()
    if short == 'drop' and not some:
        raise video.VideoError(f'{count} frames, a clip needs {extent}')
