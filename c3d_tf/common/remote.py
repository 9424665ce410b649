# SPDX-License-Identifier: Apache-2.0
"""What tf.io.gfile does for paths with a scheme, with Python's own errors; TensorFlow is imported late."""

import contextlib
import errno
import functools
import importlib
import io
import os
import re

from c3d_tf.common import errors

# What tensorflow-io adds to TensorFlow's own ram:// and gs://.
_OF_TENSORFLOW_IO = ('s3', 'az', 'hdfs', 'viewfs', 'har', 'oss', 'http', 'https')


def scheme(path: str) -> str:
    """Returns what stands before ://, or '' of a local path."""
    found = isinstance(path, str) and re.match(r'([a-z][a-z0-9+.-]*)://', path)  # a Path cannot have one
    return found[1] if found else ''


class Reader(io.RawIOBase):
    """A remote file as Python's own: seekable, and an error at once where there is none."""

    def __init__(self, path: str):
        super().__init__()
        self.name = path
        self._size, self._at = call('stat', path).length, 0
        self._file = call('GFile', path, 'rb')

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
        with plain_errors(self.name):
            self._file.seek(self._at)
            data = self._file.read(count) if count else b''
        buffer[:len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def call(function: str, path: str, *arguments, **options):
    """Calls a function of tf.io.gfile.

    Raises:
      errors.UsageError: nothing serves the scheme.
      OSError: as the os module's namesake would.
    """
    gfile = serve(scheme(path) or 'file')
    with plain_errors(path):
        return getattr(gfile, function)(path, *arguments, **options)


@contextlib.contextmanager
def plain_errors(path: str):
    import tensorflow as tf

    try:
        yield
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    except tf.errors.OpError as error:
        raise OSError(f'{path}: {error.message}') from error


@functools.cache
def serve(name: str):
    """Returns tf.io.gfile once it knows the scheme; TensorFlow's own operations know it then as well.

    Raises:
      errors.UsageError: nothing serves it; the message names the package that would.
    """
    import tensorflow as tf

    gfile = tf.io.gfile
    if name in gfile.get_registered_schemes():
        return gfile
    if name not in _OF_TENSORFLOW_IO:
        known = sorted(f'{one}://' for one in gfile.get_registered_schemes() if one not in ('', 'file'))
        raise errors.UsageError(f'{name}:// is served by no package that is known here; TensorFlow '
                                f'{tf.__version__} itself serves {", ".join(known)}, and tensorflow-io '
                                f'{", ".join(f"{one}://" for one in _OF_TENSORFLOW_IO)}')
    with contextlib.suppress(Exception):  # its native parts raise what they like
        importlib.import_module('tensorflow_io')
    if name not in gfile.get_registered_schemes():
        raise errors.UsageError(f'{name}:// needs the package tensorflow-io, which is not here or does not '
                                f'load on TensorFlow {tf.__version__}; requirements-io.txt makes an '
                                'environment where it does (docs/remote.md)')
    return gfile
