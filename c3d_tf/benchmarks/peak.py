# SPDX-License-Identifier: Apache-2.0
"""Runs the front door and prints, as its last line, the peak memory in KiB of it and its children together.

    python -m c3d_tf.benchmarks.peak --mode=…
"""

import os
import re
import runpy
import threading
import time

_peak = 0


def _tree(pid: int):
    yield pid
    for task in os.listdir(f'/proc/{pid}/task'):
        with open(f'/proc/{pid}/task/{task}/children') as file:
            for child in file.read().split():
                yield from _tree(int(child))


def _watch() -> None:
    global _peak
    while True:
        total = 0
        try:
            for pid in _tree(os.getpid()):
                with open(f'/proc/{pid}/status') as file:
                    if match := re.search(r'VmRSS:\s*(\d+)', file.read()):
                        total += int(match[1])
        except OSError:  # one has just ended
            pass
        _peak = max(_peak, total)
        time.sleep(0.05)


if __name__ == '__main__':
    threading.Thread(target=_watch, daemon=True).start()
    try:
        runpy.run_module('c3d_tf.main', run_name='__main__')
    finally:
        print(_peak)
