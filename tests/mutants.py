# SPDX-License-Identifier: Apache-2.0
"""Makes damaged weight files for the tests of the importer, out of whole ones.

A seed is taken apart (fields of a message, opcodes of a pickle, members of a zip), changed, and put
together again with right lengths and sums, so that mutants come to a parser's inner parts.
"""

import bz2
import io
import pickle
import pickletools
import struct
import zipfile

import numpy as np

from c3d_tf.weights import pickles
from tests import byte_mutants
from tests import caffe_test
from tests import formats_test
from tests import weight_files

# Messages of protobuf: lists of [field, wire type, content], the content of a message being such a list.

_MESSAGES = {'net': {2: 'v1.0', 100: 'v1.1'}, 'v1.0': {6: 'blob'}, 'v1.1': {7: 'blob'},
             'blob': {7: 'shape'}, 'shape': {}}


def _varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def _parse(data: bytes, kind: str) -> list:
    found, at = [], 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value, at = data[at:at + size], at + size
            inner = _MESSAGES[kind].get(tag >> 3)
            if wire == 2 and inner and not (inner == 'shape' and len(value) > 20):  # v1.0's gradients
                value = _parse(value, inner)
        found.append([tag >> 3, wire, value])
    return found


def _write(fields: list) -> bytes:
    out = b''
    for number, wire, value in fields:
        out += weight_files.varint(number << 3 | wire)
        if isinstance(value, int):
            out += weight_files.varint(value)
        else:
            value = _write(value) if isinstance(value, list) else value
            out += (weight_files.varint(len(value)) if wire == 2 else b'') + value
    return out


def _copied(fields):
    return [[n, w, _copied(v) if isinstance(v, list) else v] for n, w, v in fields]


def _lists(fields):
    found = [fields]
    for _, _, value in fields:
        if isinstance(value, list):
            found += _lists(value)
    return found


def _message(rng, seed: list, other: list) -> bytes:
    tree = _copied(seed)
    for _ in range(rng.choice((1, 1, 2, 3))):
        fields = rng.choice([one for one in _lists(tree) if one] or [[[1, 0, 1]]])
        at = rng.randrange(len(fields))
        number, wire, value = fields[at]
        kind = rng.randrange(9)
        if kind == 0:
            fields[at][0] = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, 100, 2**29 - 1, 2**29))
        elif kind == 1:
            fields[at][1] = rng.randrange(8)
        elif kind == 2:
            fields.pop(at)
        elif kind == 3:
            fields.insert(rng.randrange(len(fields) + 1), *_copied([fields[at]]))
        elif kind == 4:
            fields[at:at + 1] = _copied([rng.choice(rng.choice([one for one in _lists(other) if one]))])
        elif kind == 5:
            fields.insert(at, [rng.randrange(1, 10), 0, rng.choice(byte_mutants.NUMBERS)])
        elif isinstance(value, int):
            fields[at][2] = rng.choice((*byte_mutants.NUMBERS, value + 1, max(value - 1, 0)))
        elif isinstance(value, bytes) and value:
            fields[at][2] = (byte_mutants.damaged(rng, value, value) if kind < 8
                             else value[:rng.randrange(len(value))])
    return _write(tree)


# Pickles: lists of opcodes with their arguments.

_OPCODES = [bytes([code]) for code in pickles._Unpickler.dispatch]
_GADGETS = (
    b'0', b'1', b'2', b'(', b't', b')', b'\x85', b'\x86', b'R', b'b', b's', b'u', b'}', b']', b'e', b'a',
    b'Q', b'K\0', b'K\1', b'K\xff', b'M\xff\xff', b'J\xff\xff\xff\xff', b'N', b'\x88', b'h\0', b'h\1',
    b'q\0', b'\x94', b'\x8a\x06' + bytes(5) + b'\1', b'\x8b\xff\xff\xff\x7f',
    b'\x8e' + b'\xff' * 7 + b'\0', b'X\xff\xff\xff\x7f', b'G\x7f\xf8' + bytes(6),
    b'cposix\nsystem\n', b'ccollections\nOrderedDict\n',
    b'c_codecs\nencode\n', b'cnumpy\ndtype\n', b'ctorch\nHalfStorage\n',
    b'ctorch._utils\n_rebuild_tensor_v2\n')


def _opcodes(data: bytes) -> list[bytes]:
    places = [at for _, _, at in pickletools.genops(data)] + [len(data)]
    return [data[a:b] for a, b in zip(places, places[1:])]


def _pickle(rng, seed: list, other: list) -> bytes:
    codes = list(seed)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, kind = rng.randrange(2, len(codes)), rng.randrange(7)
        if kind == 0 and len(codes) > 4:
            codes.pop(at)
        elif kind == 1:
            codes.insert(at, rng.choice(_GADGETS))
        elif kind == 2:
            codes[at] = rng.choice(_GADGETS)
        elif kind == 3:
            codes[at] = rng.choice(_OPCODES) + codes[at][1:]
        elif kind == 4:
            start = rng.randrange(len(other))
            codes[at:at + 3] = other[start:start + rng.randrange(1, 8)]
        elif kind == 5 and len(codes[at]) > 1:
            codes[at] = codes[at][:1] + byte_mutants.damaged(rng, codes[at][1:], b'\0\1\xff')
        else:
            codes[at:at] = codes[max(0, at - rng.randrange(1, 12)):at] * rng.choice((1, 1, 5, 50))
    return b''.join(codes)


# One function a parser: its seeds, and a function of a generator that makes a mutant.


def caffe_models():
    seeds = [data for data, _, _ in caffe_test.LAYOUTS.values()]
    blobs = weight_files.blob_v1_0(caffe_test.MATRIX), weight_files.blob_v1_0(np.ones(3))
    seeds.append(caffe_test.model_v1_0(*blobs))
    trees = [_parse(seed, 'net') for seed in seeds]
    assert all(_write(tree) == seed for tree, seed in zip(trees, seeds))

    def mutant(rng):
        at, other = rng.randrange(len(seeds)), rng.randrange(len(seeds))
        data = _message(rng, trees[at], trees[other])
        if rng.random() < 0.4:
            data = byte_mutants.damaged(rng, rng.choice((data, seeds[at])), seeds[other])
        return data
    return seeds, mutant


def torch_zips():
    seeds = [(formats_test.TORCH / name).read_bytes() for name in ('tensors.zip.pth', 'checkpoint.pth')]
    members, codes = [], []
    for seed in seeds:
        with zipfile.ZipFile(io.BytesIO(seed)) as archive:
            members.append({name: archive.read(name) for name in archive.namelist()})
        codes.append(next(_opcodes(data) for name, data in members[-1].items() if 'data.pkl' in name))

    def mutant(rng):
        at = rng.randrange(2)
        if rng.random() < 0.3:
            return byte_mutants.damaged(rng, seeds[at], seeds[1 - at])
        file = io.BytesIO()
        with zipfile.ZipFile(file, 'w', rng.choice((0, 0, 0, 0, 8))) as archive:
            for name, data in members[at].items():
                if name.endswith('data.pkl'):
                    data = _pickle(rng, codes[at], codes[rng.randrange(2)])
                elif rng.random() < 0.1:
                    data = byte_mutants.damaged(rng, data, data) if data else b'x'
                archive.writestr(zipfile.ZipInfo(name), data)
        data = file.getvalue()
        if rng.random() < 0.1:  # the directory's sizes and places
            at = data.rindex(b'PK\1\2') + rng.choice((10, 20, 24, 28, 42))
            number = rng.choice(byte_mutants.NUMBERS) % 2**32
            data = data[:at] + struct.pack('<I', number) + data[at + 4:]
        return data
    return seeds, mutant


def pickle_files():
    """The older kind of PyTorch, and pickled dictionaries."""
    seeds = [(formats_test.TORCH / 'tensors.legacy.pth').read_bytes()]
    seeds += [pickle.dumps({'state_dict': formats_test.ARRAYS | {'x': [np.float64(3), 1]}}, protocol)
              for protocol in (2, 4, 5)]
    split, file = [], io.BytesIO(seeds[0])
    for _ in range(5):
        start = file.tell()
        pickles.load(file)
        split.append(seeds[0][start:file.tell()])
    tail = seeds[0][file.tell():]
    codes = [_opcodes(split[3])] + [_opcodes(seed) for seed in seeds[1:]]

    def mutant(rng):
        at, other = rng.choice((0, 0, 0, 1, 2, 3)), rng.randrange(4)
        if rng.random() < 0.3:
            return byte_mutants.damaged(rng, seeds[at], seeds[other])
        data = _pickle(rng, codes[at], codes[other])
        if at:
            return data
        keys = _pickle(rng, _opcodes(split[4]), codes[0]) if rng.random() < 0.2 else split[4]
        end = byte_mutants.damaged(rng, tail, tail) if rng.random() < 0.3 else tail
        return b''.join(split[:3]) + (split[3] if rng.random() < 0.2 else data) + keys + end
    return seeds, mutant


def means():
    seeds = [data for data, _ in formats_test.MEANS.values()]
    small = [seed for seed in seeds if not seed.startswith(b'\x93')]
    trees = [_parse(seed, 'blob') for seed in small]
    assert all(_write(tree) == seed for tree, seed in zip(trees, small))

    def mutant(rng):
        at, other = rng.randrange(len(trees)), rng.randrange(len(seeds))
        data = byte_mutants.damaged(rng, seeds[other], seeds[at])
        if rng.random() < 0.7:
            data = _message(rng, trees[at], rng.choice(trees))
        if rng.random() < 0.2:
            data = bz2.compress(data, 1)
            data = byte_mutants.damaged(rng, data, data) if rng.random() < 0.3 else data
        return data
    return [*seeds, *map(bz2.compress, seeds)], mutant
