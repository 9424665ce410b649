# SPDX-License-Identifier: Apache-2.0
"""What a run shows of itself: the progress line and TensorBoard's scalars."""

import math
import os
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from c3d_tf.common import console
from c3d_tf.common import errors


class Curve:
    """What the run shows: the progress line, TensorBoard's scalars, and the last numbers."""

    def __init__(self, workdir: str, first: int, total: int, rate: Callable[[int], float],
                 log_every: int):
        """`first` is the step the run goes on from; `rate` gives the learning rate of a step."""
        self._rate, self._every, self._shown = rate, log_every, first
        self._progress = console.Progress('train', total, 'steps', done=first)
        self._writer = tf.summary.create_file_writer(os.path.join(workdir, 'tensorboard', 'train'))
        self._sums = []
        self._waited = 0.0
        self._since = time.monotonic()
        self._last = {}
        self._text = ''

    def timed(self, batches):
        """Yields the batches; notes how long each was waited for."""
        iterator = iter(batches)
        while True:
            before = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.monotonic() - before
            yield batch

    def add(self, step, loss, hits, clips) -> None:
        """Takes one step's sums; draws a point of the curves where one is due."""
        self._sums.append((loss, hits, clips))
        self._progress.update(step, self._text)
        if step - self._shown >= self._every:
            self._draw(step)

    def check(self) -> None:
        """Stops a run that has blown up, before its weights replace good ones on disk."""
        if self._sums and not math.isfinite(float(self._sums[-1][0])):
            raise errors.RunError('the loss is not a number: lower --learning_rate, or clip; the '
                                  'last good state is in the newest checkpoint')

    def _draw(self, step: int) -> None:
        self.check()
        losses, hits, clips = np.array([[float(x) for x in row] for row in self._sums]).T
        now = time.monotonic()
        self._last = {'loss': float(losses.mean()), 'accuracy': float(hits.sum() / clips.sum()),
                      'clips_per_second': float(clips.sum() / (now - self._since)),
                      'input_wait': self._waited / (now - self._since),
                      'learning_rate': self._rate(step - 1)}
        with self._writer.as_default(step):
            for name, value in self._last.items():
                tf.summary.scalar(name, value)
        self._text = (f'loss {self._last["loss"]:.3f} · accuracy {self._last["accuracy"]:.3f} · '
                      f'{self._last["clips_per_second"]:.1f} clips/s · '
                      f'input wait {self._last["input_wait"]:.0%}')
        self._sums, self._waited, self._since, self._shown = [], 0.0, now, step

    def close(self, step: int) -> dict:
        if self._sums:
            self._draw(step)
        self._writer.close()
        self._progress.update(step, self._text)
        self._progress.close(self._text)
        return self._last
