# SPDX-License-Identifier: Apache-2.0
"""A list of videos that several processes share: each is done once, by one of them."""

import contextlib
import os
import tempfile
import time
import uuid

from c3d_tf.common import console
from c3d_tf.common import files
from c3d_tf.common import locks
from c3d_tf.common import storage
from c3d_tf.data import decoders
from c3d_tf.data import inputs
from c3d_tf.data import sources

WORK = '.work'            # videos that are not finished
LOCKS = 'locks'           # a file a video that a process is at
REASONS = '.skipped'      # a file a video that was given up, for the other processes and the next run


class WorkList:
    """A list of videos, and one process's share of it.

    Args:
      output: the folder of the results.
      found: the videos.
      store: of `descriptors`: what is there, and who takes the rest.
      held: the locks of this process, one a video.
      settings: of every result.

    Attributes:
      done: the clips of every video that is there, by name.
      skipped: {'path', 'reason'} of every video that was given up, by name.
    """

    def __init__(self, output: str, found: list[inputs.Video], store, held: locks.Locks,
                 settings: dict):
        self.done, self.skipped = {}, {}
        self._output, self._found, self._store, self._held = output, found, store, held
        self._settings = settings
        self._writers = {}  # of the videos that are not finished
        self._ours = uuid.uuid4().hex
        self._work = tempfile.mkdtemp() if storage.scheme(output) else os.path.join(output, WORK)

    def work(self, forward, *, show: bool = True, **decoding) -> None:
        """Comes back when every video is there or given up, by this process or by another.

        Args:
          forward: uint8 [N, T, H, W, 3] → {layer: float32 [N, …]}.
          show: progress.
          decoding: the other arguments of `decoders.batches`.
        """
        pending = [number for number, one in enumerate(self._found) if not self.settled(one)]
        if show and len(pending) < len(self._found):
            console.say(f'features: {len(self._found) - len(pending)} of {len(self._found)} are there '
                        'already')
        self._progress = console.Progress('features', len(self._found), 'videos',
                                          done=self._settled_videos(), show=show)
        self._clips, self._start = 0, time.monotonic()
        try:
            while pending:
                before = len(pending)
                pending = self._round(pending, forward, **decoding)
                if len(pending) == before:  # others are at all of them; those of the dead are taken over
                    self._progress.update(self._settled_videos(), f'{before} with other processes')
                    time.sleep(0.5)
        finally:
            for left in storage.glob(os.path.join(storage.escape(self._work), f'*-{self._ours}')):
                storage.rmtree(left, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty: others are at work
                storage.rmdir(self._work)
        self._progress.update(self._settled_videos())
        self._progress.close(self._rate())

    def settled(self, one: inputs.Video) -> bool:
        """Notes whether the video is there, or was given up and has not changed since."""
        clips_there = self._store.find(one.name)
        if clips_there is not None:
            self.done[one.name] = clips_there
            return True
        path = self._reason_of(one)
        reason = files.read_json(path)
        if reason is None or sources.changed(reason, storage.getmtime(path)):
            return False
        self.skipped[one.name] = reason
        return True

    def sweep(self) -> None:
        """Removes what dead processes left of videos that are complete."""
        self._held.sweep()
        for left in storage.glob(os.path.join(storage.escape(self._work), '*')):
            if self._held.free(os.path.basename(left).split('-')[0]):
                storage.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):
            storage.rmdir(self._work)

    def _round(self, pending: list[int], forward, **decoding) -> list[int]:
        """Does what no other process is at; returns the rest."""
        todo, others = iter(pending), []

        def next_job():
            for number in todo:
                one = self._found[number]
                if not self._held.take(one.name):
                    others.append(number)
                elif self.settled(one):  # by a process that has gone on since
                    self._held.release(one.name)
                else:
                    for left in storage.glob(storage.escape(self._work_of(one, '')) + '*'):
                        storage.rmtree(left, ignore_errors=True)
                    return decoders.Job(number, one.frames)
            return None

        with contextlib.closing(decoders.batches(next_job, **decoding)) as batches:
            for batch in batches:
                if batch.rows:
                    values = forward(batch.clips)
                for row, (number, start, seconds) in enumerate(batch.rows):
                    writer = self._writers.get(number) or self._open(number)
                    writer.add(start, seconds, {layer: value[row] for layer, value in values.items()})
                self._clips += len(batch.rows)
                for number, frames, reason in batch.ends:
                    if not self._finish(number, frames, reason):
                        others.append(number)
                self._progress.update(self._settled_videos(), self._rate())
        return others

    def _open(self, number: int):
        one = self._found[number]
        work = self._work_of(one)
        storage.makedirs(work)
        self._writers[number] = self._store.writer(work, one.name)
        return self._writers[number]

    def _finish(self, number: int, frames: int, reason: str) -> bool:
        """Puts a video at its place, or notes why not; False where another process has taken it over."""
        one, writer = self._found[number], self._writers.get(number)
        ours = self._held.owns(one.name)
        if ours and reason:
            self.skipped[one.name] = {'path': one.path, 'reason': reason}
            files.write_json(self._reason_of(one), self.skipped[one.name])
        elif ours:
            count = writer.count()
            writer.write(one.first, {'settings': self._settings, 'video': one.name, 'path': one.path,
                                     'frames': frames, 'clips': count})
            self.done[one.name] = count
            with contextlib.suppress(FileNotFoundError):  # it was given up once, and has changed since
                storage.remove(self._reason_of(one))
        self._drop(number)
        self._held.release(one.name)
        return ours

    def _drop(self, number: int) -> None:
        if self._writers.pop(number, None):
            storage.rmtree(self._work_of(self._found[number]), ignore_errors=True)

    def _work_of(self, one: inputs.Video, whose: str | None = None) -> str:
        mine = self._ours if whose is None else whose
        return os.path.join(self._work, f'{locks.digest(one.name)}-{mine}')

    def _reason_of(self, one: inputs.Video) -> str:
        return os.path.join(self._output, REASONS, f'{locks.digest(one.name)}.json')

    def _settled_videos(self) -> int:
        return len(self.done) + len(self.skipped)

    def _rate(self) -> str:
        return f'{self._clips / max(time.monotonic() - self._start, 1e-9):.2f} clips/s'
