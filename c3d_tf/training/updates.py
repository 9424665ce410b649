# SPDX-License-Identifier: Apache-2.0
"""What an update is made of: which layers learn, gradients as Caffe means them, MixUp."""

import keras
import tensorflow as tf


def layers_of(model: keras.Model, name: str) -> list[keras.layers.Layer]:
    """Returns the layers with weights that make the paper's layer `name`: itself, or with batch
    normalisation `name_conv` and `name_bn`.

    Raises:
      ValueError: there are none.
    """
    have = [layer for layer in model.layers if layer.weights]
    found = [layer for layer in have if layer.name == name or layer.name.startswith(f'{name}_')]
    if not found:
        raise ValueError(f'no such layer as {name!r} has weights in {model.name}; it has '
                         f'{", ".join(layer.name for layer in have)}')
    return found


def caffe_gradients(gradients, variables, *, weight_decay, bias_rate: float):
    """Returns gradients with which SGD with momentum does what Caffe's solver does.

    Caffe: h ← m·h + rate·rate_mult·(g + decay·decay_mult·w); w ← w − h, with (rate_mult, decay_mult)
    (1, 1) for kernels and (2, 0) for biases. Keras' SGD keeps the rate inside the momentum as well.

    Args:
      gradients: of the loss, one for each variable.
      variables: the weights.
      weight_decay: decay, for kernels only.
      bias_rate: rate_mult of biases.
    """
    out = []
    for gradient, variable in zip(gradients, variables, strict=True):
        if is_kernel(variable):
            gradient = gradient + variable * weight_decay
        elif variable.path.endswith('/bias'):
            gradient = gradient * bias_rate
        out.append(gradient)
    return out


def is_kernel(variable: keras.Variable) -> bool:
    return variable.path.endswith('/kernel')


def mix(clips, targets, alpha: float, seed):
    """MixUp (Zhang et al., 2018): every clip with its mirror place in the batch, one share for all."""
    draws = [tf.random.stateless_gamma([], [seed[0], seed[1] + place], alpha)
             for place in (1 << 20, 1 << 21)]
    share = draws[0] / (draws[0] + draws[1])  # Beta(alpha, alpha)
    return (share * clips + (1 - share) * clips[::-1],
            share * targets + (1 - share) * targets[::-1])
