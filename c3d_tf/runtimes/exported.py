# SPDX-License-Identifier: Apache-2.0
"""A folder for another runtime: the network, and all that its caller must know to feed it.

    <export_dir>/<n>/model.onnx, or model.xml and model.bin; runtime.json, mean.npy, labels.txt
"""

import json
import os

import numpy as np

from c3d_tf import __version__
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.common import versions
from c3d_tf.data import records
from c3d_tf.runtimes import compare
from c3d_tf.runtimes import extras
from c3d_tf.runtimes import int8
from c3d_tf.runtimes import networks
from c3d_tf.weights import artefact

DESCRIPTION = 'runtime.json'
MODELS = {'onnx': 'model.onnx', 'openvino': 'model.xml', 'int8': 'model.xml'}
_PACKAGES = {'onnx': ('onnx', 'tf2onnx', 'onnxruntime'), 'openvino': ('openvino',),
             'int8': ('openvino', 'nncf')}
TOLERANCE = 1e-4  # largest difference of a probability between the file in float32 and the Keras model


def export(net: artefact.Artefact, export_dir: str, *, runtime: str, layers: tuple[str, ...],
           index: records.Index | None, num_clips: int, overwrite: bool) -> str:
    """Writes `export_dir/<n>/`, n being the next free version, complete or not at all.

    The network takes `clips` float32 [N, T, S, S, 3], as the SavedModel's float_clips does, and gives
    `prob` [N, K] and each of `layers`: [N, D], or [N, C, T, H, W] for convolutions and pools.

    Args:
      net: the network, in float32.
      export_dir: the folder of the model's versions.
      runtime: 'onnx', 'openvino', or 'int8', which is OpenVINO's as well.
      layers: names of layers.
      index: records that calibrate int8, and on whose test split the file is compared with TensorFlow;
        without them only random clips are compared.
      num_clips: clips a video for that.
      overwrite: writes a new version even where the newest is of the same weights and settings.

    Returns:
      the version's folder.

    Raises:
      errors.UsageError: a package is missing; or int8 has no records.
      errors.RunError: what was written does not compute what the Keras model does.
    """
    if runtime == 'int8' and index is None:
        raise errors.UsageError('--records is not set: int8 needs real clips that show which values occur')
    packages = {name: extras.load(name).__version__ for name in _PACKAGES[runtime]}
    outputs = (networks.PROB, *(layer for layer in layers if layer != networks.PROB))
    # Compared with what an earlier run wrote as JSON, hence the round trip.
    described = json.loads(json.dumps({
        'runtime': runtime, 'weights_sha256': net.sha256, 'outputs': outputs, 'versions':
        {'c3d_tf': __version__, **packages}, 'preprocessing': net.preprocessing.to_json(),
        'records': index.fingerprint if index else '', 'clips': num_clips if index else 0}))
    newest = os.path.join(export_dir, str(versions.newest(export_dir)))
    before = files.read_json(os.path.join(newest, DESCRIPTION))
    if before and not overwrite and described.items() <= before.items():
        console.say(f'export: {newest} is up to date')
        return newest

    with versions.adding(export_dir) as (temporary, number):
        os.mkdir(temporary)
        path = os.path.join(temporary, MODELS[runtime])
        _write(net, outputs, runtime, index, path)
        compared = _compared(net, runtime, path, index, num_clips)
        np.save(os.path.join(temporary, 'mean.npy'), net.preprocessing.mean)
        files.write_text(os.path.join(temporary, 'labels.txt'),
                         ''.join(f'{name}\n' for name in net.class_names))
        written = {name: files.sha256(os.path.join(temporary, name))
                   for name in sorted(os.listdir(temporary))}
        files.write_json(os.path.join(temporary, DESCRIPTION), {
            **described, 'version': number, 'sha256': written, 'compared': compared})
    target = os.path.join(export_dir, str(number))
    console.say(f'export: wrote {target}: {MODELS[runtime]}, which gives {", ".join(outputs)}')
    return target


def keras_precision(runtime: str, precision: str) -> str:
    """Returns the precision to load an artefact with; other runtimes take it in float32 and change it."""
    return precision if runtime == networks.RUNTIMES[0] else 'float32'


def load(net: artefact.Artefact, layers, runtime: str, *, precision: str, export_dir: str) -> networks.Network:
    """Returns the function that runs the network: clips float32 [N, T, S, S, 3] → {layer: float32 [N, …]}.

    Args:
      net: the network, loaded with `keras_precision`.
      layers: names of layers, and PROB.
      runtime: 'tensorflow'; 'openvino', converted in memory; or 'int8', the newest of `export_dir`.
      precision: of activations; for int8 of those that are not.
      export_dir: where export put the int8 network.

    Raises:
      errors.UsageError: a package is missing, there is no such int8 network, or ONNX is asked for.
    """
    if runtime == 'onnx':
        raise errors.UsageError('--runtime=onnx is for --mode=export; to run a network take tensorflow, '
                                'openvino or int8')
    if runtime == 'int8':
        return _open_int8(net, export_dir, layers, precision=precision)
    if runtime == 'openvino':
        return networks.openvino(networks.to_openvino(net, layers), layers, precision=precision)
    return networks.tensorflow(net, layers)


def _open_int8(net: artefact.Artefact, export_dir: str, layers, *, precision: str) -> networks.Network:
    """Returns the newest int8 network of the folder, once it is known to be this network's.

    Raises:
      errors.UsageError: there is none, or it was made from other weights or without one of the layers.
      errors.RunError: a file is not what was written.
    """
    again = 'make it by --mode=export --runtime=int8 --records=… with these --weights and --export_dir'
    if not export_dir:
        raise errors.UsageError(f'--export_dir is not set: expected where the int8 network is; {again}')
    folder = os.path.join(export_dir, str(versions.newest(export_dir)))
    found = files.read_json(os.path.join(folder, DESCRIPTION))
    if not found or found['runtime'] != 'int8':
        raise errors.UsageError(f'--export_dir={export_dir}: no int8 network there; {again}')
    if found['weights_sha256'] != net.sha256:
        raise errors.UsageError(f'{folder} was made from other weights (SHA-256 {found["weights_sha256"][:12]}…, '
                                f'--weights have {net.sha256[:12]}…); {again}')
    for name, sha256 in found['sha256'].items():
        path = os.path.join(folder, name)
        if not storage.isfile(path) or files.sha256(path) != sha256:
            raise errors.RunError(f'{path} is missing or damaged; {again}')
    with storage.local(folder) as here:
        return networks.openvino(os.path.join(here, MODELS['int8']), layers, precision=precision)


def _write(net, outputs, runtime: str, index, path: str) -> None:
    if runtime == 'onnx':
        networks.save_onnx(net, outputs, path)
        return
    model = networks.to_openvino(net, outputs)
    if runtime == 'int8':
        model = int8.quantize(model, index.split('train'), net.preprocessing)
    extras.load('openvino').save_model(model, path, compress_to_fp16=False)


def _compared(net, runtime: str, path: str, index, num_clips: int) -> dict:
    """Returns how the file does beside TensorFlow; says so.

    Raises:
      errors.RunError: it computes something else.
    """
    prob = (networks.PROB,)
    if runtime == 'onnx':
        runs = {'onnx float32': networks.onnx(path, prob)}
    else:
        name = 'int8 and' if runtime == 'int8' else 'openvino'
        runs = {f'{name} {precision}': networks.openvino(path, prob, precision=precision)
                for precision in ('float32', 'bfloat16')}
    runs = {**compare.references(net), **runs}
    spec = net.preprocessing
    shape = (spec.clip_length, spec.crop_size, spec.crop_size, 3)
    clips = np.random.default_rng(0).normal(0, 50, (2, *shape)).astype(np.float32)
    found = {}
    if runtime != 'int8':  # that one is another network, whose worth only real clips show
        expected, value = (runs[name](clips)[networks.PROB] for name in (compare.REFERENCE, f'{runtime} float32'))
        found['difference'] = float(np.abs(value - expected).max())
        if not found['difference'] <= TOLERANCE:
            raise errors.RunError(f'{path} differs from the Keras model by {found["difference"]:.1e}, more than '
                                  f'{TOLERANCE:g}')
        console.say(f'export: differs from the Keras model by {found["difference"]:.1e} at most on random clips')
    found['seconds a clip'] = compare.seconds(runs, shape)
    if index:
        found['test'] = compare.accuracy(runs, index, spec, num_clips)
    console.say(compare.table(found))
    return found
