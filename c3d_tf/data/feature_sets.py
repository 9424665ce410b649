# SPDX-License-Identifier: Apache-2.0
"""Reads descriptors: what the features verb wrote, and any feature file of a user's. No TensorFlow.

A feature set is one of
  a folder with features.h5, or an .h5 file: a group a video, as --format=hdf5 writes it;
  a folder with an .npz or .npy file a video, in sub-folders or not, as --format=npz writes it;
  one .npz file with `names` [N] and `features` [N, K];
  a CSV file: a name and K numbers a line, with or without a header.
A video's name is its path below the folder of the videos, with or without its ending.
"""

import contextlib
import csv
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import h5py
import numpy as np

from c3d_tf.common import errors
from c3d_tf.common import storage

HDF5 = 'features.h5'
TABLES = ('.npz', '.csv')
_ENDINGS = ('.npz', '.npy')


class Clips(NamedTuple):
    """The clips of one video.

    Attributes:
      features: float32 [C, K], L2-normalised.
      start_frame: int64 [C], the first frame of each clip, counted from 0.
      time: float64 [C], its time in seconds.
    """

    features: np.ndarray
    start_frame: np.ndarray
    time: np.ndarray


def read(path: str, layer: str = 'fc6') -> dict[str, np.ndarray]:
    """Returns the descriptor of every video of a feature set, by the video's name.

    Args:
      path: a feature set.
      layer: which of its layers, where the features verb wrote it. Other files are taken as they are;
        of (rows, K) arrays in an .npy file a video the mean over rows is taken, as over clips.

    Returns:
      name → float32 [K], L2-normalised; zeros stay zeros. K is the same for all.

    Raises:
      errors.UsageError: nothing is there, or it cannot be read; a layer is missing; a value is NaN or
        infinite; lengths differ.
    """
    if is_table(path):
        found = _read_csv(path) if path.lower().endswith('.csv') else _read_npz_table(path)
    else:
        found = {}
        with _videos(path) as videos:
            for name, (where, load) in videos.items():
                found[name] = _video_vector(load(), layer, where)
    _check(found, path)
    return {name: normalised(vector) for name, vector in found.items()}


def clip_counts(path: str, names: Iterable[str]) -> dict[str, int]:
    """Returns how many clips the named videos have; 0 where the set has only the videos' descriptors."""
    if is_table(path):
        return dict.fromkeys(names, 0)
    counts = {}
    with _videos(path) as videos:
        for name in names:
            arrays = videos[name][1]()
            counts[name] = len(arrays['start_frame']) if 'start_frame' in arrays else 0
    return counts


def read_clips(path: str, names: Iterable[str], layer: str = 'fc6') -> Iterator[tuple[str, Clips]]:
    """Yields (name, its clips) of the named videos; one video is in memory at a time.

    Raises:
      errors.UsageError: as `read`, or the set has only the videos' descriptors.
    """
    if is_table(path):
        raise errors.UsageError(f'{path}: holds a descriptor a video; expected features of clips, as '
                                '--mode=features writes them')
    with _videos(path) as videos:
        for name in names:
            where, load = videos[name]
            arrays = load()
            lacking = [key for key in (layer, 'start_frame', 'time') if key not in arrays]
            if lacking:
                raise errors.UsageError(f'{where}: no {lacking[0]}; expected features of clips, as '
                                        f'--mode=features --layers={layer} writes them')
            values = np.asarray(arrays[layer][()], np.float32)
            values = values.reshape(len(values), -1)
            _check_finite(values, where, name)
            yield name, Clips(normalised(values), np.asarray(arrays['start_frame'][()]),
                              np.asarray(arrays['time'][()]))


def protocol(path: str) -> dict | None:
    """Returns how the features verb made the set, or None of other files."""
    if is_table(path):
        return None
    with _videos(path) as videos:
        arrays = next(iter(videos.values()))[1]()
        if 'protocol' not in arrays:
            return None
        said = arrays['protocol'][()]
    try:
        said = json.loads(said.decode() if isinstance(said, bytes) else str(said))
        return said.get('settings', said)  # without what is of this one video
    except (ValueError, AttributeError):
        return None  # a user's own array of that name


def match(wanted: Iterable[str], found: Iterable[str]) -> dict[str, str]:
    """Returns wanted name → found name for all that are there; endings of files may be missing.

    Raises:
      errors.UsageError: two wanted videos would get the same features.
    """
    exact, stems = set(), {}
    for name in found:
        exact.add(name)
        stem = os.path.splitext(name)[0]
        stems[stem] = None if stem in stems else name  # x.avi and x.mp4: x says neither
    pairs, owner = {}, {}
    for name in wanted:
        candidates = (name, os.path.splitext(name)[0], stems.get(name))
        hit = next((one for one in candidates if one in exact), None)
        if hit is None:
            continue
        if hit in owner:
            raise errors.UsageError(f'{owner[hit]} and {name} would both get the features of {hit}; '
                                    'name the features with the endings of the files')
        pairs[name] = hit
        owner[hit] = name
    return pairs


def normalised(values: np.ndarray) -> np.ndarray:
    """Returns float32 of the same shape, each row over its L2 norm; rows of zeros stay zeros."""
    values = np.asarray(values, np.float32)
    norm = np.sqrt(np.square(values, dtype=np.float64).sum(axis=-1, keepdims=True))
    return (values / np.where(norm > 0, norm, 1)).astype(np.float32)


def is_table(path: str) -> bool:
    """Tells whether the set is one file with a line a video."""
    return storage.isfile(path) and path.lower().endswith(TABLES)


@contextlib.contextmanager
def _videos(path: str):
    """Yields name → (what to call it in a message, function that returns its arrays by name)."""
    if not storage.exists(path):
        raise errors.UsageError(f'--features={path}: no such file or folder; run --mode=features first')
    store = os.path.join(path, HDF5) if storage.isdir(path) else path
    if storage.isfile(store):
        try:
            with h5py.File(storage.readable(store), 'r') as file:
                groups = _groups(file)
                if not groups:
                    raise errors.UsageError(f'{store}: no video in it')
                yield {name: (f'{store}, {name}', lambda group=group: group)
                       for name, group in groups.items()}
        except OSError as error:
            raise errors.UsageError(f'--features={store}: not readable as HDF5, .npz or .csv ({error})'
                                    ) from error
        return
    files = {}
    for folder, subfolders, names in storage.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith('.'))
        for name in sorted(names):
            stem, ending = os.path.splitext(storage.relpath(os.path.join(folder, name), path))
            if ending.lower() not in _ENDINGS or name.startswith('.'):
                continue
            if stem in files:
                raise errors.UsageError(f'{path}: {stem} is there as .npy and as .npz; remove one')
            files[stem] = os.path.join(folder, name)
    if not files:
        raise errors.UsageError(f'--features={path}: no {HDF5}, .npz or .npy there; run --mode=features '
                                'with --format=npz or hdf5')
    yield {name: (file, lambda file=file: _load(file)) for name, file in files.items()}


def _groups(file: h5py.Group) -> dict[str, h5py.Group]:
    found = {}

    def visit(name, node):
        if isinstance(node, h5py.Group) and any(isinstance(node[key], h5py.Dataset) for key in node):
            found[name] = node

    file.visititems(visit)
    return found


def _load(path: str) -> Mapping:
    try:
        if not path.lower().endswith('.npz'):
            return {'': np.load(storage.readable(path), allow_pickle=False)}
        with np.load(storage.readable(path), allow_pickle=False) as arrays:
            return _Archive(path, arrays.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise errors.UsageError(f'{path}: not readable ({error})') from error


class _Archive(Mapping):
    """The arrays of an .npz; each is read when it is asked for, since clips are larger than the rest."""

    def __init__(self, path: str, names: list[str]):
        self._path, self._names = path, names

    def __getitem__(self, name):
        if name not in self._names:
            raise KeyError(name)
        try:
            with np.load(storage.readable(self._path), allow_pickle=False) as arrays:
                return arrays[name]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise errors.UsageError(f'{self._path}: {name} is not readable ({error})') from error

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)


def _video_vector(arrays: Mapping, layer: str, where: str) -> np.ndarray:
    keys = list(arrays)
    if f'video_{layer}' in keys:
        return np.asarray(arrays[f'video_{layer}'][()], np.float32).reshape(-1)
    layers = [key.removeprefix('video_') for key in keys if key.startswith('video_')]
    if layers or len(keys) != 1:
        raise errors.UsageError(f'{where}: no layer {layer}; it has {", ".join(layers or keys)}')
    values = arrays[keys[0]][()]
    if values.dtype.kind not in 'fiu' or values.ndim not in (1, 2) or not values.size:
        raise errors.UsageError(f'{where}: expected numbers of shape (K,) or (rows, K), got '
                                f'{values.dtype} {values.shape}')
    return values.astype(np.float32) if values.ndim == 1 else values.mean(axis=0, dtype=np.float64)


def _read_npz_table(path: str) -> dict[str, np.ndarray]:
    arrays = _load(path)
    if not {'names', 'features'} <= set(arrays):
        raise errors.UsageError(f'--features={path}: expected the arrays names and features, found '
                                f'{", ".join(arrays)}')
    names, values = arrays['names'], arrays['features']
    if values.ndim != 2 or names.shape != values.shape[:1] or values.dtype.kind not in 'fiu':
        raise errors.UsageError(f'--features={path}: expected names (N,) and numbers features (N, K), '
                                f'got {names.shape} and {values.dtype} {values.shape}')
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    return _unique(zip(names, values), path)


def _read_csv(path: str) -> dict[str, np.ndarray]:
    def rows():
        with storage.open(path, newline='', encoding='utf-8-sig', errors='surrogateescape') as file:
            for number, (name, *cells) in enumerate(filter(None, csv.reader(file)), 1):
                try:
                    yield name.strip(), np.array(cells, np.float32)
                except ValueError as error:
                    if number > 1:  # the first line may be a header
                        raise errors.UsageError(f'--features={path}, {name}: {error}') from error

    return _unique(rows(), path)


def _unique(rows: Iterable[tuple[str, np.ndarray]], path: str) -> dict[str, np.ndarray]:
    found = {}
    for name, values in rows:
        if name in found:
            raise errors.UsageError(f'--features={path}: {name} is there twice')
        found[name] = values
    return found


def _check(found: dict[str, np.ndarray], path: str) -> None:
    if not found:
        raise errors.UsageError(f'--features={path}: no video in it')
    first = next(iter(found))
    for name, vector in found.items():
        if vector.shape != found[first].shape or not vector.size:
            raise errors.UsageError(f'--features={path}: {name} has {vector.size} numbers, {first} has '
                                    f'{found[first].size}; expected the same for all')
        _check_finite(vector, path, name)


def _check_finite(values: np.ndarray, where: str, name: str) -> None:
    if not np.isfinite(values).all():
        raise errors.UsageError(f'{where}: the features of {name} hold NaN or infinity; make them anew')
