# SPDX-License-Identifier: Apache-2.0
"""Writes features as the features verb does."""

import json
import os

import numpy as np


def write_npz(folder, vectors, *, clips=3, layer='fc6'):
    """Writes features as the features verb does: three clips a video, whose mean is the vector."""
    for number, (name, vector) in enumerate(vectors.items()):
        path = folder / f'{os.path.splitext(name)[0]}.npz'
        path.parent.mkdir(parents=True, exist_ok=True)
        spread = np.random.default_rng(number).normal(size=(clips, len(vector)))
        np.savez(path, **{layer: (vector + spread - spread.mean(axis=0)).astype(np.float32),
                          f'video_{layer}': vector / np.linalg.norm(vector)},
                 start_frame=8 * np.arange(clips), time=8 * np.arange(clips) / 25,
                 protocol=json.dumps({'settings': {'step': 8}, 'clips': clips}))
    return str(folder)
