# SPDX-License-Identifier: Apache-2.0
"""What an update is made of: which layers learn, the optimizer, gradients as Caffe means them, MixUp."""

import keras
import tensorflow as tf

from c3d_tf.training.recipe import Recipe


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


def optimizer(recipe: Recipe, rate: float, variables) -> keras.optimizers.Optimizer:
    """Returns the recipe's optimizer with a first rate; it is not built yet."""
    # Keras keeps the moving averages as variables of the optimizer, so they are in the checkpoint.
    average = {'use_ema': True, 'ema_momentum': recipe.ema} if recipe.ema else {}
    if recipe.optimizer == 'sgd':
        made = keras.optimizers.SGD(rate, momentum=recipe.momentum, **average)
    else:
        made = keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay, **average)
        made.exclude_from_weight_decay([v for v in variables if not is_kernel(v)])
    if recipe.precision == 'float16':
        # Small float16 gradients would vanish: the loss is scaled up until they overflow.
        made = keras.optimizers.LossScaleOptimizer(made)
    return made


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
