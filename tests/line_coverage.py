# SPDX-License-Identifier: Apache-2.0
"""Which lines of the functions of some modules ran; coverage.py is none of our requirements."""

import pathlib
import sys
import types


class Coverage:
    """A context that traces: slow."""

    def __init__(self, *modules):
        self.left, self.all = {}, set()
        for module in modules:
            code = compile(pathlib.Path(module.__file__).read_text(), module.__file__, 'exec')
            self._take(code)

    def _take(self, code):
        lines = {(code.co_filename, line) for _, _, line in code.co_lines() if line}
        if code.co_flags & 2:  # a function's: modules and classes ran when they were imported
            lines -= {(code.co_filename, code.co_firstlineno)}
            self.left[code.co_filename, code.co_firstlineno, code.co_name] = set(lines)
            self.all |= lines
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self._take(inner)

    def __call__(self, frame, event, _):
        code = frame.f_code
        left = self.left.get((code.co_filename, code.co_firstlineno, code.co_name))
        if not left:
            return None

        def line(frame, event, _):
            left.discard((code.co_filename, frame.f_lineno))
            return line
        return line(frame, event, _)

    def __enter__(self):
        sys.settrace(self)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def missing(self) -> dict[str, list[int]]:
        found = {}
        for path, line in sorted(set().union(*self.left.values())):
            found.setdefault(pathlib.Path(path).name, []).append(line)
        return found

    def summary(self) -> str:
        rows = []
        for path in sorted({path for path, _ in self.all}):
            name = pathlib.Path(path).name
            lines, missing = sum(p == path for p, _ in self.all), self.missing().get(name, [])
            rows.append(f'{name} {1 - len(missing) / lines:.0%} of {lines} lines, not {missing}')
        return '\n  '.join(rows)
