# SPDX-License-Identifier: Apache-2.0
"""Many clients of a model server in one process, without TensorFlow.

    python tests/serving_clients.py GRPC REST MODEL FILE CLIENTS SECONDS

Each client asks about random examples of FILE one after another, one client in ten over REST, and
compares every answer with the one that the file expects. What is printed is JSON: clients, asked,
answered, wrong, retries, worst (largest difference), seconds (latency: p50, p90, p99).
"""

import json
import pathlib
import pickle
import random
import sys
import threading
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'export'))
import transport  # noqa: E402

TOLERANCE = 1e-4  # sums of float32 differ by the size of the batch


def main(rpc: str, rest: str, model: str, file: str, clients: int, seconds: float) -> dict:
    """Runs the clients to their end.

    Args:
      rpc, rest: HOST:PORT.
      model: its name.
      file: a pickle of [(string [1, T], float32 [K]), …]: frames and their probabilities.
      clients: how many ask at the same time.
      seconds: after which no client asks anew.
    """
    examples = pickle.loads(pathlib.Path(file).read_bytes())
    channels = [transport.Grpc(rpc, model), transport.Rest(rest, model)]
    counts = dict.fromkeys(('clients', 'asked', 'answered', 'wrong', 'retries'), 0)
    worst, latencies, lock = [0.0], [], threading.Lock()
    end, stop = time.monotonic() + seconds, threading.Event()

    def count(name, number=1):
        with lock:
            counts[name] += number

    def client(number):
        channel, draw = channels[number % 10 == 0], random.Random(number)
        while time.monotonic() < end:
            frames, expected = draw.choice(examples)
            count('asked')
            began = time.monotonic()
            answer = transport.persist(
                lambda left, frames=frames: channel.predict('frames', 'frames', frames, left),
                timeout=60, patience=180, stop=stop, on_retry=lambda _: count('retries'))
            difference = float(np.abs(answer.probabilities[0] - expected).max())
            with lock:
                latencies.append(time.monotonic() - began)
                worst[0] = max(worst[0], difference)
                counts['answered'] += 1
                counts['wrong'] += difference > TOLERANCE
        count('clients')

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {**counts, 'worst': worst[0],
            'seconds': np.percentile(latencies, [50, 90, 99]).round(4).tolist()}


if __name__ == '__main__':
    print(json.dumps(main(*sys.argv[1:5], int(sys.argv[5]), float(sys.argv[6]))))
