# SPDX-License-Identifier: Apache-2.0
"""Other runtimes; those marked need requirements-runtimes.txt: make test-runtimes."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from c3d_tf import evaluate
from c3d_tf import export
from c3d_tf import features
from c3d_tf import main
from c3d_tf import models
from c3d_tf import predict
from c3d_tf import prepare
from c3d_tf.common import errors
from c3d_tf.data import datasets
from c3d_tf.data import preprocess
from c3d_tf.data import records
from c3d_tf.runtimes import compare
from c3d_tf.runtimes import exported
from c3d_tf.runtimes import extras
from c3d_tf.runtimes import int8
from c3d_tf.runtimes import networks
from c3d_tf.weights import artefact
from tests import conftest
from tests import serving_files

PACKAGES = ('openvino', 'nncf', 'onnx', 'tf2onnx', 'onnxruntime')
ABSENT = [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def needs_runtimes(test):
    absent = pytest.mark.skipif(bool(ABSENT), reason=f'{", ".join(ABSENT)} not installed: make test-runtimes')
    return pytest.mark.runtimes(absent(test))


def _distance(value, expected) -> float:
    """The relative L2 distance."""
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> pathlib.Path:
    """A folder with videos/, their records/, and model.keras, a thin C3D for them."""
    root = tmp_path_factory.mktemp('runtimes')
    for number, name in enumerate(serving_files.NAMES):
        for split, count in (('train', 3), ('test', 2)):
            for one in range(count):
                images = serving_files.clip(20, *serving_files.SIZE, seed=100 * number + 10 * count + one)
                conftest.write_video(root / f'videos/{split}/{name}/{one}.avi', images)
    prepare.prepare(datasets.load('folder', videos=str(root / 'videos')), str(root / 'records'),
                    frame_size=serving_files.SIZE, frame_format='png', num_workers=2)
    serving_files.saved(root / 'model.keras')
    return root


@pytest.fixture(scope='module')
def net(root) -> artefact.Artefact:
    return artefact.load(str(root / 'model.keras'))


@pytest.fixture(scope='module')
def index(root) -> records.Index:
    return records.read_index(str(root / 'records'))


def _export(root, name, runtime, **options) -> pathlib.Path:
    return pathlib.Path(export.export(str(root / 'model.keras'), str(root / name), runtime=runtime, **options))


def test_without_the_packages_it_is_said_what_to_install(root, monkeypatch):
    weights, video = str(root / 'model.keras'), str(root / 'videos/test/archery/0.avi')
    monkeypatch.setitem(sys.modules, 'openvino', None)
    remedy = 'the package openvino, .*pip install -r requirements-runtimes.txt'
    with pytest.raises(errors.UsageError, match=remedy):
        predict.predict(video, weights, runtime='openvino')
    with pytest.raises(errors.UsageError, match=remedy):
        features.extract(str(root / 'none'), weights, videos=video, runtime='openvino')
    with pytest.raises(errors.UsageError, match=remedy):
        _export(root, 'none', 'openvino')
    assert not (root / 'none').exists()


def test_wrong_use(root, tmp_path):
    weights, video = str(root / 'model.keras'), str(root / 'videos/test/archery/0.avi')
    for options, message in (({'runtime': 'onnx'}, '--runtime=onnx is for --mode=export'),
                             ({'runtime': 'int8'}, '--export_dir is not set: expected where the int8 network is'),
                             ({'runtime': 'int8', 'export_dir': str(tmp_path)}, 'no int8 network there; make it by')):
        with pytest.raises(errors.UsageError, match=message):
            predict.predict(video, weights, **options)
    with pytest.raises(errors.UsageError, match='--records is not set: int8 needs real clips'):
        _export(root, 'none', 'int8')
    with pytest.raises(errors.UsageError, match='--precision=bfloat16: a file for --runtime=onnx holds float32'):
        _export(root, 'none', 'onnx', precision='bfloat16')
    assert not (root / 'none').exists()


def test_calibration_takes_the_middle_clips_of_records_evenly(net, index, monkeypatch):
    part = index.split('train')
    assert part.frames.tolist() == [20] * 15
    every = list(int8.calibration(part, net.preprocessing).as_numpy_iterator())
    monkeypatch.setattr(int8, 'CALIBRATION', 3)
    few = list(int8.calibration(part, net.preprocessing).as_numpy_iterator())
    assert len(every) == 15 and len(few) == 3
    for one, expected in zip(few, (every[0], every[7], every[14]), strict=True):
        assert one.shape == (1, 8, 32, 32, 3) and one.dtype == np.float32
        np.testing.assert_array_equal(one, expected)


def test_comparison_counts_as_evaluation_does(root, net, index, tmp_path):
    """And a network that always names one class agrees where the reference names it."""
    expected = evaluate.evaluate(str(root / 'records'), str(root / 'model.keras'), str(tmp_path), num_clips=3,
                                 clip_choice='uniform')
    with np.load(tmp_path / evaluate.SCORES) as archive:
        named = archive['scores'].argmax(axis=1)
    commonest = np.bincount(named).argmax()

    def stuck(clips):
        return {networks.PROB: np.eye(5, dtype=np.float32)[[commonest] * len(clips)]}

    runs = {**compare.references(net), 'stuck': stuck}
    found = compare.accuracy(runs, index, net.preprocessing, 3)
    for name in ('tensorflow float32', 'tensorflow bfloat16'):
        assert found[name]['videos'] == 10 and found[name]['clips'] == 30
    assert found['tensorflow float32']['clip_hit@1'] == expected['clip_hit@1']
    assert found['tensorflow float32']['video_hit@1'] == expected['video_hit@1']
    assert found['tensorflow float32']['same_class'] == 1
    assert found['stuck']['same_class'] == pytest.approx((named == commonest).mean())
    assert found['stuck']['clip_hit@1'] == pytest.approx(0.2)  # five classes of as many videos
    times = compare.seconds(runs, (8, 32, 32, 3))
    assert times.keys() == runs.keys()
    assert times['stuck']['1'] < times['tensorflow float32']['1'] and times['stuck'].keys() == {'1', '8'}
    lines = compare.table({'seconds a clip': times, 'test': found}).splitlines()
    assert len(lines) == 4 and lines[3].split()[0] == 'stuck' and max(map(len, lines)) < 100


NETWORKS = [(name, {}) for name in models.MODELS] + [('c3d', {'pool5': 'shifted'}), ('c3d', {'head': 'pool'})]


@needs_runtimes
@pytest.mark.parametrize(('name', 'options'), NETWORKS, ids=lambda value: str(value))
def test_every_network_gives_the_same(name, options, tmp_path):
    keras.utils.set_random_seed(1)
    model = models.build(name, num_classes=5, clip_length=6, crop_size=36, width=0.03, initializer='he', **options)
    rng = np.random.default_rng(0)
    for layer in model.layers:  # statistics and biases that show
        layer.set_weights([value + rng.random(value.shape, np.float32) / 5 if value.ndim == 1 else value
                           for value in layer.get_weights()])
    spec = preprocess.Preprocessing((36, 40), 36, 6, 1, np.zeros((), np.float32))
    net = artefact.Artefact(model, spec, tuple('abcde'), {})
    layers = ('conv1' if name == 'res3d_18' else 'conv1a' if name.startswith('c3d') else 'conv1', 'pool5', 'fc8',
              networks.PROB)
    networks.save_onnx(net, layers, str(tmp_path / 'model.onnx'))
    runs = {'onnx': networks.onnx(str(tmp_path / 'model.onnx'), layers),
            'openvino': networks.openvino(networks.to_openvino(net, layers), layers)}
    for batch in (3, 1):
        clips = rng.normal(0, 50, (batch, 6, 36, 36, 3)).astype(np.float32)
        for runtime, run in runs.items():
            found = run(clips)
            assert list(found) == list(layers)
            for layer in layers[:-1]:
                expected = keras.Model(model.input, model.get_layer(layer).output)(clips).numpy()
                expected = expected.transpose(0, 4, 1, 2, 3) if expected.ndim == 5 else expected
                assert _distance(found[layer], expected) < 1e-5, (runtime, layer)
            np.testing.assert_allclose(found[networks.PROB], keras.ops.softmax(expected), atol=1e-4)


@needs_runtimes
def test_features_and_predict_on_openvino(root, tmp_path):
    weights, videos = str(root / 'model.keras'), str(root / 'videos/test')
    given = {'videos': videos, 'layers': ('fc6', 'conv5b', 'prob'), 'num_workers': 2, 'batch_size': 4}
    features.extract(str(tmp_path / 'tf'), weights, **given)
    for precision, low, high in (('float32', 0, 1e-5), ('bfloat16', 1e-4, 3e-2)):
        out = tmp_path / precision
        features.extract(str(out), weights, runtime='openvino', precision=precision, **given)
        assert len(list(out.rglob('*.npz'))) == 10
        for path in out.rglob('*.npz'):
            with np.load(path) as found, np.load(tmp_path / 'tf' / path.relative_to(out)) as expected:
                assert found.files == expected.files and len(found['start_frame']) == 4
                for layer in ('fc6', 'conv5b', 'prob', 'video_fc6'):
                    assert found[layer].shape == expected[layer].shape
                    assert low <= _distance(found[layer], expected[layer]) < high
    with pytest.raises(errors.UsageError, match="runtime: was 'openvino', now 'not set'"):
        features.extract(str(tmp_path / 'float32'), weights, **given)
    with pytest.raises(errors.UsageError, match='--precision=float16: OpenVINO is asked for float32 or bfloat16'):
        features.extract(str(tmp_path / 'half'), weights, runtime='openvino', precision='float16', **given)
    video = str(root / 'videos/test/bowling/1.avi')
    ours, theirs = (predict.predict(video, weights, runtime=name) for name in ('openvino', 'tensorflow'))
    assert [entry['label'] for entry in ours['top']] == [entry['label'] for entry in theirs['top']]
    np.testing.assert_allclose([entry['probability'] for entry in ours['top']],
                               [entry['probability'] for entry in theirs['top']], atol=1e-5)


@needs_runtimes
def test_an_onnx_file_is_enough_for_a_program_without_tensorflow(root, net, capsys):
    arguments = ['--mode=export', '--runtime=onnx', f'--weights={root}/model.keras', '--layers=fc6,conv5b',
                 f'--export_dir={root}/onnx']
    for said in (f'wrote {root}/onnx/1: model.onnx, which gives prob, fc6, conv5b', f'{root}/onnx/1 is up to date'):
        assert main.main(['c3d_tf', *arguments]) == 0
        assert said in capsys.readouterr().out
    frames = serving_files.clip(8, *serving_files.SIZE)
    np.save(root / 'frames.npy', frames)
    program = '''
import json, sys
import numpy as np, onnxruntime
folder = sys.argv[1] + '/onnx/1'
spec = json.load(open(folder + '/runtime.json'))['preprocessing']
(height, width), side = spec['frame_size'], spec['crop_size']
top, left = (height - side) // 2, (width - side) // 2
clip = np.load(sys.argv[1] + '/frames.npy') - np.load(folder + '/mean.npy')
clip = clip[:, top:top + side, left:left + side].astype(np.float32)
session = onnxruntime.InferenceSession(folder + '/model.onnx')
prob, fc6 = session.run(['prob', 'fc6'], {'clips': clip[None]})
labels = open(folder + '/labels.txt').read().split()
assert not any(name in sys.modules for name in ('tensorflow', 'keras', 'c3d_tf'))
print(json.dumps([labels[prob[0].argmax()], prob[0].tolist(), fc6[0].tolist()]))
'''
    done = subprocess.run([sys.executable, '-c', program, root], capture_output=True, text=True, check=True)
    label, prob, fc6 = json.loads(done.stdout)
    given = preprocess.for_inference(tf.constant(frames[None]), net.preprocessing)
    expected = networks.tensorflow(net, ('prob', 'fc6'))(given)
    assert label == net.class_names[expected['prob'][0].argmax()]
    np.testing.assert_allclose(prob, expected['prob'][0], atol=1e-5)
    assert _distance(np.array(fc6), expected['fc6'][0]) < 1e-5


@needs_runtimes
def test_a_wrong_file_is_not_published(root, monkeypatch):
    real = networks.onnx
    monkeypatch.setattr(networks, 'onnx', lambda *given: lambda clips: real(*given)(clips + 20))
    with pytest.raises(errors.RunError, match='model.onnx differs from the Keras model by'):
        _export(root, 'wrong', 'onnx')
    assert not [path for path in (root / 'wrong').iterdir() if path.name.isdigit()]


@pytest.fixture(scope='module')
def quantized(root) -> pathlib.Path:
    return _export(root, 'int8', 'int8', records_dir=str(root / 'records'), num_clips=2, layers=('fc6', 'conv5b'))


@needs_runtimes
def test_int8_is_int8_and_close(root, net, index, quantized, tmp_path, capsys):
    described = json.loads((quantized / exported.DESCRIPTION).read_text())
    assert described['weights_sha256'] == net.sha256 and described['outputs'] == ['prob', 'fc6', 'conv5b']
    assert described['compared']['test']['int8 and float32']['same_class'] >= 0.9
    assert described['compared']['seconds a clip'].keys() == described['compared']['test'].keys()

    import openvino

    compiled = openvino.compile_model(str(quantized / 'model.xml'), 'CPU')
    kinds = [(op.get_rt_info()['layerType'].astype(str), op.get_rt_info()['runtimePrecision'].astype(str))
             for op in compiled.get_runtime_model().get_ops()]
    products = [kind for kind in kinds if kind[0] in ('Convolution', 'FullyConnected')]
    assert len(products) == 11 and all(precision in ('u8', 'i8') for _, precision in products), products

    given = {'videos': str(root / 'videos/test'), 'layers': ('fc6', 'conv5b', 'prob'), 'num_workers': 2}
    weights, folder = str(root / 'model.keras'), str(root / 'int8')
    features.extract(str(tmp_path / 'tf'), weights, **given)
    features.extract(str(tmp_path / 'int8'), weights, runtime='int8', export_dir=folder, **given)
    for path in (tmp_path / 'int8').rglob('*.npz'):
        with np.load(path) as found, np.load(tmp_path / 'tf' / path.relative_to(tmp_path / 'int8')) as expected:
            for layer in ('fc6', 'conv5b', 'prob'):
                assert 1e-4 < _distance(found[layer], expected[layer]) < 0.1, layer
    video = str(root / 'videos/test/bowling/1.avi')
    assert main.main(['c3d_tf', '--mode=predict', '--runtime=int8', f'--export_dir={folder}', f'--weights={weights}',
                      f'--input={video}', '--json']) == 0
    top = json.loads(capsys.readouterr().out.splitlines()[-1])['top']
    assert top[0]['label'] == predict.predict(video, weights)['top'][0]['label']


@needs_runtimes
def test_an_int8_network_of_others_or_a_damaged_one_is_refused(root, net, quantized, tmp_path):
    with pytest.raises(errors.UsageError, match='--layers=fc7: .*model.xml gives conv5b, fc6, prob; export it'):
        exported.load(net, ('fc7',), 'int8', precision='float32', export_dir=str(root / 'int8'))
    other = artefact.load(serving_files.saved(tmp_path / 'other.keras', short='drop'))
    with pytest.raises(errors.UsageError, match='was made from other weights'):
        exported.load(other, ('fc6',), 'int8', precision='float32', export_dir=str(root / 'int8'))
    shutil.copytree(quantized.parent, tmp_path / 'int8')
    data = bytearray((tmp_path / 'int8/1/model.bin').read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / 'int8/1/model.bin').write_bytes(data)
    with pytest.raises(errors.RunError, match='model.bin is missing or damaged; make it by'):
        exported.load(net, ('fc6',), 'int8', precision='float32', export_dir=str(tmp_path / 'int8'))


@needs_runtimes
def test_nothing_is_reported_to_anybody():
    for name in ('openvino', 'nncf'):
        extras.load(name)
    assert sys.modules['openvino_telemetry'] is None
