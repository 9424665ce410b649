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
        # A file that was skipped and has come or changed since is tried again.
        written = storage.getmtime(self.report)
        paths = [skip['path'] for skip in report['skipped']]
        return not any(storage.exists(path) and storage.getctime(path) > written for path in paths)


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
    todo = collections.deque(i for i, task in enumerate(tasks) if not task.finished())
    done = total - sum(len(tasks[i].examples) for i in todo)
    progress = console.Progress('prepare', total, 'videos', done=done)
    given_up = collections.defaultdict(dict)  # task → {example: reason}
    at_work = []
    try:
        for _ in range(min(num_workers, len(todo))):
            at_work.append(_Worker(work, in_process))
            at_work[-1].give(todo.popleft(), tasks, given_up)
        while at_work:
            heard = multiprocessing.connection.wait([w.connection for w in at_work], timeout=0.5)
            for worker in list(at_work):
                message = worker.receive() if worker.connection in heard else None
                if message == ('done',):
                    done += len(tasks[worker.task].examples)
                    if todo:
                        worker.give(todo.popleft(), tasks, given_up)
                    else:
                        worker.stop()
                        at_work.remove(worker)
                elif message and message[0] == 'failed':
                    raise errors.RunError(f'{tasks[worker.task].path}: {message[1]}')
                elif reason := worker.lost(video_timeout):
                    if worker.example is None:
                        raise errors.RunError(f'a worker process ended before its work ({reason})')
                    if worker.example in given_up[worker.task]:
                        raise errors.RunError(f'{tasks[worker.task].path} cannot be written: {reason}')
                    given_up[worker.task][worker.example] = reason
                    worker.stop()
                    at_work.remove(worker)
                    at_work.append(_Worker(work, in_process))
                    at_work[-1].give(worker.task, tasks, given_up)
            progress.update(done + sum(worker.finished for worker in at_work))
    finally:
        for worker in at_work:
            worker.stop()
    progress.update(done)
    progress.close()


class _Worker(workers.Worker):
    """A worker process and the shard it has."""

    def __init__(self, work, in_process: bool):
        super().__init__(_live, in_process)
        self.connection.send(work)

    def give(self, number: int, tasks: list[Task], given_up: dict) -> None:
        self.task, self.example, self.finished = number, None, 0
        self.send((tasks[number], given_up[number]))

    def receive(self):
        message = super().receive()
        if message and message[0] == 'reading':
            self.example = self.finished = message[1]
        return message


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
