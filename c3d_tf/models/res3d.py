# SPDX-License-Identifier: Apache-2.0
"""Res3D-18 (Tran et al., arXiv 1708.05038, 2017), which the original's v1.1 calls C3D-ResNet18.

Source of the numbers: train_resnet18_r2.prototxt of the original code, whose clips are 8 frames at
stride 2, minus 128.
"""

import keras
from keras import layers

from c3d_tf.models import c3d
from c3d_tf.models import precisions

# number, filters, stride of its first convolution in time and space
STAGES = ((2, 64, 1), (3, 128, 2), (4, 256, 2), (5, 512, 2))
# Caffe's BatchNorm: eps 1e-5, moving_average_fraction 0.999. Caffe divides its sums by their weight, so
# that they are right from the start; Keras starts from mean 0 and variance 1, and with 0.999 would
# evaluate badly for some 5,000 updates (0.999^5000 = 0.7 %).
EPSILON, MOMENTUM = 1e-5, 0.99


def build(
    *,
    num_classes: int,
    clip_length: int,
    crop_size: int,
    width: float,
    batch_norm: bool,
    initializer: str,
    head: str,
    dropout: float,
    pool5: str,
    precision: str,
) -> keras.Model:
    """Returns Res3D-18: conv1, eight blocks of two convolutions, the average of all cells, fc8.

    Batch normalisation and the average belong to this network, and it drops nothing: `batch_norm`,
    `head`, `dropout` and `pool5` change nothing here.

    A layer has the name of Caffe's blob, and gives what the blob holds once Caffe has worked in place:
    conv1 and res*_branch2a the value after ReLU; res*_branch1 and res*_branch2b the value after the
    normalisation, there is no ReLU; res2a … res5b the sum after ReLU. The kernel is in `<name>_conv`.

    Caffe's pair of BatchNorm and Scale, bn2a_branch1 and scale2a_branch1, is one layer bn2a_branch1:
    gamma and beta are the blobs of Scale; moving_mean and moving_variance are the first two blobs of
    BatchNorm, each divided by the third.

    Args:
      num_classes … precision: see `models.build`.
    """
    policy = precisions.policy(precision)

    def convolve(x, name, filters, kernel, strides=(1, 1, 1), relu=True):
        # (B, T, H, W, C) → convolution → normalisation → ReLU
        pad = [side // 2 for side in kernel]
        explicit = strides != (1, 1, 1) and any(pad)
        if explicit:
            # Caffe pads both sides; with a stride, 'same' would pad an even size at its end only.
            # In training on a CPU, TensorFlow 2.21 logs 'remapper failed' once about these pads: it
            # gives up merging them with the convolutions and keeps the graph as it is.
            x = layers.ZeroPadding3D(pad, dtype=policy, name=f'{name}_pad')(x)
        x = layers.Conv3D(
            c3d.scaled(filters, width), kernel, strides, padding='valid' if explicit else 'same',
            use_bias=False, kernel_initializer=_kernel_initializer(initializer),
            dtype=precisions.for_convolution(precision, time=x.shape[1], depth=kernel[0]),
            name=f'{name}_conv')(x)
        norm = 'bn_conv1' if name == 'conv1' else name.replace('res', 'bn')
        x = layers.BatchNormalization(epsilon=EPSILON, momentum=MOMENTUM, synchronized=True,
                                      dtype=policy, name=norm)(x)
        return layers.Activation('relu' if relu else 'linear', dtype=policy, name=name)(x)

    clips = keras.Input((clip_length, crop_size, crop_size, 3), name='clips')
    x = convolve(clips, 'conv1', 64, (3, 7, 7), (1, 2, 2))
    for number, filters, stride in STAGES:
        for block in ('a', 'b'):
            name = f'res{number}{block}'
            strides = (stride,) * 3 if block == 'a' else (1, 1, 1)
            shortcut = x
            if block == 'a':  # also in res2a, where the sizes would do without
                shortcut = convolve(x, f'{name}_branch1', filters, (1, 1, 1), strides, relu=False)
            x = convolve(x, f'{name}_branch2a', filters, (3, 3, 3), strides)
            x = convolve(x, f'{name}_branch2b', filters, (3, 3, 3), relu=False)
            x = layers.Add(dtype=policy, name=f'{name}_sum')([shortcut, x])
            x = layers.ReLU(dtype=policy, name=name)(x)
    x = layers.GlobalAveragePooling3D(dtype=policy, name='pool5')(x)  # 1x7x7 at 8x112x112
    logits = layers.Dense(num_classes, kernel_initializer=c3d.kernel_initializer(initializer, 0.01),
                          dtype='float32', name='fc8')(x)
    return keras.Model(clips, logits, name='res3d_18')


def _kernel_initializer(name: str):
    # Caffe's filler: msra with FAN_OUT, a Gaussian of variance 2 / (filters · cells of the kernel).
    if name == 'caffe':
        return keras.initializers.VarianceScaling(2.0, mode='fan_out', distribution='untruncated_normal')
    return 'he_normal'
