# SPDX-License-Identifier: Apache-2.0
"""Files that are complete or absent: written under a temporary name, then renamed."""

import contextlib
import hashlib
import json
import os
import re
import tempfile

from c3d_tf.common import errors
from c3d_tf.common import storage


@contextlib.contextmanager
def replacing(path: str):
    """Yields a temporary path beside `path`; renames it to `path` when the block ends well.

    Where `path` has a scheme, the temporary one is local and is copied; see `storage`.
    """
    if storage.scheme(path):
        storage.check(path)
        with tempfile.TemporaryDirectory() as folder, naming(path):
            temporary = os.path.join(folder, os.path.basename(path))
            yield temporary
            storage.makedirs(os.path.dirname(path))
            storage.copy(temporary, path)
        return
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    temporary = f'{path}.tmp-{os.getpid()}'
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


@contextlib.contextmanager
def naming(path: str):
    """Adds what is written to errors without a name: a full disk is noticed where none is known."""
    try:
        yield
    except OSError as error:
        if error.filename is None and not isinstance(error, ConnectionError):  # such as `| head` makes
            raise OSError(f'{path} cannot be written: {error}') from error
        raise


def remove_leftovers(directory: str, name: str = '') -> None:
    """Deletes what a killed `replacing` left in the directory, of this name or any, and nothing else."""
    pattern = f'{storage.escape(name) or "*"}.tmp-*'
    for path in storage.glob(os.path.join(storage.escape(directory), pattern)):
        match = re.search(r'\.tmp-(\d+)(\.d)?$', path)  # .d: what artefact.save works in
        if match and not _at_work(int(match[1])):
            if match[2] and path.endswith(f'.keras{match[0]}'):
                storage.rmtree(path)
            elif storage.isfile(path):
                storage.remove(path)


def _at_work(process: int) -> bool:
    """Returns whether that is another process, and alive on this host."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        pass
    return process != os.getpid()  # in a container, every run may have the same number


def write_text(path: str, text: str) -> None:
    with replacing(path) as temporary, open(temporary, 'w', encoding='utf-8',
                                               errors='surrogateescape') as file:
        file.write(text)


def write_json(path: str, value) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def read_json(path: str):
    """Returns the parsed file, or None where there is none.

    Raises:
      errors.RunError: the file is not JSON.
    """
    try:
        with storage.open(path, encoding='utf-8', errors='surrogateescape') as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise errors.RunError(f'{path} is damaged ({error}); delete it and run again.') from error


def sha256(path: str) -> str:
    """Returns the file's SHA-256 as 64 hexadecimal digits."""
    with storage.open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def text_hash(text: str) -> str:
    """Returns the text's SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()
