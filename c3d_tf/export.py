# SPDX-License-Identifier: Apache-2.0
"""An artefact → a SavedModel that takes uint8 clips, with preprocessing and labels inside."""

import os
import shutil

import numpy as np
import tensorflow as tf

from c3d_tf import __version__
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.data import preprocess
from c3d_tf.weights import artefact

DESCRIPTION = os.path.join('assets.extra', 'export.json')
TOLERANCE = 1e-5  # largest difference of a probability between the Keras model and its export


def export(
    weights: str, export_dir: str, *, top_k: int = 5, max_clips: int = 64, overwrite: bool = False
) -> str:
    """Writes `export_dir/<n>/`, n being the next free version, complete or not at all.

    Signatures, all with the batch on axis 0:
      serving_default: clips uint8 [N, T, H, W, 3], RGB, any H and W. T frames are cut into clips one
        after another, a tail dropped, at most `max_clips`, and their scores averaged; fewer frames
        than a clip do what the network was trained with: start over, or hold the last one.
      float_clips: clips float32 [N, T, S, S, 3], the network's input as it is.
    Outputs: probabilities float32 [N, K], top_k_labels string [N, k], top_k_scores float32 [N, k].

    Args:
      weights: an artefact.
      export_dir: the folder of the model's versions.
      top_k: how many labels are named.
      max_clips: clips of one example that are scored; bounds the memory of a request.
      overwrite: writes a new version even where the newest is of the same weights.

    Returns:
      the version's folder.

    Raises:
      errors.RunError: what was written does not compute what the Keras model does.
    """
    if not export_dir:
        raise errors.UsageError("--export_dir is not set: expected the folder of the model's versions")
    net = artefact.load(weights)
    top_k = min(top_k, len(net.class_names))
    described = {'weights_sha256': net.sha256, 'top_k': top_k, 'max_clips': max_clips,
                 'c3d_tf': __version__}
    versions = sorted(int(name) for name in os.listdir(export_dir) if name.isdigit()) if (
        os.path.isdir(export_dir)) else []
    if versions and not overwrite:
        newest = os.path.join(export_dir, str(versions[-1]))
        if files.read_json(os.path.join(newest, DESCRIPTION)) == described:
            console.say(f'export: {newest} is up to date')
            return newest

    target = os.path.join(export_dir, str(versions[-1] + 1 if versions else 1))
    temporary = os.path.join(export_dir, f'.writing-{os.getpid()}')
    os.makedirs(export_dir, exist_ok=True)
    for name in os.listdir(export_dir):
        if name.startswith('.writing-'):  # left by a run that was killed
            shutil.rmtree(os.path.join(export_dir, name))
    module = _Module(net, top_k, max_clips)
    tf.saved_model.save(module, temporary, signatures=module.signatures())
    files.write_text(os.path.join(temporary, 'assets.extra', 'labels.txt'),
                     ''.join(f'{name}\n' for name in net.class_names))
    files.write_json(os.path.join(temporary, DESCRIPTION), described)
    difference = _check(temporary, net)
    os.rename(temporary, target)
    console.say(f'export: wrote {target}: serving_default takes uint8 clips [N, T, H, W, 3]; '
                f'loaded back, it differs from the Keras model by {difference:.1e} at most')
    return target


class _Module(tf.Module):
    """The graph: preprocessing, network, labels."""

    def __init__(self, net: artefact.Artefact, top_k: int, max_clips: int):
        super().__init__()
        self._net, self._top_k, self._max_clips = net, top_k, max_clips
        self._labels = tf.constant(net.class_names)
        # The variables alone: Keras' own objects would bring functions that nobody calls.
        self.weights = [variable.value for variable in net.model.variables]

    def signatures(self) -> dict:
        spec = self._net.preprocessing
        shape = [None, spec.clip_length, spec.crop_size, spec.crop_size, 3]
        return {
            'serving_default': tf.function(self._uint8_clips).get_concrete_function(
                clips=tf.TensorSpec([None, None, None, None, 3], tf.uint8, name='clips')),
            'float_clips': tf.function(self._float_clips).get_concrete_function(
                clips=tf.TensorSpec(shape, tf.float32, name='clips')),
        }

    def _uint8_clips(self, clips):
        spec = self._net.preprocessing
        extent = (spec.clip_length - 1) * spec.stride + 1
        shape = tf.shape(clips)
        count = tf.clip_by_value(shape[1] // extent, 1, self._max_clips)
        first = tf.range(count) * extent
        chosen = first[:, None] + tf.range(spec.clip_length) * spec.stride  # [n, T]
        held = spec.short == 'repeat_last'
        chosen = tf.minimum(chosen, shape[1] - 1) if held else chosen % shape[1]
        cut = tf.gather(clips, chosen, axis=1)  # [N, n, T, H, W, 3]
        flat = tf.reshape(cut, tf.concat([[-1, spec.clip_length], shape[2:]], axis=0))
        scores = self._softmax(preprocess.for_inference(flat, spec))
        scores = tf.reshape(scores, [-1, count, scores.shape[-1]])
        return self._outputs(tf.reduce_mean(scores, axis=1))

    def _float_clips(self, clips):
        return self._outputs(self._softmax(clips))

    def _softmax(self, clips):
        return tf.nn.softmax(self._net.model(clips, training=False))

    def _outputs(self, probabilities):
        scores, indices = tf.math.top_k(probabilities, self._top_k)
        return {'probabilities': probabilities, 'top_k_labels': tf.gather(self._labels, indices),
                'top_k_scores': scores}


def _check(directory: str, net: artefact.Artefact) -> float:
    """Returns the largest difference of a probability between the export and the Keras model."""
    spec = net.preprocessing
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (2, spec.clip_length * spec.stride, *spec.frame_size, 3), np.uint8)
    loaded = tf.saved_model.load(directory)
    served = loaded.signatures['serving_default'](clips=tf.constant(clips))['probabilities']
    inputs = preprocess.for_inference(tf.constant(clips[:, ::spec.stride]), spec)
    expected = tf.nn.softmax(net.model(inputs, training=False))
    difference = float(tf.reduce_max(tf.abs(served - expected)))
    if not difference <= TOLERANCE:
        raise errors.RunError(f'{directory}: the export differs from the Keras model by '
                              f'{difference:.1e}, more than {TOLERANCE:g}')
    return difference
