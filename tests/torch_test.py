# SPDX-License-Identifier: Apache-2.0
"""Full-size files that the real PyTorch wrote: `make test-torch` sets it up beside the project."""

import os
import pathlib
import subprocess

import numpy as np
import pytest

from c3d_tf import import_weights
from tests import weight_files

pytestmark = pytest.mark.torch
NAMES = {'mmaction2': weight_files.MMACTION2, 'c3d_pytorch': weight_files.DAVIDEA, 'jfzhang95': weight_files.JFZHANG95}


@pytest.fixture(scope='module')
def folder(shared, tmp_path_factory):
    python = os.environ.get('TORCH_PYTHON')
    if not python:
        pytest.skip('make test-torch runs this')
    folder = tmp_path_factory.mktemp('torch')
    arrays = list(weight_files.golden(shared))
    weight_files.caffe_v1_0(folder / 'caffemodel', arrays)
    np.savez(folder / 'arrays.npz', **{
        f'{kind}:{name}': array for kind, names in NAMES.items()
        for name, array in weight_files.state_dict(arrays, names).items()})
    subprocess.run([python, pathlib.Path(__file__).with_name('torch_files.py'), folder / 'arrays.npz', folder],
                   check=True)
    return folder


@pytest.mark.parametrize('kind', NAMES)
def test_pytorchs_files_give_the_network_of_caffes(kind, folder):
    expected = import_weights.import_weights(str(folder / 'caffemodel'), '', mean='128').model.get_weights()
    for ending in ('zip.pth', 'legacy.pth', 'safetensors'):
        net = import_weights.import_weights(str(folder / f'{kind}.{ending}'), '', mean='128', channel_order='bgr',
                                            pool5='aligned', flip_time=False)
        for ours, theirs in zip(net.model.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
