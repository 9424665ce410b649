# SPDX-License-Identifier: Apache-2.0
"""Every kind of weight and mean file is read as its own program wrote it, and none is executed."""

import bz2
import importlib
import io
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import safetensors.numpy

from c3d_tf.common import errors
from c3d_tf.weights import formats
from tests import weight_files

TORCH = pathlib.Path(__file__).with_name('testdata') / 'weights'
ARRAYS = {'a.weight': np.arange(12, dtype=np.float32).reshape(3, 4), 'a.bias': np.float32([1, -2, 3])}
MEAN = np.arange(3 * 2 * 4 * 5, dtype=np.float32).reshape(3, 2, 4, 5) / 2


def _equal(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, strict=True, err_msg=name)


def _count(*shape) -> np.ndarray:
    return (np.arange(1, 1 + np.prod(shape), dtype=np.float32) / 8).reshape(shape)


@pytest.mark.parametrize('kind', ['zip', 'legacy'])
def test_what_pytorch_saves(kind):
    whole = _count(6, 4)
    found = formats.read(str(TORCH / f'tensors.{kind}.pth'))
    assert found.format == 'torch'
    _equal(found.arrays, {
        'parameter': _count(2, 3), 'whole': whole, 'transposed': whole.T, 'part': whole[1:5:2, 1:],
        'half': _count(5), 'bfloat16': _count(5), 'double': _count(5), 'steps': np.array(7),
        'none': np.zeros((0, 3), np.float32)})


def test_a_checkpoint_gives_the_network_and_not_the_optimiser():
    found = formats.read(str(TORCH / 'checkpoint.pth'))
    _equal(found.arrays, {'weight': _count(4, 3), 'bias': _count(4)})


def test_a_whole_module_is_refused_with_advice():
    with pytest.raises(errors.UsageError, match=r'module.pth: .*Sequential.*save its state_dict\(\)'):
        formats.read(str(TORCH / 'module.pth'))


@pytest.mark.parametrize('name', ['tensors.zip.pth', 'tensors.legacy.pth', 'checkpoint.pth'])
def test_pytorchs_files_cut_off_anywhere_are_refused(name, tmp_path):
    data = (TORCH / name).read_bytes()
    path = tmp_path / name
    for end in range(0, len(data), 11):
        path.write_bytes(data[:end])
        with pytest.raises(errors.UsageError, match='--source='):
            formats.read(str(path))


def _rezipped(path, changes: dict) -> str:
    with zipfile.ZipFile(TORCH / 'tensors.zip.pth') as old, zipfile.ZipFile(path, 'w') as new:
        for info in old.infolist():
            name = info.filename.split('/', 1)[1]
            data = changes.pop(name, lambda data: data)(old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    assert not changes
    return str(path)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'byteorder': lambda _: b'big'}, 'big-endian'),
    ({'data/1': lambda _: None}, 'storage 1 is missing'),
    ({'data/1': lambda data: data[:-1]}, 'storage 1 is truncated'),
    ({'data/1': lambda data: data[:-4]}, r'a tensor of \(6, 4\) in a storage of 23 numbers'),
    ({'data.pkl': lambda _: None}, 'no data.pkl'),
    ({'data.pkl': lambda _: b''}, 'damaged pickle'),
    ({'data.pkl': lambda data: data.replace(b'FloatStorage', b'QInt8Storage')}, 'torch.QInt8Storage'),
    ({'data.pkl': lambda data: data.replace(b'K\6K\4\x86', b'K\7K\4\x86')}, r'a tensor of \(7, 4\) in'),
    ({'data.pkl': lambda data: data.replace(b'K\4K\1\x86', b'K\xffK\1\x86')}, r'a tensor of \(6, 4\)'),
])
def test_tensors_that_cannot_be(changes, message, tmp_path):
    with pytest.raises(errors.UsageError, match=message):
        formats.read(_rezipped(tmp_path / 'weights.pth', dict(changes)))


class _Numpy1(pickle._Pickler):
    """Names numpy's modules as numpy 1 did."""

    def save_global(self, obj, name=None):
        module = getattr(obj, '__module__', '') or ''
        if not module.startswith('numpy._core'):
            return super().save_global(obj, name)
        self.write(b'c%s\n%s\n' % (module.replace('_core', 'core').encode(), obj.__name__.encode()))
        self.memoize(obj)

    dispatch = pickle._Pickler.dispatch | {type(len): save_global, type(lambda: 0): save_global}


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('pickler', [pickle._Pickler, _Numpy1])
def test_pickled_dictionaries(protocol, pickler, tmp_path):
    weight = ARRAYS['a.weight']
    arrays = ARRAYS | {'big': weight.astype('>f8'), 'columns': np.asfortranarray(weight),
                       'scalar': np.float64(3), 'halves': np.float16([1, 2])}
    with open(tmp_path / 'weights', 'wb') as file:
        pickler(file, protocol).dump({'epoch': 3, 'params': arrays})
    assert (b'numpy._core' in (tmp_path / 'weights').read_bytes()) == (pickler is not _Numpy1)
    found = formats.read(str(tmp_path / 'weights'))
    assert found.format == 'numpy' and list(found.arrays) == list(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], value)


def test_an_ordered_dictionary_of_python_2(tmp_path):
    weight = pickle.dumps(ARRAYS['a.weight'], 2)[2:-1]
    data = b'\x80\2ccollections\nOrderedDict\n]](U\1w' + weight + b'ea\x85R.'  # pairs in it
    (tmp_path / 'weights').write_bytes(data)
    _equal({'w': ARRAYS['a.weight']}, formats.read(str(tmp_path / 'weights')).arrays)


@pytest.mark.parametrize(('tree', 'names'), [
    ({'conv': [ARRAYS['a.weight'], ARRAYS['a.bias']]}, ['conv/0', 'conv/1']),
    ({'conv': {'weights': ARRAYS['a.weight'], 'biases': ARRAYS['a.bias']}, 'note': 'x'},
     ['conv/weights', 'conv/biases']),
    ({'net': ARRAYS, 'ema': {'a.weight': ARRAYS['a.bias']}}, list(ARRAYS)),
    ({'only': {'state_dict': ARRAYS}}, list(ARRAYS)),
])
def test_where_the_arrays_lie(tree, names, tmp_path):
    np.save(tmp_path / 'weights.npy', tree, allow_pickle=True)
    found = formats.read(f'{tmp_path}/weights.npy').arrays
    assert list(found) == names
    np.testing.assert_array_equal(found[names[0]], ARRAYS['a.weight'])


@pytest.mark.parametrize(('tree', 'message'), [
    ({'a': {f'x{i}': {'w': ARRAYS['a.bias']} for i in range(5)}, 'b': {'c': {'d': ARRAYS}}},
     'arrays in several places'),
    ({'epoch': 3}, 'no arrays'),
    ([ARRAYS['a.bias']], 'no dictionary of arrays'),
    ({'w': np.array([{}, []], object)}, 'an array of something other than numbers'),
    ({'w': np.array(['x'])}, 'an array of something other than numbers'),
    ({'w': {1, 2}}, 'damaged pickle'),
    ({('a', 'b'): ARRAYS['a.bias']}, 'odd keys'),
    ({'k' * 2000: ARRAYS['a.bias']}, 'odd keys'),
])
def test_pickles_that_are_refused(tree, message, tmp_path):
    (tmp_path / 'weights').write_bytes(pickle.dumps(tree, 4))
    with pytest.raises(errors.UsageError, match=message):
        formats.read(str(tmp_path / 'weights'))


class _Evil:

    def __init__(self, function, *args):
        self._call = function, args

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize('function', [os.system, exec, eval, os.rename, subprocess.getoutput,
                                      importlib.import_module, getattr, np.load, np.memmap])
@pytest.mark.parametrize('where', ['pickle', 'npy', 'npz', 'zip', 'legacy'])
def test_nothing_is_executed(function, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, made = tmp_path / 'weights', tmp_path / 'executed'
    evil = _Evil(function, f'open({str(made)!r}, "w")' if function in (exec, eval) else f'touch {made}')
    tree = {'w': ARRAYS['a.bias'], 'x': evil}
    data = pickle.dumps(tree, 2)
    if where == 'npy':
        file = io.BytesIO()
        np.save(file, tree, allow_pickle=True)
        data = file.getvalue()
    elif where == 'npz':
        file = io.BytesIO()
        np.savez(file, w=np.array([evil], object))
        data = file.getvalue()
    elif where == 'legacy':
        old = (TORCH / 'tensors.legacy.pth').read_bytes()
        at = old.index(b'}q\x00', 60)
        data = old[:at - 2] + data + old[at:]
    if where == 'zip':
        _rezipped(source, {'data.pkl': lambda _: data})
    else:
        source.write_bytes(data)
    with pytest.raises(errors.UsageError, match='which is not part of an array'):
        formats.read(str(source))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['weights']


def test_safetensors_npz_and_h5(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / 'a')
    np.savez(tmp_path / 'b.npz', **ARRAYS)
    np.savez_compressed(tmp_path / 'c.npz', **ARRAYS)
    for name, kind in (('a', 'safetensors'), ('b.npz', 'numpy'), ('c.npz', 'numpy')):
        found = formats.read(str(tmp_path / name))
        assert found.format == kind
        _equal(dict(sorted(found.arrays.items())), dict(sorted(ARRAYS.items())))
    with h5py.File(tmp_path / 'd.h5', 'w') as file:
        file['model_weights/conv1/kernel:0'] = ARRAYS['a.weight']
        file['optimizer_weights/conv1/kernel:0'] = ARRAYS['a.weight']
        file['model_weights/elsewhere'] = h5py.ExternalLink('other.h5', '/')
    found = formats.read(str(tmp_path / 'd.h5'))
    assert found.format == 'keras_h5'
    _equal(found.arrays, {'conv1/kernel:0': ARRAYS['a.weight']})


def _h5(path, **options):
    with h5py.File(path, 'w') as file:
        file.create_dataset('conv1/kernel:0', (1000, 1000), 'f4', **options)


def _zip(path, name='w.npy', data=b'', compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr(name, data)


def _npy(header: str) -> bytes:
    return b'\x93NUMPY\1\0' + len(header).to_bytes(2, 'little') + header.encode()


FOUR = _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }") + bytes(4)


@pytest.mark.parametrize(('make', 'message'), [
    (lambda path: _h5(path), 'larger than the file'),
    (lambda path: _h5(path, compression='gzip'), 'compressed.*h5repack -f NONE'),
    (lambda path: _h5(path, external=[('other', 0, 4_000_000)]), 'in another file'),
    (lambda path: path.write_bytes(b'\x89HDF\r\n\x1a\n' + bytes(90)), 'damaged, download it again'),
    (lambda path: _zip(path, data=FOUR, compression=zipfile.ZIP_BZIP2), 'that numpy never uses'),
    (lambda path: _zip(path, data=FOUR + bytes(10**6), compression=zipfile.ZIP_DEFLATED), '16 times'),
    (lambda path: _zip(path, data=FOUR[:-1]), 'the file is shorter'),
    (lambda path: _zip(path, 'data.pkl', b'N.', zipfile.ZIP_DEFLATED), 'PyTorch never writes'),
    (lambda path: _zip(path, 'other'), 'not a file of torch.save'),
    (lambda path: path.write_bytes(FOUR.replace(b'(1,)', b'(-1,)')), 'not an array|damaged'),
    (lambda path: path.write_bytes(FOUR.replace(b'<f4', b'<U1')), 'not an array of numbers'),
    (lambda path: path.write_bytes(FOUR), 'no dictionary of arrays'),
    (lambda path: path.write_bytes(b'\x93NUMPY\3\0' + FOUR[8:]), 'npy of version 3'),
    (lambda path: path.write_bytes(b'\x40' + bytes(7) + b'{"a": 1' + bytes(60)), 'Safetensor'),
    (lambda path: path.write_bytes(b''), 'empty'),
    (lambda path: os.mkfifo(path), 'not a file'),
    (lambda path: path.mkdir(), 'a folder with 0 checkpoints'),
    (lambda path: None, 'no such file'),
])
def test_other_files_that_are_refused(make, message, tmp_path):
    make(tmp_path / 'weights')
    with pytest.raises(errors.UsageError, match=f'(?s)--source={tmp_path}/weights: .*({message})'):
        formats.read(str(tmp_path / 'weights'))


def test_a_checkpoint_of_tensorflow_1(tmp_path):
    arrays = weight_files.thin(filters=1)[:2]
    source = weight_files.tf1_checkpoint(tmp_path / 'model', arrays)
    found = formats.read(source)
    assert found.format == 'tf1' and formats.read(str(tmp_path)).arrays.keys() == found.arrays.keys()
    np.testing.assert_array_equal(found.arrays['var_name/bc1'], arrays[0][2])
    index, data = tmp_path / 'model.index', next(tmp_path.glob('model.data*'))
    data.write_bytes(b'')
    with pytest.raises(errors.UsageError, match='larger than the files'):
        formats.read(source)
    index.write_bytes(index.read_bytes()[:50])
    with pytest.raises(errors.UsageError, match='--source='):
        formats.read(source)


def _npy_bytes(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


MEANS = {
    'v1.0': (weight_files.blob_v1_0(MEAN), MEAN),
    'v1.0 of one frame': (weight_files.blob_v1_0(MEAN[:, :1]), MEAN[:, :1]),
    'v1.1': (weight_files.blob_v1_1(MEAN[None, :, 0]), MEAN[:, 0]),
    'v1.1 of four sizes': (b''.join(
        weight_files.field(i, n) for i, n in enumerate((1, 3, 4, 5), 1)) + weight_files.field(
            5, MEAN[:, 0].tobytes()), MEAN[:, 0]),
    'npy': (_npy_bytes(MEAN.astype(np.float64)), MEAN),
    'npy, columns first': (_npy_bytes(np.asfortranarray(MEAN)), MEAN),
    'npy, whole numbers': (_npy_bytes(np.uint8([104, 117, 128])), np.float32([104, 117, 128])),
}


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('name', MEANS)
def test_means(name, packed, tmp_path):
    data, expected = MEANS[name]
    (tmp_path / 'mean').write_bytes(bz2.compress(data) if packed else data)
    np.testing.assert_array_equal(formats.read_mean(str(tmp_path / 'mean')), expected, strict=True)


@pytest.mark.parametrize(('data', 'message'), [
    (b'', 'neither v1.0 nor v1.1'),
    (weight_files.blob_v1_0(np.stack([MEAN, MEAN])), '2 means in one file'),
    (weight_files.blob_v1_0(MEAN)[:-1], 'ends 1 bytes after'),
    (bz2.compress(_npy_bytes(MEAN))[:-50], 'shorter|EOF|breaks|neither'),
    (bz2.compress(bytes(100 << 20)), 'more than 64 MB.*weights go to --source'),
    (_npy_bytes(np.array(['x'])), 'not an array of numbers'),
    (pickle.dumps(MEAN), 'no field of Caffe|neither|ends|breaks'),
])
def test_means_that_are_refused(data, message, tmp_path):
    (tmp_path / 'mean').write_bytes(data)
    with pytest.raises(errors.UsageError, match=f'--mean={tmp_path}/mean: .*({message})'):
        formats.read_mean(str(tmp_path / 'mean'))


def test_a_pipe_is_no_mean(tmp_path):
    os.mkfifo(tmp_path / 'mean')
    with pytest.raises(errors.UsageError, match='not a file'):
        formats.read_mean(str(tmp_path / 'mean'))


def test_the_means_of_the_original(shared, monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(shared / 'golden'), *sys.path])
    import weights_recipe
    mean = formats.read_mean(str(shared / 'golden/golden_mean_128x171.binaryproto'))
    np.testing.assert_array_equal(mean, weights_recipe.make_mean(), strict=True)
    mean = formats.read_mean(str(shared / 'data/mean/i380k_fb_train16_128_mean.binaryproto'))
    assert mean.shape == (3, 16, 128, 128) and 80 < mean.min() < mean.max() < 140
    mean = formats.read_mean(str(shared / 'data/mean/ucf101_train01_16_128_171_mean.npy.bz2'))
    assert mean.shape == (3, 16, 128, 171) and mean.dtype == np.float32
    assert np.round(mean.mean(axis=(1, 2, 3))).tolist() == [90, 98, 101]  # BGR, c3d.md 4.4
