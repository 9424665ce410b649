# SPDX-License-Identifier: Apache-2.0
"""Which videos --input names, and what each is called in results."""

import collections
import functools
import glob
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from c3d_tf.common import errors
from c3d_tf.common import storage
from c3d_tf.data import lists
from c3d_tf.data import sources
from c3d_tf.data import video


class Video(NamedTuple):
    """One video to read.

    Attributes:
      name: its media id: the path below the common folder, without its ending; it names results.
      path: the file, for messages; for records what they call it.
      frames: gives the frames; it can be sent to another process.
      first: the number of frame 0 in file names: 0 for files, that of the first image for a folder.
    """

    name: str
    path: str
    frames: Callable[[], Iterator[video.Frame | None]]
    first: int = 0


def find(given: str, *, size: tuple[int, int], without: str = '') -> tuple[str, list[Video]]:
    """Returns the folder that names are relative to, and the videos sorted by path.

    Args:
      given: a video file; a folder, in which every file at any depth is tried, hidden ones aside, and a
        folder that holds nothing but images is one video; a glob; a .txt list with a path a line,
        relative to the list's folder or to the current one.
      size: (height, width) of the frames.
      without: a folder that is not looked into, e.g. that of the results.

    Raises:
      errors.UsageError: there is nothing of that name.
    """
    root = ''
    if storage.isdir(given):
        paths = _below(given, without)
        root = '' if paths == [given] else given
    elif given.lower().endswith('.txt') and storage.isfile(given):
        paths = _listed(given)
    elif storage.lexists(given):
        paths = [given]
    elif glob.has_magic(given):
        paths = [path for match in storage.glob(given, recursive=True)
                 for path in (_below(match, without) if storage.isdir(match) else [match])]
    else:
        raise errors.UsageError(f'--input={given}: no such file or folder')
    paths = sorted({storage.normpath(path) for path in paths})
    if not paths:
        raise errors.UsageError(f'--input={given}: no video there')
    root = root or storage.commonpath([os.path.dirname(storage.abspath(path)) for path in paths])
    names = media_ids([storage.relpath(path, root) for path in paths],
                      [storage.isdir(path) for path in paths])
    return storage.abspath(root), [
        Video(name, path, functools.partial(sources.frames, path, size=size), _first(path))
        for name, path in zip(names, paths)]


def media_ids(paths: list[str], are_folders: list[bool]) -> list[str]:
    """Returns the paths without their endings, except where two would be the same then.

    The names are fit for files: no absolute path, no way up.
    """
    whole = ['/'.join(part for part in path.split('/') if part not in ('', '.', '..')) for path in paths]
    # What follows # in the name of a record is a time, e.g. a.avi#1.5-2.
    names = [name if folder or '#' in os.path.basename(name) else os.path.splitext(name)[0]
             for name, folder in zip(whole, are_folders)]
    while True:
        twice = {name for name, count in collections.Counter(names).items() if count > 1}
        better = [full if name in twice else name for name, full in zip(names, whole)]
        if better == names:
            return names
        names = better


def _below(folder: str, without: str) -> list[str]:
    """Returns all files at any depth, and folders of images."""
    found, seen = [], {storage.realpath(without)} if without else set()
    folders = [folder]
    while folders:
        here = folders.pop()
        if storage.realpath(here) in seen:  # a link that leads back up
            continue
        seen.add(storage.realpath(here))
        entries = [entry for entry in storage.scandir(here) if not entry.name.startswith('.')]
        folders += [entry.path for entry in entries if entry.is_dir()]
        inside = [entry.path for entry in entries if not entry.is_dir()]
        images = [path for path in inside if os.path.basename(path) != 'Thumbs.db']
        if images and all(map(sources.is_image, images)) and len(inside) == len(entries):
            found.append(here)
        else:
            found += inside
    return found


def _listed(path: str) -> list[str]:
    found = []
    for line in lists.read_lines(path):
        beside = os.path.join(os.path.dirname(path), line)
        found.append(line if storage.lexists(line) and not storage.lexists(beside) else beside)
    if found and not any(map(storage.lexists, found)):
        raise errors.UsageError(f'--input={path}: none of its {len(found)} videos exists; the first was '
                                f'looked for at {found[0]}. Expected a path a line, relative to the '
                                'list or to the current folder.')
    return found


def _first(path: str) -> int:
    if not storage.isdir(path):
        return 0
    ends = [re.search(r'(\d+)\D*$', os.path.splitext(name)[0])
            for name in storage.listdir(path) if sources.is_image(name)]
    return min((int(match[1]) for match in ends if match), default=0)
