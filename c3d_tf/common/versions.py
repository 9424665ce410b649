# SPDX-License-Identifier: Apache-2.0
"""A folder of numbered versions, as model servers want it: each complete or absent."""

import contextlib
import os
import shutil

_WRITING = '.writing-'  # no server looks at such names


def newest(root: str) -> int:
    """Returns the highest number in the folder; 0 where there is none."""
    names = os.listdir(root) if os.path.isdir(root) else []
    return max((int(name) for name in names if name.isdigit()), default=0)


@contextlib.contextmanager
def adding(root: str):
    """Yields (a folder to be made and filled, the number that it gets when the block ends well)."""
    number = newest(root) + 1
    os.makedirs(root, exist_ok=True)
    for name in os.listdir(root):
        if name.startswith(_WRITING):  # left by a run that was killed
            shutil.rmtree(os.path.join(root, name))
    temporary = os.path.join(root, f'{_WRITING}{os.getpid()}')
    yield temporary, number
    os.rename(temporary, os.path.join(root, str(number)))
