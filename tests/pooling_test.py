# SPDX-License-Identifier: Apache-2.0
"""Keras' pools with padding='same' against the original's ceil mode."""

import pathlib

import keras
import numpy as np
import pytest

GOLDEN = np.load(pathlib.Path(__file__).parent / 'testdata/pooling.npz')


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


# The cases below occur in none of the networks; they show what Caffe's rule is.


def _pool(layer, name, pads, value=0.0):
    x = keras.ops.pad(GOLDEN[f'{name}__in'].transpose(0, 2, 3, 4, 1), [(0, 0), (0, 0), *pads, (0, 0)],
                      constant_values=value)
    return keras.ops.convert_to_numpy(layer(x)).transpose(0, 4, 1, 2, 3)


def test_averages_count_the_cells_inside():
    pool = keras.layers.AveragePooling3D((1, 2, 2), padding='same')
    np.testing.assert_array_equal(_pool(pool, 'ave_k2s2_1x7x7', [(0, 0), (0, 0)]),
                                  GOLDEN['ave_k2s2_1x7x7__out'])


def test_averages_count_the_padding_that_was_asked_for():
    pool = keras.layers.AveragePooling3D((1, 3, 3), (1, 2, 2))
    np.testing.assert_allclose(_pool(pool, 'ave_k3s2p1_1x7x7', [(1, 1), (1, 1)]),
                               GOLDEN['ave_k3s2p1_1x7x7__out'], rtol=1e-6)


def test_a_maximum_over_nothing_is_the_smallest_number():
    smallest = np.finfo(np.float32).min
    pool = keras.layers.MaxPooling3D((1, 1, 1), (1, 3, 3))
    np.testing.assert_array_equal(_pool(pool, 'max_k1s3_1x6x6', [(0, 3), (0, 3)], smallest),
                                  GOLDEN['max_k1s3_1x6x6__out'])


def test_every_case_of_the_file_is_tested():
    text = pathlib.Path(__file__).read_text()
    assert all(name.split('__')[0] in text for name in GOLDEN)
