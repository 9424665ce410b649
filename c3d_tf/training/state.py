# SPDX-License-Identifier: Apache-2.0
"""The state of a run of one worker or many: the chief writes and reads it, the others take it from the chief."""

import contextlib
import glob
import os
import shutil

import tensorflow as tf

from c3d_tf.training import cluster as clusters
from c3d_tf.training import trainer as trainers

STAND_IN = 1  # the worker that saves where the chief is lost


class State:
    """The checkpoints of a run, and the same state on all workers.

    Args:
      folder: of the checkpoints.
      trainer: whose state they are.
      cluster: the workers.
    """

    def __init__(self, folder: str, trainer: trainers.Trainer, cluster: clusters.Cluster):
        self._trainer, self._cluster = trainer, cluster
        self._spare = os.path.join(folder, f'worker-{STAND_IN}')
        if cluster.is_chief:
            for path in glob.glob(os.path.join(glob.escape(folder), 'ckpt-*_temp')):
                shutil.rmtree(path)  # a checkpoint that was being written when its run was killed
        # A guard needs more than the last: one that the loss went bad after is no place to go back to.
        self._manager = tf.train.CheckpointManager(trainer.checkpoint, folder, 4 if trainer.guard else 2)

    def latest(self) -> str | None:
        """Returns the path of the newest checkpoint: the stand-in's where the chief was lost before it saved."""
        paths = [self._manager.latest_checkpoint, tf.train.latest_checkpoint(self._spare)]
        return max((path for path in paths if path), key=_number, default=None)

    def restore(self, path: str | None) -> None:
        """Gives all workers the state in a checkpoint, which the chief reads; None: what the chief has now."""
        if path and self._cluster.is_chief:
            self._trainer.checkpoint.restore(path).assert_consumed()
        self._trainer.follow(self._cluster.is_chief)

    def save(self, step: int) -> None:
        """Writes the state, on the chief, as that of `step` updates."""
        if self._cluster.is_chief:
            self._manager.save(checkpoint_number=step)
            shutil.rmtree(self._spare, ignore_errors=True)

    def go_back(self, step: int, every: int) -> int | None:
        """Gives all workers the weights of a checkpoint before a bad update, and lets them go on behind it.

        Args:
          step, every: see `guard.Guard.place`.

        Returns:
          the checkpoint's number of updates, or None: there is nothing to go back to.
        """
        guard, number, path = self._trainer.guard, 0, None
        if self._cluster.is_chief:  # the others do not know what there is now
            kept = {_number(path): path for path in self._manager.checkpoints}
            number = guard.place(step, kept, every)
            number, path = (-1, None) if number is None else (number, kept[number])
        number = int(self._trainer.over_workers(tf.constant(number, tf.int64)))
        if number < 0:
            return None
        with guard.skipping(step):
            self.restore(path)
        self._trainer.step.assign(step + 1)
        return number

    @contextlib.contextmanager
    def saved_when_lost(self):
        """Within the block, the loss of a worker saves the state after the last whole update.

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
                self._manager.save(checkpoint_number=step)
            elif 0 in lost and self._cluster.index == STAND_IN:
                tf.train.CheckpointManager(self._trainer.checkpoint, self._spare, 1).save(checkpoint_number=step)
            else:
                raise self._cluster.interrupted(lost, f'at step {step}') from error
            raise self._cluster.interrupted(lost, f'saved at step {step}') from error


def _number(path: str) -> int:
    return int(path.rsplit('-', 1)[1])
