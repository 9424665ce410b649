# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a run: the newest one that can be read, and what a killed run left beside them."""

import os
import re

import tensorflow as tf

from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import storage

_UNREADABLE = (tf.errors.OpError, IndexError)  # the latter for a file that is too short


def restore(checkpoint: tf.train.Checkpoint, folder: str, most: int) -> tf.train.CheckpointManager:
    """Restores the newest checkpoint that can be read; says which ones cannot.

    Args:
      checkpoint: what is restored, all of it; it stays as it is where the folder has none.
      folder: of ckpt-N.index and their data.
      most: how many are kept from now on.

    Returns:
      what writes the next ones; its `latest_checkpoint` is what was restored, or None.

    Raises:
      errors.RunError: there are checkpoints, and none can be read.
    """
    for path in storage.glob(os.path.join(storage.escape(folder), 'ckpt-*_temp')):
        storage.rmtree(path)  # a checkpoint that was being written when its run was killed
    for path in storage.glob(os.path.join(storage.escape(folder), 'checkpoint.tmp*')):
        storage.remove(path)
    left = list(find(folder).values())
    damaged = []
    while left:
        reason = _restored(checkpoint, left[-1])
        if not reason:
            break
        damaged.append(left.pop())
        console.say(f'train: {damaged[-1]} is damaged ({reason})'
                    f'{f"; goes back to {left[-1]}" if left else ""}')
    if damaged and not left:
        raise errors.RunError(f'none of the {len(damaged)} checkpoints in {folder} can be read; delete that '
                              'folder to start anew')
    if left:
        # Damaged ones are kept, as those whose turn to go is next: it may have been the disk.
        every = damaged + left
        tf.compat.v1.train.update_checkpoint_state(folder, left[-1], every, all_model_checkpoint_timestamps=[
            storage.getmtime(f'{path}.index') for path in every], last_preserved_timestamp=0.0)
    return tf.train.CheckpointManager(checkpoint, folder, most)


def find(folder: str) -> dict[int, str]:
    """Returns the path of each checkpoint by its number of updates, the newest last.

    The folder says what is there: the list of it, a file named checkpoint, may be old or damaged, and
    TensorFlow takes a damaged one for none.
    """
    paths = storage.glob(os.path.join(storage.escape(folder), 'ckpt-*.index'))
    found = {int(match[1]): path.removesuffix('.index') for path in paths
             if (match := re.search(r'ckpt-(\d+)\.index$', path))}
    return dict(sorted(found.items()))


def _restored(checkpoint: tf.train.Checkpoint, path: str) -> str:
    """Restores all of it and returns '', or why that cannot be."""
    try:
        with console.quiet():
            checkpoint.restore(path).assert_consumed()
    except _UNREADABLE as error:
        return errors.plain(error)
    return ''
