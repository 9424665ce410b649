# SPDX-License-Identifier: Apache-2.0
"""Live video: the newest frames of a camera, or of a stream over RTSP or HTTP. No TensorFlow."""

import collections
import re
import sys
import threading
import time
from typing import NamedTuple

import av
import numpy as np

from c3d_tf.common import errors
from c3d_tf.data import video

TIMEOUT = 10.0  # seconds without an answer or a frame, after which a stream counts as broken
RETRIES = (1, 2, 4, 8)  # seconds before each new try
# What a camera is called where; on Windows its name stands for its number.
CAMERAS = {
    'linux': ('v4l2', '/dev/video{}'), 'darwin': ('avfoundation', '{}'), 'win32': ('dshow', 'video={}')}

_LIVE = re.compile(r'camera:|(rtsps?|https?)://', re.IGNORECASE)


class Shot(NamedTuple):
    """The newest frames of a stream.

    Attributes:
      last: the number of its last frame, from 1, counted over all that came.
      arrived: `time.monotonic()` when that frame's data came.
      images: uint8 [length, H, W, 3], RGB.
    """

    last: int
    arrived: float
    images: np.ndarray


def is_live(given: str) -> bool:
    """Returns whether --input names a stream: camera:0, rtsp://…, rtsps://…, http://… or https://…"""
    return bool(_LIVE.match(given))


def shown(given: str) -> str:
    """Returns the address without the password that it may have."""
    return re.sub(r'//[^/@]*@', '//', given)


class Stream:
    """Reads a stream in a thread of its own; a context manager. A stream that breaks is opened again.

    Args:
      given: see `is_live`.
      size: (height, width) frames are resized to.
      length: how many of the newest frames are kept.

    Attributes:
      begin: `time.monotonic()` when the stream was open.
      breaks: how often it broke and came back.
      error: why it ended before its time; ''.

    Raises:
      errors.UsageError: nothing can be read there.
    """

    def __init__(self, given: str, *, size: tuple[int, int], length: int):
        self._given, self._size, self._length = given, size, length
        self._frames = collections.deque(maxlen=length)  # (when it arrived, image)
        self._count = 0
        self._over = False
        self._changed = threading.Condition()
        self._waits = iter(RETRIES)
        self.breaks, self.error = 0, ''
        try:
            container = _open(given)
        except video.VideoError as error:
            raise errors.UsageError(f'--input={shown(given)}: {error}') from error
        self.begin = time.monotonic()
        self._thread = threading.Thread(target=self._read, args=(container,), daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._thread.join(1.0)  # one that waits for a frame that never comes ends with the process

    def newest(self, after: int, timeout: float | None) -> Shot | None:
        """Waits until the frame of number `after` has come, and `length` frames in a row.

        Args:
          after: a number of a frame.
          timeout: seconds to wait; None waits as long as the stream lasts.

        Returns:
          the newest frames; None where the stream or the time ended before.
        """
        def ready():
            return self._count >= after and len(self._frames) == self._length

        with self._changed:
            self._changed.wait_for(lambda: self._over or ready(), timeout)
            if not ready() or timeout is not None and timeout <= 0:
                return None
            last, frames = self._count, list(self._frames)
        return Shot(last, frames[-1][0], np.stack([image for _, image in frames]))

    def _read(self, container) -> None:
        while container:
            reason = self._receive(container)
            container = self._reopen(reason) if reason else None
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _receive(self, container) -> str:
        """Reads until the stream breaks; returns why, '' if it came to its end or is wanted no more."""
        try:
            with container:
                stream = container.streams.video[0]
                stream.thread_type = 'SLICE'  # threads that take a frame each would hold frames back
                # What has a length is a file, which comes as fast as it is read: it gets its own pace.
                is_file, begin = container.duration is not None, time.monotonic()
                for packet in container.demux(stream):
                    arrived = time.monotonic()
                    for frame in _decoded(packet):
                        if is_file:
                            time.sleep(max(0, begin + (frame.time or 0) - time.monotonic()))
                            arrived = time.monotonic()
                        image = video.upright(frame.to_ndarray(format='rgb24'), frame.rotation)
                        self._add(arrived, video.resize(image, self._size))
                    if self._over:
                        return ''
                return '' if is_file else 'the stream ended'
        except av.error.FFmpegError as error:
            return _reason(error)

    def _add(self, arrived: float, image: np.ndarray) -> None:
        with self._changed:
            self._frames.append((arrived, image))
            self._count += 1
            self._waits = iter(RETRIES)
            self._changed.notify_all()

    def _reopen(self, reason: str):
        """Returns the stream, opened again; None if it does not come back."""
        for seconds in self._waits:
            print(f'{shown(self._given)}: {reason}; trying again in {seconds} s', file=sys.stderr,
                  flush=True)
            with self._changed:
                if self._changed.wait_for(lambda: self._over, seconds):
                    return None
            try:
                container = _open(self._given)
            except video.VideoError as error:
                reason = str(error)
                continue
            with self._changed:
                self._frames.clear()  # no clip spans the break
                self.breaks += 1
            return container
        self.error = reason
        return None


def _decoded(packet) -> list:
    try:
        return packet.decode()
    except av.error.InvalidDataError:  # who comes in the middle lacks what came before; data gets lost
        return []


def _open(given: str):
    """Returns PyAV's container.

    Raises:
      video.VideoError: there is no stream.
    """
    name, kind = given, None
    options = {'rtsp_transport': 'tcp'}  # by UDP, pictures tear where packets get lost
    if given.lower().startswith('camera:'):
        kind, name = CAMERAS.get(sys.platform, CAMERAS['linux'])
        name, options = name.format(given.partition(':')[2]), {}
    try:
        container = av.open(name, format=kind, options=options, timeout=TIMEOUT,
                            metadata_errors='replace')
    except (av.error.FFmpegError, ValueError) as error:
        raise video.VideoError(f'cannot be opened: {_reason(error)}') from error
    if not container.streams.video:
        container.close()
        raise video.VideoError('no video in it')
    return container


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.ExitError):
        return f'nothing came for {TIMEOUT:g} s'
    return getattr(error, 'strerror', None) or str(error)
