# SPDX-License-Identifier: Apache-2.0
"""Caffe's files as Caffe writes them: both versions, and never one as the other."""

import struct

import numpy as np
import pytest

from c3d_tf.common import errors
from c3d_tf.weights import caffe
from c3d_tf.weights import formats
from tests import weight_files
from tests.weight_files import field

KERNEL = np.arange(2 * 1 * 3 * 4 * 5, dtype=np.float32).reshape(2, 1, 3, 4, 5) + 0.5
MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4) - 6


def run(number: int, values, form: str) -> bytes:
    """A repeated float or double field that is not packed."""
    tag = weight_files.varint(number << 3 | (5 if form == 'f' else 1))
    return b''.join(tag + struct.pack(f'<{form}', value) for value in values)


def legacy(array, data: bytes) -> bytes:
    """A blob of BVLC with four sizes."""
    sizes = (1,) * (4 - array.ndim) + array.shape
    return b''.join(field(i, size) for i, size in enumerate(sizes, 1)) + data


def model_v1_0(*blobs, name=b'conv') -> bytes:
    return field(1, b'net') + field(2, field(4, name) + field(5, 30)
                                    + b''.join(field(6, blob) for blob in blobs))


def model_v1_1(*blobs) -> bytes:
    return field(1, b'net') + field(100, field(1, b'conv') + field(2, b'Convolution3D')
                                    + b''.join(field(7, blob) for blob in blobs))


def read(tmp_path, data: bytes) -> tuple[str, dict]:
    (tmp_path / 'model').write_bytes(data)
    found = formats.read(str(tmp_path / 'model'))
    return found.format, found.arrays


V1_0_SIZES = b''.join(field(i, size) for i, size in enumerate(KERNEL.shape, 1))
LAYOUTS = {
    'v1.0': (model_v1_0(weight_files.blob_v1_0(KERNEL)), 'caffe_v1.0', KERNEL),
    'v1.0 not packed': (model_v1_0(V1_0_SIZES + run(6, KERNEL.ravel(), 'f')), 'caffe_v1.0', KERNEL),
    'v1.0 packed in two': (
        model_v1_0(V1_0_SIZES + field(6, KERNEL.tobytes()[:200]) + field(6, KERNEL.tobytes()[200:])),
        'caffe_v1.0', KERNEL),
    'v1.0 with gradients': (
        model_v1_0(weight_files.blob_v1_0(KERNEL) + field(7, (KERNEL + 1).tobytes())),
        'caffe_v1.0', KERNEL),
    'v1.0 of no length': (
        model_v1_0(b''.join(field(i, size) for i, size in enumerate((1, 1, 0, 3, 4), 1))
                   + field(6, MATRIX.tobytes())),
        'caffe_v1.0', MATRIX[None, None, None]),
    'v1.1': (model_v1_1(weight_files.blob_v1_1(KERNEL)), 'caffe_v1.1', KERNEL),
    'v1.1 shape not packed': (
        model_v1_1(field(7, b''.join(field(1, size) for size in KERNEL.shape))
                   + field(5, KERNEL.tobytes())),
        'caffe_v1.1', KERNEL),
    'v1.1 not packed': (
        model_v1_1(field(7, field(1, bytes(KERNEL.shape))) + run(5, KERNEL.ravel(), 'f')),
        'caffe_v1.1', KERNEL),
    'v1.1 with gradients': (
        model_v1_1(weight_files.blob_v1_1(KERNEL) + field(6, (KERNEL + 1).tobytes())),
        'caffe_v1.1', KERNEL),
    'v1.1 of four sizes': (
        model_v1_1(legacy(MATRIX, field(5, MATRIX.tobytes()))), 'caffe_v1.1', MATRIX[None, None]),
    'v1.1 one number': (model_v1_1(field(7, b'') + field(5, bytes(4))), 'caffe_v1.1', np.float32(0)),
    'v1.1 doubles': (
        model_v1_1(field(7, field(1, bytes(MATRIX.shape))) + field(8, MATRIX.astype(float).tobytes())),
        'caffe_v1.1', MATRIX),
    'v1.1 doubles not packed': (
        model_v1_1(field(7, field(1, bytes(MATRIX.shape))) + run(8, MATRIX.ravel(), 'd')),
        'caffe_v1.1', MATRIX),
    'BVLC layers': (
        model_v1_0(legacy(MATRIX, field(5, MATRIX.tobytes()))), 'caffe_v1.1', MATRIX[None, None]),
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_layouts(name, tmp_path):
    data, version, expected = LAYOUTS[name]
    found, arrays = read(tmp_path, data)
    assert found == version and list(arrays) == ['conv/0'] and arrays['conv/0'].dtype == np.float32
    np.testing.assert_array_equal(arrays['conv/0'], expected, strict=True)


@pytest.mark.parametrize('name', LAYOUTS)
def test_cut_off_anywhere_is_refused(name, tmp_path):
    data, _, expected = LAYOUTS[name]
    start = data.index(b'conv')
    every = [*range(start, min(start + 40, len(data))), *range(start, len(data), 97)]
    for end in (0, 1, *every, len(data) - 1):
        with pytest.raises(errors.UsageError, match='--source=.*model: '):
            read(tmp_path, data[:end])


def test_layers_keep_their_order_and_strangers_are_passed_over(tmp_path):
    rows = [(f'l{i}', MATRIX + i, np.float32([i])) for i in (3, 1, 2)]
    source = weight_files.caffe_v1_0(tmp_path / 'model', rows)
    with open(source, 'ab') as file:
        file.write(field(5, 1) + field(900, b'of another fork'))
    found = caffe.read_model(source)[1]
    assert list(found) == ['l3/0', 'l3/1', 'l1/0', 'l1/1', 'l2/0', 'l2/1']
    np.testing.assert_array_equal(found['l1/0'], MATRIX[None, None, None] + 1)


V0 = field(1, b'net') + field(2, field(1, field(1, b'conv1') + field(2, b'conv') + field(
    50, legacy(MATRIX, field(5, MATRIX.tobytes())))))


@pytest.mark.parametrize(('data', 'message'), [
    (b'', 'empty'),
    (V0, 'V0 layers.*upgrade_net_proto_binary'),
    (field(1, b'net') + field(2, field(4, b'data')), 'no layer holds weights.*means .* go to --mean'),
    (weight_files.blob_v1_0(KERNEL), 'no name.*means .* go to --mean'),  # a mean
    (b'name: "DeepVideoNet"\nlayers {\n', r'\.prototxt only names'),
    (b'<html><body>not found</body></html>', 'no field of Caffe|breaks off|ends .* after'),
    (2 * model_v1_0(weight_files.blob_v1_0(KERNEL)), 'two layers are'),
    (model_v1_0(weight_files.blob_v1_0(KERNEL)) + model_v1_1(weight_files.blob_v1_1(MATRIX)).replace(
        b'conv', b'onvc'), 'mixes'),
    (model_v1_1(weight_files.blob_v1_0(KERNEL)), 'mixes'),  # v1.0 never had field 100
    (model_v1_0(weight_files.blob_v1_0(KERNEL)[:-40]), 'ends .* after'),
    (model_v1_0(V1_0_SIZES + field(6, bytes(8))), 'hold 2x1x3x4x5 values and holds 2; is it cut off'),
    (model_v1_0(V1_0_SIZES), 'and holds 0'),
    (model_v1_0(V1_0_SIZES + field(6, bytes(7))), 'holds no floats'),
    (model_v1_0(field(1, 2) + field(6, bytes(8))), 'neither v1.0 nor v1.1'),
    (model_v1_0(V1_0_SIZES + field(5, bytes(8)) + field(6, KERNEL.tobytes())), 'neither v1.0 nor v1.1'),
    (model_v1_1(field(5, bytes(8))), 'two shapes or none'),
    (model_v1_1(legacy(MATRIX, weight_files.blob_v1_1(MATRIX))), 'two shapes or none'),
    (model_v1_1(field(7, field(1, b'\1' * 33)) + field(5, bytes(4))), 'shape that cannot be'),
    (model_v1_1(field(7, field(1, b'\1')) + field(5, bytes(4)) + field(8, bytes(8))),
     'floats and doubles'),
    (model_v1_0(weight_files.blob_v1_0(KERNEL), name=b''), 'has no name'),
    (model_v1_0(weight_files.blob_v1_0(KERNEL), name=b'\xff'), 'no text'),
])
def test_what_is_refused(data, message, tmp_path):
    with pytest.raises(errors.UsageError, match=message) as caught:
        read(tmp_path, data)
    assert f'--source={tmp_path}/model: ' in str(caught.value)


def test_fields_are_counted(tmp_path):
    with pytest.raises(errors.UsageError, match='more than 200000 fields'):
        read(tmp_path, model_v1_0(weight_files.blob_v1_0(KERNEL)) + field(3, 1) * 200_000)


def test_the_original_solvers_snapshots(shared):
    expected = np.load(shared / 'golden/tiny/tiny_solver.npz')
    for step in (1, 2, 5, 6, 8):
        found = formats.read(str(shared / f'golden/tiny/tiny_iter_{step}.caffemodel'))
        own = {key.split('.', 1)[1]: expected[key] for key in expected if key.startswith(f'w{step}.')}
        assert found.format == 'caffe_v1.0' and len(found.arrays) == len(own) == 8
        for array, value in zip(found.arrays.values(), own.values()):
            np.testing.assert_array_equal(array.ravel(), value.ravel())
            assert array.ndim == 5 and array.shape[5 - value.ndim:] == value.shape
    with pytest.raises(errors.UsageError, match='a .solverstate holds'):
        formats.read(str(shared / 'golden/tiny/tiny_iter_5.solverstate'))
    with pytest.raises(errors.UsageError, match='a .caffemodel is expected'):
        formats.read(str(shared / 'golden/tiny/tiny_train.prototxt'))
