# SPDX-License-Identifier: Apache-2.0
"""The baseline of the paper's tables: a 2-D ImageNet network on each frame, averaged over the clip."""

import inspect

import keras

LAYER = 'features'


def build(name: str, weights_file: str = '', *, clip_length: int = 16, crop_size: int = 224,
          seed: int = 0) -> keras.Model:
    """Returns a network: clips float32 [B, clip_length, crop_size, crop_size, 3] → float32 [B, K].

    Clips are RGB, 0 … 255; the network's own preprocessing is inside. K is that of its last feature map,
    averaged over space (1,280 for MobileNetV2, 2,048 for ResNet50). The output layer is `features`.

    Args:
      name: a network of keras.applications, e.g. MobileNetV2, ResNet50, VGG16.
      weights_file: its weights without the top, `…_notop.h5` of the Keras releases or a .weights.h5; ''
        leaves them random: no baseline, but a way to try.
      clip_length: frames of a clip.
      crop_size: side of the square frames.
      seed: of random weights.

    Raises:
      ValueError: there is no such network, or the file is not of it.
    """
    if not inspect.isfunction(found := getattr(keras.applications, name, None)):
        known = sorted(key for key in dir(keras.applications) if key[0].isupper())
        raise ValueError(f'{name!r}: expected a network of keras.applications: {", ".join(known)}')
    preprocess = inspect.getmodule(found).preprocess_input
    keras.utils.set_random_seed(seed)  # its layers draw from Keras' own generator
    net = found(include_top=False, weights=None, pooling='avg', input_shape=(crop_size, crop_size, 3))
    if weights_file:
        try:
            net.load_weights(weights_file)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f'{weights_file}: not the weights of {name} without its top ({error})') from error
    net.trainable = False
    clips = keras.Input((clip_length, crop_size, crop_size, 3), name='clips')
    frames = keras.ops.reshape(clips, (-1, crop_size, crop_size, 3))
    each = net(preprocess(frames), training=False)
    each = keras.ops.reshape(each, (-1, clip_length, each.shape[-1]))
    return keras.Model(clips, keras.layers.GlobalAveragePooling1D(name=LAYER)(each), name=name)
