# SPDX-License-Identifier: Apache-2.0
"""Videos in decoder processes → full batches of clips in this one, while the network works.

A decoder waits in its pipe when nobody reads, and nobody reads when enough batches wait: memory is flat
in the number and in the length of the videos.
"""

import contextlib
import multiprocessing.connection
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np

from c3d_tf.common import errors
from c3d_tf.data import video
from c3d_tf.data import windows
from c3d_tf.data import workers

WAITING = 2  # batches that wait for the network


class Job(NamedTuple):
    """One video to decode.

    Attributes:
      key: names it in batches.
      frames: called in the decoder process, without arguments; gives the frames, see `windows.cut`.
    """

    key: object
    frames: Callable[[], Iterator[video.Frame | None]]


class Batch(NamedTuple):
    """Clips of several videos, and which videos have ended.

    Attributes:
      clips: uint8 [batch_size, T, H, W, 3], RGB; what lies behind `rows` is 0.
      rows: (key, number of the first frame, its time in seconds) of each clip. Those of a video come in
        order.
      ends: (key, frames, reason): a video that is finished with this batch's clips. Where it could not
        be read, `reason` says why, and clips of it that came before do not count.
    """

    clips: np.ndarray
    rows: list[tuple[object, int, float]]
    ends: list[tuple[object, int, str]]


def batches(
    next_job: Callable[[], Job | None],
    *,
    clip_shape: tuple[int, int, int, int],
    cutting: dict,
    batch_size: int,
    num_workers: int,
    video_timeout: float,
    in_process: bool = False,
) -> Iterator[Batch]:
    """Yields the clips of all videos in full batches; the last one may be less than full.

    Args:
      next_job: called, in a thread, whenever a decoder has nothing to do; None where there is no more.
      clip_shape: (T, H, W, 3).
      cutting: the keyword arguments of `windows.cut`.
      batch_size: clips.
      num_workers: processes.
      video_timeout: seconds without a frame after which a video counts as stuck.
      in_process: decodes in threads; see `workers.Worker`.

    Raises:
      errors.RunError: a decoder process does not even start.
    """
    feeder = _Feeder(next_job, (batch_size, *clip_shape), cutting, num_workers, video_timeout,
                     in_process)
    thread = threading.Thread(target=feeder.run, daemon=True)
    thread.start()
    try:
        while (batch := feeder.queue.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield batch
    finally:
        feeder.stopped.set()
        thread.join()


class _Stopped(Exception):
    pass


class _Decoder(workers.Worker):
    """A decoder process and the video it has."""

    def __init__(self, cutting: dict, in_process: bool):
        super().__init__(_live, in_process)
        self.send(cutting)

    def give(self, job: Job) -> None:
        self.key, self.begun = job.key, False
        self.send(job.frames)


class _Feeder:
    """The thread between the decoders and the network."""

    def __init__(self, next_job, shape, cutting, num_workers, video_timeout, in_process):
        self.queue = queue.Queue(WAITING)
        self.stopped = threading.Event()
        self._next_job, self._shape, self._cutting = next_job, shape, cutting
        self._num_workers, self._timeout, self._in_process = num_workers, video_timeout, in_process
        self._decoders = []
        self._batch = self._empty()

    def run(self) -> None:
        with contextlib.suppress(_Stopped):
            try:
                self._work()
            except Exception as error:
                self._put(error)
            finally:
                for decoder in self._decoders:
                    decoder.stop()
            self._put(None)

    def _work(self) -> None:
        while len(self._decoders) < self._num_workers and (job := self._job()):
            self._start(job)
        while self._decoders:
            if self.stopped.is_set():
                return
            heard = multiprocessing.connection.wait([d.connection for d in self._decoders], timeout=0.5)
            for decoder in list(self._decoders):
                if decoder.connection in heard and (message := decoder.receive()):
                    self._heed(decoder, *message)
                if reason := decoder.lost(self._timeout):
                    if not decoder.begun:
                        raise errors.RunError(
                            f'a decoder process ended before its work ({reason}); a script that calls '
                            "this needs its code below `if __name__ == '__main__':`")
                    self._batch.ends.append((decoder.key, 0, reason))
                    self._stop(decoder)
                    if job := self._job():
                        self._start(job)
        if self._batch.rows or self._batch.ends:
            self._put(self._batch)

    def _heed(self, decoder: _Decoder, what: str, *more) -> None:
        decoder.begun = True
        if what == 'clip':
            place = self._batch.clips[len(self._batch.rows)]
            if not decoder.receive_into(place.reshape(-1)):
                place[:] = 0
                return
            self._batch.rows.append((decoder.key, *more))
            if len(self._batch.rows) == len(self._batch.clips):
                full, self._batch = self._batch, self._empty()
                self._put(full)
        elif what == 'end':
            self._batch.ends.append((decoder.key, *more))
            if job := self._job():
                decoder.give(job)
            else:
                self._stop(decoder)

    def _job(self) -> Job | None:
        before = time.monotonic()
        job = self._next_job()
        self._excuse(time.monotonic() - before)
        return job

    def _start(self, job: Job) -> None:
        self._decoders.append(_Decoder(self._cutting, self._in_process))
        self._decoders[-1].give(job)

    def _stop(self, decoder: _Decoder) -> None:
        decoder.stop()
        self._decoders.remove(decoder)

    def _empty(self) -> Batch:
        return Batch(np.zeros(self._shape, np.uint8), [], [])

    def _put(self, item) -> None:
        before = time.monotonic()
        while True:
            if self.stopped.is_set():
                raise _Stopped
            with contextlib.suppress(queue.Full):
                self.queue.put(item, timeout=0.2)
                break
        self._excuse(time.monotonic() - before)

    def _excuse(self, seconds: float) -> None:
        for decoder in self._decoders:
            decoder.excuse(seconds)


def _live(connection) -> None:
    """A decoder's life: videos in, their clips and one 'end' each out."""
    cv2.setNumThreads(1)  # there is a process a core already
    said = 0.0

    def say(*message) -> None:
        nonlocal said
        connection.send(message)
        said = time.monotonic()

    try:
        cutting = connection.recv()
        while True:
            with workers.quiet():
                frames = connection.recv()  # for records, unpickling imports TensorFlow
            say('begun')
            count = 0

            def watched():
                nonlocal count
                for frame in frames():
                    count += frame is not None
                    if time.monotonic() - said > 1:
                        say('alive')
                    yield frame

            try:
                for clip in windows.cut(watched(), **cutting):
                    say('clip', clip.start, clip.time)
                    connection.send_bytes(clip.images.reshape(-1))  # it counts the first axis alone
            except video.VideoError as error:
                say('end', 0, str(error))
            else:
                say('end', count, '')
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent has stopped, or was killed
        return
