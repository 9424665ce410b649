# SPDX-License-Identifier: Apache-2.0
"""Weights to start from."""

import keras
import numpy as np

from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.data import preprocess
from c3d_tf.training import updates
from c3d_tf.weights import artefact


def initialise(model: keras.Model, recipe, spec: preprocess.Preprocessing) -> None:
    """Copies the weights of `recipe.init_from` by layer name; says what starts at random, and where the
    run's preprocessing is another one than theirs."""
    net = artefact.load(recipe.init_from, flag='--init_from')
    source = {layer.name: layer for layer in net.model.layers}
    try:
        reinit = {layer.name for name in recipe.reinit for layer in updates.layers_of(model, name)}
    except ValueError as error:
        raise errors.UsageError(f'--reinit: {error}') from error
    fresh = []
    for layer in model.layers:
        if not layer.weights:
            continue
        if layer.name in reinit:
            fresh.append(layer.name)
            continue
        theirs = source.get(layer.name)
        shapes = [tuple(w.shape) for w in layer.weights]
        have = [tuple(w.shape) for w in theirs.weights] if theirs else 'no such layer'
        if shapes != have:
            raise errors.UsageError(f'--init_from={recipe.init_from}: {layer.name} should be '
                                    f'{shapes}, there is {have}; name it in --reinit to start it at '
                                    'random')
        layer.set_weights(theirs.get_weights())
    console.say(f'train: weights of {recipe.init_from}; at random: {", ".join(fresh) or "none"}')
    own = net.preprocessing
    if own.to_json() != spec.to_json() or not np.array_equal(own.mean, spec.mean):
        console.say(f'  they were trained on {own}')
        console.say(f'  this run takes       {spec}')
