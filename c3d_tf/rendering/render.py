# SPDX-License-Identifier: Apache-2.0
"""Draws a video at its own size with what a network says of it, frame after frame."""

import itertools
import math
from collections.abc import Iterator

import av
import cv2
import numpy as np

from c3d_tf.common import console
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.data import sources
from c3d_tf.data import video
from c3d_tf.rendering import heatmap
from c3d_tf.rendering import panel
from c3d_tf.rendering import writer

LONG_SIDE = 480   # a video whose longer side is less is enlarged, or no text would fit below it
NARROWEST = 320   # the picture; a narrower video stands in its middle


def render(
    source: str, path: str, track: panel.Track, *, heat: heatmap.Heatmap | None = None, total: int,
    comment: str = '', quiet: bool = False,
) -> str:
    """Writes the video with a caption bar and a timeline below it; memory stays flat.

    Args:
      source: what `sources.frames` reads.
      path: the MP4 to write, complete or not at all.
      track: what is said of it.
      heat: laid over the frames.
      total: how many frames the source has.
      comment: kept in the file.
      quiet: shows no progress.

    Returns:
      the codec of a sound that was left out, see `writer.write`.
    """
    progress = None if quiet else console.Progress('predict: render', total, 'frames')
    sound = source if storage.isfile(source) else ''
    with files.replacing(path) as temporary:
        left_out = writer.write(temporary, _drawn(source, track, heat, progress), sound=sound,
                                comment=comment)
    if progress:
        progress.close()
    return left_out


def _drawn(source: str, track, heat, progress) -> Iterator[video.Frame]:
    below = None
    for count, frame in enumerate(_apart(sources.frames(source))):
        seconds = frame.time * 1e-6
        if below is None:
            height, width = shown = _shown(frame.image.shape, _pixel_aspect(source))
            canvas = np.empty((height + height % 2, max(NARROWEST, width + width % 2), 3), np.uint8)
            below = panel.Panel(track, canvas.shape[1], max(13, round(min(height, width) / 30)))
        canvas[:] = panel.rgb(panel.GROUND)
        image = frame.image
        if image.shape[:2] != shown:  # some files change their size half-way
            image = cv2.resize(image, shown[::-1], interpolation=cv2.INTER_CUBIC)
        if heat:
            image = heat.over(image, seconds)
        top, left = ((canvas.shape[i] - image.shape[i]) // 2 for i in (0, 1))
        canvas[top:top + image.shape[0], left:left + image.shape[1]] = image
        yield video.Frame(frame.time, np.concatenate([canvas, below.draw(seconds)]))
        if progress:
            progress.update(count + 1)


def _apart(frames: Iterator[video.Frame]) -> Iterator[video.Frame]:
    """Yields the frames; of two at one time, as some AVIs have them, the first moves half-way back."""
    before = 0
    for frame, following in itertools.pairwise(itertools.chain(frames, [None])):
        # `video.decode` makes one microsecond of none.
        if following and following.time - frame.time == 1 and frame.time - before > 1:
            frame = frame._replace(time=(before + frame.time) // 2)
        before = frame.time
        yield frame


def _shown(shape, aspect: float) -> tuple[int, int]:
    """Returns (height, width) that frames are shown at: their own, or a whole multiple of it."""
    height, width = shape[0], max(1, round(shape[1] * aspect))
    factor = max(1, math.ceil(LONG_SIDE / max(height, width)))
    return height * factor, width * factor


def _pixel_aspect(source: str) -> float:
    """Returns how wide a pixel of the file is for its height; that of DVDs and tapes is not 1."""
    if not storage.isfile(source):
        return 1.0
    with av.open(video.readable(source), metadata_errors='replace') as container:
        return float(container.streams.video[0].sample_aspect_ratio or 1)
