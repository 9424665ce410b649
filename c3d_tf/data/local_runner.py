# SPDX-License-Identifier: Apache-2.0
"""Runs prepare's shards in worker processes on this machine.

A decoder that hangs or crashes takes its process with it: the worker is replaced, and its shard done
again without that video. Only the workers import TensorFlow.
"""

import collections
import dataclasses
import multiprocessing.connection
import time

from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.data import datasets
from c3d_tf.data import sources
from c3d_tf.data import workers


@dataclasses.dataclass(frozen=True)
class Task:
    """One shard.

    Attributes:
      path: the shard's file.
      report: a JSON file that says what is in it; the shard is finished when both are there.
      split: one of datasets.SPLITS.
      examples: (number in the split, name, example) rows.
    """

    path: str
    report: str
    split: str
    examples: list[tuple[int, str, datasets.Example]]

    def finished(self) -> bool:
        report = files.read_json(self.report)
        if (report is None or not storage.exists(self.path)
                or storage.getsize(self.path) != report['bytes']):
            return False
        written = storage.getmtime(self.report)
        return not any(sources.changed(skip, written) for skip in report['skipped'])


def run(tasks: list[Task], work, *, num_workers: int, video_timeout: float,
        in_process: bool = False) -> None:
    """Works through the shards that are not finished.

    Args:
      tasks: all shards.
      work: `work(task, given_up, reading)` writes one shard, in a worker process; `given_up` maps
        places in the shard to reasons to skip them; `reading(place)` is called with the place of the
        video that is read, often enough to know a slow file from a stuck one.
      num_workers: processes.
      video_timeout: seconds without a word after which a video counts as stuck.
      in_process: works in threads; see `workers.Worker`.

    Raises:
      errors.RunError: a shard cannot be written.
    """
    total = sum(len(task.examples) for task in tasks)
    todo = collections.deque(task for task in tasks if not task.finished())
    done = total - sum(len(task.examples) for task in todo)
    progress = console.Progress('prepare', total, 'videos', done=done)
    writers = []
    try:
        for _ in range(min(num_workers, len(todo))):
            writers.append(Writer(work, video_timeout, in_process))
            writers[-1].give(todo.popleft())
        while writers:
            heard = multiprocessing.connection.wait([w.connection for w in writers], timeout=0.5)
            for writer in list(writers):
                if writer.advance(heard):
                    done += len(writer.task.examples)
                    if todo:
                        writer.give(todo.popleft())
                    else:
                        writer.stop()
                        writers.remove(writer)
            progress.update(done + sum(writer.finished for writer in writers))
    finally:
        for writer in writers:
            writer.stop()
    progress.update(done)
    progress.close()


class Writer:
    """A worker process that writes one shard after the other; every runner of prepare has such.

    Args:
      work, video_timeout, in_process: see `run`.

    Attributes:
      task: the shard it has.
      finished: how many of its videos are done.
      connection: becomes ready when there is something for `advance`.
    """

    def __init__(self, work, video_timeout: float, in_process: bool = False):
        self._work, self._timeout, self._in_process = work, video_timeout, in_process
        self._worker = _Worker(work, in_process)

    @property
    def connection(self):
        return self._worker.connection

    def give(self, task: Task) -> None:
        """Starts on a shard."""
        self.task, self._given_up = task, {}  # place in the shard → reason
        self._begin()

    def advance(self, heard: list) -> bool:
        """Takes one message, if there is one, or replaces a process that is lost.

        Args:
          heard: the connections that are ready.

        Returns:
          whether the shard is finished.

        Raises:
          errors.RunError: it cannot be written.
        """
        message = self._worker.receive() if self.connection in heard else None
        if message == ('done',):
            return True
        if message and message[0] == 'reading':
            self._place = self.finished = message[1]
        elif message and message[0] == 'failed':
            raise errors.RunError(f'{self.task.path}: {message[1]}')
        elif reason := self._worker.lost(self._timeout):
            if self._place is None:
                raise errors.RunError(f'a worker process ended before its work ({reason})')
            if self._place in self._given_up:
                raise errors.RunError(f'{self.task.path} cannot be written: {reason}')
            self._given_up[self._place] = reason
            self.stop()
            self._worker = _Worker(self._work, self._in_process)
            self._begin()
        return False

    def stop(self) -> None:
        self._worker.stop()

    def _begin(self) -> None:
        self._place, self.finished = None, 0
        self._worker.send((self.task, self._given_up))


class _Worker(workers.Worker):

    def __init__(self, work, in_process: bool):
        super().__init__(_live, in_process)
        self.connection.send(work)


def _live(connection) -> None:
    """A worker's life: shards in, one 'done' or 'failed' each out."""
    with workers.quiet():
        work = connection.recv()  # unpickling imports TensorFlow
    last = (None, 0.0)

    def reading(place: int) -> None:
        nonlocal last
        if place != last[0] or time.monotonic() - last[1] > 1:
            last = (place, time.monotonic())
            connection.send(('reading', place))

    while True:
        try:
            task, given_up = connection.recv()
        except EOFError:
            return
        try:
            work(task, given_up, reading)
        except BrokenPipeError:  # the parent was killed
            return
        except OSError as error:
            connection.send(('failed', str(error)))
        else:
            connection.send(('done',))
