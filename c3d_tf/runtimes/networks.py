# SPDX-License-Identifier: Apache-2.0
"""One network with the outputs that are asked for, as a function: in TensorFlow, ONNX Runtime or OpenVINO."""

import warnings
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from c3d_tf.common import errors
from c3d_tf.data import preprocess
from c3d_tf.runtimes import extras
from c3d_tf.weights import artefact

RUNTIMES = ('tensorflow', 'onnx', 'openvino', 'int8')  # int8 is OpenVINO with the network of `int8.quantize`
PROB = 'prob'  # the softmax of the last layer, which is no layer of the network
# OpenVINO's own default is bfloat16 on CPUs that have it.
_HINTS = {'float32': 'f32', 'bfloat16': 'bf16'}

# Clips float32 [N, T, S, S, 3] → {layer: float32 [N, …]}.
Network = Callable[[np.ndarray], dict[str, np.ndarray]]


def with_outputs(net: artefact.Artefact, layers) -> keras.Model:
    """Returns the network with these outputs alone: clips float32 [N, T, S, S, 3] → {layer: float32}.

    Values are [N, K]; those of convolutions and pools [N, C, T, H, W], the original's order.

    Args:
      net: the network.
      layers: names of layers, and PROB.
    """
    outputs = {}
    for layer in layers:
        value = net.model.output if layer == PROB else net.model.get_layer(layer).output
        value = keras.ops.cast(value, 'float32') if value.dtype != 'float32' else value
        if layer == PROB:
            value = keras.ops.softmax(value)
        outputs[layer] = keras.ops.transpose(value, (0, 4, 1, 2, 3)) if len(value.shape) == 5 else value
    return keras.Model(net.model.input, outputs)


def of_frames(network: Network, spec: preprocess.Preprocessing) -> Network:
    """Returns the same for uint8 [N, T, H, W, 3] of any size: the preprocessing stays TensorFlow's."""
    prepare = tf.function(lambda clips: preprocess.for_inference(clips, spec), autograph=False)
    return lambda clips: network(prepare(tf.constant(clips)))


def tensorflow(net: artefact.Artefact, layers) -> Network:
    """Returns the network as TensorFlow runs it, at the precision that it was loaded with."""
    model = with_outputs(net, layers)
    forward = tf.function(lambda clips: model(clips, training=False), autograph=False, reduce_retracing=True)
    return lambda clips: {name: value.numpy() for name, value in forward(tf.constant(clips)).items()}


def to_openvino(net: artefact.Artefact, layers):
    """Returns the network as an openvino.Model with the input `clips`; outputs have the layers' names."""
    openvino = extras.load('openvino')
    model = with_outputs(net, layers)
    clips = tf.TensorSpec(model.input.shape, tf.float32, name='clips')
    graph = tf.function(lambda clips: model(clips, training=False), autograph=False)
    return openvino.convert_model(graph.get_concrete_function(clips))


def openvino(model, layers, *, precision: str = 'float32') -> Network:
    """Returns the network as OpenVINO runs it on the CPU; what is not asked for is not computed.

    Args:
      model: an openvino.Model, or the path of an .xml or .onnx file.
      layers: names of its outputs.
      precision: 'float32' or 'bfloat16', of whatever is not int8 in the model.

    Raises:
      errors.UsageError: another precision; or the model has no such output.
    """
    if precision not in _HINTS:
        raise errors.UsageError(f'--precision={precision}: OpenVINO is asked for {" or ".join(_HINTS)}')
    api = extras.load('openvino')
    if isinstance(model, str):
        path, model = model, api.Core().read_model(model)
        known = {name for output in model.outputs for name in output.names}
        for layer in layers:
            if layer not in known:
                raise errors.UsageError(f'--layers={layer}: {path} gives {", ".join(sorted(known))}; export it '
                                        f'with --layers={layer} as well')
    wanted = api.Model([model.output(layer).node for layer in layers], model.get_parameters())
    compiled = api.compile_model(wanted, 'CPU', {'INFERENCE_PRECISION_HINT': _HINTS[precision]})

    def run(clips):
        values = compiled(np.asarray(clips))
        # Copied: the next call writes where this one's values are.
        return {layer: np.array(values[layer]) for layer in layers}

    return run


def save_onnx(net: artefact.Artefact, layers, path: str) -> None:
    """Writes the network as ONNX with the input `clips`; outputs have the layers' names."""
    for package in ('onnx', 'tf2onnx'):
        extras.load(package)
    model = with_outputs(net, layers)
    clips = tf.TensorSpec(model.input.shape, tf.float32, name='clips')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # of Keras, about NumPy
        model.export(path, format='onnx', verbose=False, input_signature=[clips])


def onnx(path: str, layers) -> Network:
    """Returns the network of a file as ONNX Runtime runs it on the CPU."""
    session = extras.load('onnxruntime').InferenceSession(path, providers=['CPUExecutionProvider'])
    layers = list(layers)
    return lambda clips: dict(zip(layers, session.run(layers, {'clips': np.asarray(clips)}), strict=True))
