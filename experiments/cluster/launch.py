# SPDX-License-Identifier: Apache-2.0
"""Trains with several workers on this machine, and starts all again when one is lost.

    python experiments/cluster/launch.py 2 --flagfile=experiments/quickstart.flags

The number of workers, then the flags of `--mode=train`. Each worker's output is in --workdir/worker-N.log.
Ends with the exit code of the run: 0 done, 2 wrong use, 75 stopped.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

from c3d_tf import flags

RESTARTS = 10  # one after another; a run that got on for LONG counts from the beginning
LONG = 600.0  # seconds
GRACE = 120.0  # seconds in which the others notice that one is lost, and save
DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 75


def main(argv: list[str]) -> int:
    if len(argv) < 2 or not argv[1].isdecimal() or not int(argv[1]):
        print(__doc__, file=sys.stderr)
        return USAGE
    f = flags.Flags().values
    f(argv[1:])
    count, words = int(argv[1]), [*argv[2:], '--mode=train', '--strategy=multi_worker']
    stop = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stop.append(number))
    restarts = 0
    while True:
        started = time.monotonic()
        codes = _run(count, words, f.workdir, stop)
        print(f'launch: the workers ended with {", ".join(map(str, codes))}', flush=True)
        if codes == [DONE] * count:
            return DONE
        if USAGE in codes:
            return USAGE
        if codes == [FAILED] * count:  # all saw the same: it would come again
            return FAILED
        if stop:
            return INTERRUPTED
        restarts = 1 if time.monotonic() - started > LONG else restarts + 1
        if restarts > RESTARTS:
            return INTERRUPTED
        pause = min(2.0 ** restarts, 60.0)
        print(f'launch: starts all again in {pause:g} s ({restarts} of {RESTARTS})', flush=True)
        time.sleep(pause)


def _run(count: int, words: list[str], workdir: str, stop: list[int]) -> list[int]:
    """Runs all workers once; returns their exit codes, -N where signal N killed one."""
    workers = []
    addresses = _free_addresses(count)
    os.makedirs(workdir, exist_ok=True)
    for index in range(count):
        config = {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': index}}
        with open(os.path.join(workdir, f'worker-{index}.log'), 'a') as log:
            workers.append(subprocess.Popen(
                [sys.executable, '-m', 'c3d_tf.main', *words], stdout=log, stderr=log,
                env={**os.environ, 'TF_CONFIG': json.dumps(config)}))
    print(f'launch: {count} workers, processes {", ".join(str(each.pid) for each in workers)}; their output is '
          f'in {workdir}/worker-N.log', flush=True)
    ends = None  # when those that are left have had their time
    while None in (codes := [each.poll() for each in workers]):
        if ends is None and (stop or any(codes)):
            if stop or USAGE in codes:
                _signal(workers, signal.SIGTERM)
            ends = time.monotonic() + GRACE
        if ends is not None and time.monotonic() > ends:
            _signal(workers, signal.SIGKILL)
        time.sleep(0.1)
    return codes


def _signal(workers, number: int) -> None:
    for each in workers:
        if each.poll() is None:
            each.send_signal(number)


def _free_addresses(count: int) -> list[str]:
    sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(count)]
    addresses = [f'127.0.0.1:{each.getsockname()[1]}' for each in sockets]
    for each in sockets:
        each.close()
    return addresses


if __name__ == '__main__':
    sys.exit(main(sys.argv))
