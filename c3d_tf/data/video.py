# SPDX-License-Identifier: Apache-2.0
"""Decodes video files to upright RGB frames, and resizes them as the original C3D did."""

from collections.abc import Iterator
from typing import NamedTuple

import av
import av.video.reformatter
import cv2
import numpy as np

from c3d_tf.common import storage


class Frame(NamedTuple):
    """One decoded frame.

    Attributes:
      time: microseconds since the first frame; strictly increasing within a video.
      image: uint8 [H, W, 3], RGB, 0–255.
    """

    time: int
    image: np.ndarray


class VideoError(Exception):
    """The file cannot be read as video; the message is a reason a person can act on."""


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns uint8 [*size, 3]: cv2's bilinear, without keeping the aspect ratio.

    This is the original's `cv::resize` in image_io.cpp, rounded to uint8.
    """
    height, width = size
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def decode(path: str, *, size: tuple[int, int] | None = None) -> Iterator[Frame]:
    """Yields the frames of the file's first video stream, upright, in order of display.

    Frames are counted by decoding: headers lie. A file that breaks half-way yields what can be
    decoded before the break. PyAV's pixels equal cv2.VideoCapture's bit for bit.

    Args:
      path: a video file in any container and codec that FFmpeg reads.
      size: (height, width) to resize every frame to; None keeps each frame's own size.

    Raises:
      VideoError: not one frame could be decoded.
    """
    count = 0
    last = -1
    origin = None  # the time of the first frame: transport streams start anywhere
    reason = 'no frame could be decoded'
    try:
        with av.open(readable(path), metadata_errors='replace') as container:
            if not container.streams.video:
                raise VideoError('no video stream in the file')
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError('no decoder for the codec of its video stream')
            stream.codec_context.thread_count = 1  # one process a core does better than threads
            # One for the whole file: `frame.to_ndarray` would make tables and threads for each frame.
            reformatter = av.video.reformatter.VideoReformatter()
            for frame in container.decode(stream):
                rgb = reformatter.reformat(frame, format='rgb24', threads=1)
                image = upright(rgb.to_ndarray(), frame.rotation)
                if size is not None:
                    image = resize(image, size)
                # Broken streams repeat or drop time stamps; the records promise rising ones.
                time = frame.time or 0.0
                origin = time if origin is None else origin
                last = max(last + 1, round((time - origin) * 1e6))
                yield Frame(last, image)
                count += 1
    except (av.error.FFmpegError, ValueError, MemoryError) as error:
        reason = f'{reason} ({type(error).__name__}: {error})'
    if not count:
        raise VideoError(reason)


def readable(path: str):
    """Returns what av.open takes for a file."""
    # `file:` keeps a name such as 'a:b.avi' or '-x.mp4' from being read as a protocol or option.
    return storage.readable(path) if storage.scheme(path) else f'file:{path}'


def claimed(path: str) -> int:
    """Returns how many frames the file says it has, which may be wrong; 0 where it says nothing."""
    try:
        with av.open(readable(path), metadata_errors='replace') as container:
            stream = container.streams.video[0]
            return stream.frames or round(float((container.duration or 0) / av.time_base * (
                stream.average_rate or 0)))
    except (av.error.FFmpegError, ValueError, IndexError):
        return 0


def upright(image: np.ndarray, rotation: int) -> np.ndarray:
    """Turns the picture by the file's degrees, counter-clockwise as PyAV reports them."""
    return np.ascontiguousarray(np.rot90(image, rotation // 90)) if rotation else image
