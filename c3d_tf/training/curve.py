# SPDX-License-Identifier: Apache-2.0
"""What a run shows of itself: the progress line and TensorBoard's scalars."""

import os
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from c3d_tf.common import console
from c3d_tf.common import files
from c3d_tf.common import storage

FOLDER = os.path.join('tensorboard', 'train')  # in the run's


class BadLoss(Exception):
    """The loss or the weights are not numbers.

    Attributes:
      what: what was found.
      records: of the batch that it was found in.
    """

    def __init__(self, what: str, records: np.ndarray):
        super().__init__(what, records)
        self.what, self.records = what, records


class Curve:
    """The progress line, TensorBoard's scalars, and the last numbers.

    Attributes:
      folder: of the events.
      writer: of them; one a run, since TensorBoard follows the newest file of a folder alone.
    """

    def __init__(self, workdir: str, first: int, total: int, rate: Callable[[int], float],
                 log_every: int):
        """`first` is the step the run goes on from; `rate` gives the learning rate of a step."""
        self._rate, self._every, self._shown = rate, log_every, first
        self._progress = console.Progress('train', total, 'steps', done=first)
        self.folder = os.path.join(workdir, FOLDER)
        self.writer = tf.summary.create_file_writer(self.folder)
        self._steps = []
        self._waited = 0.0
        self._since = time.monotonic()
        self._last = {}
        self._text = ''

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.writer.flush()  # the points of a run that is stopped as well

    def copy_to(self, workdir: str) -> None:
        """Adds what was flushed to the curves of another run's folder."""
        for path in storage.glob(os.path.join(storage.escape(self.folder), 'events.out.*')):
            with files.replacing(os.path.join(workdir, FOLDER, os.path.basename(path))) as temporary:
                storage.copy(path, temporary)

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

    def add(self, step: int, loss, hits, among_five, clips, records) -> None:
        """Takes one step's sums and records; draws a point of the curves where one is due."""
        self._steps.append((loss, hits, among_five, clips, records))
        self._progress.update(step, self._text)
        if step - self._shown >= self._every:
            self.draw(step)

    def check(self) -> None:
        """Raises BadLoss if a step since the last point was bad: before good weights are replaced."""
        for loss, *_, records in self._steps:
            if not np.isfinite(float(loss)):
                raise BadLoss('the loss is not a number; the first such batch', records.numpy())

    def draw(self, step: int, **more: float) -> None:
        """Writes a point of the curves at `step`, with `more` scalars, e.g. a validation."""
        values = dict(more)
        if self._steps:
            self.check()
            rows = np.array([[float(x) for x in row[:4]] for row in self._steps])
            losses, hits, among_five, clips = rows.T
            now = time.monotonic()
            values |= {'loss': float(losses.mean()), 'accuracy': float(hits.sum() / clips.sum()),
                       'hit@5': float(among_five.sum() / clips.sum()),
                       'clips_per_second': float(clips.sum() / (now - self._since)),
                       'input_wait': self._waited / (now - self._since),
                       'learning_rate': self._rate(step - 1)}
            self._steps, self._waited, self._since, self._shown = [], 0.0, now, step
        with self.writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._last |= values
        if 'loss' not in self._last:
            return  # a validation before the first step
        validation = self._last.get('val_accuracy')
        self._text = (f'loss {self._last["loss"]:.3f} · accuracy {self._last["accuracy"]:.3f} · '
                      + (f'val {validation:.3f} · ' if validation is not None else '')
                      + f'{self._last["clips_per_second"]:.1f} clips/s · '
                      f'input wait {self._last["input_wait"]:.0%}')

    def point(self, step: int) -> dict:
        """Draws a point at `step` if none is there; returns the last values of all curves."""
        if self._steps:
            self.draw(step)
        return self._last

    def close(self, step: int) -> dict:
        """Draws the last point; returns the last values of all curves."""
        self.point(step)
        self.writer.close()
        self._progress.update(step, self._text)
        self._progress.close(self._text)
        return self._last
