# SPDX-License-Identifier: Apache-2.0
"""An artefact → a SavedModel that a server loads as it is, or the network alone for another runtime."""

import json
import os

import numpy as np
import tensorflow as tf

from c3d_tf import __version__
from c3d_tf import evaluate
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.common import versions
from c3d_tf.data import preprocess
from c3d_tf.data import records
from c3d_tf.runtimes import exported
from c3d_tf.runtimes import networks
from c3d_tf.serving import signatures
from c3d_tf.serving import warmup
from c3d_tf.weights import artefact

DESCRIPTION = os.path.join('assets.extra', 'export.json')
LABELS = os.path.join('assets.extra', 'labels.txt')
# Largest difference of a probability between the Keras model and its export. bfloat16 has 8 bits, and what
# is fused, and so not rounded in between, differs between a function and a graph.
TOLERANCE = {'float32': 1e-5, 'bfloat16': 2e-2, 'float16': 2e-2}


def export(
    weights: str,
    export_dir: str,
    *,
    top_k: int = 5,
    max_clips: int = 64,
    layers: tuple[str, ...] = (),
    precision: str = 'float32',
    runtime: str = 'tensorflow',
    records_dir: str = '',
    num_clips: int = 10,
    overwrite: bool = False,
) -> str:
    """Writes `export_dir/<n>/`, n being the next free version, complete or not at all.

    Signatures, all with the batch on axis 0, RGB, images of any size:
      serving_default: clips uint8 [N, T, H, W, 3].
      frames: frames string [N, T], JPEG or PNG bytes each.
      gif: gifs string [N], an animated GIF each.
      mjpeg: videos string [N], a Motion-JPEG AVI each.
      float_clips: clips float32 [N, T, S, S, 3], the network's input as it is.
      features: clips uint8 [N, T, H, W, 3] → each of `layers`, by default fc6 (or what the last layer
        sees), float32 [N, D]: the mean over the clips, L2-normalised.
    Outputs of all but `features`: probabilities float32 [N, K], top_k_labels string [N, k], top_k_scores
    float32 [N, k], and each of `layers`, float32 [N, D], the mean over the clips, flattened (channels
    first, as in the original's files), not normalised.

    T frames are cut into clips one after another, a tail dropped, at most `max_clips`, and averaged; fewer
    frames than a clip do what evaluation does: start over, or hold the last one.

    Beside the graph lie labels.txt, export.json (all of what follows) and a warm-up request for each
    signature and batch size, in assets.extra.

    Args:
      weights: an artefact.
      export_dir: the folder of the model's versions.
      top_k: how many labels are named.
      max_clips: clips of one example that are scored; bounds the time of a request.
      layers: whose values every signature gives in addition; see `signatures.choose_layers`.
      precision: of activations; see `models.build`. Outputs are float32.
      runtime: 'tensorflow', as above; or 'onnx', 'openvino' or 'int8', the network alone: see
        `exported.export`, and for the two below.
      records_dir: what prepare wrote.
      num_clips: uniform clips a video.
      overwrite: writes a new version even where the newest is of the same weights and settings.

    Returns:
      the version's folder.

    Raises:
      errors.UsageError: there is no such artefact or layer.
      errors.RunError: what was written does not compute what the Keras model does.
    """
    if not export_dir:
        raise errors.UsageError("--export_dir is not set: expected the folder of the model's versions")
    net = artefact.load(weights, precision=precision)
    layers = signatures.choose_layers(net, layers)
    if runtime != networks.RUNTIMES[0]:
        if precision != 'float32':
            raise errors.UsageError(f'--precision={precision}: a file for --runtime={runtime} holds float32 or int8; '
                                    'what it is computed in is chosen where it is loaded')
        index = records.read_index(records_dir) if records_dir else None
        if index:
            evaluate.check_fit(net, index)
        return exported.export(net, export_dir, runtime=runtime, layers=layers, index=index,
                               num_clips=num_clips, overwrite=overwrite)
    top_k = min(top_k, len(net.class_names))
    # Compared with what an earlier run wrote as JSON, hence the round trip.
    described = json.loads(json.dumps({
        'weights_sha256': net.sha256, 'top_k': top_k, 'max_clips': max_clips, 'layers': layers,
        'precision': precision, 'preprocessing': net.preprocessing.to_json(), 'c3d_tf': __version__}))
    number = versions.newest(export_dir)
    newest = os.path.join(export_dir, str(number))
    if not overwrite and files.read_json(os.path.join(newest, DESCRIPTION)) == {**described, 'version': number}:
        console.say(f'export: {newest} is up to date')
        return newest

    module = signatures.Serving(net, top_k=top_k, max_clips=max_clips, layers=layers)
    functions = module.signatures()
    with versions.adding(export_dir) as (temporary, number):
        tf.saved_model.save(module, temporary, signatures=functions)
        files.write_text(os.path.join(temporary, LABELS), ''.join(f'{name}\n' for name in net.class_names))
        files.write_json(os.path.join(temporary, DESCRIPTION), {**described, 'version': number})
        model = os.path.basename(storage.abspath(export_dir))
        warmup.write(temporary, model, list(functions), net.preprocessing)
        difference = _difference(temporary, net)
        if not difference <= TOLERANCE[precision]:
            raise errors.RunError(f'{temporary}: the export differs from the Keras model by {difference:.1e}, '
                                  f'more than {TOLERANCE[precision]:g}')
    target = os.path.join(export_dir, str(number))
    console.say(f'export: wrote {target}: {", ".join(functions)}; loaded back, it differs from the Keras '
                f'model by {difference:.1e} at most')
    return target


def _difference(directory: str, net: artefact.Artefact) -> float:
    """Returns the largest difference of a probability between the export and the Keras model."""
    spec = net.preprocessing
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (2, spec.clip_length * spec.stride, *spec.frame_size, 3), np.uint8)
    loaded = tf.saved_model.load(directory)
    served = loaded.signatures['serving_default'](clips=tf.constant(clips))[signatures.PROBABILITIES]
    inputs = preprocess.for_inference(tf.constant(clips[:, ::spec.stride]), spec)
    expected = tf.nn.softmax(net.model(inputs, training=False))
    return float(tf.reduce_max(tf.abs(served - expected)))
