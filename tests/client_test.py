# SPDX-License-Identifier: Apache-2.0
"""export/client.py in processes of its own, without TensorFlow, against the test server."""

import concurrent.futures
import http.client
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.framework import tensor_shape_pb2
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import model_pb2
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc

from c3d_tf import export
from c3d_tf import predict
from tests import conftest
from tests import serving_files
from tests import serving_toy

sys.path.insert(0, str(serving_toy.EXPORT))
import serving_pb2  # noqa: E402
import transport  # noqa: E402

# None in sys.modules: importing it fails.
ALONE = rf'''
import sys
sys.modules.update(dict.fromkeys(['tensorflow', 'keras', 'c3d_tf', 'tensorflow_serving']))
sys.path.insert(0, {str(serving_toy.EXPORT)!r})
import client
code = client.main(sys.argv[1:])
import re
print('peak', re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())[1], 'kB', file=sys.stderr)
sys.exit(code)
'''


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    """The toy, and a thin C3D as the model `thin`: (gRPC, REST, process, folder)."""
    folder = serving_toy.models_folder(tmp_path_factory.mktemp('serving') / 'models')
    weights = serving_files.saved(folder.parent / 'model.keras')
    export.export(weights, str(folder / 'thin'), top_k=3)
    config = folder / 'models.config'
    config.write_text(config.read_text().replace(
        'model_config_list {', f'model_config_list {{ config {{ name: "thin" base_path: "{folder}/thin" '
        'model_platform: "tensorflow" }'))
    with serving_toy.serving(folder) as (rpc, rest, process):
        yield rpc, rest, process, folder


@pytest.fixture(scope='module')
def videos(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp('videos')
    conftest.counting_video(folder / 'counting.avi', 60)
    conftest.counting_video(folder / 'short.avi', 5)
    (folder / 'empty.mp4').touch()
    (folder / 'text.avi').write_text('no video ' * 100)
    whole = serving_files.avi(serving_files.clip(60))
    (folder / 'cut.avi').write_bytes(whole[:len(whole) // 2])
    return folder


def _client(*words, model='quickstart'):
    return subprocess.run([sys.executable, '-c', ALONE, f'--model={model}', *map(str, words)],
                          capture_output=True, text=True, timeout=60)


def _scores(text):
    return [(label, float(score)) for score, label in re.findall(r'^  (\d\.\d+)  (.*)$', text, re.M)]


class Rpc:
    """Requests with the real messages, as any client of TensorFlow Serving makes them."""

    def __init__(self, address):
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address))

    def __call__(self, value, *, name='frames', signature='frames', model='quickstart', version=None):
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = model, signature
        if version:
            request.model_spec.version.value = version
        request.inputs[name].CopyFrom(value if isinstance(value, tensor_pb2.TensorProto)
                                      else tf.make_tensor_proto(value))
        outputs = self.stub.Predict(request, timeout=20).outputs
        return tf.make_ndarray(outputs['probabilities'])


def _grey(value, frames=2) -> np.ndarray:
    """One example for `frames`."""
    return np.array([[serving_files.jpeg(np.full((16, 16, 3), value, np.uint8))] * frames], object)


@pytest.mark.parametrize(('ours', 'theirs'), [
    (serving_pb2.PredictRequest, predict_pb2.PredictRequest),
    (serving_pb2.ModelSpec, model_pb2.ModelSpec),
    (serving_pb2.PredictResponse, predict_pb2.PredictResponse),
    (serving_pb2.TensorProto, tensor_pb2.TensorProto),
    (serving_pb2.TensorShapeProto, tensor_shape_pb2.TensorShapeProto),
    (serving_pb2.TensorShapeProto.Dim, tensor_shape_pb2.TensorShapeProto.Dim)])
def test_our_part_of_the_messages_is_the_servers(ours, theirs):
    assert ours.DESCRIPTOR.fields
    for field in ours.DESCRIPTOR.fields:
        other = theirs.DESCRIPTOR.fields_by_name[field.name]
        assert (field.number, field.type) == (other.number, other.type)
        assert field.is_repeated == other.is_repeated
    for name, number in serving_pb2.DataType.items():
        assert types_pb2.DataType.Value(name) == number


@pytest.mark.parametrize('words', [[], ['--signature=serving_default'], ['--rest'], ['--size=own'],
                                   ['--rest', '--signature=serving_default', '--size=12x16']])
def test_the_answer_is_the_mean_over_the_windows(server, videos, words):
    done = _client(*words, f'--server={server["--rest" in words]}', videos / 'counting.avi')
    assert done.returncode == 0, done.stderr
    mean = np.mean(4 * np.arange(48)) / 255  # the tail of twelve frames is dropped
    (dark, a), (light, b), *_ = _scores(done.stdout)
    assert (dark, light) == ('dark', 'light')
    assert a == pytest.approx(1 - mean, abs=0.005) and b == pytest.approx(mean, abs=0.005)
    assert '3 requests' in done.stdout and '0.00 –    1.24 s  dark' in done.stdout  # windows 0 and 1
    assert re.search(r'latency p50 [\d.]+ ms, p90 [\d.]+ ms, p99 [\d.]+ ms', done.stdout)


def test_a_real_network_answers_as_predict_does(server, tmp_path):
    """The same classes by the client, JPEG and pixels, and by the verb that needs no server."""
    frames = serving_files.clip(24, *serving_files.SIZE)
    path = tmp_path / 'a.avi'
    path.write_bytes(serving_files.avi(frames))
    weights = server[3].parent / 'model.keras'
    expected = predict.predict(str(path), str(weights), step=serving_files.LENGTH)
    size = '--size={}x{}'.format(*serving_files.SIZE)
    for words, bound in ((['--signature=serving_default', size], 6e-4), ([size], 0.02)):
        done = _client('--server', server[0], f'--frames={serving_files.LENGTH}', *words, path,
                       model='thin')
        assert done.returncode == 0, done.stderr
        for (label, score), row in zip(_scores(done.stdout), expected['top'][:3], strict=False):
            assert label == row['label'] and score == pytest.approx(row['probability'], abs=bound)


def test_a_broken_video_is_named_and_the_others_go_on(server, videos):
    names = ['empty.mp4', 'counting.avi', 'text.avi', 'absent.avi', 'short.avi', 'cut.avi']
    done = _client('--server', server[0], *(videos / name for name in names))
    assert done.returncode == 1
    for name in ('empty.mp4', 'text.avi', 'absent.avi'):
        assert f'{name}: no frame can be decoded' in done.stderr and f'{name}: ' not in done.stdout
    for name, count in (('counting.avi', 3), ('short.avi', 1), ('cut.avi', 1)):
        assert re.search(rf'{name}: {count} request', done.stdout), done.stdout + done.stderr
    assert '6 videos, 3 failed' in done.stdout


@pytest.mark.parametrize(('words', 'reason'), [
    (['--model=nothing'], 'NOT_FOUND: Servable not found for request: nothing'),
    (['--version=7'], 'NOT_FOUND'),
    (['--timeout=0.0001', '--patience=0.3'], 'DEADLINE_EXCEEDED')])
@pytest.mark.parametrize('rest', [False, True])
def test_a_refusal_is_told_with_the_place_in_the_video(server, videos, words, reason, rest):
    done = _client(*['--rest'] * rest, f'--server={server[rest]}', *words, videos / 'counting.avi')
    assert done.returncode == 1 and reason in done.stderr
    assert re.search(r'counting.avi: \d\.\d\d – \d\.\d\d s: ', done.stderr)


@pytest.mark.parametrize('channel', [transport.Grpc, transport.Rest])
def test_a_signature_that_names_no_class_is_refused(server, channel):
    clips = np.zeros((1, 8, 16, 16, 3), np.uint8)
    with pytest.raises(transport.Refused, match='UNIMPLEMENTED.*features'):
        channel(server[channel is transport.Rest], 'thin').predict('features', 'clips', clips, 20)


def test_requests_beyond_the_limit_are_not_sent(server):
    value = np.zeros((1, 200, 800, 800, 3), np.uint8)  # 384 MB
    with pytest.raises(transport.Refused, match='TOO_LARGE'):
        transport.Grpc(server[0], 'quickstart').predict('serving_default', 'clips', value, 60)


def test_a_server_that_comes_late_is_waited_for(server, videos, tmp_path):
    """A proxy's port opens some seconds after the client has begun to knock."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port = listener.getsockname()[1]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(_client, '--rest', f'--server=127.0.0.1:{port}', videos / 'short.avi')
        time.sleep(3)
        with socket.create_server(('127.0.0.1', port)) as listener:
            listener.settimeout(20)
            front, _ = listener.accept()
            with front, socket.create_connection(server[1].split(':')) as back:
                for a, b in ((front, back), (back, front)):
                    pool.submit(_pump, a, b)
                done = running.result()
    assert done.returncode == 0, done.stderr
    assert 'UNAVAILABLE' in done.stderr and not re.search(r' 0 tried again', done.stdout)


def _pump(source, sink):
    while data := source.recv(65536):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)


def test_interrupting_a_client_that_waits(videos):
    process = subprocess.Popen(
        [sys.executable, serving_toy.EXPORT / 'client.py', '--model=x', '--server=127.0.0.1:9',
         videos / 'short.avi'], stderr=subprocess.PIPE, text=True)
    assert 'trying again' in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130


def test_memory_does_not_grow_with_the_video(server, tmp_path):
    peaks = []
    for frames in (140, 1400):  # beyond 2 x 4 windows of 16; decoded, 345 MB
        images = np.zeros((frames, 240, 342, 3), np.uint8)
        path = conftest.write_video(tmp_path / f'{frames}.avi', images)
        done = _client('--server', server[0], '--size=own', path)
        peaks.append(int(re.search(r'peak (\d+)', done.stderr)[1]) >> 10)
    assert peaks[1] < peaks[0] + 40, peaks


GARBAGE = {
    'bytes that are no image': (dict(value=np.array([[b'garbage', b'\xff\xd8\xff']], object)),
                                'INVALID_ARGUMENT'),
    'a model that is not there': (dict(value=_grey(1), model='other'), 'NOT_FOUND'),
    'a version that is not there': (dict(value=_grey(1), version=9), 'NOT_FOUND'),
    'a signature that is not there': (dict(value=_grey(1), signature='other'), 'INVALID_ARGUMENT'),
    'an input of another name': (dict(value=_grey(1), name='other'), 'INVALID_ARGUMENT'),
    'no GIF': (dict(value=np.array([b'GIF89a'], object), name='gifs', signature='gif'),
               'INVALID_ARGUMENT'),
    'no AVI': (dict(value=np.array([b'RIFF'], object), name='videos', signature='mjpeg'),
               'INVALID_ARGUMENT'),
    'half a frame': (dict(value=np.array([[_grey(1)[0, 0][:200]] * 8], object)), 'INVALID_ARGUMENT'),
    'numbers for images': (dict(value=np.zeros((1, 16), np.float32)), 'INVALID_ARGUMENT'),
    'a scalar': (dict(value=np.array(b'x', object)), 'INVALID_ARGUMENT'),
    'no example': (dict(value=np.zeros((0, 16), 'S1')), 'INVALID_ARGUMENT'),
    'too many examples': (dict(value=np.repeat(_grey(1), 9, axis=0)), 'INVALID_ARGUMENT'),
    'a tensor that lies about its shape': (dict(value=tensor_pb2.TensorProto(
        dtype=7, tensor_shape=tf.TensorShape([1, 1 << 40]).as_proto(), string_val=[b'a', b'b'])),
        'INVALID_ARGUMENT'),
    'frames of four colours': (dict(value=np.zeros((1, 2, 8, 8, 4), np.uint8), name='clips',
                                    signature='serving_default'), 'INVALID_ARGUMENT'),
}


@pytest.mark.parametrize('case', GARBAGE)
@pytest.mark.parametrize('model', ['quickstart', 'thin'])
def test_garbage_gets_a_status_with_the_reason(server, case, model):
    ask, (words, code) = Rpc(server[0]), GARBAGE[case]
    with pytest.raises(grpc.RpcError) as refused:
        ask(**{'model': model, **words})
    assert refused.value.code().name == code and refused.value.details()
    # … and it goes on answering.
    np.testing.assert_allclose(ask(_grey(51)), [serving_toy.light(51)], atol=0.01)


@pytest.mark.parametrize(('body', 'status'), [
    (b'', 400), (b'{', 400), (b'[]', 400), (b'{"instances": 1}', 400),
    (b'{"inputs": {"clips": [[["a"]]]}}', 400),
    (b'{"signature_name": "frames", "instances": [[{"b64": "?"}]]}', 400),
    (b'{"instances": [[[[[256, 0, 0]]]]]}', 400),
    (json.dumps({'instances': np.full((1, 2, 2, 2, 3), 51).tolist()}).encode(), 200)])
def test_garbage_over_rest(server, body, status):
    connection = http.client.HTTPConnection(server[1])
    connection.request('POST', '/v1/models/quickstart:predict', body)
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status == status
    assert answer.keys() == ({'predictions'} if status == 200 else {'error'})
    if status == 200:
        assert answer['predictions'][0]['top_k_labels'][:2] == ['dark', 'light']


def test_concurrent_requests_are_joined_and_told_apart(server):
    before = _batches(server[1])
    ask = Rpc(server[0])
    greys = list(range(0, 256, 4))
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda grey: ask(_grey(grey, frames=16)), greys))
    expected = [serving_toy.light(grey) for grey in greys]
    np.testing.assert_allclose(np.concatenate(answers), expected, atol=0.01)
    assert sum(_batches(server[1]).values()) - sum(before.values()) < 48  # of 64 requests


def _batches(address):
    connection = http.client.HTTPConnection(address)
    connection.request('GET', '/monitoring/prometheus/metrics')
    text = connection.getresponse().read().decode()
    lines = re.findall(r'"quickstart",requests="(\d+)"} (\d+)', text)
    return {int(size): int(times) for size, times in lines}


def test_a_corrupt_frame_fails_its_whole_batch_and_the_client_tries_again(server):
    """As the server's batching session does; see export/README.md."""
    good, bad = _grey(102, 8), np.array([[b'garbage'] * 8], object)
    direct, client = Rpc(server[0]), transport.Grpc(server[0], 'thin')
    expected = direct(good, model='thin')
    stop = threading.Event()

    def vandal():
        while not stop.wait(0.05):
            with pytest.raises(grpc.RpcError):
                direct(bad, model='thin')

    def once(_):
        return _code(lambda: direct(good, model='thin'), expected)

    def patiently(_):
        return _code(lambda: transport.persist(
            lambda seconds: client.predict('frames', 'frames', good, seconds).probabilities,
            timeout=10, patience=30, stop=stop), expected)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        spoilt = pool.submit(vandal)
        try:
            failed = [sum(isinstance(one, str) for one in pool.map(ask, range(600)))
                      for ask in (once, patiently)]
        finally:
            stop.set()
    spoilt.result()
    print('failed of 600: once', failed[0], 'patiently', failed[1])
    assert failed[0] > 0 and failed[1] < failed[0] / 2


def _code(ask, expected):
    """Returns the code of a refusal; of an answer nothing, once it is seen to be right."""
    try:
        np.testing.assert_allclose(ask(), expected, atol=1e-4)
    except (grpc.RpcError, transport.Refused) as error:
        return error.code().name if callable(error.code) else error.code


def test_requests_of_unequal_shape_are_refused_not_padded(server):
    ask = Rpc(server[0])

    def one(frames):
        try:
            return ask(_grey(51, frames))
        except grpc.RpcError as error:
            return error.code().name, error.details()

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(one, [2, 3] * 64))
    refused = [one for one in answers if isinstance(one, tuple)]
    assert refused and all(code == 'FAILED_PRECONDITION' and 'shapes' in why for code, why in refused)
    for answer in answers:
        if not isinstance(answer, tuple):
            np.testing.assert_allclose(answer, [serving_toy.light(51)], atol=0.01)
