# SPDX-License-Identifier: Apache-2.0
"""Keras' pools with padding='same' against the original's ceil mode."""

import pathlib

import keras
import numpy as np
import pytest

GOLDEN = np.load(pathlib.Path(__file__).parent / 'testdata/pooling.npz')


# The cases with padding, average, or a window wholly outside occur in none of the networks.
@pytest.mark.parametrize(('name', 'size', 'stride'), [
    ('max_k2s2_1x7x7', (1, 2, 2), (1, 2, 2)),
    ('max_k2s2_c3d_pool5', 2, 2),
    ('max_k2s2_odd_time', 2, 2),
    ('max_k3s2_1x8x8', (1, 3, 3), (1, 2, 2)),
])
def test_max_pools_cut_their_windows_at_the_far_edge(name, size, stride):
    pool = keras.layers.MaxPooling3D(size, stride, padding='same')
    out = keras.ops.convert_to_numpy(pool(GOLDEN[f'{name}__in'].transpose(0, 2, 3, 4, 1)))
    np.testing.assert_array_equal(out.transpose(0, 4, 1, 2, 3), GOLDEN[f'{name}__out'])
