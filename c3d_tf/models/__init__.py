# SPDX-License-Identifier: Apache-2.0
"""The networks, by name. Keras only: they run on any backend."""

import functools

import keras

from c3d_tf.models import c3d
from c3d_tf.models import depth_study
from c3d_tf.models import precisions
from c3d_tf.models import res3d


def _depths(name: str, *depths: int):
    return functools.partial(depth_study.build, name=name, depths=depths)


MODELS = {
    'c3d': c3d.build,
    'c3d_bn': c3d.build_bn,
    'depth_1': _depths('depth_1', 1, 1, 1, 1, 1),
    'depth_3': _depths('depth_3', 3, 3, 3, 3, 3),
    'depth_5': _depths('depth_5', 5, 5, 5, 5, 5),
    'depth_7': _depths('depth_7', 7, 7, 7, 7, 7),
    'increasing': _depths('increasing', 3, 3, 5, 5, 7),
    'decreasing': _depths('decreasing', 7, 5, 5, 3, 3),
    'res3d_18': res3d.build,
}
INITIALIZERS = ('caffe', 'he')
HEADS = ('fc', 'pool')
POOL5 = ('aligned', 'shifted')


def build(
    name: str,
    *,
    num_classes: int,
    clip_length: int = 16,
    crop_size: int = 112,
    width: float = 1.0,
    batch_norm: bool = False,
    initializer: str = 'caffe',
    head: str = 'fc',
    dropout: float = 0.5,
    pool5: str = 'aligned',
    precision: str = 'float32',
) -> keras.Model:
    """Returns a network: clips float32 [B, clip_length, crop_size, crop_size, 3] → logits [B, K].

    Every layer is reachable by its name in the paper: conv*, fc6 and fc7 give the value after ReLU;
    for res3d_18 see `res3d.build`.

    Args:
      name: a key of MODELS.
      num_classes: K.
      clip_length: frames of a clip.
      crop_size: side of the square input, in pixels.
      width: factor on all filters and hidden units; 1 in the paper.
      batch_norm: batch normalisation after each convolution; not in the paper. c3d_bn and res3d_18
        always have it.
      initializer: 'caffe', the fillers of the original's prototxt, or 'he' for training from scratch
        on little data.
      head: 'fc', the paper's fc6 and fc7; or 'pool', the average over space and time, for little data.
        res3d_18 always has the average.
      dropout: the share of units dropped before a fully connected layer; 0.5 in the paper. res3d_18
        drops none.
      pool5: 'aligned', windows from the first cell on as Caffe's; or 'shifted', from one before it, as
        ports have it that pad both sides (MMAction2, c3d-pytorch). res3d_18 averages all cells.
      precision: 'float32', or 'bfloat16' or 'float16' with float32 weights and logits.

    Raises:
      ValueError: an argument is none of those named.
    """
    for what, value, expected in (('model', name, MODELS), ('initializer', initializer, INITIALIZERS),
                                  ('head', head, HEADS), ('pool5', pool5, POOL5),
                                  ('precision', precision, precisions.PRECISIONS)):
        if value not in expected:
            raise ValueError(f'{what} {value!r}: expected one of {", ".join(expected)}')
    return MODELS[name](
        num_classes=num_classes, clip_length=clip_length, crop_size=crop_size, width=width,
        batch_norm=batch_norm, initializer=initializer, head=head, dropout=dropout, pool5=pool5,
        precision=precision)
