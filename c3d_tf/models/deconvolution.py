# SPDX-License-Identifier: Apache-2.0
"""What in the input made a unit fire: the deconvolution of Zeiler & Fergus (ECCV 2014), in 3-D.

One activation of one feature map is kept and all others of that layer are zeroed; then the network is
gone through backwards: a pool puts each value where its maximum came from (the switches of this very
clip), a ReLU keeps what is positive of the backward signal, a convolution applies its transposed kernels
without bias. Batch normalisation at inference is a factor and a shift of each channel: the factor stays,
the shift goes as the biases do.
"""

import keras
from keras import layers
from keras import ops


def path(model: keras.Model, name: str) -> list[keras.Layer]:
    """Returns the layers from the input to the feature maps called `name`, both included.

    Raises:
      ValueError: the network is no chain (res3d_18), or there are no feature maps of that name.
    """
    chain = list(model.layers)
    for below, layer in zip(chain, chain[1:]):
        if layer.input is not below.output:
            raise ValueError(
                f'{model.name} adds up branches (at {layer.name}), and a deconvolution as Zeiler & '
                'Fergus define it follows one chain: they do not say how branches share a signal')
    maps = feature_maps(model)
    if name not in maps:
        raise ValueError(f'layer {name!r} has no feature maps; {model.name} has {", ".join(maps)}')
    return chain[:[layer.name for layer in chain].index(name) + 1]


def feature_maps(model: keras.Model) -> list[str]:
    """Returns the names of the layers [B, T, H, W, C] after ReLU, and of the pools; the lowest first."""
    return [layer.name for layer in model.layers if isinstance(layer, layers.MaxPooling3D)
            or len(layer.output.shape) == 5 and _rectifies(layer)]


def forward(chain: list[keras.Layer]) -> keras.Model:
    """Returns the network up to the chain's end: clips → what `project` needs of them.

    It gives 'activation', the chain's last output, and by the name of every pool the pool's input.
    """
    needed = {layer.name: layer.input for layer in chain if isinstance(layer, layers.MaxPooling3D)}
    return keras.Model(chain[0].output, {**needed, 'activation': chain[-1].output})


def strongest(activation, unit: int):
    """Finds the strongest activation of one feature map in each clip.

    Args:
      activation: float [B, T, H, W, C].
      unit: the feature map, 0 … C − 1.

    Returns:
      (float32 [B, T, H, W, C], all others zeroed; their values, float32 [B]; their places, int32 [B], in
      scan order over T, H, W; of equal ones the first).
    """
    batch, time, height, width, channels = activation.shape
    cells = ops.reshape(ops.cast(activation[..., unit], 'float32'), (batch, -1))
    value = ops.max(cells, axis=1)
    place = _first(cells == value[:, None], axis=1)
    kept = value[:, None] * ops.one_hot(place, time * height * width)
    kept = ops.reshape(kept, (batch, time, height, width, 1))
    return kept * ops.one_hot(unit, channels), value, place


def project(chain: list[keras.Layer], signal, values: dict):
    """Takes a signal at the chain's end back to the pixels.

    Args:
      chain: what `path` returns.
      signal: float32 [B, T, H, W, C], e.g. of `strongest`.
      values: what `forward` gave for the same clips.

    Returns:
      float32 [B, T, S, S, 3]: how much each colour of each pixel counts for the signal; any sign.
    """
    for layer in reversed(chain):
        if isinstance(layer, layers.MaxPooling3D):
            signal = _unpool(signal, ops.cast(values[layer.name], 'float32'), layer)
        elif isinstance(layer, layers.Conv3D):
            if _rectifies(layer):
                signal = ops.relu(signal)
            signal = ops.conv_transpose(signal, layer.kernel, layer.strides, padding=layer.padding)
        elif isinstance(layer, layers.BatchNormalization):
            signal = signal * _factor(layer)
        elif isinstance(layer, layers.ReLU):
            signal = ops.relu(signal)
        elif isinstance(layer, layers.ZeroPadding3D):
            inner = layer.input.shape[1:4]
            (t, _), (h, _), (w, _) = layer.padding
            signal = signal[:, t:t + inner[0], h:h + inner[1], w:w + inner[2]]
        elif not isinstance(layer, layers.InputLayer):
            raise ValueError(f'layer {layer.name}: no way back through a {type(layer).__name__}')
    return signal


def filters(model: keras.Model):
    """Returns (the layer's name, float32 [T, H, W, 3, K]) of the kernels that see pixels.

    Where batch normalisation follows, they are multiplied by its factor, which may be negative.
    """
    at = next(i for i, layer in enumerate(model.layers) if isinstance(layer, layers.Conv3D))
    layer, above = model.layers[at], model.layers[at + 1]
    kernel = ops.convert_to_tensor(layer.kernel)
    if isinstance(above, layers.BatchNormalization):
        kernel = kernel * _factor(above)
    return layer.name.removesuffix('_conv'), ops.convert_to_numpy(kernel)


def _rectifies(layer) -> bool:
    return (isinstance(layer, layers.ReLU)
            or getattr(layer, 'activation', None) is keras.activations.relu)


def _factor(layer: layers.BatchNormalization):
    return layer.gamma / ops.sqrt(layer.moving_variance + layer.epsilon)


def _first(mask, axis: int):
    """Returns the index of the first True: argmax leaves open which of several it takes."""
    count = mask.shape[axis]
    shape = [1] * len(mask.shape)
    shape[axis] = count
    return ops.min(ops.where(mask, ops.reshape(ops.arange(count), shape), count - 1), axis=axis)


def _unpool(signal, pooled_from, layer: layers.MaxPooling3D):
    """Puts each value of [B, T, H, W, C] where the maximum of its window was, and zeros elsewhere.

    Of equal maxima the first in scan order (time, row, column) gets it, as in Caffe.
    """
    if tuple(layer.strides) != tuple(layer.pool_size):
        raise ValueError(f'layer {layer.name}: its windows {layer.pool_size} overlap or leave gaps '
                         f'(strides {layer.strides}); the networks here have neither')
    batch, *size, channels = pooled_from.shape
    cells = list(signal.shape[1:4])
    # Windows that are cut at the far edge are filled up with what can be no maximum.
    spare = [n * window - old for n, window, old in zip(cells, layer.pool_size, size)]
    if min(spare) < 0:  # padding='valid' drops what fills no window
        raise ValueError(f"layer {layer.name}: expected padding='same'")
    filled = ops.pad(pooled_from, [(0, 0), *((0, n) for n in spare), (0, 0)],
                     constant_values=-float('inf'))
    t, h, w = layer.pool_size
    split = (batch, cells[0], t, cells[1], h, cells[2], w, channels)
    # … → B, T, H, W, C, t, h, w
    windows = ops.transpose(ops.reshape(filled, split), (0, 1, 3, 5, 7, 2, 4, 6))
    windows = ops.reshape(windows, (batch, *cells, channels, t * h * w))
    switches = _first(windows == ops.max(windows, axis=-1, keepdims=True), axis=5)
    spread = signal[..., None] * ops.one_hot(switches, t * h * w)
    spread = ops.reshape(spread, (batch, *cells, channels, t, h, w))
    spread = ops.reshape(ops.transpose(spread, (0, 1, 5, 2, 6, 3, 7, 4)), filled.shape)
    return spread[:, :size[0], :size[1], :size[2]]
