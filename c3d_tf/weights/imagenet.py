# SPDX-License-Identifier: Apache-2.0
"""`--weights=imagenet:NAME[:FILE]`: an ImageNet network of Keras as an artefact for features."""

import json

import numpy as np

from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.data import preprocess
from c3d_tf.models import imagenet
from c3d_tf.weights import artefact

PREFIX = 'imagenet:'


def load(weights: str, *, clip_length: int = 16, crop_size: int = 224,
         seed: int = 0) -> artefact.Artefact:
    """Returns the network of `imagenet:NAME[:FILE]` with what it must be given: whole frames, resized.

    Its only layer for the features verb is `features`; it has no classes.

    Args:
      weights: NAME is a network of keras.applications; FILE its weights without the top, random
        without a file.
      clip_length, crop_size, seed: see `models.imagenet.build`.

    Raises:
      errors.UsageError: there is no such network or file.
    """
    name, _, path = weights.removeprefix(PREFIX).partition(':')
    if path and not storage.isfile(path):
        raise errors.UsageError(f'--weights={weights}: no such file as {path}')
    try:
        with storage.local(path) as here:
            model = imagenet.build(name, here, clip_length=clip_length, crop_size=crop_size, seed=seed)
    except ValueError as error:
        raise errors.UsageError(f'--weights={weights}: {error}') from error
    spec = preprocess.Preprocessing(
        frame_size=(crop_size, crop_size), crop_size=crop_size, clip_length=clip_length, stride=1,
        mean=np.zeros((), np.float32))
    said = {'network': f'keras.applications.{name}', 'weights': path or f'random, seed {seed}'}
    sha256 = files.sha256(path) if path else files.text_hash(json.dumps(said))
    return artefact.Artefact(model, spec, (), said, sha256)
