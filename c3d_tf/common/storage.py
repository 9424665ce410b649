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
import errno
import functools
import glob as local_glob
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from c3d_tf.common import errors

# What tensorflow-io adds to TensorFlow's own ram:// and gs://.
_OF_TENSORFLOW_IO = ('s3', 'az', 'hdfs', 'viewfs', 'har', 'oss', 'http', 'https')
_BUFFER = 1 << 20  # bytes of a request


class Entry(NamedTuple):
    """One name of a remote folder, as os.DirEntry."""

    name: str
    path: str

    def is_dir(self) -> bool:
        return isdir(self.path)

    def is_file(self) -> bool:
        return isfile(self.path)


def scheme(path: str) -> str:
    """Returns what stands before ://, or '' of a local path."""
    found = re.match(r'([a-z][a-z0-9+.-]*)://', path)
    return found[1] if found else ''


def check(path: str) -> None:
    """Sees to it that something serves the path; TensorFlow's own operations take it then as well.

    Raises:
      errors.UsageError: nothing does; it names the package that would.
    """
    if scheme(path):
        _serve(scheme(path))


def private(path: str) -> bool:
    """Returns whether other processes do not see the path: ram:// is this one's memory."""
    return scheme(path) == 'ram'


def open(path: str, mode: str = 'r', **options):  
    """Opens a file for reading; a remote one is read as it is asked for, a megabyte at a time."""
    if not scheme(path):
        return builtins.open(path, mode, **options)
    file = io.BufferedReader(_Reader(path), _BUFFER)
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
        here = os.path.join(folder, os.path.basename(path.rstrip('/')))
        if isdir(path):
            copytree(path, here)
        else:
            copy(path, here)
        yield here


def exists(path: str) -> bool:
    return _remote('exists', path) if scheme(path) else os.path.exists(path)


def lexists(path: str) -> bool:
    return exists(path) if scheme(path) else os.path.lexists(path)


def isdir(path: str) -> bool:
    return _remote('isdir', path) if scheme(path) else os.path.isdir(path)


def isfile(path: str) -> bool:
    return exists(path) and not isdir(path) if scheme(path) else os.path.isfile(path)


def getsize(path: str) -> int:
    return _remote('stat', path).length if scheme(path) else os.path.getsize(path)


def getmtime(path: str) -> float:
    return _remote('stat', path).mtime_nsec / 1e9 if scheme(path) else os.path.getmtime(path)


def getctime(path: str) -> float:
    """Returns when the file, or the link itself, was changed or came here; of remote ones, written."""
    return getmtime(path) if scheme(path) else os.lstat(path).st_ctime


def version(path: str) -> tuple[int, ...]:
    """Returns what is another once the file is replaced."""
    if scheme(path):
        stat = _remote('stat', path)
        return stat.length, stat.mtime_nsec
    stat = os.stat(path)
    return stat.st_ino, stat.st_mtime_ns


def listdir(path: str) -> list[str]:
    if not scheme(path):
        return os.listdir(path)
    names = (name.rstrip('/') for name in _remote('listdir', path))  # gs:// marks folders by a slash
    return [name for name in names if name]


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
    return _remote('glob', pattern) if scheme(pattern) else local_glob.glob(pattern, **options)


def escape(path: str) -> str:
    """Returns the path as a pattern that matches it alone."""
    return re.sub(r'([\\*?[])', r'\\\1', path) if scheme(path) else local_glob.escape(path)


def makedirs(path: str) -> None:
    """Makes the folder where it is not there."""
    if scheme(path):
        _remote('makedirs', path)
    else:
        os.makedirs(path, exist_ok=True)


def remove(path: str) -> None:
    if scheme(path):
        _remote('remove', path)
    else:
        os.remove(path)


def rmtree(path: str, ignore_errors: bool = False) -> None:
    if not scheme(path):
        shutil.rmtree(path, ignore_errors=ignore_errors)
        return
    with contextlib.suppress(OSError) if ignore_errors else contextlib.nullcontext():
        _remote('rmtree', path)


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
    _remote('copy', source, target, overwrite=True)


def copytree(source: str, target: str, last: str = '') -> None:
    """Copies a folder; the file named `last` comes last, so that it says that all is there."""
    found = [(folder, name) for folder, _, names in walk(source) for name in names]
    for folder, name in sorted(found, key=lambda one: one[1] == last):
        there = os.path.join(target, folder[len(source):].strip('/')) if folder != source else target
        makedirs(there)
        copy(os.path.join(folder, name), os.path.join(there, name))


def replace(source: str, target: str) -> None:
    """Renames a file, over another one where there is one; a local one becomes a remote one by a copy."""
    if not scheme(source) and not scheme(target):
        os.replace(source, target)
    else:
        copy(source, target)
        remove(source)


def rename(source: str, target: str, last: str = '') -> None:
    """Renames a folder; a local one becomes a remote one by `copytree`."""
    if not scheme(source) and not scheme(target):
        os.rename(source, target)
    else:
        copytree(source, target, last)
        rmtree(source)


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


class _Reader(io.RawIOBase):
    """A remote file as Python's own: seekable, and an error at once where there is none."""

    def __init__(self, path: str):
        super().__init__()
        self.name = path
        self._size, self._at = getsize(path), 0
        self._file = _remote('GFile', path, 'rb')

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(offset + (0, self._at, self._size)[whence], 0)
        return self._at

    def readinto(self, buffer) -> int:
        count = max(min(len(buffer), self._size - self._at), 0)
        with _plain_errors(self.name):
            self._file.seek(self._at)
            data = self._file.read(count) if count else b''
        buffer[:len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _remote(function: str, path: str, *arguments, **options):
    """Calls a function of tf.io.gfile."""
    gfile = _serve(scheme(path) or 'file')
    with _plain_errors(path):
        return getattr(gfile, function)(path, *arguments, **options)


@contextlib.contextmanager
def _plain_errors(path: str):
    import tensorflow as tf

    try:
        yield
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    except tf.errors.OpError as error:
        raise OSError(f'{path}: {error.message}') from error


@functools.cache
def _serve(name: str):
    """Returns tf.io.gfile once it knows the scheme."""
    import tensorflow as tf

    gfile = tf.io.gfile
    if name in gfile.get_registered_schemes():
        return gfile
    if name not in _OF_TENSORFLOW_IO:
        known = sorted(f'{one}://' for one in gfile.get_registered_schemes() if one not in ('', 'file'))
        raise errors.UsageError(f'{name}:// is served by no package that is known here; TensorFlow '
                                f'{tf.__version__} itself serves {", ".join(known)}, and tensorflow-io '
                                f'{", ".join(f"{one}://" for one in _OF_TENSORFLOW_IO)}')
    try:
        import tensorflow_io  # registers its schemes

        served = name in gfile.get_registered_schemes()
    except Exception as error:  # its native parts raise what they like where they do not fit TensorFlow
        served, why = False, f' ({type(error).__name__}: {str(error)[:200]})'
    else:
        why = ''
    if not served:
        raise errors.UsageError(
            f'{name}:// needs the package tensorflow-io, whose newest release does not load on TensorFlow '
            f'{tf.__version__}{why}; requirements-io.txt makes an environment that has it '
            '(docs/remote.md)')
    return gfile
