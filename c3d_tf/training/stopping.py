# SPDX-License-Identifier: Apache-2.0
"""The wish that a run stop, as a step may ask for it."""

import signal


class StopSignal:
    """Notes SIGTERM and SIGINT, so that the step in work ends and is saved; a second one kills."""

    def __enter__(self):
        self.came = False
        self._before = {number: signal.signal(number, self._note)
                        for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number, frame):
        self.came = True
        signal.signal(number, self._before[number])

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
