# SPDX-License-Identifier: Apache-2.0
"""The state of a run of one worker or many: the chief writes and reads it, the others take it from the chief."""

import contextlib
import os

import tensorflow as tf

from c3d_tf.common import storage
from c3d_tf.training import checkpoints
from c3d_tf.training import cluster as clusters
from c3d_tf.training import curve as curves
from c3d_tf.training import trainer as trainers

FOLDER = 'checkpoints'  # in the run's
STAND_IN = 1  # the worker that saves where the chief is lost


class State:
    """The checkpoints of a run, and the same state on all workers.

    Args:
      workdir: of the run; the checkpoints are in a folder of it.
      trainer: whose state they are.
      cluster: the workers.
    """

    def __init__(self, workdir: str, trainer: trainers.Trainer, cluster: clusters.Cluster):
        self._workdir, self._trainer, self._cluster = workdir, trainer, cluster
        self._folder = os.path.join(workdir, FOLDER)
        self._spare = os.path.join(self._folder, f'worker-{STAND_IN}')
        # A guard needs more than the last: one that the loss went bad after is no place to go back to.
        self._most = 4 if trainer.guard else 2

    def resume(self) -> bool:
        """Restores the newest state that can be read, on the chief; returns whether there was one.

        Raises:
          errors.RunError: there are checkpoints, and none can be read.
        """
        if not self._cluster.is_chief:
            return False
        for path in checkpoints.find(self._spare).values():  # where the chief was lost before it had saved
            checkpoints.publish(path, self._folder)
        storage.rmtree(self._spare, ignore_errors=True)
        return checkpoints.restore(self._trainer.checkpoint, self._folder)

    def newest(self) -> str:
        """Returns the path of the newest checkpoint, 'none' where there is none."""
        return list(checkpoints.find(self._folder).values() or ['none'])[-1]

    def restore(self, path: str) -> None:
        """Gives all workers the state in a checkpoint, which the chief reads."""
        if self._cluster.is_chief:
            self._trainer.checkpoint.restore(path).assert_consumed()
        self._trainer.follow(self._cluster.is_chief)

    def save(self, step: int) -> None:
        """Writes the state, on the chief, as that of `step` updates."""
        if self._cluster.is_chief:
            checkpoints.save(self._trainer.checkpoint, self._folder, step, self._most)
            storage.rmtree(self._spare, ignore_errors=True)

    def go_back(self, step: int, every: int) -> int | None:
        """Gives all workers the weights of a checkpoint before a bad update, and lets them go on behind it.

        Args:
          step, every: see `guard.Guard.place`.

        Returns:
          the checkpoint's number of updates, or None: there is nothing to go back to.
        """
        guard, number, path = self._trainer.guard, 0, ''
        if self._cluster.is_chief:  # the others do not know what there is now
            kept = checkpoints.find(self._folder)
            # Later ones are those that were damaged when the run came from before them.
            number = guard.place(step, [each for each in kept if each <= step], every)
            number, path = (-1, '') if number is None else (number, kept[number])
        number = int(self._trainer.over_workers(tf.constant(number, tf.int64)))
        if number < 0:
            return None
        with guard.skipping(step):
            self.restore(path)
        self._trainer.step.assign(step + 1)
        return number

    @contextlib.contextmanager
    def saved_when_lost(self, curve: curves.Curve | None = None):
        """Within the block, the loss of a worker saves the state after the last whole update.

        Args:
          curve: this worker's. Where the chief is lost, so is what it had not written of its own.

        Raises:
          errors.Interrupted: a worker was lost.
        """
        try:
            yield
        except tf.errors.OpError as error:
            lost = self._cluster.lost(error)
            if lost is None:
                raise
            step = int(self._trainer.step)
            if self._cluster.is_chief:
                checkpoints.save(self._trainer.checkpoint, self._folder, step, self._most)
            elif 0 in lost and self._cluster.index == STAND_IN:
                checkpoints.save(self._trainer.checkpoint, self._spare, step)
                if curve:
                    curve.copy_to(self._workdir)
            else:
                raise self._cluster.interrupted(lost, f'at step {step}') from error
            raise self._cluster.interrupted(lost, f'saved at step {step}') from error

