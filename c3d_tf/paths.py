# SPDX-License-Identifier: Apache-2.0
"""Remote paths on the command line: flagfiles are read, schemes that nothing serves are refused."""

from c3d_tf import flags
from c3d_tf.common import console
from c3d_tf.common import storage


def with_flagfiles(argv: list[str]) -> list[str]:
    """Returns the words of a command with the lines of remote flagfiles; local ones are left to absl.

    Raises:
      errors.UsageError: nothing serves the flagfile's scheme.
      OSError: it cannot be read.
    """
    words = []
    for word in argv:
        if storage.scheme(path := word.removeprefix('--flagfile=')):
            with console.quiet(), storage.open(path, encoding='utf-8') as file:
                lines = file.read().splitlines()
            words += [line for line in lines if line.strip() and not line.startswith(('#', '//'))]
        else:
            words.append(word)
    return words


def check(known: flags.Flags) -> None:
    """Looks at the flags of the verbs that will run, before any work.

    Raises:
      errors.UsageError: nothing serves a path's scheme.
    """
    f = known.values
    for name in {name for verb in f.mode for name in known.of(verb)}:
        for value in f[name].value if isinstance(f[name].value, list) else [f[name].value]:
            if isinstance(value, str) and storage.scheme(value):
                from c3d_tf.data import streams  # late, since it imports PyAV

                if not (name == 'input' and 'predict' in f.mode and streams.is_live(value)):
                    with console.quiet():
                        storage.check(value)
