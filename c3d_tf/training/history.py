# SPDX-License-Identifier: Apache-2.0
"""The curves of a run, read back from its TensorBoard events."""

import os

import tensorflow as tf

from c3d_tf.common import storage
from c3d_tf.training import curve


def read(workdir: str, name: str) -> tuple[list[int], list[float]]:
    """Returns the steps and values of a curve in order; of a step written twice, as by a run that was
    stopped between a checkpoint and the next, the later one.

    Args:
      workdir: of a run of `train.fit`.
      name: a scalar's, e.g. 'loss'.
    """
    points = {}
    folder = os.path.join(storage.escape(workdir), curve.FOLDER)
    # Their names count up.
    for path in sorted(storage.glob(os.path.join(folder, 'events.out.tfevents.*'))):
        for serialized in tf.data.TFRecordDataset(path).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(serialized)
            for value in event.summary.value:
                if value.tag == name:
                    points[event.step] = float(tf.make_ndarray(value.tensor))
    steps = sorted(points)
    return steps, [points[step] for step in steps]
