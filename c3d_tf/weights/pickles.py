# SPDX-License-Identifier: Apache-2.0
"""Reads pickles of arrays without executing them.

Python's own unpickler calls whatever a file names. This one knows a table of names, whose values build
plain records; opcodes that could do more are gone, and its steps are counted. What a file says once it
can refer to a million times, so that a reference must cost nothing.
"""

import dataclasses
import math
import pickle
from typing import BinaryIO

import numpy as np


class Refused(ValueError):
    """The pickle asks for something that is not an array, or is damaged."""


@dataclasses.dataclass(eq=False)
class Storage:
    """A flat run of numbers that PyTorch keeps outside the pickle."""

    dtype: str
    key: str


@dataclasses.dataclass(eq=False)
class Tensor:
    """A PyTorch tensor: a part of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# PyTorch's storage classes; a bfloat16 is read as two bytes and widened.
DTYPES = {'Float': '<f4', 'Double': '<f8', 'Half': '<f2', 'BFloat16': '<u2', 'Long': '<i8', 'Int': '<i4',
          'Short': '<i2', 'Char': 'i1', 'Byte': 'u1', 'Bool': 'u1'}


@dataclasses.dataclass(eq=False)
class _Dtype:
    code: str
    order: str = '='

    def numpy(self) -> np.dtype:
        if not isinstance(self.code, str) or self.code not in (
                'f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'b1'):
            raise Refused('an array of something other than numbers')
        return np.dtype(('>' if self.order == '>' else '<') + self.code)


@dataclasses.dataclass(eq=False)
class NumpyArray:
    """A numpy array while it is read: numpy makes it empty and fills it later."""

    value: np.ndarray | None = None

    def fill(self, shape, dtype, fortran, data):
        if not isinstance(dtype, _Dtype) or not are_sizes(shape):
            raise Refused('an array without a shape or type')
        if dtype.code in ('O', 'O8') and isinstance(data, list) and len(data) == 1:
            self.value = data[0]  # numpy saves a dictionary as an array of one object
            return self
        flat = np.frombuffer(data, dtype.numpy()) if data else np.zeros(0, dtype.numpy())
        if math.prod(shape) != flat.size:
            raise Refused(f'an array of {shape} with {flat.size} numbers')
        self.value = flat.reshape(shape, order='F' if fortran else 'C')
        return self


def are_sizes(value) -> bool:
    """Returns whether it is a tuple of sizes to multiply: a file may hold a million digits."""
    return isinstance(value, tuple) and len(value) < 64 and all(
        type(n) is int and 0 <= n < 2**40 for n in value)


def _tensor(storage, offset, shape, strides, *_) -> Tensor:
    if not isinstance(storage, Storage) or not all(map(are_sizes, ((offset,), shape, strides))):
        raise Refused('a tensor without a storage or of an impossible shape')
    return Tensor(storage, offset, shape, strides)


def _key(key):
    # Tuples in tuples may take for ever to hash, and a name is repeated for every array below it.
    simple = type(key) in (int, float, bool, type(None))
    if not simple and not (isinstance(key, (str, bytes)) and len(key) <= _MAX_NAME):
        raise Refused('a dictionary with odd keys')
    return key


# What a pickle may name → what is called in its place.
_TABLE = {
    'collections.OrderedDict': lambda pairs=(): {_key(key): value for key, value in pairs},
    '_codecs.encode': None,  # see find_class
    'numpy.ndarray': 'ndarray',
    'numpy.dtype': lambda code, *_: _Dtype(code),
    'numpy.core.multiarray._reconstruct': lambda *_: NumpyArray(),
    'numpy.core.multiarray.scalar': lambda dtype, data: NumpyArray().fill((), dtype, False, data),
    'numpy.core.numeric._frombuffer': lambda data, dtype, shape, order: NumpyArray().fill(
        shape, dtype, order == 'F', data),
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_parameter': lambda data, *_: data,
    'torch.Size': lambda shape=(): shape,
    **{f'torch.{name}Storage': name for name in DTYPES},
}
# Where a checkpoint keeps the weights, beside an optimiser's state and more.
_WEIGHTS = ('state_dict', 'model_state_dict', 'model_state', 'model', 'net', 'network', 'params')
_STEPS = 1_000_000  # a network of a thousand layers with its optimiser's state takes some 200,000
_MAX_NAME, _MAX_ARRAYS, _DEEPEST = 1024, 100_000, 8
# Opcodes that make objects of classes, that hash what a file likes for as long as it likes, or look up.
_GONE = (pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4,
         pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
         pickle.DICT)


class _Counted(dict):
    """The table of opcodes; it counts what it is asked for, so that no file takes for ever."""

    _left = _STEPS

    def __getitem__(self, code):
        self.spend(1)
        return super().__getitem__(code)

    def spend(self, steps):
        self._left -= steps
        if self._left < 0:
            raise Refused(f'more than {_STEPS} steps; weights are arrays, not lists of numbers')


class _Unpickler(pickle._Unpickler):
    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items()
                if bytes([code]) not in _GONE}

    def __init__(self, file):
        super().__init__(file, encoding='latin1')
        self.dispatch = _Counted(self.dispatch)
        self._encoded = {}

    def find_class(self, module, name):
        name = f'{module}.{name}'.replace('numpy._core.', 'numpy.core.')  # since numpy 2
        if name not in _TABLE:
            raise Refused(f'it asks for {name[:80]!r}, which is not part of an array; '
                          'a whole model is code: save its state_dict() instead')
        return _TABLE[name] or self._latin1

    def _latin1(self, text, encoding) -> bytes:
        if not isinstance(text, str) or encoding != 'latin1':
            raise Refused('an encoding other than latin1')
        if id(text) not in self._encoded:
            self._encoded[id(text)] = text, text.encode('latin1')  # kept, so that its id stays taken
        return self._encoded[id(text)][1]

    def persistent_load(self, pid):
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[5:] in ((), (None,))
                and pid[0] == 'storage' and type(pid[1]) is type(pid[2]) is str and pid[1] in DTYPES):
            raise Refused('something other than a storage, or a view of one as before PyTorch 0.4')
        return Storage(pid[1], pid[2])

    def load_reduce(self):
        args = self.stack.pop()
        self.dispatch.spend(len(args))
        self.dispatch.spend(sum(len(one) for one in args if isinstance(one, (list, tuple, dict))))
        self.stack[-1] = self.stack[-1](*args)

    def load_build(self):
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, NumpyArray) and isinstance(state, tuple) and len(state) == 5:
            target.fill(*state[1:])
        elif isinstance(target, _Dtype) and isinstance(state, tuple) and len(state) > 1:
            target.order = state[1]
        elif not isinstance(target, dict):  # whose attributes, as PyTorch's _metadata, are left out
            raise Refused('it changes something other than an array')

    def load_setitem(self):
        self._put([self.stack.pop(-2), self.stack.pop()])

    def load_setitems(self):
        self._put(self.pop_mark())

    def _put(self, items):
        if not isinstance(self.stack[-1], dict):
            raise Refused('it changes something other than a dictionary')
        self.stack[-1].update((_key(key), value) for key, value in zip(items[::2], items[1::2]))

    # Python sets memory aside for as long a byte array as a file claims.
    dispatch |= {pickle.BYTEARRAY8[0]: pickle._Unpickler.load_binbytes8,
                 pickle.REDUCE[0]: load_reduce, pickle.BUILD[0]: load_build,
                 pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}


def load(file: BinaryIO):
    """Returns the next object of the file: dicts, lists, tuples, numbers, text, Tensor and NumpyArray.

    Raises:
      Refused: it holds anything else, or is damaged.
    """
    try:
        return _Unpickler(file).load()
    except Refused:
        raise
    except Exception as error:  # damaged bytes raise a dozen kinds
        raise Refused(f'a damaged pickle, download it again ({type(error).__name__})') from error


def tensors(tree) -> dict[str, Tensor | np.ndarray]:
    """Returns the arrays of the dictionary that holds the weights, joined with '/' where it is nested.

    A checkpoint's weights may lie beside an optimiser's state: 'state_dict', 'model' and their like win.

    Raises:
      Refused: there are no arrays, or they lie in several places.
    """
    known = {}
    for _ in range(_DEEPEST):
        if not isinstance(tree, dict):
            raise Refused('no dictionary of arrays in it')
        inner = {key: value for key, value in tree.items()
                 if isinstance(value, dict) and _holds_any(value, known)}
        own = [name for name in _WEIGHTS if name in inner]
        if not own and (found := _flat(tree)):
            return found
        if not own and len(inner) != 1:
            names = [str(key)[:30] for key in list(inner)[:5]]
            raise Refused(f'arrays in several places, {names}' if inner else 'no arrays in it')
        tree = inner[own[0]] if own else next(iter(inner.values()))
    raise Refused('dictionaries too deep in one another')


def _flat(tree: dict) -> dict:
    """Returns {name: array} where values are arrays, pairs of arrays, or dictionaries of arrays."""
    found = {}
    for key, value in tree.items():
        items = [(key, value)]
        if isinstance(value, (list, tuple)):
            items = [(f'{key}/{i}', one) for i, one in enumerate(value[:16])]
        elif isinstance(value, dict) and len(value) <= 4:  # the weight and bias of a layer
            items = [(f'{key}/{name}', one) for name, one in value.items()]
        for name, one in items:
            one = one.value if isinstance(one, NumpyArray) else one
            if isinstance(one, (Tensor, np.ndarray)):
                found[str(name)] = one
        if len(found) > _MAX_ARRAYS:
            raise Refused(f'more than {_MAX_ARRAYS} arrays')
    return found


def _holds_any(value, known: dict[int, bool], depth: int = _DEEPEST) -> bool:
    """Returns whether it is an array or a dictionary of one; `known` has the answers so far, by id."""
    if not isinstance(value, dict):
        return isinstance(value, (Tensor, NumpyArray))
    if id(value) not in known:
        known[id(value)] = False  # for now: it may hold itself
        known[id(value)] = depth > 0 and any(_holds_any(one, known, depth - 1) for one in value.values())
    return known[id(value)]
