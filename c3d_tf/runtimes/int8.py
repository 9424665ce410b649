# SPDX-License-Identifier: Apache-2.0
"""A network whose products are of int8, for CPUs: quantised by NNCF, calibrated on records."""

import numpy as np
import tensorflow as tf

from c3d_tf.data import clips
from c3d_tf.data import pipeline
from c3d_tf.data import preprocess
from c3d_tf.data import records
from c3d_tf.runtimes import extras

CALIBRATION = 300  # clips; what NNCF itself takes


def quantize(model, split: records.Split, spec: preprocess.Preprocessing):
    """Returns an openvino.Model of the same inputs and outputs, with int8 where NNCF deems it sound.

    The ranges of all values are those that occur in the middle clips of records, evenly chosen from the
    split; the same model and records give the same network.

    Args:
      model: an openvino.Model with the input `clips`.
      split: of the records.
      spec: what the network must be given.
    """
    nncf = extras.load('nncf')
    nncf.set_log_level(40)  # errors
    seen = calibration(split, spec)
    # The slow correction of biases: of 1,392 random clips of a real training split 99.6 % keep their class, with the
    # fast one 97.4 %. Asymmetric ranges change nothing: values are after ReLU.
    return nncf.quantize(model, nncf.Dataset(_Clips(seen)), subset_size=CALIBRATION, fast_bias_correction=False)


def calibration(split: records.Split, spec: preprocess.Preprocessing) -> tf.data.Dataset:
    """Returns the clips that decide the ranges, float32 [1, T, S, S, 3] each; CALIBRATION at most."""
    short = 'loop' if spec.short == 'drop' else spec.short
    record, start = clips.choose(
        split.frames, np.arange(len(split.frames)), choice='uniform', count=1, clip_length=spec.clip_length,
        stride=spec.stride, short=short, rng=np.random.default_rng(0))
    chosen = np.unique(np.linspace(0, len(record) - 1, min(CALIBRATION, len(record))).astype(int))
    read = pipeline.read_clips(split, record[chosen], start[chosen], clip_length=spec.clip_length,
                               stride=spec.stride)
    return read.batch(1).map(lambda one: preprocess.for_inference(one, spec))


class _Clips:
    """A data set as NNCF reads it, several times; the length of TensorFlow's is a tensor, which it is not up to."""

    def __init__(self, dataset: tf.data.Dataset):
        self._dataset = dataset

    def __iter__(self):
        return self._dataset.as_numpy_iterator()
