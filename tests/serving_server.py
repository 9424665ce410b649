# SPDX-License-Identifier: Apache-2.0
"""A model server for tests: `python -m tests.serving_server`, with tensorflow_model_server's flags.

It stands in for TensorFlow Serving, whose binary is not to be had where this is developed, as near as
Python comes: the real protos and services of tensorflow-serving-api, SavedModels by the loader that the
server uses (tf.compat.v1.saved_model.loader), the same config files, and batching (serving_batches.py).
"""

import argparse
import base64
import concurrent.futures
import http.server
import json
import os
import re
import signal
import sys
import time

import google.protobuf.text_format
import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from c3d_tf.serving import warmup
from tests import server_configs_pb2
from tests import serving_batches

Refusal = serving_batches.Refusal
# http_server.cc, ToHTTPStatusCode
HTTP = {'INVALID_ARGUMENT': 400, 'FAILED_PRECONDITION': 400, 'OUT_OF_RANGE': 400, 'NOT_FOUND': 404,
        'DEADLINE_EXCEEDED': 504, 'RESOURCE_EXHAUSTED': 429, 'UNAVAILABLE': 503, 'UNIMPLEMENTED': 501}
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class Model:
    """The newest version of a model, loaded as the server loads it."""

    def __init__(self, base_path: str, parameters):
        self.version = max(int(name) for name in os.listdir(base_path) if name.isdigit())
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph)
        with graph.as_default():
            meta = tf.compat.v1.saved_model.loader.load(
                self._session, ['serve'], os.path.join(base_path, str(self.version)))
        self.signatures = {name: one for name, one in meta.signature_def.items() if name[:2] != '__'}
        for signature, inputs in warmup.read(os.path.join(base_path, str(self.version))):
            self._run(signature, inputs)
        self.batcher = serving_batches.Batcher(self._run, parameters) if parameters else None

    def predict(self, signature: str, inputs: dict, names, deadline: float) -> dict:
        """Checks a request, has it run, alone or in a batch, and returns {output: array}."""
        signature = signature or 'serving_default'
        if signature not in self.signatures:
            raise Refusal('INVALID_ARGUMENT', 
                          f'Serving signature name: "{signature}" not found in signature def')
        expected = self.signatures[signature].inputs
        if set(inputs) != set(expected):
            raise Refusal('INVALID_ARGUMENT', 
                          f'input size does not match signature: {sorted(inputs)} != {sorted(expected)}')
        for name, value in inputs.items():
            wanted = tf.as_dtype(expected[name].dtype)
            shape = tf.TensorShape(expected[name].tensor_shape)
            if (value.dtype == object) != (wanted == tf.string) or (
                    wanted != tf.string and value.dtype != wanted.as_numpy_dtype):
                raise Refusal('INVALID_ARGUMENT', 
                              f'Expects arg[0] to be {wanted.name} but {value.dtype} is provided')
            if not shape.is_compatible_with(value.shape) or not value.ndim or not len(value):
                raise Refusal('INVALID_ARGUMENT', 
                              f'input {name} has shape {list(value.shape)}, expected {shape}')
        task = serving_batches.Task(inputs, deadline)
        if not self.batcher:
            task.future.set_result(self._run(signature, inputs))
        else:
            self.batcher.submit(signature, task)
        try:
            outputs = task.future.result(max(deadline - time.monotonic(), 0))
        except concurrent.futures.TimeoutError:
            raise Refusal('DEADLINE_EXCEEDED', 'Run() timeout exceeded') from None
        return {name: value for name, value in outputs.items() if not names or name in names}

    def _run(self, signature, inputs):
        one = self.signatures[signature]
        try:
            return self._session.run({name: info.name for name, info in one.outputs.items()},
                                     {one.inputs[name].name: value for name, value in inputs.items()})
        except tf.errors.OpError as error:
            # Without what Python adds before and behind.
            message = error.message.removeprefix('Graph execution error:\n\n')
            message = message.split('\n\nOriginal stack trace')[0]
            raise Refusal(_CODES[error.error_code], message) from None


class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    """gRPC."""

    def __init__(self, models):
        self._models = models

    def Predict(self, request, context):
        spec = request.model_spec
        try:
            version = spec.version.value if spec.HasField('version') else None
            model = find(self._models, spec.name, version)
            try:
                inputs = {name: _unpack(tensor) for name, tensor in request.inputs.items()}
            except (TypeError, ValueError) as error:
                raise Refusal('INVALID_ARGUMENT', f'tensor parsing error: {error}') from None
            deadline = time.monotonic() + min(context.time_remaining() or 3600, 3600)
            outputs = model.predict(spec.signature_name, inputs, set(request.output_filter), deadline)
        except Refusal as refusal:
            context.abort(grpc.StatusCode[refusal.code], refusal.message)
        response = predict_pb2.PredictResponse()
        response.model_spec.CopyFrom(spec)
        response.model_spec.version.value = model.version
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(_proto(value))
        return response


class Handler(http.server.BaseHTTPRequestHandler):
    """REST: predictions, status and metrics; the paths and bodies of the server's RESTful API."""

    protocol_version = 'HTTP/1.1'
    wbufsize = 1 << 16  # headers and body leave together
    models, metrics, timeout_ms = {}, '', 30_000

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        try:
            match = re.fullmatch(r'/v1/models/([^/:]+)(?:/versions/(\d+))?:predict', self.path)
            if not match:
                raise Refusal('INVALID_ARGUMENT', f'Malformed request: POST {self.path}')
            model = find(self.models, match[1], match[2] and int(match[2]))
            self._say(200, json.dumps(self._predict(model, body)))
        except Refusal as refusal:
            self._say(HTTP.get(refusal.code, 500), json.dumps({'error': refusal.message}))

    def do_GET(self):
        match = re.fullmatch(r'/v1/models/([^/:]+)', self.path)
        if self.metrics and self.path == self.metrics:
            lines = [f'batches{{model="{name}",requests="{count}"}} {times}'
                     for name, model in self.models.items() if model.batcher
                     for count, times in sorted(model.batcher.batches.items())]
            self._say(200, '\n'.join([*lines, '']), 'text/plain')
        elif match and match[1] in self.models:
            self._say(200, json.dumps({'model_version_status': [{
                'version': str(self.models[match[1]].version), 'state': 'AVAILABLE',
                'status': {'error_code': 'OK', 'error_message': ''}}]}))
        else:
            self._say(404, json.dumps({'error': f'Not found: GET {self.path}'}))

    def _predict(self, model, body):
        try:
            asked = json.loads(body)
            rows = 'instances' in asked
            signature = asked.get('signature_name', 'serving_default')
            expected = model.signatures[signature].inputs if signature in model.signatures else {}
            given = asked['instances'] if rows else asked['inputs']
            if rows and isinstance(given[0], dict) and 'b64' not in given[0]:
                given = {name: [row[name] for row in given] for name in given[0]}
            if not isinstance(given, dict) or set(given) == {'b64'}:
                given = {next(iter(expected)): given}
            inputs = {name: _array(value, tf.as_dtype(expected[name].dtype))
                      for name, value in given.items()}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration) as error:
            raise Refusal('INVALID_ARGUMENT', f'JSON: {type(error).__name__}: {error}') from None
        outputs = model.predict(signature, inputs, (), time.monotonic() + self.timeout_ms / 1000)
        outputs = {name: _plain(value) for name, value in outputs.items()}
        one = len(outputs) == 1
        if not rows:
            return {'outputs': next(iter(outputs.values())) if one else outputs}
        rows = [dict(zip(outputs, row)) for row in zip(*outputs.values())]
        return {'predictions': [next(iter(row.values())) for row in rows] if one else rows}

    def _say(self, status, text, kind='application/json'):
        data = text.encode()
        self.send_response(status)
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Http(http.server.ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 512


def find(models, name, version):
    model = models.get(name)
    if model is None or version not in (None, model.version):
        raise Refusal('NOT_FOUND', f'Servable not found for request: {name}, {version or "latest"}')
    return model


def _unpack(tensor):
    shape = tf.TensorShape(tensor.tensor_shape)
    if shape.num_elements() is None or shape.num_elements() > 1 << 28:  # before Python makes so many
        raise ValueError(f'shape {shape}')
    return tf.make_ndarray(tensor)


def _proto(value):
    """As the server's default: numbers and strings as lists of values, uncompressed."""
    tensor = tf.make_tensor_proto(value)
    if value.dtype == np.float32:
        tensor.ClearField('tensor_content')
        tensor.ClearField('float_val')
        tensor.float_val.extend(value.ravel().tolist())
    return tensor


def _array(value, dtype):
    if dtype == tf.string:
        def walk(part):
            return [walk(one) for one in part] if isinstance(part, list) else (
                base64.b64decode(part['b64'], validate=True) if isinstance(part, dict)
                else part.encode())
        return np.array(walk(value), object)
    array = np.array(value)
    if array.dtype.kind not in 'iuf' or array.size and dtype == tf.uint8 and not (
            0 <= array.min() and array.max() <= 255):
        raise ValueError(f'not of type {dtype.name}')
    return array.astype(dtype.as_numpy_dtype)


def _plain(value):
    return [_plain(one) for one in value] if isinstance(value, np.ndarray) and value.ndim else (
        value.decode() if isinstance(value, bytes) else float(value))


def _text(path, message):
    if path:
        with open(path, encoding='utf-8') as file:
            google.protobuf.text_format.Parse(file.read(), message)
    return message


def main(words=None):
    parser = argparse.ArgumentParser(prog='tests.serving_server')
    for flag, default in (('port', 8500), ('rest_api_port', 8501), ('rest_api_timeout_in_ms', 30_000)):
        parser.add_argument(f'--{flag}', type=int, default=default)
    for flag, default in (('model_name', 'default'), ('model_base_path', ''), ('model_config_file', ''),
                          ('batching_parameters_file', ''), ('monitoring_config_file', '')):
        parser.add_argument(f'--{flag}', default=default)
    parser.add_argument('--enable_batching', action='store_true')
    args = parser.parse_args(words)
    config = _text(args.model_config_file, model_server_config_pb2.ModelServerConfig())
    if not args.model_config_file:
        config.model_config_list.config.add(name=args.model_name, base_path=args.model_base_path)
    parameters = _text(args.batching_parameters_file, server_configs_pb2.BatchingParameters())
    monitoring = _text(args.monitoring_config_file, server_configs_pb2.MonitoringConfig())
    models = {one.name: Model(one.base_path, parameters if args.enable_batching else None)
              for one in config.model_config_list.config}

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(512), options=[
        ('grpc.max_receive_message_length', 2**31 - 1), ('grpc.max_send_message_length', 2**31 - 1)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(models), server)
    port = server.add_insecure_port(f'127.0.0.1:{args.port}')
    server.start()
    Handler.models, Handler.timeout_ms = models, args.rest_api_timeout_in_ms
    Handler.metrics = monitoring.prometheus_config.path if monitoring.prometheus_config.enable else ''
    web = Http(('127.0.0.1', args.rest_api_port), Handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f'ready {port} {web.server_port}', flush=True)
    web.serve_forever()


if __name__ == '__main__':
    main()
