# SPDX-License-Identifier: Apache-2.0
"""Lock files: processes on one machine or on many share a list of work in one folder."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid

from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage

_tokens = set()  # of this process: they tell it from a dead one whose number it has been given


class Locks:
    """The locks that a process holds in a folder; a context, which releases them at its end.

    A lock is a file that says who holds it; it is touched as a sign of life. One that was not touched
    for `timeout` seconds, or whose process is dead on this host, is taken over.

    An object store creates nothing exclusively: there two processes may take the same lock at once. It
    is then that of the later one, `owns` tells the other, and at worst work is done twice.

    Args:
      directory: of the lock files; made where it is not there, removed at the end where it is empty.
      timeout: seconds.
    """

    def __init__(self, directory: str, timeout: float):
        self._directory, self._timeout = directory, timeout
        self._owner = {'host': socket.gethostname(), 'pid': os.getpid(), 'token': uuid.uuid4().hex}
        self._held = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self):
        _tokens.add(self._owner['token'])
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)
        _tokens.discard(self._owner['token'])
        with contextlib.suppress(OSError):  # not empty: others are at work
            storage.rmdir(self._directory)

    def take(self, name: str) -> bool:
        """Returns whether the lock is ours now."""
        path = self._path(name)
        if not self._create(path) and not (self._is_stale(path) and self._take_over(path)):
            return False
        self._held.add(name)
        return True

    def owns(self, name: str) -> bool:
        """Returns whether the lock is still ours; it is not where we were thought dead."""
        return name in self._held and _read(self._path(name)) == self._owner

    def release(self, name: str) -> None:
        if self.owns(name):
            with contextlib.suppress(FileNotFoundError):
                storage.remove(self._path(name))
        self._held.discard(name)

    def sweep(self) -> None:
        """Removes the locks that dead processes left."""
        for path in storage.glob(os.path.join(storage.escape(self._directory), '*.lock*')):
            if self._is_stale(path) and (path.endswith('.takeover') or self._take_over(path)):
                with contextlib.suppress(FileNotFoundError):
                    storage.remove(path)

    def free(self, digest: str) -> bool:
        """Returns whether nobody has the lock of the name with this `digest`."""
        return not storage.exists(os.path.join(self._directory, f'{digest}.lock'))

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, f'{digest(name)}.lock')

    def _create(self, path: str) -> bool:
        for _ in range(10):  # another process may remove the empty folder at any time
            storage.makedirs(self._directory)
            if storage.scheme(path):
                return not storage.exists(path) and self._write(path)
            try:
                file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                return False
            except FileNotFoundError:
                continue
            with os.fdopen(file, 'w', encoding='utf-8') as opened:
                json.dump(self._owner, opened)
            return True
        return False

    def _write(self, path: str) -> bool:
        files.write_json(path, self._owner)
        return True

    def _is_stale(self, path: str) -> bool:
        owner = _read(path)
        try:
            age = time.time() - storage.getmtime(path)
        except FileNotFoundError:
            return False  # released just now; the next `take` gets it
        # Without an owner it is being written just now, or its process was killed while it wrote.
        return age > (self._timeout if owner else min(self._timeout, 10)) or _is_dead(owner)

    def _take_over(self, path: str) -> bool:
        # Only the holder of the guard removes a stale lock: otherwise a second process that had seen it
        # as well would remove the lock that the first has just made.
        guard = f'{path}.takeover'
        if not self._create(guard):
            if self._is_stale(guard):
                with contextlib.suppress(FileNotFoundError):
                    storage.remove(guard)
            return False
        try:
            if not self._is_stale(path):
                return False
            with contextlib.suppress(FileNotFoundError):
                storage.remove(path)
            return self._create(path)
        finally:
            storage.remove(guard)

    def _beat(self) -> None:
        while not self._end.wait(min(self._timeout / 4, 30)):
            for name in list(self._held):
                with contextlib.suppress(OSError):
                    if not storage.scheme(self._directory):
                        os.utime(self._path(name))
                    elif self.owns(name):
                        self._write(self._path(name))


def digest(name: str) -> str:
    """Returns what stands for a name in file names."""
    return files.text_hash(name)[:20]


def _read(path: str) -> dict | None:
    """Returns the owner, or None where it is not written yet, or the file is gone."""
    try:
        return files.read_json(path)
    except errors.RunError:
        return None


def _is_dead(owner: dict | None) -> bool:
    if not owner or owner['host'] != socket.gethostname():
        return False
    if owner['pid'] == os.getpid():
        return owner['token'] not in _tokens
    try:
        os.kill(owner['pid'], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user
        pass
    return False
