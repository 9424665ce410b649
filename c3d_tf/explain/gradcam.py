# SPDX-License-Identifier: Apache-2.0
"""Grad-CAM (Selvaraju et al., ICCV 2017) over space and time."""

import keras
import numpy as np
import tensorflow as tf


def grad_cam(model: keras.Model, layer: str, clips: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns where and when a layer spoke for a class, at the clip's own size.

    Args:
      model, layer, clips, classes: see `cells`.

    Returns:
      float32 [B, T, S, S], 0 … 1: stretched linearly to the clip's size, 1 at each clip's largest value;
      0 everywhere where nothing speaks for the class.
    """
    cam = cells(model, layer, clips, classes)
    for axis in (1, 2, 3):
        cam = stretch(cam, axis, clips.shape[axis])
    return cam / np.maximum(cam.max(axis=(1, 2, 3), keepdims=True), 1e-12)


def cells(model: keras.Model, layer: str, clips: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns how much each cell of a layer spoke for a class.

    The layer's maps, each weighted by the mean gradient of the class's logit in it, are summed, and
    what speaks against the class is cut off. No gradient passes a softmax: other classes do not count.

    Args:
      model: clips → logits.
      layer: one with values [B, t, h, w, C].
      clips: float32 [B, T, S, S, 3].
      classes: int [B].

    Returns:
      float32 [B, t, h, w], from 0; 0 everywhere where nothing speaks for the class.
    """
    probe = keras.Model(model.input, [model.get_layer(layer).output, model.output])
    with tf.GradientTape() as tape:
        maps, logits = probe(tf.constant(clips), training=False)
        score = tf.gather(logits, classes, axis=1, batch_dims=1)
    # A clip's score depends on its own maps alone: the gradient of the sum is that of each.
    weight = tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2, 3), keepdims=True)
    return tf.nn.relu(tf.reduce_sum(weight * maps, axis=-1)).numpy()


def stretch(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Returns the cells of one axis stretched linearly over the `size` places that they were made of."""
    count = array.shape[axis]
    share = np.stack([np.interp(np.arange(size), middles(count, size), row) for row in np.eye(count)])
    return np.moveaxis(np.moveaxis(array, axis, -1) @ share.astype(array.dtype), -1, axis)


def middles(count: int, size: int) -> np.ndarray:
    """Returns float [count]: where among `size` places the middle of each cell lies."""
    # Pools and strides here halve, from the first cell on; what is left over at the end is a cell too.
    return (np.arange(count) + 0.5) * 2 ** np.ceil(np.log2(size / count)) - 0.5
