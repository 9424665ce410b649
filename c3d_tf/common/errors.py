# SPDX-License-Identifier: Apache-2.0
"""The errors that end a run with a plain message, and the exit codes that scripts may rely on."""

import re

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on


class RunError(Exception):
    """The work failed; the message names the file and the remedy."""


class UsageError(RunError):
    """What was asked for cannot be done; the message says what was expected and what came."""


class Interrupted(RunError):
    """The work was stopped from outside and saved; the same command continues it."""


def changed_settings(what: str, old: dict, new: dict, remedy: str) -> UsageError:
    """Returns the error for work that exists already but was made with other settings."""
    lines = [
        f'  {key}: was {old.get(key, "not set")!r}, now {new.get(key, "not set")!r}'
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    return UsageError('\n'.join([f'{what} was made with other settings:', *lines, remedy]))


def plain(error: Exception) -> str:
    """Returns the first line of a message, without the names of operations that TensorFlow puts around it."""
    return re.sub(r'^\{\{.*?\}\} ?| \[Op:.*', '', str(error).split('\n')[0])
