# SPDX-License-Identifier: Apache-2.0
"""Weight files of any kind → named arrays. A file is told by its content and never executed."""

import bz2
import dataclasses
import io
import math
import os
import zipfile

import h5py
import numpy as np
import safetensors
import safetensors.numpy

from c3d_tf.common import errors
from c3d_tf.common import storage
from c3d_tf.weights import caffe
from c3d_tf.weights import pickles
from c3d_tf.weights import torch

_MOST = 1 << 26  # bytes of a mean: a volume has 4 MB


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """The content of a file.

    Attributes:
      format: 'caffe_v1.0', 'caffe_v1.1', 'torch', 'safetensors', 'keras_h5', 'numpy' or 'tf1'.
      arrays: name in the file → array, in the file's order; may be views of the file.
    """

    format: str
    arrays: dict[str, np.ndarray]


def read(path: str) -> Source:
    """Reads a weight file.

    Args:
      path: a .caffemodel of v1.0, v1.1 or BVLC, a PyTorch file, a .safetensors, a Keras .h5, an .npy or
        pickle of a dictionary of arrays, an .npz, or the prefix or folder of a TensorFlow 1 checkpoint.

    Raises:
      errors.UsageError: there is no such file, it is damaged, or holds more than arrays.
    """
    try:
        if _is_tf1(path):
            return Source('tf1', _tf1(path))
        _check_regular(path)
        with storage.local(path) as here:  # what is mapped into memory stays
            return _read(here)
    except Exception as error:  # damaged bytes make zipfile, h5py and numpy raise a dozen kinds
        raise errors.UsageError(f'--source={path}: {_words(error)}') from error


def read_mean(path: str) -> np.ndarray:
    """Reads a mean file: .binaryproto of v1.0 or v1.1, .npy, or either packed by bzip2.

    Returns:
      float32: [C, T, H, W] of a .binaryproto of v1.0, [C, H, W] of v1.1, any shape of an .npy.

    Raises:
      errors.UsageError: there is no such file, or it is damaged.
    """
    try:
        _check_regular(path)
        with storage.open(path, 'rb') as file:
            data = file.read(_MOST + 1)
        if data.startswith(b'BZh'):
            data = bz2.BZ2Decompressor().decompress(data, _MOST + 1)
        if len(data) > _MOST:
            raise ValueError(f'more than {_MOST >> 20} MB, which no mean has; weights go to --source')
        if not data.startswith(b'\x93NUMPY'):
            return caffe.read_blob(data)
        array = _npy(io.BytesIO(data), len(data))
        if not isinstance(array, np.ndarray):
            raise ValueError('a dictionary; a mean is an array of numbers')
        return array.astype(np.float32)
    except Exception as error:  # as above
        raise errors.UsageError(f'--mean={path}: {_words(error)}') from error


def _words(error: Exception) -> str:
    if isinstance(error, (caffe.Broken, pickles.Refused)) or type(error) is ValueError:
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f'it is damaged, download it again ({type(error).__name__}: {str(error)[:200]})'


def _check_regular(path: str) -> None:
    if not storage.exists(path):
        raise ValueError('no such file')
    if not storage.isfile(path):  # a pipe would wait for ever
        raise ValueError('not a file')


def _is_tf1(path: str) -> bool:
    return storage.isdir(path) or storage.isfile(f'{path}.index')


def _read(path: str) -> Source:
    with open(path, 'rb') as file:
        start = file.read(16)
    if start.startswith(b'\x89HDF\r\n\x1a\n'):
        return Source('keras_h5', _h5(path))
    if start.startswith(b'PK'):
        with zipfile.ZipFile(path) as archive:
            if 'model.weights.h5' in archive.namelist():
                raise ValueError('a .keras file: nothing to import; --weights and --init_from take those that '
                                 'this program wrote')
            if any(name.endswith('.npy') for name in archive.namelist()):
                return Source('numpy', _npz(archive, 16 * os.path.getsize(path)))
        return Source('torch', torch.read_zip(path))
    if start.startswith(b'\x93NUMPY'):
        with open(path, 'rb') as file:
            return Source('numpy', _pickled(_npy(file, os.path.getsize(path))))
    if start[:1] == b'\x80' and torch.is_legacy(start):
        return Source('torch', torch.read_legacy(path))
    if start[:1] == b'\x80' and start[1:2] in (b'\2', b'\3', b'\4', b'\5'):
        with open(path, 'rb') as file:
            return Source('numpy', _pickled(pickles.load(file)))
    if start[8:9] == b'{' and int.from_bytes(start[:8], 'little') <= os.path.getsize(path):
        arrays = safetensors.numpy.load_file(path)
        return Source('safetensors', {
            name: array if array.dtype.kind in 'iu' else array.astype(np.float32, copy=False)
            for name, array in arrays.items()})
    version, arrays = caffe.read_model(path)
    return Source(version, arrays)


def _pickled(tree) -> dict[str, np.ndarray]:
    found = pickles.tensors(tree)
    if any(isinstance(value, pickles.Tensor) for value in found.values()):
        raise pickles.Refused('PyTorch tensors without their storages')
    return found


def _npy(file, size: int):
    """Returns the array, or the object that it holds by the restricted unpickler."""
    major, _ = np.lib.format.read_magic(file)
    if major not in (1, 2):
        raise ValueError(f'.npy of version {major}')
    header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    if dtype.hasobject:
        tree = pickles.load(file)
        return tree.value if isinstance(tree, pickles.NumpyArray) else tree
    if dtype.kind not in 'fiub' or not pickles.are_sizes(shape):
        raise ValueError('not an array of numbers')
    count = math.prod(shape)
    if count * dtype.itemsize > size - file.tell():
        raise ValueError(f'an array of {shape} is claimed, the file is shorter; download it again')
    flat = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return flat.reshape(shape, order='F' if fortran else 'C')


def _npz(archive: zipfile.ZipFile, most: int) -> dict[str, np.ndarray]:
    infos = archive.infolist()
    if sum(info.file_size for info in infos) > most:
        raise ValueError('members that unpack to more than 16 times the file')
    found = {}
    for info in infos:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError('a compression that numpy never uses')  # Python unpacks it without bounds
        with archive.open(info) as member:
            data = member.read(info.file_size)  # all, read() unpacks more than is claimed
        value = _npy(io.BytesIO(data), len(data))
        if not isinstance(value, np.ndarray):
            raise ValueError(f'{info.filename[:80]}: not an array of numbers')
        found[info.filename.removesuffix('.npy')] = value
    return found


def _h5(path: str) -> dict[str, np.ndarray]:
    """Reads the data sets of a Keras .h5; its model_config, which names classes, is not looked at."""
    found, total = {}, 0

    def take(name, item):
        nonlocal total
        if not isinstance(item, h5py.Dataset) or item.dtype.kind not in 'fiu':
            return
        if item.external or item.is_virtual:
            raise ValueError(f'{name} lies in another file')
        if item.id.get_create_plist().get_nfilters():  # HDF5 unpacks more than is claimed
            raise ValueError(f'{name} is compressed, as Keras never does; h5repack -f NONE unpacks it')
        total += item.nbytes
        if total > os.path.getsize(path):
            raise ValueError('data sets that are larger than the file; download it again')
        found[name] = item[()]

    with h5py.File(path, 'r') as file:
        root = file['model_weights'] if 'model_weights' in file else file
        for name in root:  # links to elsewhere are not followed
            if name != 'optimizer_weights' and isinstance(root.get(name, getlink=True), h5py.HardLink):
                item = root[name]
                take(name, item)
                if isinstance(item, h5py.Group):
                    item.visititems(lambda inner, value, name=name: take(f'{name}/{inner}', value))
    return found


def _tf1(path: str) -> dict[str, np.ndarray]:
    import tensorflow as tf

    if storage.isdir(path):
        prefix = tf.train.latest_checkpoint(path)
        indices = storage.glob(os.path.join(storage.escape(path), '*.index'))
        if prefix is None and len(indices) != 1:
            raise ValueError(f'a folder with {len(indices)} checkpoints; name one without .index')
        path = prefix or indices[0].removesuffix('.index')
    shards = storage.glob(f'{storage.escape(path)}.data-*')
    for file in (f'{path}.index', *shards):
        _check_regular(file)
    try:
        reader = tf.train.load_checkpoint(path)
        shapes = reader.get_variable_to_shape_map()
        if sum(map(math.prod, shapes.values())) > sum(map(storage.getsize, shards)):
            raise ValueError('variables that are larger than the files; download them again')
        return {name: reader.get_tensor(name) for name in sorted(shapes)}
    except tf.errors.OpError as error:
        raise ValueError(error.message) from error
