# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from c3d_tf import export
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.data import preprocess
from c3d_tf.serving import check
from c3d_tf.serving import signatures
from c3d_tf.serving import warmup
from c3d_tf.weights import artefact
from tests import serving_files

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIGNATURES = ['features', 'float_clips', 'frames', 'gif', 'mjpeg', 'serving_default']
# Every operation of the graph and its functions; those of TensorFlow's core only. A new one is added here
# when it is known that the stock server has its kernel.
OPERATIONS = set('''
  AddV2 All Any ArgMin AsString Assert AssignVariableOp BiasAdd BroadcastTo Cast ConcatV2 Const Conv3D Cumsum
  DecodeGif DecodeJpeg DecodePaddedRaw DecodeRaw DisableCopyOnRead EnsureShape Equal ExpandDims Fill Floor
  FloorDiv FloorMod GatherV2 Greater GreaterEqual Identity LeftShift Less LessEqual LogicalAnd LogicalNot
  LogicalOr MatMul Max MaxPool3D Maximum MergeV2Checkpoints Min Minimum Mul NoOp NotEqual OnesLike Pack Pad
  Placeholder Prod Range ReadVariableOp RealDiv ReduceJoin Relu Reshape RestoreV2 RightShift Round Rsqrt SaveV2
  SegmentMean SegmentSum Select SelectV2 Shape ShardedFilename Size Softmax Square Squeeze
  StatefulPartitionedCall StatelessIf StatelessWhile StaticRegexFullMatch StridedSlice StringJoin StringLength
  Sub Substr Sum TensorListConcatV2 TensorListFromTensor TensorListGetItem TensorListReserve
  TensorListSetItem TensorListStack Tile TopKV2 Transpose Unique Unpack UpperBound VarHandleOp
  VarIsInitializedOp Where While'''.split())


@pytest.fixture(scope='module')
def exported(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp('export')
    weights = serving_files.saved(root / 'model.keras')
    return export.export(weights, str(root / 'thin'), top_k=3, max_clips=3, layers=('fc6-1', 'conv5b'))


@pytest.fixture(scope='module')
def net(exported) -> artefact.Artefact:
    return artefact.load(str(pathlib.Path(exported).parents[1] / 'model.keras'))


def _ask(directory, requests, folder):
    """Returns (answers, peak bytes) of the loader that the server uses, in a process of its own."""
    paths = folder / 'requests.pickle', folder / 'answers.pickle'
    paths[0].write_bytes(pickle.dumps(requests))
    done = subprocess.run([sys.executable, ROOT / 'tests/saved_model_probe.py', directory, *paths], cwd=folder,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads(paths[1].read_bytes())


def _expected(net, clips) -> dict[str, np.ndarray]:
    """What Keras makes of uint8 [M, T, H, W, 3], the clips of one example."""
    layers = {name: net.model.get_layer(name).output for name in ('fc6', 'conv5b', 'fc8')}
    values = keras.Model(net.model.input, layers)(preprocess.for_inference(tf.constant(clips),
                                                                           net.preprocessing))
    conv = np.transpose(values['conv5b'], (0, 4, 1, 2, 3)).reshape(len(clips), -1)
    scores = np.mean(keras.ops.softmax(values['fc8']), axis=0)
    best = np.argsort(-scores)[:3]
    return {'probabilities': scores, 'top_k_scores': scores[best], 'fc6': np.mean(values['fc6'], axis=0),
            'conv5b': conv.mean(axis=0),
            'top_k_labels': np.array([net.class_names[i].encode() for i in best], object)}


# One example of two clips and a tail, and one of as many frames as each container can have: see below.
LONG, SHORT = serving_files.clip(21, seed=1), serving_files.clip(5, 50, 33, seed=2)
JPEGS = [serving_files.jpeg(image) for image in LONG]
GIFS = [serving_files.gif(LONG), serving_files.gif(SHORT[:3])]
AVIS = [serving_files.avi(LONG, audio=True), serving_files.avi(serving_files.clip(5, 50, 34, seed=2))]


def _cases(net):
    """Returns {name: (signature, inputs, the decoded frames of each example)}."""
    spec = net.preprocessing
    mixed = [serving_files.png(serving_files.clip(1, 20 + i, 90)[0]) if i % 2 else JPEGS[i] for i in range(16)]
    cropped = preprocess.for_inference(tf.constant(LONG[None, :8]), spec).numpy()
    from_avi = [np.stack([serving_files.decoded(image) for image in serving_files.packets(one)]) for one in AVIS]
    return {
        'serving_default': ('serving_default', {'clips': np.stack([LONG, LONG[::-1]])}, [LONG, LONG[::-1]]),
        'four clips of which three count': ('serving_default', {'clips': np.tile(LONG, (1, 2, 1, 1, 1))},
                                            [np.concatenate([LONG, LONG[:3]])]),
        'short': ('serving_default', {'clips': SHORT[None]}, [SHORT]),
        'features': ('features', {'clips': LONG[None]}, [LONG]),
        'frames': ('frames', {'frames': np.array([JPEGS, JPEGS[::-1]], object)},
                   [np.stack([serving_files.decoded(image) for image in order])
                    for order in (JPEGS, JPEGS[::-1])]),
        'frames of many sizes': ('frames', {'frames': np.array([mixed], object)},
                                 [[serving_files.decoded(image) for image in mixed]]),
        'gif': ('gif', {'gifs': np.array(GIFS, object)}, [serving_files.gif_frames(one) for one in GIFS]),
        'mjpeg': ('mjpeg', {'videos': np.array(AVIS, object)}, from_avi),
        'float_clips': ('float_clips', {'clips': cropped}, [LONG[:8]]),
    }


def _cut(frames, net):
    """uint8 [M, T, 40, 48, 3]: the clips that evaluation would take of the frames."""
    frames = np.stack([cv2.resize(frame, serving_files.SIZE[::-1]) for frame in frames])
    if len(frames) < serving_files.LENGTH:
        return frames[np.arange(serving_files.LENGTH) % len(frames)][None]
    count = len(frames) // serving_files.LENGTH
    return frames[:count * serving_files.LENGTH].reshape(count, serving_files.LENGTH, *serving_files.SIZE, 3)


def _broken():
    """Returns (signature, inputs, what the answer must say) of requests that no server should die of."""
    whole, cut = JPEGS[0], JPEGS[0][:len(JPEGS[0]) // 2]
    claims = bytearray(serving_files.png(LONG[0]))
    claims[16:24] = b'\x00\x00\xff\xff' * 2
    huge = bytearray(whole)
    place = huge.index(b'\xff\xc0')
    huge[place + 5:place + 9] = b'\xff' * 4

    def frames(*some):
        return {'frames': np.array([[whole] * 8, [*some, *[whole] * (8 - len(some))]], object)}

    def strings(name, *some):
        return {name: np.array(some, object)}

    pixels = np.zeros((1, 8, 32, 32, 3), np.uint8)
    at_1 = 'frame 1 of example 1'
    return [
        ('frames', frames(whole, b''), f'{at_1} is neither a JPEG nor a PNG: 0 bytes'),
        ('frames', frames(whole, b'hello'), f'{at_1} is neither'),
        ('frames', frames(whole, GIFS[0]), f'{at_1} is neither'),
        ('frames', frames(whole, cut), 'Invalid JPEG data'),
        ('frames', frames(whole, whole[:30]), f'{at_1} has no size in its header'),
        ('frames', frames(whole, serving_files.png(LONG[0])[:-30]), 'Invalid PNG data'),
        ('frames', frames(whole, bytes(claims)), f'{at_1} is too large: 65535x65535 pixels'),
        ('frames', frames(whole, bytes(huge)), f'{at_1} is too large: 65535x65535 pixels'),
        ('frames', {'frames': np.zeros((1, 0), object)}, r'frames has the shape \[1, 0\], expected \[N, T\]'),
        ('frames', {'frames': pixels}, 'actual uint8 vs. expect string'),
        ('serving_default', {'clips': pixels[:, :0]}, r'clips has the shape \[1, 0, 32, 32, 3\], expected'),
        ('serving_default', {'clips': pixels[:, :, :0]}, r'clips has the shape \[1, 8, 0, 32, 3\]'),
        ('serving_default', {'clips': pixels[0]}, r'clips has the shape \[8, 32, 32, 3\], expected'),
        ('serving_default', {'clips': pixels[..., :2]}, r'\[1, 8, 32, 32, 2\], expected \[N, T, H, W, 3\]'),
        ('features', {'clips': pixels.astype(np.float64)}, 'actual double vs. expect uint8'),
        ('float_clips', {'clips': pixels.astype(np.float32)[:, :7]},
         r'clips has the shape \[1, 7, 32, 32, 3\], expected \[N, 8, 32, 32, 3\]'),
        ('gif', strings('gifs', GIFS), r'gifs has the shape \[1, 2\], expected \[N\]'),
        ('gif', strings('gifs', GIFS[0], b''), 'example 1 is no GIF file: 0 bytes'),
        ('gif', strings('gifs', GIFS[0][:1000]), 'example 0 is cut: it ends in the middle of frame 0'),
        ('gif', strings('gifs', whole), 'example 0 is no GIF file'),
        ('mjpeg', strings('videos', AVIS[0], b''), 'example 1 is no AVI file: 0 bytes'),
        ('mjpeg', strings('videos', AVIS[0][:AVIS[0].rindex(b'00dc', 0, -2000) + 50]), 'example 0 is cut: it ends in the middle of frame'),
        ('mjpeg', strings('videos', serving_files.avi(LONG[:, :48, :64], codec='mpeg4')),
         'frame 0 of example 0 is neither a JPEG'),
    ]


def _harmless():
    """Returns (signature, inputs) that look odd and must be answered."""
    large = serving_files.jpeg(serving_files.clip(1, 2160, 3840)[0])
    return [
        ('frames', {'frames': np.array([[serving_files.jpeg(LONG[0, :1, :1])]], object)}),
        ('frames', {'frames': np.array([[large] * 8], object)}),
        ('frames', {'frames': np.array([(2 * JPEGS)[:24] + [b'never looked at'] * 9976], object)}),
        ('serving_default', {'clips': np.zeros((2, 1, 1, 1, 3), np.uint8)}),
        ('serving_default', {'clips': np.zeros((1, 10_000, 4, 4, 3), np.uint8)}),
        ('serving_default', {'clips': np.zeros((0, 8, 32, 32, 3), np.uint8)}),
        ('features', {'clips': np.zeros((0, 8, 32, 32, 3), np.uint8)}),
        ('frames', {'frames': np.zeros((0, 8), object)}),
        ('gif', {'gifs': np.zeros((0,), object)}),
        ('mjpeg', {'videos': np.zeros((0,), object)}),
        ('float_clips', {'clips': np.zeros((0, 8, 32, 32, 3), np.float32)}),
    ]


@pytest.fixture(scope='module')
def answers(exported, net, tmp_path_factory):
    """Everything that is asked of the server's loader, in one session: broken requests first."""
    groups = {
        'broken': [case[:2] for case in _broken()], 'harmless': _harmless(),
        'sound': [case[:2] for case in _cases(net).values()], 'warm-up': warmup.read(exported)}
    found, peak = _ask(exported, [one for group in groups.values() for one in group],
                       tmp_path_factory.mktemp('probe'))
    found = iter(found)
    return {name: [next(found) for _ in group] for name, group in groups.items()}, peak


def test_every_signature_equals_the_keras_model(answers, net):
    for (name, (signature, _, examples)), found in zip(_cases(net).items(), answers[0]['sound'], strict=True):
        expected = [_expected(net, _cut(frames, net)) for frames in examples]
        assert found.keys() == ({'fc6', 'conv5b'} if signature == 'features' else expected[0].keys()), name
        for output, value in found.items():
            wanted = np.stack([one[output] for one in expected])
            if signature == 'features':
                wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
            if output == 'top_k_labels':
                np.testing.assert_array_equal(value, wanted, err_msg=name)
            else:
                assert value.dtype == np.float32
                np.testing.assert_allclose(value, wanted, atol=1e-5 * np.abs(wanted).max(), err_msg=name)
    # The network tells these examples apart, or the test above would mean little.
    scores = np.concatenate([one['probabilities'] for one in answers[0]['sound'] if 'probabilities' in one])
    assert len(np.unique(scores.round(4), axis=0)) >= 8 and 0.01 < scores.min() and scores.max() < 0.9


@pytest.mark.parametrize('number', range(len(_broken())))
def test_garbage_gets_a_status_with_the_reason(answers, number):
    kind, message = answers[0]['broken'][number]
    assert kind == 'InvalidArgumentError'
    assert re.search(_broken()[number][2], message), message


def test_odd_requests_are_answered(answers):
    for (signature, inputs), found in zip(_harmless(), answers[0]['harmless'], strict=True):
        batch = len(next(iter(inputs.values())))
        assert isinstance(found, dict), (signature, found)
        for name, value in found.items():
            assert len(value) == batch, (signature, name)
            assert value.dtype == object or np.isfinite(value).all(), (signature, name)


def test_memory_is_that_of_a_few_frames(answers):
    # TensorFlow alone takes 0.5 GB; a bomb of 65535x65535 would take 13, eight 4K frames at once 0.2.
    assert answers[1] < 1.5e9


def test_warm_up_requests_parse_and_replay(exported, answers):
    requests = warmup.read(exported)
    assert [(signature, len(next(iter(inputs.values())))) for signature, inputs in requests] == [
        (signature, count) for signature in ('serving_default', 'frames', 'gif', 'mjpeg', 'float_clips', 'features')
        for count in (1, 2, 4, 8)]
    for (_, inputs), found in zip(requests, answers[0]['warm-up'], strict=True):
        assert isinstance(found, dict), found
        assert {len(value) for value in found.values()} == {len(next(iter(inputs.values())))}
    assert os.path.getsize(os.path.join(exported, warmup.FILE)) < 1e6


def test_only_core_operations(exported):
    model = saved_model_pb2.SavedModel.FromString((pathlib.Path(exported) / 'saved_model.pb').read_bytes())
    (graph,) = model.meta_graphs
    assert set(check.operations(graph.graph_def)) <= OPERATIONS
    assert check.foreign(graph.graph_def) == []
    assert sorted(name for name in graph.signature_def if not name.startswith('__')) == SIGNATURES
    for name in SIGNATURES:
        one = graph.signature_def[name]
        for info in [*one.inputs.values(), *one.outputs.values()]:
            assert info.tensor_shape.dim[0].size == -1, name  # the batch, first, of any size
        assert one.outputs.keys() == ({'fc6', 'conv5b'} if name == 'features' else {
            'probabilities', 'top_k_labels', 'top_k_scores', 'fc6', 'conv5b'})


@pytest.mark.parametrize('name', [
    'frames', *(pytest.param(name, marks=pytest.mark.large) for name in SIGNATURES if name != 'frames')])
def test_saved_model_cli_gives_the_same(name, exported, net, tmp_path):
    signature, inputs, examples = _cases(net)[name]
    (given, value), = inputs.items()
    np.save(tmp_path / 'input.npy', value)
    done = subprocess.run(
        [pathlib.Path(sys.executable).parent / 'saved_model_cli', 'run', f'--dir={exported}',
         '--tag_set=serve', f'--signature_def={signature}', f'--inputs={given}={tmp_path}/input.npy',
         f'--outdir={tmp_path}/out'], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    output = 'fc6' if name == 'features' else 'probabilities'
    wanted = np.stack([_expected(net, _cut(frames, net))[output] for frames in examples])
    if name == 'features':
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(tmp_path / f'out/{output}.npy'), wanted, atol=1e-5)


def test_what_lies_beside_the_graph(exported, net):
    folder = pathlib.Path(exported)
    assert folder.name == '1'
    assert (folder / 'assets.extra/labels.txt').read_text().split() == list(serving_files.NAMES)
    described = files.read_json(str(folder / 'assets.extra/export.json'))
    assert described['weights_sha256'] == net.sha256 and described['layers'] == ['fc6', 'conv5b']
    assert (described['version'], described['top_k'], described['max_clips'], described['precision']) == (
        1, 3, 3, 'float32')
    assert described['preprocessing']['clip_length'] == 8 and described['preprocessing']['crop_size'] == 32


def test_versions(exported, net, tmp_path, capsys):
    root = tmp_path / 'thin'
    shutil.copytree(pathlib.Path(exported).parent, root)
    (root / '.writing-1').mkdir()
    weights = str(pathlib.Path(exported).parents[1] / 'model.keras')
    given = {'top_k': 3, 'max_clips': 3, 'layers': ('fc6', 'conv5b', 'fc6', 'prob')}
    assert export.export(weights, str(root), **given) == str(root / '1')
    assert 'is up to date' in capsys.readouterr().out
    version = export.export(weights, str(root), **{**given, 'layers': ()}, precision='bfloat16')
    assert version == str(root / '2') and not (root / '.writing-1').exists()
    served = tf.saved_model.load(version).signatures
    found = served['serving_default'](clips=tf.constant(LONG[None]))
    assert found.keys() == {'probabilities', 'top_k_labels', 'top_k_scores'}
    assert all(value.dtype in (tf.float32, tf.string) for value in found.values())
    wanted = _expected(net, _cut(LONG, net))['probabilities']
    difference = np.abs(found['probabilities'][0] - wanted).max()
    assert 1e-7 < difference < 2e-2  # it is another precision, and the same network
    (layer, value), = served['features'](clips=tf.constant(LONG[None])).items()
    assert layer == 'fc6' and value.dtype == tf.float32 and np.linalg.norm(value) == pytest.approx(1, abs=1e-6)


def test_a_network_without_fc6_and_other_policies():
    net = serving_files.network(head='pool', stride=2, short='repeat_last')
    served = signatures.Serving(net, top_k=1, max_clips=1, layers=()).signatures()['features']
    (layer, value), = served(tf.constant(SHORT[None])).items()
    clip = SHORT[[0, 2, 4, 4, 4, 4, 4, 4]]
    inside = keras.Model(net.model.input, net.model.get_layer('pool').output)(
        preprocess.for_inference(tf.constant(clip[None]), net.preprocessing))
    assert layer == 'pool'
    np.testing.assert_allclose(value, inside / np.linalg.norm(inside), atol=1e-5)


def test_wrong_use(exported, tmp_path):
    weights = str(pathlib.Path(exported).parents[1] / 'model.keras')
    with pytest.raises(errors.UsageError, match='--layers=fc9: no such layer; the network has conv1a, '):
        export.export(weights, str(tmp_path / 'e'), layers=('fc9',))
    with pytest.raises(errors.UsageError, match='--export_dir is not set'):
        export.export(weights, '')
    assert not (tmp_path / 'e').exists()


def test_a_wrong_export_is_not_published(exported, tmp_path, monkeypatch):
    weights = str(pathlib.Path(exported).parents[1] / 'model.keras')
    real = signatures.Serving._prepared
    monkeypatch.setattr(signatures.Serving, '_prepared', lambda *given: real(*given) + 10)
    with pytest.raises(errors.RunError, match='differs from the Keras model'):
        export.export(weights, str(tmp_path / 'e'))
    assert not [name for name in os.listdir(tmp_path / 'e') if name.isdigit()]


def test_killed_at_any_moment_only_complete_versions_are_there(exported, tmp_path):
    root = tmp_path / 'e'
    weights = str(pathlib.Path(exported).parents[1] / 'model.keras')
    process = subprocess.Popen([sys.executable, '-m', 'c3d_tf.main', '--mode=export', f'--weights={weights}',
                                f'--export_dir={root}'], cwd=ROOT, stdout=subprocess.DEVNULL)
    while not list(root.glob('.writing-*/saved_model.pb')):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # A server looks at numbers alone; the next export removes what was left, see test_versions.
    assert all(name.startswith('.writing-') for name in os.listdir(root))
