# SPDX-License-Identifier: Apache-2.0
"""PyTorch's .pth and .pt without PyTorch: the zip of 1.6 and later, and the older kind."""

import io
import math
import os
import struct
import zipfile

import numpy as np

from c3d_tf.weights import pickles

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # torch/serialization.py
_MOST = 8  # times the file: halves become floats, and two layers may share their weights


def read_zip(path: str) -> dict[str, np.ndarray]:
    """Reads what `torch.save` writes since PyTorch 1.6.

    Raises:
      pickles.Refused: it is no such file, or holds more than arrays.
    """
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        # PyTorch stores without compression; a bomb would not, or would count the same bytes many times.
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos.values()):
            raise pickles.Refused('compressed members, which PyTorch never writes')
        if sum(info.file_size for info in infos.values()) > os.path.getsize(path):
            raise pickles.Refused('members larger than the file')
        root = next((name.removesuffix('data.pkl') for name in infos if name.endswith('data.pkl')), None)
        if root is None:
            raise pickles.Refused('no data.pkl in it: not a file of torch.save')
        if f'{root}byteorder' in infos and archive.read(f'{root}byteorder') != b'little':
            raise pickles.Refused('big-endian numbers')

        def storage(wanted: pickles.Storage) -> bytes:
            name = f'{root}data/{wanted.key}'
            if name not in infos:
                raise pickles.Refused(f'storage {wanted.key[:20]} is missing; download it again')
            return archive.read(name)

        tree = pickles.load(io.BytesIO(archive.read(f'{root}data.pkl')))
        return _arrays(tree, storage, _MOST * os.path.getsize(path))


def read_legacy(path: str) -> dict[str, np.ndarray]:
    """Reads what `torch.save` wrote before PyTorch 1.6: pickles, then the storages one after another.

    Raises:
      pickles.Refused: it is no such file, or holds more than arrays.
    """
    with open(path, 'rb') as file:
        data = file.read()
    file = io.BytesIO(data)
    if pickles.load(file) != _MAGIC or pickles.load(file) != _PROTOCOL:
        raise pickles.Refused('not a file of torch.save')
    pickles.load(file)  # sizes of C types where it was written
    tree = pickles.load(file)
    keys = pickles.load(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise pickles.Refused('no list of storages')
    sizes = _item_sizes(tree)
    storages, at = {}, file.tell()
    for key in keys:
        (count,) = struct.unpack_from('<q', data, at) if len(data) - at >= 8 else (-1,)
        size = count * sizes.get(key, 0)
        if count < 0 or key not in sizes or size > len(data) - at - 8:
            raise pickles.Refused(f'storage {key[:20]} is cut off or of no tensor; download it again')
        storages[key] = memoryview(data)[at + 8:at + 8 + size]
        at += 8 + size

    def storage(wanted: pickles.Storage) -> memoryview:
        if wanted.key not in storages:
            raise pickles.Refused(f'storage {wanted.key[:20]} is missing')
        return storages[wanted.key]

    return _arrays(tree, storage, _MOST * len(data))


def is_legacy(start: bytes) -> bool:
    """Returns whether a file that starts so is of the older kind: its magic number comes first."""
    return start[2:].startswith(b'\x8a\x0a' + _MAGIC.to_bytes(10, 'little'))  # LONG1 of ten bytes


def _arrays(tree, storage, left: int) -> dict[str, np.ndarray]:
    found, read = {}, {}
    for name, value in pickles.tensors(tree).items():
        if isinstance(value, pickles.Tensor):
            key = value.storage.key
            if key not in read:  # tensors may share one
                read[key] = storage(value.storage)
            if len(read[key]) % np.dtype(pickles.DTYPES[value.storage.dtype]).itemsize:
                raise pickles.Refused(f'storage {key[:20]} is truncated')
            value = _array(value, read[key])
        left -= value.nbytes
        if left < 0:
            raise pickles.Refused(f'tensors that unpack to more than {_MOST} times the file')
        found[name] = value
    return found


def _array(tensor: pickles.Tensor, data: bytes | memoryview) -> np.ndarray:
    """Returns the numbers of a tensor in its storage; floats of any size as float32."""
    offset, shape, strides = tensor.offset, tensor.shape, tensor.strides
    flat = np.frombuffer(data, pickles.DTYPES[tensor.storage.dtype])
    count = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
    if count > flat.size or (count and last >= flat.size):
        raise pickles.Refused(f'a tensor of {shape} in a storage of {flat.size} numbers; is it cut off?')
    if not count:
        return np.zeros(shape, np.float32)
    view = np.lib.stride_tricks.as_strided(
        flat[offset:], shape, [stride * flat.itemsize for stride in strides], writeable=False)
    if tensor.storage.dtype == 'BFloat16':  # the upper half of a float32
        return (view.astype(np.uint32) << 16).view(np.float32)
    return view.astype(np.float32) if view.dtype.kind == 'f' and view.itemsize != 4 else view


def _item_sizes(tree) -> dict[str, int]:
    """Returns the bytes of a number of every storage that a tensor anywhere in the tree uses."""
    sizes, todo, seen = {}, [tree], set()
    while todo:
        value = todo.pop()
        if isinstance(value, pickles.Tensor):
            size = np.dtype(pickles.DTYPES[value.storage.dtype]).itemsize
            if sizes.setdefault(value.storage.key, size) != size:
                raise pickles.Refused('a storage of two kinds of numbers')
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            todo += value.values() if isinstance(value, dict) else value
    return sizes
