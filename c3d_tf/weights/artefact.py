# SPDX-License-Identifier: Apache-2.0
"""The one artefact: a .keras file that carries its preprocessing, labels and provenance.

It opens in plain Keras without custom objects (float clips → logits). What belongs to the weights
travels in the same zip: preprocessing.json, mean.npy, labels.txt, provenance.json.
"""

import dataclasses
import io
import json
import os
import zipfile

import keras
import numpy as np

from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.data import preprocess
from c3d_tf.models import precisions

PREPROCESSING = 'preprocessing.json'
MEAN = 'mean.npy'
LABELS = 'labels.txt'
PROVENANCE = 'provenance.json'


@dataclasses.dataclass(frozen=True, eq=False)
class Artefact:
    """A network with everything that is needed to use it.

    Attributes:
      model: clips float32 [B, T, S, S, 3] → logits float32 [B, K].
      preprocessing: what the clips must be.
      class_names: K names.
      provenance: where the weights come from.
      sha256: of the file; '' where there is none yet.
    """

    model: keras.Model
    preprocessing: preprocess.Preprocessing
    class_names: tuple[str, ...]
    provenance: dict
    sha256: str = ''


def save(path: str, artefact: Artefact) -> None:
    """Writes the file, complete or not at all."""
    mean = io.BytesIO()
    np.save(mean, artefact.preprocessing.mean)
    with files.replacing(path) as temporary:
        folder = f'{temporary}.d'
        try:
            # By way of a folder: Keras' own zip is put together in memory, at three times the weights.
            keras.models.save_model(artefact.model, folder, zipped=False)
            with zipfile.ZipFile(temporary, 'w') as archive:
                for name in ('metadata.json', 'config.json', 'model.weights.h5'):
                    archive.write(os.path.join(folder, name), name)
                archive.writestr(PREPROCESSING, json.dumps(artefact.preprocessing.to_json(), indent=2))
                archive.writestr(MEAN, mean.getvalue())
                archive.writestr(LABELS, ''.join(f'{name}\n' for name in artefact.class_names))
                archive.writestr(PROVENANCE, json.dumps(artefact.provenance, indent=2))
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # h5py fails once more when it closes its file
                raise error.__context__ from None
            raise
        finally:
            storage.rmtree(folder, ignore_errors=True)


def load(path: str, *, precision: str = '', flag: str = '--weights') -> Artefact:
    """Reads the file; nothing in it is executed.

    Args:
      path: what train or import_weights wrote.
      precision: of activations, see `models.build`; '' leaves it as the file has it.
      flag: where the path was given, for messages.

    Raises:
      errors.UsageError: there is no such file, or it is no artefact of this project.
    """
    if not path:
        raise errors.UsageError(f'{flag} is not set: expected a model.keras file that train wrote')
    if not storage.isfile(path):
        raise errors.UsageError(f'{flag}={path}: no such file; run --mode=train first, or give '
                                'the model.keras of another run')
    with storage.local(path) as here:
        return _load(path, here, precision, flag)


def _load(path: str, here: str, precision: str, flag: str) -> Artefact:
    """Reads the file at the local path `here`."""
    try:
        with zipfile.ZipFile(here) as archive:
            members = {name: archive.read(name) for name in
                       (PREPROCESSING, MEAN, LABELS, PROVENANCE) if name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise errors.UsageError(f'{flag}={path}: not a .keras file ({error})') from error
    if len(members) < 4:
        raise errors.UsageError(
            f'{flag}={path}: a .keras file without the preprocessing its network needs. Keras '
            'drops those members when a model is saved again: use the file that train wrote.')
    model = keras.models.load_model(here, compile=False, safe_mode=True)
    for variable in model.variables:
        if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
            raise errors.UsageError(f'{flag}={path}: {variable.path} holds NaN or infinity; '
                                    'the training that wrote it had blown up')
    if precision:
        model = precisions.convert(model, precision)
    mean = np.load(io.BytesIO(members[MEAN]), allow_pickle=False)
    return Artefact(
        model=model,
        preprocessing=preprocess.Preprocessing.from_json(json.loads(members[PREPROCESSING]), mean),
        class_names=tuple(members[LABELS].decode().splitlines()),
        provenance=json.loads(members[PROVENANCE]),
        sha256=files.sha256(here),
    )
