# SPDX-License-Identifier: Apache-2.0
"""One question to a model server and its answer, over gRPC or REST; and how long to go on asking."""

import base64
import http.client
import json
import random
import threading
import time
from typing import NamedTuple

import grpc
import numpy as np

import serving_pb2

# What one message may hold, both ways. gRPC's own default for what is received is 4 MiB, TensorFlow
# Serving's 2 GiB; a bound of our own keeps a slip of --frames from filling a server's memory.
MAX_MESSAGE = 256 << 20
PASSING = ('UNAVAILABLE', 'RESOURCE_EXHAUSTED', 'DEADLINE_EXCEEDED')  # the server is busy, or restarts
# Where the server merges requests into a batch, these may be the fault of a neighbour in that batch: a
# corrupt frame, or frames of another shape. A few more tries meet other neighbours, or none.
NEIGHBOURS = ('INVALID_ARGUMENT', 'FAILED_PRECONDITION')
NEIGHBOUR_TRIES = 4
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0  # seconds

_STATUS = {400: 'INVALID_ARGUMENT', 404: 'NOT_FOUND', 408: 'DEADLINE_EXCEEDED', 413: 'TOO_LARGE',
           429: 'RESOURCE_EXHAUSTED', 503: 'UNAVAILABLE', 504: 'DEADLINE_EXCEEDED'}


class Refused(Exception):
    """The server did not answer.

    Attributes:
      code: the gRPC status by name, or TOO_LARGE.
    """

    def __init__(self, code: str, message: str):
        super().__init__(f'{code}: {message}')
        self.code = code


class Answer(NamedTuple):
    """What a server says of each example of a request.

    Attributes:
      probabilities: float32 [N, K].
      labels: N lists of k str, the most likely classes, best first.
      scores: float32 [N, k], their probabilities.
    """

    probabilities: np.ndarray
    labels: list[list[str]]
    scores: np.ndarray


def persist(send, *, timeout: float, patience: float, stop: threading.Event, on_retry=None):
    """Calls `send` until it answers, waiting longer each time, for a random part of that time.

    Without the randomness all clients of a server that was full would be back at the same moment.

    Args:
      send: (seconds) → an answer; raises Refused.
      timeout: seconds of one try.
      patience: seconds of all tries and pauses together.
      stop: ends the waiting when it is set.
      on_retry: (Refused) → None, called before each pause.

    Raises:
      Refused: the last refusal, when time is up or another try would bring the same.
    """
    end, tries = time.monotonic() + patience, 0
    while True:
        try:
            return send(min(timeout, max(end - time.monotonic(), 0.001)))
        except Refused as error:
            tries += 1
            again = error.code in PASSING or error.code in NEIGHBOURS and tries < NEIGHBOUR_TRIES
            pause = random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(tries, 10)))
            if not again or time.monotonic() + pause >= end:
                raise
            if on_retry:
                on_retry(error)
            if stop.wait(pause):
                raise


class Grpc:
    """A channel to HOST:PORT; any thread may call `predict`."""

    def __init__(self, server: str, model: str, version: int | None = None):
        self._spec = serving_pb2.ModelSpec(name=model)
        if version is not None:
            self._spec.version.value = version
        self._channel = grpc.insecure_channel(server, options=[
            ('grpc.max_send_message_length', MAX_MESSAGE),
            ('grpc.max_receive_message_length', MAX_MESSAGE),
            ('grpc.enable_retries', 0)])  # `persist` does it, and counts
        self._predict = self._channel.unary_unary(
            '/tensorflow.serving.PredictionService/Predict',
            request_serializer=serving_pb2.PredictRequest.SerializeToString,
            response_deserializer=serving_pb2.PredictResponse.FromString)

    def predict(self, signature: str, name: str, value, timeout: float) -> Answer:
        """Asks once.

        Args:
          signature: of the model.
          name: of its input.
          value: uint8 [N, …], or an array of bytes objects [N, …].
          timeout: seconds.

        Raises:
          Refused.
        """
        request = serving_pb2.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature
        # No output filter: requests with a filter are another signature to the server's batching.
        _fill(request.inputs[name], value)
        try:
            outputs = self._predict(request, timeout=timeout).outputs
        except grpc.RpcError as error:
            code, message = error.code().name, error.details() or ''
            raise Refused('TOO_LARGE' if 'larger than max' in message else code, message) from error
        try:
            return Answer(_floats(outputs['probabilities']), _labels(outputs['top_k_labels']),
                          _floats(outputs['top_k_scores']))
        except ValueError as error:
            raise Refused('UNIMPLEMENTED', f'{signature} does not answer with classes') from error

    def close(self) -> None:
        """Ends the channel, and what is on its way with CANCELLED."""
        self._channel.close()


class Rest:
    """As Grpc, over HTTP; each thread keeps a connection."""

    def __init__(self, server: str, model: str, version: int | None = None):
        self._server = server
        self._path = f'/v1/models/{model}{"" if version is None else f"/versions/{version}"}:predict'
        self._local = threading.local()

    def predict(self, signature: str, name: str, value, timeout: float) -> Answer:
        """Asks once; see Grpc.predict. Pixels travel as decimal numbers, about four bytes each."""
        body = json.dumps({'signature_name': signature, 'inputs': {name: _json(value)}},
                          separators=(',', ':'))
        if len(body) > MAX_MESSAGE:
            raise Refused('TOO_LARGE', f'a request of {len(body)} bytes, at most {MAX_MESSAGE} are sent')
        connection = getattr(self._local, 'connection', None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection(self._server)
        try:
            connection.timeout = timeout
            if connection.sock:
                connection.sock.settimeout(timeout)
            connection.request('POST', self._path, body, {'Content-Type': 'application/json'})
            response = connection.getresponse()
            text = response.read(MAX_MESSAGE)
        except TimeoutError as error:
            connection.close()
            raise Refused('DEADLINE_EXCEEDED', f'no answer within {timeout:.1f} s') from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Refused('UNAVAILABLE', f'{self._server}: {error}') from error
        try:
            found = json.loads(text)
            if response.status != 200:
                raise Refused(_STATUS.get(response.status, f'HTTP {response.status}'), found['error'])
            outputs = found['outputs']
            return Answer(np.array(outputs['probabilities'], np.float32), outputs['top_k_labels'],
                          np.array(outputs['top_k_scores'], np.float32))
        except (ValueError, KeyError, TypeError) as error:
            code = _STATUS.get(response.status, 'UNIMPLEMENTED')
            raise Refused(code, f'HTTP {response.status} without the classes of signature {signature}: '
                          f'{text[:200]!r}') from error

    def close(self) -> None:
        """Nothing: connections end with their threads."""


def _fill(tensor: serving_pb2.TensorProto, value) -> None:
    for side in value.shape:
        tensor.tensor_shape.dim.add(size=side)
    if value.dtype == np.uint8:
        tensor.dtype, tensor.tensor_content = serving_pb2.DT_UINT8, value.tobytes()
    else:
        tensor.dtype = serving_pb2.DT_STRING
        tensor.string_val.extend(value.flat)


def _floats(tensor: serving_pb2.TensorProto) -> np.ndarray:
    if tensor.dtype != serving_pb2.DT_FLOAT:
        raise ValueError('no floats')
    values = np.frombuffer(tensor.tensor_content, '<f4') if tensor.tensor_content else (
        np.array(tensor.float_val, np.float32))
    return values.reshape([side.size for side in tensor.tensor_shape.dim])


def _labels(tensor: serving_pb2.TensorProto) -> list[list[str]]:
    count = tensor.tensor_shape.dim[1].size
    names = [name.decode(errors='replace') for name in tensor.string_val]
    return [names[i:i + count] for i in range(0, len(names), count)]


def _json(value):
    """Bytes as the REST API spells them, {"b64": …}; numbers as nested lists."""

    def spell(part):
        return {'b64': base64.b64encode(part).decode()} if isinstance(part, bytes) else (
            [spell(one) for one in part])

    return value.tolist() if value.dtype == np.uint8 else spell(value.tolist())
