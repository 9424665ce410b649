# SPDX-License-Identifier: Apache-2.0
"""Caffe's binary files, without Caffe and without protobuf: models and mean images.

Two messages share the name BlobProto. In C3D v1.0 the fields are num, channels, length, height, width,
data, diff; in BVLC's Caffe and C3D v1.1 they are num, channels, height, width, data, diff, shape. A file
of one parses as the other without an error, with the weights taken for gradients. They differ in field
5: a number (the width) in v1.0, a run of floats (the data) in v1.1; where that does not decide, nothing
is read. Source: caffe.proto of C3D-v1.0 and C3D-v1.1, and protobuf's description of its encoding.
"""

import math
import mmap

import numpy as np

V1_0, V1_1 = 'caffe_v1.0', 'caffe_v1.1'

_NUMBER, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4 are groups, which Caffe never had
_MAX_FIELDS = 200_000  # a whole model has some hundreds; runs of floats count as one
_MAX_BLOBS = 100_000  # no network has so many; a few bytes each would become gigabytes of Python objects
_MAX_NAME = 1024  # bytes; a name is repeated for every blob below it
_MAX_AXES = 32  # Caffe's own limit
_CUT_OFF = 'is it cut off? Download it again'
_WRONG_FILE = ('a .caffemodel is expected; means (.binaryproto) go to --mean, a .solverstate holds '
               'momentum and no weights, a .prototxt only names the layers')


class Broken(ValueError):
    """The file is no model or mean, is damaged, or cannot be told to be of one version for certain."""


def read_model(path: str) -> tuple[str, dict[str, np.ndarray]]:
    """Reads the weights of a NetParameter. The file is mapped: bytes are read when they are used.

    Args:
      path: the file.

    Returns:
      'caffe_v1.0' or 'caffe_v1.1' (BVLC's older `layers` among it), and float32 blobs by
      '<layer>/<number>' in the order of the file, views of it. Axes of v1.0 are always (num, channels,
      length, height, width).

    Raises:
      Broken: no model, damaged, or of neither version for certain.
      OSError: it cannot be read.
    """
    with open(path, 'rb') as file:
        if not file.read(1):
            raise Broken('the file is empty; download it again')
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    wire, arrays, versions, names = _Wire(buffer), {}, set(), set()
    for number, kind, value in wire.fields(0, len(buffer)):
        if number == 1 and kind != _BYTES:
            raise Broken(f'field 1 is no name; {_WRONG_FILE}')
        if number not in (2, 100):
            continue
        name, blobs = _layer(wire, number, kind, value)
        if not blobs:
            continue
        if name in names:
            raise Broken(f'two layers are named {name!r}')
        names.add(name)
        if len(arrays) + len(blobs) > _MAX_BLOBS:
            raise Broken(f'more than {_MAX_BLOBS} blobs')
        for i, (version, array) in enumerate(blobs):
            versions.add(version)
            arrays[f'{name}/{i}'] = array
        if len(versions) > 1 or (number == 100 and V1_0 in versions):
            raise Broken(f'{name} mixes the blobs of v1.0 and v1.1; no telling which is meant')
    if not arrays:
        raise Broken(f'no layer holds weights; {_WRONG_FILE}')
    return versions.pop(), arrays


def read_blob(data: bytes) -> np.ndarray:
    """Reads a BlobProto that is a whole file, as a mean (.binaryproto) is.

    Returns:
      float32 [C, T, H, W] of v1.0, [C, H, W] of v1.1.

    Raises:
      Broken: no mean of one image or clip, damaged, or of neither version for certain.
    """
    version, array = _blob(_Wire(data), 0, len(data), 'the mean')
    if array.ndim > 3:
        if array.shape[0] != 1:
            raise Broken(f'{array.shape[0]} means in one file; one is expected')
        array = array[0]
    if version == V1_1 and array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    return array


def _layer(wire, number, kind, value) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """Returns the layer's name and its blobs with their versions."""
    if kind != _BYTES:
        raise Broken(f'field {number} is no layer; {_WRONG_FILE}')
    name_field, blobs_field = (4, 6) if number == 2 else (1, 7)
    name, spans = None, []
    for field, inner, span in wire.fields(*value):
        if number == 2 and field == 1:
            raise Broken('a network from before 2014 (V0 layers): let upgrade_net_proto_binary of Caffe '
                         'convert it')
        if field in (name_field, blobs_field) and inner != _BYTES:
            raise Broken(f'field {field} of a layer is a number instead of a message')
        if field == blobs_field:
            spans.append(span)
        elif field == name_field:
            if name is not None or span[1] - span[0] > _MAX_NAME:
                raise Broken(f'a layer with two names, or one beyond {_MAX_NAME} bytes')
            try:
                name = bytes(wire.buffer[span[0]:span[1]]).decode()
            except UnicodeDecodeError as error:
                raise Broken('the name of a layer is no text') from error
    if spans and not name:
        raise Broken('a layer with weights has no name')
    return name or '', [_blob(wire, *span, f'{name}/{i}') for i, span in enumerate(spans)]


def _blob(wire, start, end, what) -> tuple[str, np.ndarray]:
    """Returns the version and the array of one BlobProto; `what` is it in messages."""
    fields = {}
    for number, kind, value in wire.fields(start, end):
        fields.setdefault(number, []).append((kind, value))
    kinds = {kind for kind, _ in fields.get(5, ())}
    doubles = 8 in fields or 9 in fields
    if kinds == {_NUMBER} and not doubles:
        return V1_0, _blob_v1_0(wire, fields, what)
    if kinds <= {_BYTES, _FIXED32} and (kinds or doubles):
        return V1_1, _blob_v1_1(wire, fields, what)
    raise Broken(f'{what} is a blob of neither v1.0 nor v1.1 of Caffe; {_WRONG_FILE}')


def _blob_v1_0(wire, fields, what):
    sizes = [_size(fields, number, what) for number in range(1, 6)]
    sizes[2] = sizes[2] or 1  # files from before there was a length: Blob::FromProto of blob.cpp
    _floats(wire, fields, 7, what)  # the diff: not used, but if it is none then this is no blob
    return _shaped(_floats(wire, fields, 6, what), sizes, what)


def _blob_v1_1(wire, fields, what):
    legacy = any(number in fields for number in range(1, 5))
    if legacy == (7 in fields):
        raise Broken(f'{what} has two shapes or none')
    if legacy:
        sizes = [_size(fields, number, what) for number in range(1, 5)]
    else:
        if len(fields[7]) > 1 or fields[7][0][0] != _BYTES:
            raise Broken(f'{what} has two shapes, or one that is a number')
        sizes = _dims(wire, *fields[7][0][1], what)
    _floats(wire, fields, 6, what)
    _floats(wire, fields, 9, what, _FIXED64)
    values, doubles = _floats(wire, fields, 5, what), _floats(wire, fields, 8, what, _FIXED64)
    if len(values) and len(doubles):
        raise Broken(f'{what} has floats and doubles')
    return _shaped(doubles if len(doubles) else values, sizes, what)


def _shaped(values, sizes, what):
    if math.prod(sizes) != len(values) or not len(values):
        shape = 'x'.join(map(str, sizes)) or 'a number'
        raise Broken(f'{what} should hold {shape} values and holds {len(values)}; {_CUT_OFF}')
    with np.errstate(over='ignore'):  # doubles may become infinite: the importer refuses that
        return values.astype(np.float32, copy=False).reshape(sizes)


def _size(fields, number, what) -> int:
    """Returns the axis's length, 0 where it is absent."""
    found = fields.get(number, [(_NUMBER, 0)])
    if len(found) > 1 or found[0][0] != _NUMBER or found[0][1] >= 2**31:
        raise Broken(f'{what}: axis {number - 1} is no length')
    return found[0][1]


def _dims(wire, start, end, what) -> list[int]:
    """Returns the axes of a BlobShape, packed or one by one."""
    sizes = []
    for number, kind, value in wire.fields(start, end):
        if number == 1 and kind == _NUMBER:
            sizes.append(value)
        elif number == 1 and kind == _BYTES:
            at, stop = value
            while at < stop and len(sizes) <= _MAX_AXES:
                size, at = wire.varint(at, stop)
                sizes.append(size)
        else:
            raise Broken(f'{what} has a shape that is none')
        if len(sizes) > _MAX_AXES or max(sizes, default=0) >= 2**31:
            raise Broken(f'{what} has a shape that cannot be')
    return sizes


def _floats(wire, fields, number, what, kind=_FIXED32) -> np.ndarray:
    """Returns the values of a repeated float or double field, packed or one by one."""
    size = 8 if kind == _FIXED64 else 4
    dtype, pieces = np.dtype(f'<f{size}'), []
    for found, value in fields.get(number, ()):
        if found == kind:  # a run of tags and values
            start, count = value
            pieces.append(np.ndarray((count,), dtype, wire.buffer, start, (size + 1,)))
        elif found == _BYTES and (value[1] - value[0]) % size == 0:
            pieces.append(np.ndarray(((value[1] - value[0]) // size,), dtype, wire.buffer, value[0]))
        else:
            raise Broken(f'{what}: field {number} holds no floats; {_CUT_OFF}')
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype)


class _Wire:
    """Protobuf's wire format over a buffer; counts what it reads, so that no file takes for ever."""

    def __init__(self, buffer):
        self.buffer, self._left = buffer, _MAX_FIELDS

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """Returns the number at a place, and the place after it."""
        value = shift = 0
        while at < end and shift < 70:
            byte = self.buffer[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
            shift += 7
        raise Broken(f'a number breaks off at byte {at}; {_CUT_OFF}')

    def fields(self, at: int, end: int):
        """Yields (field number, wire type, value) of the message in these bytes.

        The value is the number of wire type 0; (start, end) of type 2; and (start, count) of types 1 and
        5, where a field repeated side by side comes as one run, a tag of one byte between any two.
        """
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise Broken(f'more than {_MAX_FIELDS} fields; {_WRONG_FILE}')
            tag, start = self.varint(at, end)
            number, kind = tag >> 3, tag & 7
            if not 0 < number < 2**29 or kind not in (_NUMBER, _FIXED64, _BYTES, _FIXED32):
                raise Broken(f'byte {at} begins no field of Caffe; {_WRONG_FILE}')
            if kind == _NUMBER:
                value, at = self.varint(start, end)
            elif kind == _BYTES:
                length, start = self.varint(start, end)
                at = start + length
                value = start, at
            else:
                size = 4 if kind == _FIXED32 else 8
                count = self._run(at, end, tag, size + 1) if start == at + 1 else 1
                at = start + count * (size + 1) - 1
                value = start, count
            if at > end:
                raise Broken(f'field {number} ends {at - end} bytes after what holds it; {_CUT_OFF}')
            yield number, kind, value

    def _run(self, at, end, tag, step) -> int:
        """Returns how often the tag at a place is repeated, every `step` bytes; at least once."""
        most, count, some = (end - at) // step, 0, 8
        while count < most:  # in ever larger pieces: a million short runs must not cost 65536 each
            some = min(most - count, 2 * some, 1 << 16)
            tags = np.ndarray((some,), np.uint8, self.buffer, at + count * step, (step,))
            others = np.flatnonzero(tags != tag)
            if len(others):
                return max(1, count + int(others[0]))
            count += some
        return max(1, count)
