# SPDX-License-Identifier: Apache-2.0
"""Which layers compute in which number format."""

import keras

PRECISIONS = ('float32', 'bfloat16', 'float16')


def policy(precision: str) -> str:
    """Returns the Keras dtype policy: weights are float32 in all of them."""
    return 'float32' if precision == 'float32' else f'mixed_{precision}'


def for_convolution(precision: str, *, time: int, depth: int) -> str:
    """Returns the policy of a convolution to which `time` frames come, with a kernel of `depth`.

    float32 where 1 < time < depth: there oneDNN's bfloat16 filter gradient is garbage (measured on
    TensorFlow 2.21; NaN, or last layers that never learn). 3.6 % of C3D's arithmetic, 10 % of
    Res3D-18's at 8 frames.

    `time` counts frames that a ZeroPadding3D before the convolution has added, but not the padding of
    padding='same'. Measured with depth 3 and 2 frames, error of the gradient against float32: 146 % with
    'same' and stride 1, 0.2 % with explicit padding and 'valid', at strides 1 and 2.
    """
    return 'float32' if 1 < time < depth else policy(precision)


def convert(model: keras.Model, precision: str) -> keras.Model:
    """Returns the same network with the same weights, computing as `models.build(precision=…)` would."""

    def at_precision(layer):
        if isinstance(layer, keras.layers.InputLayer):
            return layer
        if isinstance(layer, keras.layers.Conv3D):
            dtype = for_convolution(precision, time=layer.input.shape[1], depth=layer.kernel_size[0])
        else:
            dtype = 'float32' if layer.output is model.output else policy(precision)
        return layer.__class__.from_config({**layer.get_config(), 'dtype': dtype})

    converted = keras.models.clone_model(model, clone_function=at_precision)
    converted.set_weights(model.get_weights())
    return converted
