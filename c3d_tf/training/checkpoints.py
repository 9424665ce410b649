# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a run: the newest one that can be read, and what a killed run left beside them."""

import os
import re

import tensorflow as tf

from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import storage

_WRITING = '.writing-'
_UNREADABLE = (tf.errors.OpError, IndexError)  # the latter for a file that is too short


def save(checkpoint: tf.train.Checkpoint, folder: str, step: int, most: int = 1) -> None:
    """Writes ckpt-STEP, complete or not at all, and deletes all but the newest `most` of those up to it.

    TensorFlow itself writes the index in its place, where a run that is killed leaves half of it. Later ones
    are those that were damaged when the run came from before them.
    """
    with storage.scratch(folder, _WRITING) as temporary:
        publish(tf.train.CheckpointManager(checkpoint, temporary, 1).save(checkpoint_number=step), folder)
    found = find(folder)
    kept = [path for number, path in found.items() if number <= step][-most:]
    # For tf.train.latest_checkpoint, and whoever else looks at the list. It changes the list that it is given.
    tf.compat.v1.train.update_checkpoint_state(folder, kept[-1], list(kept))
    for path in found.values():
        if path not in kept:
            _remove(path)


def publish(path: str, folder: str) -> None:
    """Moves a complete checkpoint to a folder; the index last, as it is what counts."""
    for one in sorted(storage.glob(f'{storage.escape(path)}.*')):
        storage.replace(one, os.path.join(folder, os.path.basename(one)))


def restore(checkpoint: tf.train.Checkpoint, folder: str) -> bool:
    """Restores the newest checkpoint that can be read; says which ones cannot.

    Args:
      checkpoint: what is restored, all of it; it stays as it is where the folder has none.
      folder: of ckpt-N.index and their data.

    Returns:
      whether there was one.

    Raises:
      errors.RunError: there are checkpoints, and none can be read.
    """
    for path in storage.glob(os.path.join(storage.escape(folder), f'{_WRITING}*')):
        storage.rmtree(path)  # a checkpoint that was being written when its run was killed
    for path in storage.glob(os.path.join(storage.escape(folder), 'checkpoint.tmp*')):
        storage.remove(path)
    found = find(folder)
    for number in _numbers(folder, r'data-.*') - found.keys():
        _remove(os.path.join(folder, f'ckpt-{number}'))  # killed before it had its index, or half deleted
    damaged = []
    for path in reversed(found.values()):
        if damaged:
            console.say(f'train: goes back to {path}')
        reason = _restored(checkpoint, path)
        if not reason:
            return True
        damaged.append(path)
        console.say(f'train: {path} is damaged ({reason})')
    if damaged:
        raise errors.RunError(f'none of the {len(damaged)} checkpoints in {folder} can be read; delete that '
                              'folder to start anew')
    return False


def find(folder: str) -> dict[int, str]:
    """Returns the path of each checkpoint by its number of updates, the newest last.

    The folder says what is there: the list of it, a file named checkpoint, may be old or damaged, and
    TensorFlow takes a damaged one for none.
    """
    return {number: os.path.join(folder, f'ckpt-{number}') for number in sorted(_numbers(folder, 'index'))}


def _numbers(folder: str, ending: str) -> set[int]:
    names = storage.listdir(folder) if storage.isdir(folder) else []
    return {int(match[1]) for name in names if (match := re.fullmatch(rf'ckpt-(\d+)\.{ending}', name))}


def _remove(path: str) -> None:
    for one in sorted(storage.glob(f'{storage.escape(path)}.*'), reverse=True):  # the index first
        storage.remove(one)


def _restored(checkpoint: tf.train.Checkpoint, path: str) -> str:
    """Restores all of it and returns '', or why that cannot be."""
    try:
        with console.quiet():
            checkpoint.restore(path).assert_consumed()
    except _UNREADABLE as error:
        return errors.plain(error)
    return ''
