# SPDX-License-Identifier: Apache-2.0
"""A process that decodes, as its parent sees it: it may hang or crash, and is replaced then."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time

from c3d_tf.common import console
from c3d_tf.common import errors


class Worker:
    """A process that runs `live(connection)` until its connection is closed.

    Args:
      live: a function of a module; it receives work and sends tuples, the first word says what.
      in_process: takes a thread instead, which sees ram://; what hangs or crashes takes all with it.

    Attributes:
      connection: the parent's end.
    """

    def __init__(self, live, in_process: bool = False):
        context = multiprocessing.get_context('spawn')  # a fork would share TensorFlow's locks
        self.connection, theirs = context.Pipe()
        if in_process:
            self._process = _Thread(target=_start_thread, args=(live, theirs), daemon=True)
            self._process.start()
        else:
            self._process = context.Process(target=_start, args=(live, theirs, os.getpid()))
            self._process.daemon = True
            self._process.start()
            theirs.close()
        self._ended = False
        self._heard = None

    def send(self, work) -> None:
        """Gives it work to do.

        Raises:
          errors.RunError: there is no process any more.
        """
        self._heard = None  # the process may take long to start: the clock runs from its first word
        try:
            self.connection.send(work)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise errors.RunError('a worker process was killed; is there enough memory?') from error

    def receive(self):
        """Returns what it says, or None where it has ended."""
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._ended = True
            return None
        self._heard = time.monotonic()
        return message

    def receive_into(self, buffer) -> bool:
        """Fills a buffer with the bytes that follow a message; False where it ended before."""
        try:
            self.connection.recv_bytes_into(buffer)
        except (EOFError, ConnectionResetError):
            self._ended = True
        return not self._ended

    def excuse(self, seconds: float) -> None:
        """Takes this time off its clock: nobody listened."""
        if self._heard:
            self._heard += seconds

    def lost(self, timeout: float) -> str:
        """Returns why the process will not go on, or ''.

        Raises:
          errors.Interrupted: it was told to stop, as all of a job or a container are, or the children of a
            process that ends; no video does that.
        """
        if self._ended:
            self._process.join()
            code = self._process.exitcode
            if code == -signal.SIGTERM:
                raise errors.Interrupted('a process that decodes was stopped (SIGTERM); the same command goes on')
            cause = signal.Signals(-code).name if code < 0 else f'exit code {code}'
            return f'the decoder crashed ({cause})'
        if self._heard and time.monotonic() - self._heard > timeout:
            return f'timed out: no frame for {timeout:g} s'
        return ''

    def stop(self) -> None:
        self._process.kill()
        self.connection.close()  # before it is waited for: a thread ends by it
        self._process.join()


class _Thread(threading.Thread):
    """A thread with a process's manners; it ends when it finds its connection closed."""

    exitcode = 1

    def kill(self) -> None:
        pass


def _start_thread(live, connection) -> None:
    with connection, contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        live(connection)


def quiet():
    """Returns what keeps a worker process quiet; a thread shares its standard error with all others."""
    return console.quiet() if multiprocessing.parent_process() else contextlib.nullcontext()


def _start(live, connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    live(connection)


def _leave_with(parent: int) -> None:
    """Ends this process when its parent is gone: one that hangs in a file would stay for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
