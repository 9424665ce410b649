# SPDX-License-Identifier: Apache-2.0
"""What TensorBoard shows of a training beside its curves, cheap enough to leave on; a profiler's trace."""

import contextlib
import time

import numpy as np
import tensorflow as tf

from c3d_tf.data import preprocess
from c3d_tf.figures import strips
from c3d_tf.figures import tensorboard
from c3d_tf.training import curve as curves
from c3d_tf.training import recipe as recipes
from c3d_tf.training import trainer as trainers

CLIPS = 6       # that are shown at once
SHARE = 0.005   # of the time, at most, goes into drawing them after the first
WARM_UP = 5     # steps before a trace: the first make the graph and fill the input


class Monitor:
    """Norms of layers, clips as the network gets them, histograms, the recipe, a profiler's trace.

    It looks and never touches: the weights of a run are the same with any of its arguments.
    """

    def __init__(self, curve: curves.Curve, trainer: trainers.Trainer, spec: preprocess.Preprocessing,
                 class_names, first: int, total: int, *, log_every: int, histograms: int, profile: int):
        """Makes one.

        Args:
          curve: of the run; its writer is used, and traces go below its folder.
          trainer: the network.
          spec: what was done to the clips.
          class_names: by label.
          first, total: the step the run goes on from, and its steps in all.
          log_every: steps between two points of the norms.
          histograms: steps between two histograms of all weights; 0: none.
          profile: steps to trace; 0: none.
        """
        self._writer, self._folder = curve.writer, curve.folder
        self._trainer, self._spec, self._names, self._total = trainer, spec, class_names, total
        self._every, self._histograms = log_every, histograms
        self._layers = {}  # layer → columns of the norms
        for column, variable in enumerate(trainer.model.trainable_variables):
            self._layers.setdefault(variable.path.split('/')[0], []).append(column)
        self._trace = range(first + WARM_UP, min(first + WARM_UP + profile, total))
        self._tracing = False
        self._started = self._next_clips = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._tracing:
            tf.profiler.experimental.stop()
            self._tracing = False

    def describe(self, records_dir: str, settings: dict) -> None:
        """Writes the recipe: to compare runs by, and as a flagfile to read.

        Args:
          records_dir: what is trained on.
          settings: of train.json.
        """
        lines = [f'--mode=train\n--records={records_dir}']
        for name in recipes.Recipe.__dataclass_fields__:
            value = settings[name]
            lines.append(f'--{name}={",".join(value) if isinstance(value, list) else value}')
        with self._writer.as_default(0):
            tensorboard.code('flagfile', '\n'.join(lines))
            tensorboard.recipe(settings)

    def step(self, step: int, clips: tf.Tensor, labels: tf.Tensor, **how) -> list[tf.Tensor]:
        """Does `trainer.train_step`, shows what is due after it, and returns what it returns."""
        norms = (step + 1) % self._every == 0 or step + 1 == self._total
        with self._traced(step):
            sums = self._trainer.train_step(step, clips, labels, norms=norms, **how)
        with self._writer.as_default(step + 1):
            if norms and self._trainer.norms is not None:
                self._write_norms(self._trainer.norms.numpy())
            if self._histograms and (step + 1) % self._histograms == 0:
                for variable in self._trainer.model.weights:
                    tensorboard.histogram(variable.path, variable.numpy(), step + 1)
            if time.monotonic() >= self._next_clips:
                self._write_clips(step + 1, clips[:CLIPS].numpy(), labels[:CLIPS].numpy())
        return sums

    def _write_norms(self, norms: np.ndarray) -> None:
        for kind, row in zip(('gradient_norm', 'weight_norm'), norms):
            for layer, columns in self._layers.items():
                tf.summary.scalar(f'{kind}/{layer}', np.linalg.norm(row[columns]))
            tf.summary.scalar(f'{kind}/all', np.linalg.norm(row))

    def _write_clips(self, step: int, clips: np.ndarray, labels: np.ndarray) -> None:
        before = time.monotonic()
        shown = [strips.Strip(self._names[label], (frames,))
                 for frames, label in zip(self._spec.shown(clips), labels)]
        tensorboard.clips('clips', shown, step,
                          'The first clips of the batch, as they reach the network, with their labels.')
        now = time.monotonic()
        # Each time after twice as long: TensorBoard shows ten, and a run of weeks leaves megabytes.
        self._next_clips = max(now + (now - before) / SHARE, 2 * now - self._started)

    @contextlib.contextmanager
    def _traced(self, step: int):
        if step not in self._trace:
            yield
            return
        if not self._tracing:
            tf.profiler.experimental.start(self._folder)
            self._tracing = True
        with tf.profiler.experimental.Trace('train', step_num=step, _r=1):
            yield
        if step == self._trace[-1]:
            tf.test.experimental.sync_devices()  # what the last step has started belongs to it
            self.__exit__()
