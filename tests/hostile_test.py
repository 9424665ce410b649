# SPDX-License-Identifier: Apache-2.0
"""Small files made to take all time or memory, or to have code run."""

import pickle
import struct
import zipfile

import numpy as np
import pytest

from c3d_tf.common import errors
from c3d_tf.weights import formats
from tests import caffe_test
from tests import formats_test
from tests import fuzz_test
from tests import weight_files

limited = fuzz_test.limited


def _global(name: str) -> bytes:
    return b'c' + name.encode().replace(b'/', b'\n') + b'\n'


def _text(text: str) -> bytes:
    return b'X' + struct.pack('<I', len(text)) + text.encode()


_HALF = (b'ctorch._utils\n_rebuild_tensor_v2\n((' + _text('storage') + b'ctorch\nHalfStorage\n'
         + _text('0') + _text('cpu') + b'J\xa0\x86\1\0tQK\0J\xa0\x86\1\0\x85K\1\x85\x89NtR')  # 100,000
_ARRAY = pickle.dumps(np.zeros(2, np.float32), 2)[2:-1]


def _dictionary(values) -> bytes:
    return b'}(' + b''.join(_text(str(key)) + value for key, value in values) + b'u'


HOSTILE = {
    'the same text encoded again and again':
        b'](' + _text('x' * 1_000_000) + b'q\0' + _global('_codecs/encode') + b'q\1'
        + _text('latin1') + b'q\2' + b'h\1h\0h\2\x86R' * 20_000 + b'e',
    'a large dictionary in every value': _dictionary(
        [('a', _dictionary((i, b'N') for i in range(20_000)) + b'q\0'),
         *((f'b{i}', b'h\0') for i in range(20_000))]),
    'a long name below every key': _dictionary(
        [('a', b'}' + _text('y' * 1_000_000) + _ARRAY + b'sq\xff'),
         *((f'b{i}', b'h\xff') for i in range(20_000))]),
    'a million arrays': _dictionary(
        [('a', _dictionary((f'{i:900}', _ARRAY) for i in range(4)) + b'q\xff'),
         *((f'b{i}', b'h\xff') for i in range(100_000))]),
    'pairs that are read again and again':
        b'](](K\1K\1eq\0](' + b'h\0' * 5000 + b'eq\1' + _global('collections/OrderedDict') + b'q\2'
        + b'h\2h\1\x85R' * 50_000 + b'e',
    'arguments that are copied again and again':
        b']((' + b'N' * 100_000 + b'tq\0' + _global('numpy/dtype') + b'q\1'
        + b'h\1h\0R' * 100_000 + b'e',
    'text for arguments':
        b'](' + _text('x' * 1_000_000) + b'q\0' + _global('numpy/dtype') + b'q\1'
        + b'h\1h\0R' * 10_000 + b'e',
    'a kind of storage that is hard to hash': b'}' + _text('w') + b'(' + _text('storage') + b')' + (
        b'2\x86' * 60) + b'NNNtQs',
    'a key that is hard to hash': b'})' + b'2\x86' * 60 + b'K\1s',
    'lists in lists': b']' * 200_000 + b'a' * 199_999,
    'tuples in tuples': b')' + b'\x85' * 400_000,
    'a number of ten megabytes': b'}\x8b' + struct.pack('<i', 10_000_000) + b'\1' * 10_000_000 + b'K\1s',
    'claims': b'\x8e' + struct.pack('<Q', 5 << 30) + b'abc',
    'claims of a byte array': b'\x96' + struct.pack('<Q', 5 << 30) + b'abc',
    'a sum without end': b'](' + b'K\1' * 3_000_000 + b'e',
}


def _many_halves(path):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data.pkl', b'\x80\2' + _dictionary((i, _HALF) for i in range(4000)) + b'.')
        archive.writestr('a/data/0', bytes(200_000))


def _false_size(path):
    """A member that claims 5,000 bytes and unpacks to 200 MB."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('w.npy', bytes(200 << 20))
    data = bytearray(path.read_bytes())
    for at in (22, data.index(b'PK\1\2') + 24):
        data[at:at + 4] = struct.pack('<I', 5_000)
    path.write_bytes(data)


def _listed_often(path):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('w.npy', formats_test.FOUR + bytes(1_000_000))
    data = path.read_bytes()
    at, end = data.index(b'PK\1\2'), data.index(b'PK\5\6')
    path.write_bytes(data[:at] + data[at:end] * 5000 + b'PK\5\6' + struct.pack(
        '<4H2IH', 0, 0, 5000, 5000, (end - at) * 5000, at, 0))


def _short_runs(path):
    path.write_bytes(caffe_test.model_v1_0(weight_files.field(5, 1) + b'\x35abcd\x3dabcd' * 90_000))


@pytest.mark.parametrize('make', [*HOSTILE, _many_halves, _false_size, _listed_often, _short_runs])
def test_hostile_files(make, tmp_path, limited):
    path = tmp_path / 'weights'
    if isinstance(make, str):
        path.write_bytes(b'\x80\2' + HOSTILE[make] + b'.')
    else:
        make(path)
    before = fuzz_test.memory('VmRSS')
    limited(5)  # the steps that a pickle may take are a second of a slow machine
    with pytest.raises(errors.UsageError):
        formats.read(str(path))
    assert fuzz_test.memory('VmHWM') - before < 150
