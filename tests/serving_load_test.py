# SPDX-License-Identifier: Apache-2.0
"""200 clients at once: nothing is lost, nothing is mixed up, and the server's memory is flat.

SOAK_SECONDS sets how long (5), SOAK_WEIGHTS another network than a thin C3D.
"""

import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from c3d_tf import export
from c3d_tf.weights import artefact
from tests import serving_files
from tests import serving_toy

PROCESSES, CLIENTS = 4, 200
SECONDS = float(os.environ.get('SOAK_SECONDS', 5))
WARM_UP = 10  # seconds before memory counts: allocators first fill their pools


def _resident(process) -> int:
    text = pathlib.Path(f'/proc/{process.pid}/status').read_text()
    return int(re.search(r'VmRSS:\s+(\d+)', text)[1]) << 10


def _examples(directory, spec):
    """Returns frames of 32 clips, and what the SavedModel says of each alone."""
    served = tf.saved_model.load(directory).signatures['frames']
    found = []
    for seed in range(32):
        images = serving_files.clip(spec.clip_length * spec.stride, *spec.frame_size, seed=seed)
        frames = np.array([[serving_files.jpeg(image) for image in images]], object)
        found.append((frames, served(frames=tf.constant(frames.tolist()))['probabilities'].numpy()[0]))
    return found


@pytest.mark.soak
@pytest.mark.parametrize(('queue', 'seconds'), [(32, SECONDS), (4, min(SECONDS, 10))])
def test_200_clients_lose_nothing_and_memory_is_flat(queue, seconds, tmp_path):
    """In a queue of 32 batches all find room; one of 4 turns most away, and they come back."""
    folder = serving_toy.models_folder(tmp_path / 'models')
    config = folder / 'batching.config'
    text = re.sub(r'(max_enqueued_batches { value: )\d+', rf'\g<1>{queue}', config.read_text())
    config.write_text(text)
    weights = os.environ.get('SOAK_WEIGHTS') or serving_files.saved(tmp_path / 'model.keras')
    # Version 2, beside the toy.
    directory = export.export(weights, str(folder / 'quickstart'), overwrite=True)
    examples = _examples(directory, artefact.load(weights).preprocessing)
    assert len({str(expected) for _, expected in examples}) == len(examples)
    (tmp_path / 'examples.pickle').write_bytes(pickle.dumps(examples))
    with serving_toy.serving(folder) as (rpc, rest, server):
        began, sizes = time.monotonic(), []
        script = pathlib.Path(__file__).with_name('serving_clients.py')
        clients = [subprocess.Popen(
            [sys.executable, script, rpc, rest, 'quickstart', tmp_path / 'examples.pickle',
             str(CLIENTS // PROCESSES), str(seconds)],
            stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
        while any(client.poll() is None for client in clients):
            if time.monotonic() - began > min(WARM_UP, seconds / 2):
                sizes.append(_resident(server))
            time.sleep(0.2)
            assert server.poll() is None, (folder / 'server.log').read_text()
        results = [json.loads(client.stdout.read()) for client in clients]
        wall = time.monotonic() - began
    total = {name: sum(result[name] for result in results)
             for name in ('clients', 'asked', 'answered', 'wrong', 'retries')}
    quarter = len(sizes) // 4
    first, last = (np.mean(part) / 2**20 for part in (sizes[:quarter], sizes[-quarter:]))
    print(f'{total}, {total["answered"] / wall:.1f} requests/s; p50, p90, p99 of each process: '
          f'{[result["seconds"] for result in results]} s; server {first:.0f} → {last:.0f} MiB, '
          f'largest {max(sizes) / 2**20:.0f}')
    assert total['clients'] == CLIENTS and total['asked'] == total['answered'] > CLIENTS
    assert (total['retries'] > 0) == (queue == 4)
    assert total['wrong'] == 0, [result['worst'] for result in results]
    assert last < 1.05 * first + 8
