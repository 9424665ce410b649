# SPDX-License-Identifier: Apache-2.0
"""The network alone, on clips in memory, beside the matrix products that bound it."""

import os
import time

import numpy as np
import tensorflow as tf

from c3d_tf import models
from c3d_tf.data import preprocess
from c3d_tf.models import precisions
from c3d_tf.weights import artefact

CLIP = (16, 112, 112, 3)
CLIP_MACS = 38_548_959_232  # of C3D with 487 classes on 16x112x112: the sum of the layers' products
MATMUL = 4096


def best(function, *, repeats: int = 5) -> float:
    """Returns the shortest of several times, in seconds; the first call is not counted."""
    function()
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        function()
        times.append(time.perf_counter() - before)
    return min(times)


def forward(batch_size: int) -> dict:
    """Returns the lines of the stage: full C3D in float32 and bfloat16."""
    out, rates = {}, {}
    clips = tf.random.normal((batch_size, *CLIP), stddev=50.0)
    for precision in ('float32', 'bfloat16'):
        model = models.build('c3d', num_classes=487, precision=precision)
        call = tf.function(lambda x, model=model: model(x, training=False))
        seconds = best(lambda call=call: call(clips).numpy(), repeats=3) / batch_size
        rates[precision] = 1 / seconds
        out[f'forward/{precision}'] = (1 / seconds, 'clips/s', CLIP_MACS / seconds / _matmul_rate(precision),
                                       f'the rate of a {precision} matmul of {MATMUL}')
    out['forward/speed-up'] = (rates['bfloat16'], 'clips/s', rates['bfloat16'] / rates['float32'],
                               'float32; more than 1 only on CPUs with bfloat16 products')
    return out


def by_batch(model, clips: np.ndarray) -> dict[tuple[str, int], float]:
    """Returns clips a second by (precision, batch size)."""
    rates = {}
    for precision in ('float32', 'bfloat16'):
        call = tf.function(precisions.convert(model, precision))
        for batch in (1, 4, 8, 16):
            part = tf.constant(clips[:batch])
            rates[precision, batch] = batch / best(lambda: call(part).numpy(), repeats=3)
    return rates


def random_weights(scratch: str) -> str:
    """Writes C3D at random, as the Sports-1M network is, and returns its path."""
    path = os.path.join(scratch, 'c3d.keras')
    if not os.path.exists(path):
        mean = np.full((16, 128, 171, 3), 100, np.float32)
        model = models.build('c3d', num_classes=487, initializer='he')
        names = tuple(f'class_{i:03d}' for i in range(487))
        artefact.save(path, artefact.Artefact(model, preprocess.Preprocessing((128, 171), 112, 16, 1, mean),
                                              names, {}))
    return path


def channels_first(model) -> dict[str, np.ndarray]:
    """Returns C3D's weights by PyTorch's names and axes: fc6 takes pool5 as channels, rows, columns."""
    state = {}
    for layer in model.layers:
        if not layer.weights:
            continue
        kernel, bias = layer.get_weights()
        if kernel.ndim == 5:
            kernel = kernel.transpose(4, 3, 0, 1, 2)
        elif layer.name == 'fc6':
            kernel = kernel.reshape(16, -1, kernel.shape[1]).transpose(1, 0, 2).reshape(kernel.shape).T
        else:
            kernel = kernel.T
        state[f'{layer.name}.weight'], state[f'{layer.name}.bias'] = np.ascontiguousarray(kernel), bias
    return state


def device() -> str:
    """Returns what the network runs on, in words."""
    gpus = tf.config.list_physical_devices('GPU')
    cores = f'{os.cpu_count()} CPU cores'
    return f'{len(gpus)} GPU(s) and {cores}' if gpus else cores


def _matmul_rate(dtype: str) -> float:
    """Returns multiply-adds a second of a 4096³ product, best of 5."""
    a = tf.cast(tf.random.normal((MATMUL, MATMUL)), dtype)
    product = tf.function(lambda: tf.matmul(a, a)[0, 0])
    return MATMUL**3 / best(lambda: product().numpy())
