# SPDX-License-Identifier: Apache-2.0
"""Full-size files that the real PyTorch wrote: `make test-torch` sets it up beside the project."""

import json
import os
import pathlib
import re
import subprocess

import numpy as np
import pytest

from c3d_tf import import_weights
from c3d_tf import main
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


def test_the_benchmark_beside_pytorch(tmp_path, capsys):
    python = os.environ.get('TORCH_PYTHON')
    if not python:
        pytest.skip('make test-torch runs this')
    assert main.main(['c3d_tf', '--mode=benchmark', '--stages=pytorch', f'--torch_python={python}',
                      f'--workdir={tmp_path}']) == 0
    error = re.search(r'its logits of a clip differ from ours by (\S+)', capsys.readouterr().out)[1]
    assert 0 < float(error) < 2e-5
    found = json.loads((tmp_path / 'benchmark.json').read_text())
    assert found.keys() == {'pytorch/float32', 'pytorch/bfloat16', 'pytorch/end to end'}
