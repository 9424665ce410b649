# SPDX-License-Identifier: Apache-2.0
"""Joins concurrent requests as TensorFlow Serving does, for the tests' server.

What batching_session.cc and shared_batch_scheduler.h of TensorFlow Serving do: a queue for each
signature; its requests are joined to at most max_batch_size examples, filled up to an allowed size with
copies of the last request's first example, refused together where shapes differ, and all fail with the
error of any one of them. A full queue is UNAVAILABLE.
"""

import collections
import concurrent.futures
import threading
import time

import numpy as np

from tests import server_configs_pb2


class Refusal(Exception):
    """An answer that is a status, by its name."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message


class Task:
    """A request that waits for its batch."""

    def __init__(self, inputs, deadline):
        self.inputs, self.deadline, self.came = inputs, deadline, time.monotonic()
        self.size = len(next(iter(inputs.values())))
        self.future = concurrent.futures.Future()


class Batcher:
    """Joins concurrent requests, a queue a signature, as BatchingSession and SharedBatchScheduler do.

    Attributes:
      batches: how many batches had each number of requests.
    """

    def __init__(self, run, parameters: server_configs_pb2.BatchingParameters):
        self.batches = collections.Counter()
        self._run, self._allowed = run, list(parameters.allowed_batch_sizes)
        self._most, self._room = parameters.max_batch_size.value, parameters.max_enqueued_batches.value
        self._wait = parameters.batch_timeout_micros.value / 1e6
        self._queues, self._news = collections.defaultdict(collections.deque), threading.Condition()
        for _ in range(parameters.num_batch_threads.value):
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, key, task: Task) -> None:
        if task.size > self._most:
            raise Refusal('INVALID_ARGUMENT',
                          f'Task size {task.size} is larger than maximum input batch size {self._most}')
        with self._news:
            if sum(one.size for one in self._queues[key]) + task.size > self._most * self._room:
                raise Refusal('UNAVAILABLE',
                              'The batch scheduling queue to which this task was submitted is full')
            self._queues[key].append(task)
            self._news.notify()

    def _next(self):
        """Returns the next batch: full, or as its first request has waited long enough."""
        with self._news:
            while True:
                wait = None
                for key, queue in self._queues.items():
                    left = queue[0].came + self._wait - time.monotonic() if queue else None
                    if queue and (left <= 0 or sum(one.size for one in queue) >= self._most):
                        batch = []
                        while queue and sum(one.size for one in batch) + queue[0].size <= self._most:
                            batch.append(queue.popleft())
                        self._queues[key] = self._queues.pop(key)  # to the end: each signature in turn
                        return key, batch
                    if queue:
                        wait = left if wait is None else min(wait, left)
                self._news.wait(wait)

    def _work(self):
        while True:
            key, batch = self._next()
            now = time.monotonic()
            late = [task for task in batch if task.deadline < now]
            if len(late) == len(batch):  # as the server: a batch runs if anybody still waits for it
                for task in late:
                    task.future.set_exception(
                        Refusal('DEADLINE_EXCEEDED', 'Run() timeout exceeded in the queue'))
                continue
            self.batches[len(batch)] += 1
            try:
                outputs = self._run(key, self._merge(batch))
            except Exception as error:
                for task in batch:
                    task.future.set_exception(error)
                continue
            first = 0
            for task in batch:
                part = slice(first, first + task.size)
                task.future.set_result({name: value[part] for name, value in outputs.items()})
                first += task.size

    def _merge(self, batch):
        size = sum(task.size for task in batch)
        padding = next((one for one in self._allowed if one >= size), size) - size
        merged = {}
        for name in batch[0].inputs:
            values = [task.inputs[name] for task in batch]
            if len({value.shape[1:] for value in values}) > 1:
                raise Refusal('FAILED_PRECONDITION',
                              f"Tensors with name '{name}' from different tasks have different shapes "
                              'and padding is turned off.')
            merged[name] = np.concatenate(values + [values[-1][:1]] * padding)
        return merged
