# SPDX-License-Identifier: Apache-2.0
"""Training on many machines: who the workers are, that all are there, and which one was lost.

Every worker runs the same program on the same records and has the whole state; TensorFlow adds up their
gradients. The first one, the chief, writes what the run leaves.
"""

import contextlib
import dataclasses
import json
import os
import re
import socket
import time

import tensorflow as tf

from c3d_tf.common import console
from c3d_tf.common import errors

ENVIRONMENT = 'TF_CONFIG'
_EXPECTED = ('expected {"cluster": {"worker": ["HOST0:2222", "HOST1:2222"]}, "task": {"type": "worker", "index": '
             '0}}, the index being that of each worker; experiments/cluster/ has launchers that set it')
_PROBE = 2.0  # seconds for a connection


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run and this one among them; a run on one machine has one.

    Attributes:
      addresses: HOST:PORT of every worker, the chief first.
      index: this worker's place among them.
    """

    addresses: tuple[str, ...] = ('',)
    index: int = 0

    @property
    def count(self) -> int:
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    def names(self, workers: list[int]) -> str:
        return ', '.join(f'worker {i} ({self.addresses[i]})' for i in workers)

    def absent(self) -> list[int]:
        """Returns which of the others take no connection."""
        return [i for i in range(self.count) if i != self.index and not _answers(self.addresses[i])]

    def lost(self, error: tf.errors.OpError) -> list[int] | None:
        """Returns whose loss an error is: who takes no connection any more, else whom TensorFlow names; None
        where it is another error."""
        own = isinstance(error, tf.errors.InvalidArgumentError)  # the workers do not do the same
        if self.count == 1 or own or 'Collective' not in error.message:
            return None
        return self.absent() or [int(number) for number in re.findall(r'/task:(\d+)', error.message)[:1]]

    def interrupted(self, lost: list[int], what: str) -> errors.Interrupted:
        return errors.Interrupted(f'{self.names(lost) or "a worker"} was lost: {what}; the same command, given to '
                                  'all workers, goes on')


def read() -> Cluster:
    """Returns what TF_CONFIG says.

    Raises:
      errors.UsageError: it is not set, or not as it should be.
    """
    text = os.environ.get(ENVIRONMENT)
    if not text:
        raise errors.UsageError(f'--strategy=multi_worker: the variable {ENVIRONMENT} is not set; {_EXPECTED}')
    try:
        config = json.loads(text)
        addresses, index = config['cluster']['worker'], config['task']['index']
        fits = (config['cluster'].keys() == {'worker'} and config['task']['type'] == 'worker' and
                index in range(len(addresses)) and all(re.fullmatch(r'.+:\d+', each) for each in addresses))
    except (ValueError, KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise errors.UsageError(f'--strategy=multi_worker: {ENVIRONMENT}={text}: {_EXPECTED}')
    return Cluster(tuple(addresses), index)


def strategy(name: str, cluster: Cluster, timeout: float) -> tf.distribute.Strategy:
    """Returns the strategy of that name, see `Recipe`; for 'multi_worker' see `join`."""
    if name == 'multi_worker':
        return join(cluster, timeout)
    if name == 'mirrored':
        # Logical devices where there are several: so the same code is tested without GPUs.
        devices = tf.config.list_logical_devices('GPU') or tf.config.list_logical_devices('CPU')
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def join(cluster: Cluster, timeout: float) -> tf.distribute.Strategy:
    """Waits for all workers; returns the strategy that adds up their gradients.

    TensorFlow's own wait has no end that is known and says nothing, so each worker first listens where
    TensorFlow will, until it has reached every other one.

    Args:
      cluster: the workers.
      timeout: seconds.

    Raises:
      errors.Interrupted: some did not come.
      errors.UsageError: this worker's port is taken, or its host is another one.
    """
    deadline = time.monotonic() + timeout
    missing = list(range(cluster.count))
    said = 0.0
    with _listening(cluster.addresses[cluster.index]):
        while missing := [i for i in missing if i != cluster.index and not _answers(cluster.addresses[i])]:
            now = time.monotonic()
            if now > deadline:
                raise errors.Interrupted(f'{cluster.names(missing)} did not come within {timeout:g} s; start all '
                                         'workers again')
            if now > said + 10:
                said = now
                console.say(f'train: waits for {cluster.names(missing)}')
            time.sleep(0.2)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise errors.Interrupted(f'the workers did not find together ({error.message}); start all again') from error


@contextlib.contextmanager
def _listening(address: str):
    port = int(address.rpartition(':')[2])
    try:
        server = socket.create_server(('', port))
    except OSError as error:
        raise errors.UsageError(f'{ENVIRONMENT} gives this worker {address}: port {port} cannot be listened '
                                f'on ({error.strerror}); take a free one') from error
    with server:
        yield


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(':')
    with contextlib.suppress(OSError), socket.create_connection((host.strip('[]'), int(port)), _PROBE):
        return True
    return False
