# SPDX-License-Identifier: Apache-2.0
"""Writes C3D's weights as other programs do, from Caffe's arrays: for the tests of the importer.

`arrays` is always a list of (layer, weight, bias) with Caffe's axes: (out, in, t, h, w) and (out, in).
"""

import pathlib
import struct
import sys

import h5py
import numpy as np
import tensorflow as tf

LAYERS = ('conv1a', 'conv2a', 'conv3a', 'conv3b', 'conv4a', 'conv4b', 'conv5a', 'conv5b', 'fc6-1', 'fc7-1',
          'fc8-1')
CONVOLUTION3D, INNER_PRODUCT = 30, 14  # of the LayerType enum of v1.0's caffe.proto


def thin(classes=7, filters=4, seed=0):
    """C3D of a sixteenth of the width."""
    rng = np.random.default_rng(seed)
    widths = [3, *(filters * k for k in (1, 2, 4, 4, 8, 8, 8, 8))]
    hidden = filters * 64
    shapes = [(o, i, 3, 3, 3) for i, o in zip(widths, widths[1:])]
    shapes += [(hidden, widths[-1] * 16), (hidden, hidden), (classes, hidden)]
    return [(name, (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32),
             rng.normal(size=shape[0]).astype(np.float32) * np.float32(0.1))
            for name, shape in zip(LAYERS, shapes)]


def golden(shared):
    """The full network of the golden outputs."""
    sys.path.insert(0, str(shared / 'golden'))
    try:
        import weights_recipe
    finally:
        sys.path.pop(0)
    return weights_recipe.make_weights()


def varint(number: int) -> bytes:
    out = b''
    while number > 0x7f:
        out += bytes([number & 0x7f | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number: int, payload: bytes | int) -> bytes:
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def blob_v1_0(array: np.ndarray) -> bytes:
    """BlobProto with a length axis; `array` has five axes at most, leading ones are added."""
    sizes = (1,) * (5 - array.ndim) + array.shape
    return b''.join(field(i, size) for i, size in enumerate(sizes, 1)) + field(
        6, np.ascontiguousarray(array, '<f4').tobytes())


def blob_v1_1(array: np.ndarray) -> bytes:
    shape = b''.join(map(varint, array.shape))
    return field(7, field(1, shape)) + field(5, np.ascontiguousarray(array, '<f4').tobytes())


def caffe_v1_0(path, arrays) -> str:
    with open(path, 'wb') as file:
        file.write(field(1, b'DeepVideoNet'))
        file.write(field(2, field(4, b'data') + field(5, 33)))  # VIDEO_DATA, without blobs
        for name, weight, bias in arrays:
            kind = CONVOLUTION3D if weight.ndim == 5 else INNER_PRODUCT
            file.write(field(2, field(2, b'below') + field(3, name.encode()) + field(4, name.encode())
                             + field(5, kind) + field(6, blob_v1_0(weight)) + field(6, blob_v1_0(bias))
                             + varint(7 << 3 | 5) + struct.pack('<f', 1.0)))
    return str(path)


def caffe_v1_1(path, layers) -> str:
    """`layers`: (name, type, arrays)."""
    with open(path, 'wb') as file:
        file.write(field(1, b'net'))
        for name, kind, arrays in layers:
            file.write(field(100, field(1, name.encode()) + field(2, kind.encode())
                             + b''.join(field(7, blob_v1_1(array)) for array in arrays)))
    return str(path)


def mean_v1_0(path, mean: np.ndarray) -> str:
    pathlib.Path(path).write_bytes(blob_v1_0(mean))
    return str(path)


def tensorflow_axes(name, weight, bias):
    """(t, h, w, in, out) and (in, out), with fc6's inputs in the order of a channels-last network."""
    if weight.ndim == 5:
        return weight.transpose(2, 3, 4, 1, 0), bias
    if name.startswith('fc6'):
        outputs, inputs = weight.shape
        weight = weight.reshape(outputs, inputs // 16, 16).transpose(0, 2, 1).reshape(outputs, inputs)
    return weight.T, bias


def keras_h5(path, arrays) -> str:
    """As c3d-keras saves its weights with Keras 2."""
    names = {'conv1a': 'conv1', 'conv2a': 'conv2', 'fc6-1': 'fc6', 'fc7-1': 'fc7', 'fc8-1': 'fc8'}
    with h5py.File(path, 'w') as file:
        order = []
        for name, weight, bias in arrays:
            own = names.get(name, name)
            weight, bias = tensorflow_axes(name, weight, bias)
            group = file.create_group(own)
            group.attrs['weight_names'] = [f'{own}/kernel:0'.encode(), f'{own}/bias:0'.encode()]
            group.create_dataset(f'{own}/kernel:0', data=weight)
            group.create_dataset(f'{own}/bias:0', data=bias)
            order.append(own.encode())
        file.attrs['layer_names'] = order
        file.attrs['backend'] = b'tensorflow'
    return str(path)


def numpy_dict(path, arrays) -> str:
    """A pickled dictionary in an .npy file, Caffe's axes."""
    values = {}
    for name, weight, bias in arrays:
        values[f'{name}_W'], values[f'{name}_b'] = weight, bias
    np.save(path, values, allow_pickle=True)
    return str(path)


def tf1_checkpoint(prefix, arrays) -> str:
    """As C3D-tensorflow saves, an optimiser's state included."""
    names = {'fc6-1': 'd1', 'fc7-1': 'd2', 'fc8-1': 'out', 'conv1a': 'c1', 'conv2a': 'c2'}
    values = {'global_step': np.int64(7)}
    for name, weight, bias in arrays:
        own = names.get(name, name.replace('conv', 'c'))
        weight, bias = tensorflow_axes(name, weight, bias)
        values[f'var_name/w{own}'], values[f'var_name/b{own}'] = weight, bias
        values[f'var_name/b{own}/Adam'] = np.zeros_like(bias)
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=list(values), shape_and_slices=[''] * len(values),
                      tensors=[tf.constant(np.ascontiguousarray(value)) for value in values.values()])
    # SaveV2 gives one shard's names already: prefix.index, prefix.data-00000-of-00001
    return str(prefix)


def state_dict(arrays, names) -> dict[str, np.ndarray]:
    """PyTorch's names: 'layer.weight', with `names` mapping Caffe's layer to the port's."""
    found = {}
    for name, weight, bias in arrays:
        own = names.get(name, name)
        found[f'{own}.weight'], found[f'{own}.bias'] = weight, bias
    return found


MMACTION2 = {name: f'backbone.{name}.conv' for name in LAYERS[:8]} | {
    'fc6-1': 'backbone.fc6', 'fc7-1': 'backbone.fc7', 'fc8-1': 'cls_head.fc_cls'}
DAVIDEA = {'conv1a': 'conv1', 'conv2a': 'conv2', 'fc6-1': 'fc6', 'fc7-1': 'fc7', 'fc8-1': 'fc8'}
JFZHANG95 = dict(zip(LAYERS, [*(f'features.{i}' for i in (0, 3, 6, 8, 11, 13, 16, 18)), 'classifier.0',
                              'classifier.3', 'classifier.6']))
