# SPDX-License-Identifier: Apache-2.0
"""A loss that blows up: when a run goes back to a checkpoint, and to which."""

import contextlib
import math
import statistics

import numpy as np
import tensorflow as tf

WINDOW = 50  # losses that one is compared with
FEWEST = 10  # before that, only what is no number is bad


class Guard(tf.Module):
    """Tells bad losses from good ones, and remembers where they were; both are in the checkpoint.

    After a bad one the weights are those of a checkpoint, and the data goes on behind the bad batch: so
    the batches between the two are used once for weights that are gone, and the bad one never again.
    """

    def __init__(self, max_ratio: float, max_skips: int):
        """See `Recipe`."""
        super().__init__()
        self._max_ratio = max_ratio
        self._losses = tf.Variable(np.full(WINDOW, np.nan, np.float32), trainable=False)
        self._skipped = tf.Variable(np.full(max_skips, -1, np.int64), trainable=False)

    @property
    def skipped(self) -> list[int]:
        """The updates, counted from 0, whose loss was bad."""
        return [int(step) for step in self._skipped.numpy() if step >= 0]

    def bad(self, step: int, loss: float) -> str:
        """Returns what is wrong with the loss of an update, '' where nothing is; then it is remembered."""
        losses = self._losses.numpy()
        last = losses[~np.isnan(losses)].tolist()
        if not math.isfinite(loss):
            return f'the loss of step {step + 1} is not a number'
        if len(last) >= FEWEST and loss > self._max_ratio * (median := statistics.median(last)):
            return (f'the loss of step {step + 1} is {loss:.4g}, over {self._max_ratio:g} times the median of '
                    f'the last {len(last)}, {median:.4g}')
        losses[step % WINDOW] = loss
        self._losses.assign(losses)
        return ''

    def place(self, step: int, kept, every: int) -> int | None:
        """Returns which checkpoint to go back to after a bad update, or None: none is good, or there were
        enough of them.

        Args:
          step: of the update.
          kept: the checkpoints' numbers of updates.
          every: updates between two checkpoints. Others, of where the run was stopped, are second choice:
            so a run that was stopped takes the same as one that was not.
        """
        # One with which the very next loss was bad may be what is wrong.
        good = [number for number in kept if number not in (*self.skipped, step)]
        if not good or len(self.skipped) == self._skipped.shape[0]:
            return None
        return max(good, key=lambda number: (number % every == 0, number))

    @contextlib.contextmanager
    def skipping(self, step: int):
        """Within the block the state may become an older one: what the guard knows stays, and the bad
        update is added."""
        losses, skipped = self._losses.numpy(), [*self.skipped, step]
        yield
        self._losses.assign(losses)
        self._skipped.assign(skipped + [-1] * (self._skipped.shape[0] - len(skipped)))
