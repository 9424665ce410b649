# SPDX-License-Identifier: Apache-2.0
"""A folder of numbered versions, as model servers want it: each complete or absent."""

import contextlib
import os
import tempfile

from c3d_tf.common import storage

_WRITING = '.writing-'  # no server looks at such names


def newest(root: str) -> int:
    """Returns the highest number in the folder; 0 where there is none."""
    names = storage.listdir(root) if storage.isdir(root) else []
    return max((int(name) for name in names if name.isdigit()), default=0)


@contextlib.contextmanager
def adding(root: str):
    """Yields (a folder to be made and filled, the number that it gets when the block ends well)."""
    number = newest(root) + 1
    storage.makedirs(root)
    for name in storage.listdir(root):
        if name.startswith(_WRITING):  # left by a run that was killed
            storage.rmtree(os.path.join(root, name))
    target = os.path.join(root, str(number))
    if storage.scheme(root):
        with tempfile.TemporaryDirectory() as folder:
            temporary = os.path.join(folder, str(number))
            yield temporary, number
            storage.copytree(temporary, target)
        return
    temporary = os.path.join(root, f'{_WRITING}{os.getpid()}')
    yield temporary, number
    os.rename(temporary, target)
