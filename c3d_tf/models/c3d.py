# SPDX-License-Identifier: Apache-2.0
"""C3D (Tran et al., ICCV 2015, Figure 3) and its parts, as plain functional Keras.

Source of the numbers: c3d_sport1m_feature_extractor_frm.prototxt and conv3d_deepnetA_train of the
original code.
"""

import keras
from keras import layers

from c3d_tf.models import precisions

# name, filters, bias at the start, pool after it (its time × space window), or None
STAGES = (
    ('conv1a', 64, 0.0, ('pool1', 1)),  # time is kept whole for another layer, as in section 3.1
    ('conv2a', 128, 1.0, ('pool2', 2)),
    ('conv3a', 256, 1.0, None),
    ('conv3b', 256, 1.0, ('pool3', 2)),
    ('conv4a', 512, 1.0, None),
    ('conv4b', 512, 1.0, ('pool4', 2)),
    ('conv5a', 512, 1.0, None),
    ('conv5b', 512, 1.0, ('pool5', 2)),
)


def build(*, name: str = 'c3d', **options) -> keras.Model:
    """Returns C3D: eight 3x3x3 convolutions, fc6 and fc7 of 4096; options as `models.build`."""
    return assemble([(conv, filters, 3, bias, pool) for conv, filters, bias, pool in STAGES],
                    name=name, hidden=4096, **options)


def build_bn(**options) -> keras.Model:
    """Returns C3D with batch normalisation after each convolution, whatever `batch_norm` says."""
    return build(**{**options, 'name': 'c3d_bn', 'batch_norm': True})


def assemble(
    stages,
    *,
    name: str,
    hidden: int,
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
    """Returns a chain of 3-D convolutions and pools with fully connected layers on top.

    Args:
      stages: (layer name, filters, temporal depth of the kernel, first bias, (pool name, temporal
        window of the pool) or None) for each convolution.
      name: the model's name.
      hidden: units of fc6 and fc7 at width 1.
      num_classes … precision: see `models.build`.
    """
    policy = precisions.policy(precision)
    clips = keras.Input((clip_length, crop_size, crop_size, 3), name='clips')
    x = clips
    for conv, filters, depth, bias, pool in stages:
        # (B, T, H, W, C); batch norm has a bias of its own, so the convolution drops its.
        convolution = layers.Conv3D(
            scaled(filters, width), (depth, 3, 3), padding='same', use_bias=not batch_norm,
            activation=None if batch_norm else 'relu',
            kernel_initializer=kernel_initializer(initializer, 0.01),
            bias_initializer=keras.initializers.Constant(bias if initializer == 'caffe' else 0),
            dtype=precisions.for_convolution(precision, time=x.shape[1], depth=depth),
            name=f'{conv}_conv' if batch_norm else conv)
        x = convolution(x)
        if batch_norm:
            # The layer named as in the paper always holds the value after ReLU.
            x = layers.BatchNormalization(epsilon=1e-5, synchronized=True, dtype=policy,
                                          name=f'{conv}_bn')(x)
            x = layers.ReLU(dtype=policy, name=conv)(x)
        if pool:
            pool_name, time = pool
            if pool_name == 'pool5' and pool5 == 'shifted':
                # Windows {0} {1,2} {3,4} {5,6}: a zero before the first cell, neutral after ReLU.
                x = layers.ZeroPadding3D(((0, 0), (1, 0), (1, 0)), dtype=policy, name='pool5_pad')(x)
            # 'same' pads at the end only, which is Caffe's ceil mode: windows {0,1} {2,3} {4,5} {6}.
            # So any size goes through: one cell or frame that is left pools to itself.
            x = layers.MaxPooling3D((time, 2, 2), (time, 2, 2), padding='same',
                                    dtype=policy, name=pool_name)(x)
    if head == 'pool':
        x = layers.GlobalAveragePooling3D(dtype=policy, name='pool')(x)
        x = layers.Dropout(dropout, dtype=policy, name='drop')(x)
    else:
        x = layers.Flatten(dtype=policy, name='flatten')(x)
        for number in (6, 7):
            x = layers.Dense(
                scaled(hidden, width), activation='relu', name=f'fc{number}',
                kernel_initializer=kernel_initializer(initializer, 0.005),
                bias_initializer=keras.initializers.Constant(1 if initializer == 'caffe' else 0),
                dtype=policy)(x)
            x = layers.Dropout(dropout, dtype=policy, name=f'drop{number}')(x)
    logits = layers.Dense(num_classes, kernel_initializer=kernel_initializer(initializer, 0.01),
                          dtype='float32', name='fc8')(x)
    return keras.Model(clips, logits, name=name)


def scaled(units: int, width: float) -> int:
    """Returns the filters or hidden units that `width` leaves, at least one."""
    return max(round(units * width), 1)


def kernel_initializer(name: str, stddev: float):
    """Returns the Keras initialiser: 'caffe', a Gaussian of `stddev`, or 'he'."""
    # Caffe's fillers in the prototxt: Gaussian, 0.01 for convolutions and fc8, 0.005 for fc6 and fc7.
    return keras.initializers.RandomNormal(0.0, stddev) if name == 'caffe' else 'he_normal'
