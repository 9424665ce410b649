# SPDX-License-Identifier: Apache-2.0
"""The networks of the temporal-depth study (section 3 of the paper): one net, six lists of depths."""

import keras

from c3d_tf.models import c3d

FILTERS = (64, 128, 256, 256, 256)


def build(*, depths: tuple[int, int, int, int, int], name: str, **options) -> keras.Model:
    """Returns five convolutions, each followed by a pool, with fc6 and fc7 of 2048.

    Args:
      depths: temporal kernel depth of conv1 … conv5; all 1 makes the 2-D network.
      name: the model's name.
      **options: see `models.build`.
    """
    stages = [
        (f'conv{i}', filters, depth, 0.0 if i == 1 else 1.0, (f'pool{i}', 1 if i == 1 else 2))
        for i, (filters, depth) in enumerate(zip(FILTERS, depths, strict=True), 1)
    ]
    return c3d.assemble(stages, name=name, hidden=2048, **options)
