# SPDX-License-Identifier: Apache-2.0
"""Descriptors on disk: a video's clips as they come, then one .npz, a group in an HDF5 file, or blobs.

While a video goes on, its clips lie in a work folder and not in memory; under its final name it is
complete or absent.
"""

import contextlib
import json
import os
import shutil
import zipfile

import h5py
import numpy as np

from c3d_tf.common import files
from c3d_tf.common import storage

FORMATS = ('npz', 'hdf5', 'caffe')
POOLS = ('mean', 'max', 'conv_pooling')
HDF5 = 'features.h5'
PARTS = 'parts'            # hdf5: the videos that are not in the file yet
MARKER = '.complete.json'  # caffe: the last file of a video's folder
_MADE_BY = 'c3d_tf features'
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
_CHUNK = 16 << 20


def store(output: str, layers: dict[str, str], settings: dict):
    """Returns the store of settings['format'].

    Args:
      output: the folder of the descriptors.
      layers: name in arrays → name in the original's file names.
      settings: what decides the numbers, 'pool' among it; a video with others counts as absent.
    """
    return {'npz': Npz, 'hdf5': Hdf5, 'caffe': Caffe}[settings['format']](output, layers, settings)


class Npz:
    """A file a video: `<output>/<video>.npz`."""

    def __init__(self, output: str, layers: dict[str, str], settings: dict):
        self._folder, self._layers, self._settings = output, layers, settings

    def find(self, name: str) -> int | None:
        """Returns the clips of a video that is there and opens, or None."""
        return self._clips(self._path(name))

    def writer(self, work: str, name: str) -> '_Arrays':
        """Returns what takes the video's clips; it works in the folder `work`."""
        return _Arrays(work, self._path(name), self._layers, self._settings['pool'])

    def finish(self, names: list[str]) -> None:
        """Called when all videos are there."""

    def close(self) -> None:
        """Lets go of open files."""

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, f'{name}.npz')

    def _keys(self) -> set[str]:
        return {*self._layers, *(f'video_{layer}' for layer in self._layers), 'start_frame', 'time',
                'protocol'}

    def _clips(self, path: str) -> int | None:
        try:
            with np.load(storage.readable(path), allow_pickle=False) as archive:
                return self._complete(archive.files, str(archive['protocol']))
        except _UNREADABLE:
            return None

    def _complete(self, keys, protocol: str) -> int | None:
        values = json.loads(protocol)
        complete = self._keys() <= set(keys) and values['settings'] == self._settings
        return values['clips'] if complete else None


class Hdf5(Npz):
    """One file, `<output>/features.h5`, a group a video, a dataset a layer."""

    def __init__(self, output: str, layers: dict[str, str], settings: dict):
        super().__init__(os.path.join(output, PARTS), layers, settings)
        self._output, self._file = os.path.join(output, HDF5), None

    def find(self, name: str) -> int | None:
        clips = super().find(name)
        if clips is not None:
            return clips
        try:
            version = storage.version(self._output)
            if self._file is None or self._version != version:  # another process has merged
                self.close()
                self._file, self._version = h5py.File(storage.readable(self._output), 'r'), version
            group = self._file[_h5_name(name)]
            return self._complete(group, group['protocol'].asstr()[()])
        except _UNREADABLE:
            return None

    def finish(self, names: list[str]) -> None:
        """Merges the parts into the file, by way of a temporary name, and removes them."""
        parts = {name: self._path(name) for name in names if storage.exists(self._path(name))}
        self.close()
        if not parts:
            return
        with files.replacing(self._output) as temporary:
            if _opens(self._output):
                storage.copy(self._output, temporary)
            with h5py.File(temporary, 'a') as merged:
                for name, path in parts.items():
                    group = merged.require_group(_h5_name(name))
                    for key in self._keys() & set(group):
                        del group[key]
                    _copy_npz(path, group)
        for path in parts.values():
            storage.remove(path)
        _remove_empty(self._folder)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Caffe:
    """The original's blobs: `<output>/<video>/<start>.<blob>`, a file a clip and layer."""

    def __init__(self, output: str, layers: dict[str, str], settings: dict):
        self._output, self._layers, self._settings = output, layers, settings

    def find(self, name: str) -> int | None:
        folder = os.path.join(self._output, name)
        marker = _read_marker(folder)
        if (not marker or not marker['complete'] or marker['settings'] != self._settings
                or not set(marker['files']) <= set(storage.listdir(folder))):
            return None
        return marker['clips']

    def writer(self, work: str, name: str) -> '_Blobs':
        return _Blobs(work, os.path.join(self._output, name), self._layers)

    def finish(self, names: list[str]) -> None:
        pass

    def close(self) -> None:
        pass


class _Arrays:
    """Takes a video's clips, and makes an .npz of them."""

    def __init__(self, work: str, path: str, layers: dict[str, str], pool: str):
        self._work, self._path, self._layers = work, path, list(layers)
        self._shapes, self._pools = {}, {layer: _Pool(pool) for layer in layers}
        self._starts, self._times = [], []

    def add(self, start: int, time: float, values: dict[str, np.ndarray]) -> None:
        """Adds a clip: its first frame, that one's seconds, float32 (C, T, H, W) or (K,) of layers."""
        self._starts.append(start)
        self._times.append(time)
        for number, layer in enumerate(self._layers):
            self._shapes[layer] = values[layer].shape
            self._pools[layer].add(values[layer])
            # Opened anew: layers times videos at once may be more files than a process may hold.
            with open(os.path.join(self._work, str(number)), 'ab') as file:
                file.write(np.ascontiguousarray(values[layer], '<f4'))

    def count(self) -> int:
        return len(self._starts)

    def write(self, first: int, protocol: dict) -> None:
        """Puts the file at its place."""
        arrays = {'start_frame': np.array(self._starts, np.int64),
                  'time': np.array(self._times, np.float64),
                  **{f'video_{layer}': pool.vector() for layer, pool in self._pools.items()},
                  'protocol': np.array(json.dumps({'made_by': _MADE_BY, **protocol}))}
        whole = os.path.join(self._work, 'whole')
        with zipfile.ZipFile(whole, 'w') as archive:
            for number, layer in enumerate(self._layers):
                header = {'descr': '<f4', 'fortran_order': False,
                          'shape': (len(self._starts), *self._shapes[layer])}
                rows = os.path.join(self._work, str(number))
                with _member(archive, layer) as member, open(rows, 'rb') as file:
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(file, member, _CHUNK)
            for name, array in arrays.items():
                with _member(archive, name) as member:
                    np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
        storage.makedirs(os.path.dirname(self._path))
        storage.replace(whole, self._path)


class _Blobs:
    """Takes a video's clips, each as the original's blob files."""

    def __init__(self, work: str, folder: str, layers: dict[str, str]):
        self._work, self._folder, self._layers = work, folder, layers
        self._starts = []

    def add(self, start: int, time: float, values: dict[str, np.ndarray]) -> None:
        """See `_Arrays.add`."""
        self._starts.append(start)
        for layer, blob in self._layers.items():
            shape = values[layer].shape
            # num, channels, length, height, width, as the original's tool writes any blob
            header = np.array([1, *shape] + [1] * (4 - len(shape)), '<i4')
            with open(os.path.join(self._work, f'{start}.{blob}'), 'wb') as file:
                file.write(header.tobytes() + np.ascontiguousarray(values[layer], '<f4').tobytes())

    def count(self) -> int:
        return len(self._starts)

    def write(self, first: int, protocol: dict) -> None:
        """Puts the files at their place; `first` is the number of the video's frame 0 in their names."""
        names = {f'{start}.{blob}': f'{start + first:06d}.{blob}'
                 for start in self._starts for blob in self._layers.values()}
        marker = {'made_by': _MADE_BY, **protocol, 'files': list(names.values())}
        storage.makedirs(self._folder)
        self._mark({**marker, 'complete': False})  # tells `clear` what is ours
        for ours, name in names.items():
            storage.replace(os.path.join(self._work, ours), os.path.join(self._folder, name))
        self._mark({**marker, 'complete': True})

    def _mark(self, marker: dict) -> None:
        whole = os.path.join(self._work, MARKER)
        files.write_json(whole, marker)
        storage.replace(whole, os.path.join(self._folder, MARKER))


class _Pool:
    """The clips of a video → one vector of length 1."""

    def __init__(self, kind: str):
        self._kind, self._count, self._value = kind, 0, None

    def add(self, value: np.ndarray) -> None:
        if self._kind == 'conv_pooling' and value.ndim == 4:
            value = value.max(axis=1)  # its own time axis, of (C, T, H, W)
        value = value.ravel()
        self._count += 1
        if self._value is None:
            self._value = value.astype(np.float64)
        elif self._kind == 'mean':
            self._value += value
        else:
            np.maximum(self._value, value, out=self._value)

    def vector(self) -> np.ndarray:
        """Returns float32 [D]; all zeros stay zeros."""
        value = self._value / self._count if self._kind == 'mean' else self._value
        return (value / (np.linalg.norm(value) or 1)).astype(np.float32)


def clear(output: str) -> None:
    """Deletes descriptors of this project in the folder, and the folders that are empty then."""
    output = storage.normpath(output)  # without a slash at its end, at which the way up stops
    for folder, _, names in storage.walk(output, topdown=False):
        ours = [name for name in names if name.endswith('.npz') and _is_ours(os.path.join(folder, name))]
        if folder == output and HDF5 in names:
            ours.append(HDF5)
        if marker := _read_marker(folder):
            ours += [*marker['files'], MARKER]
        for name in ours:
            with contextlib.suppress(FileNotFoundError):
                storage.remove(os.path.join(folder, name))
        while ours and folder != output:
            _remove_if_empty(folder)
            folder = os.path.dirname(folder)


def _is_ours(path: str) -> bool:
    try:
        with np.load(storage.readable(path), allow_pickle=False) as archive:
            return json.loads(str(archive['protocol'])).get('made_by') == _MADE_BY
    except _UNREADABLE:
        return False


def _read_marker(folder: str) -> dict | None:
    try:
        path = os.path.join(folder, MARKER)
        with storage.open(path, encoding='utf-8', errors='surrogateescape') as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def _opens(path: str) -> bool:
    try:
        with h5py.File(storage.readable(path), 'r'):
            return True
    except OSError:
        return False


def _member(archive: zipfile.ZipFile, name: str):
    # The default date, so that the same arrays are the same bytes.
    return archive.open(zipfile.ZipInfo(f'{name}.npy'), 'w', force_zip64=True)


def _copy_npz(path: str, group: h5py.Group) -> None:
    """Copies every array, some rows at a time."""
    with zipfile.ZipFile(storage.readable(path)) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                name = member.removesuffix('.npy')
                if dtype.kind == 'U':
                    group[name] = str(np.frombuffer(file.read(), dtype)[0])
                    continue
                dataset = group.create_dataset(name, shape, dtype)
                row = dtype.itemsize * int(np.prod(shape[1:]))
                step = max(_CHUNK // row, 1)
                for start in range(0, shape[0], step):
                    data = file.read(row * min(step, shape[0] - start))
                    dataset[start:start + step] = np.frombuffer(data, dtype).reshape(-1, *shape[1:])


def _h5_name(name: str):
    # A name that is no UTF-8 is its bytes.
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name)
    return name


def _remove_empty(folder: str) -> None:
    for below, _, _ in storage.walk(folder, topdown=False):
        _remove_if_empty(below)


def _remove_if_empty(folder: str) -> None:
    with contextlib.suppress(OSError):
        storage.rmdir(folder)
