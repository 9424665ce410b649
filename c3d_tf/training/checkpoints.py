# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a run, of one worker or many: the chief writes and reads them, the others follow it."""

import contextlib
import glob
import os
import shutil

import tensorflow as tf

from c3d_tf.common import errors
from c3d_tf.training import cluster as clusters
from c3d_tf.training import trainer as trainers

STAND_IN = 1  # the worker that saves where the chief is lost


class Checkpoints:
    """The checkpoints of a run.

    Args:
      folder: of the run's checkpoints.
      trainer: whose state they are.
      cluster: the workers.
      keep: how many stay.
    """

    def __init__(self, folder: str, trainer: trainers.Trainer, cluster: clusters.Cluster, keep: int):
        self._trainer, self._cluster = trainer, cluster
        self._spare = os.path.join(folder, f'worker-{STAND_IN}')
        if cluster.is_chief:
            for path in glob.glob(os.path.join(glob.escape(folder), 'ckpt-*_temp')):
                shutil.rmtree(path)  # one that was being written when its run was killed
        self._manager = tf.train.CheckpointManager(trainer.checkpoint, folder, keep)

    def latest(self) -> str | None:
        """Returns the path of the newest, the stand-in's where the chief was lost before it saved."""
        paths = [path for path in (self._manager.latest_checkpoint, tf.train.latest_checkpoint(self._spare)) if path]
        return max(paths, key=_number, default=None)

    def kept(self) -> dict[int, str]:
        """Returns the path of each of the chief's by its number of updates."""
        return {_number(path): path for path in self._manager.checkpoints}

    def restore(self, path: str | None) -> None:
        """Gives all workers the state in the file, which the chief reads; None: the chief's state of now."""
        if path and self._cluster.is_chief:
            self._trainer.checkpoint.restore(path).assert_consumed()
        self._trainer.follow(self._cluster.is_chief)

    def save(self, step: int) -> None:
        """Saves the state on the chief as that of `step` updates."""
        if self._cluster.is_chief:
            self._manager.save(checkpoint_number=step)
            shutil.rmtree(self._spare, ignore_errors=True)

    @contextlib.contextmanager
    def kept_when_lost(self):
        """Within the block, the loss of a worker saves the state after the last whole update.

        Raises:
          errors.Interrupted: a worker was lost.
        """
        try:
            yield
        except tf.errors.OpError as error:
            if not clusters.is_loss(error, self._cluster):
                raise
            lost, step = self._cluster.lost(error), int(self._trainer.step)
            if self._cluster.is_chief:
                self.save(step)
            elif 0 in lost and self._cluster.index == STAND_IN:
                tf.train.CheckpointManager(self._trainer.checkpoint, self._spare, 1).save(checkpoint_number=step)
            else:
                step = None
            raise errors.Interrupted(
                f'{self._cluster.names(lost) or "a worker"} was lost; '
                + ('another worker saves' if step is None else f'saved at step {step}')
                + '; the same command on all workers goes on from there') from error


def _number(path: str) -> int:
    return int(path.rsplit('-', 1)[1])
