# SPDX-License-Identifier: Apache-2.0
"""Files and folders wherever they are: `gs://`, `s3://`, `ram://` … by tf.io.gfile, all others by os.

For a local path every function is its namesake of os, shutil, glob or builtins, errors and all. For a path
with a scheme it raises OSError or FileNotFoundError as that one would, and TensorFlow is imported then,
not before. Remote files are read here and written by `files.replacing` alone, which copies a local one: so
an object is complete or absent, since an object store shows it when its upload is closed. There is no
rename to rely on: where there is one, it copies and deletes.
"""

import builtins
import contextlib
import glob as local_glob
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from c3d_tf.common import remote
from c3d_tf.common.remote import scheme

_BUFFER = 1 << 20  # bytes of a request


class Entry(NamedTuple):
    """One name of a remote folder, as os.DirEntry."""

    name: str
    path: str

    def is_dir(self) -> bool:
        return isdir(self.path)

    def is_file(self) -> bool:
        return isfile(self.path)


def check(path: str) -> None:
    """Sees to it that something serves the path; TensorFlow's own operations take it then as well.

    Raises:
      errors.UsageError: nothing does; it names the package that would.
    """
    if scheme(path):
        remote.serve(scheme(path))


def private(path: str) -> bool:
    """Returns whether other processes do not see the path: ram:// is this one's memory."""
    return scheme(path) == 'ram'


def open(path: str, mode: str = 'r', **options):
    """Opens a file for reading; a remote one is read as it is asked for, a megabyte at a time."""
    if not scheme(path):
        return builtins.open(path, mode, **options)
    file = io.BufferedReader(remote.Reader(path), _BUFFER)
    return file if 'b' in mode else io.TextIOWrapper(file, **options)


def readable(path: str):
    """Returns what numpy, zipfile, h5py, Pillow and PyAV read: the local path, or an open file."""
    return open(path, 'rb') if scheme(path) else path


@contextlib.contextmanager
def local(path: str):
    """Yields a local path of the same content and name: a temporary copy of a remote file or folder."""
    if not scheme(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        here = os.path.join(folder, os.path.basename(path))
        (copytree if isdir(path) else copy)(path, here)
        yield here


def scratch(folder: str, prefix: str | None = None) -> tempfile.TemporaryDirectory:
    """Returns a local folder for a while: in this one, where it is local."""
    makedirs(folder)
    return tempfile.TemporaryDirectory(prefix=prefix, dir=None if scheme(folder) else folder)


def exists(path: str) -> bool:
    return remote.call('exists', path) if scheme(path) else os.path.exists(path)


def lexists(path: str) -> bool:
    return exists(path) if scheme(path) else os.path.lexists(path)


def isdir(path: str) -> bool:
    return remote.call('isdir', path) if scheme(path) else os.path.isdir(path)


def isfile(path: str) -> bool:
    return exists(path) and not isdir(path) if scheme(path) else os.path.isfile(path)


def getsize(path: str) -> int:
    return remote.call('stat', path).length if scheme(path) else os.path.getsize(path)


def getmtime(path: str) -> float:
    return remote.call('stat', path).mtime_nsec / 1e9 if scheme(path) else os.path.getmtime(path)


def getctime(path: str) -> float:
    """Returns when the file, or the link itself, was changed or came here; of remote ones, written."""
    return getmtime(path) if scheme(path) else os.lstat(path).st_ctime


def version(path: str) -> tuple[int, ...]:
    """Returns what is another once the file is replaced."""
    if scheme(path):
        stat = remote.call('stat', path)
        return stat.length, stat.mtime_nsec
    stat = os.stat(path)
    return stat.st_ino, stat.st_mtime_ns


def listdir(path: str) -> list[str]:
    if not scheme(path):
        return os.listdir(path)
    try:
        names = remote.call('listdir', path)
    except FileNotFoundError:  # in an object store, an empty folder is none
        return []
    return [name.rstrip('/') for name in names if name != '/']  # gs:// marks folders by a slash


def scandir(path: str):
    if not scheme(path):
        return os.scandir(path)
    return [Entry(name, os.path.join(path, name)) for name in listdir(path)]


def walk(path: str, topdown: bool = True) -> Iterator[tuple[str, list[str], list[str]]]:
    if not scheme(path):
        yield from os.walk(path, topdown)
        return
    entries = scandir(path) if isdir(path) else []
    folders = [entry.name for entry in entries if entry.is_dir()]
    names = [entry.name for entry in entries if entry.name not in folders]
    if topdown:
        yield path, folders, names
    for folder in folders:
        yield from walk(os.path.join(path, folder), topdown)
    if not topdown:
        yield path, folders, names


def glob(pattern: str, **options) -> list[str]:
    return remote.call('glob', pattern) if scheme(pattern) else local_glob.glob(pattern, **options)


def escape(path: str) -> str:
    """Returns the path as a pattern that matches it alone."""
    return re.sub(r'([\\*?[])', r'\\\1', path) if scheme(path) else local_glob.escape(path)


def makedirs(path: str) -> None:
    """Makes the folder where it is not there."""
    if scheme(path):
        remote.call('makedirs', path)
    else:
        os.makedirs(path, exist_ok=True)


def remove(path: str) -> None:
    if scheme(path):
        remote.call('remove', path)
    else:
        os.remove(path)


def rmtree(path: str, ignore_errors: bool = False) -> None:
    if not scheme(path):
        shutil.rmtree(path, ignore_errors=ignore_errors)
        return
    with contextlib.suppress(OSError) if ignore_errors else contextlib.nullcontext():
        remote.call('rmtree', path)


def rmdir(path: str) -> None:
    """Removes an empty folder; object stores have none."""
    if not scheme(path):
        os.rmdir(path)


def copy(source: str, target: str) -> None:
    """Copies a file, over another one where there is one."""
    if not scheme(source) and not scheme(target):
        shutil.copyfile(source, target)
        return
    for path in (source, target):
        check(path)
    if private(target) and exists(target):
        remove(target)  # TensorFlow's ram:// leaves the end of a longer file
    remote.call('copy', source, target, overwrite=True)


def copytree(source: str, target: str) -> None:
    """Copies a folder: what lies deepest first, and then by name.

    So saved_model.pb of an export is its last file, without which nobody loads it, as is runtime.json.
    """
    for folder, _, names in walk(source, topdown=False):
        there = os.path.join(target, folder[len(source):].strip('/')) if folder != source else target
        makedirs(there)
        for name in sorted(names):
            copy(os.path.join(folder, name), os.path.join(there, name))


def replace(source: str, target: str) -> None:
    """Renames a file, over another one where there is one; a local one becomes a remote one by a copy."""
    if not scheme(source) and not scheme(target):
        os.replace(source, target)
    else:
        copy(source, target)
        remove(source)


def abspath(path: str) -> str:
    return normpath(path) if scheme(path) else os.path.abspath(path)


def realpath(path: str) -> str:
    return normpath(path) if scheme(path) else os.path.realpath(path)


def normpath(path: str) -> str:
    if not scheme(path):
        return os.path.normpath(path)
    start, rest = path.split('://', 1)
    return f'{start}://{os.path.normpath(rest) if rest else ""}'


def relpath(path: str, start: str) -> str:
    """Returns the path as seen from a folder; as it is where their schemes differ."""
    if scheme(path) != scheme(start):
        return path
    if not scheme(path):
        return os.path.relpath(path, start)
    return os.path.relpath('/' + path.split('://', 1)[1], '/' + start.split('://', 1)[1])


def commonpath(paths: list[str]) -> str:
    """Returns the deepest folder that holds all of some absolute paths; '' where their schemes differ."""
    start, *others = {scheme(path) for path in paths}
    if others:
        return ''
    if not start:
        return os.path.commonpath(paths)
    return f'{start}://{os.path.commonpath([path.split("://", 1)[-1] for path in paths])}'
