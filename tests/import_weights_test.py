# SPDX-License-Identifier: Apache-2.0
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import safetensors.numpy

from c3d_tf import import_weights
from c3d_tf import main
from c3d_tf import models
from c3d_tf.common import errors
from c3d_tf.weights import artefact
from tests import models_test
from tests import weight_files

ARRAYS = weight_files.thin()
MEAN = np.random.default_rng(1).uniform(80, 120, (3, 16, 128, 171)).astype(np.float32)
ASKED = {'mean': '104,117,128', 'channel_order': 'bgr', 'pool5': 'aligned', 'flip_time': False}


@pytest.fixture(scope='module')
def caffe(tmp_path_factory):
    """(the file, the artefact's path, the artefact) of a thin C3D v1.0."""
    folder = tmp_path_factory.mktemp('caffe')
    source = weight_files.caffe_v1_0(folder / 'model', ARRAYS)
    mean = weight_files.mean_v1_0(folder / 'mean.binaryproto', MEAN)
    import_weights.import_weights(source, str(folder / 'c3d.keras'), mean=mean)
    return source, str(folder / 'c3d.keras'), artefact.load(str(folder / 'c3d.keras'))


def test_every_weight_is_where_it_belongs(caffe):
    model = caffe[2].model
    for name, weight, bias in ARRAYS:
        layer = model.get_layer(name.split('-')[0])
        kernel, ours = layer.get_weights()
        np.testing.assert_array_equal(ours, bias)
        if name == 'fc6-1':
            for c, h, w in ((0, 0, 0), (3, 2, 1), (31, 3, 3)):  # of (32, 4, 4) → (4, 4, 32)
                np.testing.assert_array_equal(kernel[(h * 4 + w) * 32 + c], weight[:, c * 16 + h * 4 + w])
        elif name.startswith('fc'):
            np.testing.assert_array_equal(kernel, weight.T)
        else:
            weight = weight[:, ::-1] if name == 'conv1a' else weight  # BGR → RGB
            np.testing.assert_array_equal(kernel, np.moveaxis(weight, (0, 1), (4, 3)))


def test_the_preprocessing_is_the_originals(caffe):
    spec = caffe[2].preprocessing
    np.testing.assert_array_equal(spec.mean, MEAN[::-1].transpose(1, 2, 3, 0))
    assert (spec.frame_size, spec.crop_size, spec.clip_length, spec.stride) == ((128, 171), 112, 16, 1)
    assert spec.centre() == (8, 29)
    assert caffe[2].class_names[:2] == ('class_000', 'class_001') and len(caffe[2].class_names) == 7
    assert caffe[2].provenance['source_names'] == {'fc6': 'fc6-1', 'fc7': 'fc7-1', 'fc8': 'fc8-1'}


def _safetensors(path, arrays, names):
    safetensors.numpy.save_file(weight_files.state_dict(arrays, names), path)
    return str(path)


FORMATS = {
    'MMAction2': lambda path: _safetensors(path, ARRAYS, weight_files.MMACTION2),
    'c3d-pytorch': lambda path: _safetensors(path, ARRAYS, weight_files.DAVIDEA),
    'jfzhang95': lambda path: _safetensors(path, ARRAYS, weight_files.JFZHANG95),
    'c3d-keras': lambda path: weight_files.keras_h5(path, ARRAYS),
    'numpy': lambda path: weight_files.numpy_dict(f'{path}.npy', ARRAYS),
    'C3D-tensorflow': lambda path: weight_files.tf1_checkpoint(path, ARRAYS),
}


def _assert_same_weights(model, other):
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)


@pytest.mark.parametrize('kind', FORMATS)
def test_every_format_gives_the_same_network(kind, caffe, tmp_path, capsys):
    source = FORMATS[kind](f'{tmp_path}/weights')
    net = import_weights.import_weights(source, '', **ASKED)
    _assert_same_weights(net.model, caffe[2].model)
    assert net.preprocessing.mean.tolist() == [128, 117, 104]
    if kind != 'numpy':  # whose names are MMAction v1's as well as others'
        assert kind.split('95')[0] in capsys.readouterr().out.replace('pytorch-video-recognition', 'jfzhang')


def test_options_turn_and_shift(caffe, tmp_path):
    source = FORMATS['C3D-tensorflow'](f'{tmp_path}/weights')
    other = {**ASKED, 'channel_order': 'rgb', 'pool5': 'shifted', 'flip_time': True}
    net = import_weights.import_weights(source, '', **other, fc6_order='chw')
    mine, theirs = caffe[2].model, net.model
    assert theirs.get_layer('pool5_pad') and net.preprocessing.mean.tolist() == [104, 117, 128]
    kernel = mine.get_layer('conv1a').get_weights()[0]
    np.testing.assert_array_equal(theirs.get_layer('conv1a').get_weights()[0], kernel[::-1, :, :, ::-1])
    kernel = mine.get_layer('conv5b').get_weights()[0]
    np.testing.assert_array_equal(theirs.get_layer('conv5b').get_weights()[0], kernel[::-1])
    ours, chw = mine.get_layer('fc6').get_weights()[0], theirs.get_layer('fc6').get_weights()[0]
    assert np.array_equal(chw[(1 * 4 + 2) * 32 + 3], ours[3 * 16 + 1 * 4 + 2]) and not np.array_equal(chw, ours)


@pytest.mark.parametrize(('kind', 'asked'), [
    ('caffe', ['--mean']),
    ('MMAction2', ['--mean', '--channel_order', '--pool5']),
    ('c3d-pytorch', ['--mean', '--channel_order', '--pool5', '--flip_time']),
    ('c3d-keras', ['--mean', '--channel_order', '--pool5', '--flip_time']),
])
def test_what_a_file_cannot_tell_is_asked(kind, asked, caffe, tmp_path):
    source = caffe[0] if kind == 'caffe' else FORMATS[kind](f'{tmp_path}/weights')
    with pytest.raises(errors.UsageError, match='does not tell') as caught:
        import_weights.import_weights(source, '')
    for flag in ('--mean', '--channel_order', '--pool5', '--flip_time'):
        assert (f'\n  {flag}' in str(caught.value)) == (flag in asked)


def _changed(name, weight=None, bias=None):
    return [(n, weight(w) if weight and n == name else w, bias(b) if bias and n == name else b)
            for n, w, b in ARRAYS]


def _swapped():
    rows = {name: (weight, bias) for name, weight, bias in ARRAYS}
    rows['fc6-1'], rows['fc7-1'] = rows['fc7-1'], rows['fc6-1']
    return [(name, *values) for name, values in rows.items()]


@pytest.mark.parametrize(('arrays', 'message'), [
    (_swapped(), r'wrong: fc7-1/0 .*fc7.kernel should be \(256, 256\)'),
    (_changed('conv3b', lambda w: np.where(np.arange(w.size).reshape(w.shape) == 5, np.nan, w)),
     'wrong: conv3b/0 .*NaN'),
    (_changed('fc8-1', bias=lambda b: b + np.inf), 'wrong: fc8-1/1 .*NaN or infinity'),
    ([row for row in ARRAYS if row[0] != 'conv4b'], 'missing in the file: conv4b.kernel'),
    ([*ARRAYS, ('conv6a', *ARRAYS[3][1:])], 'left over in the file: conv6a/0'),
    ([row for row in ARRAYS if row[0] != 'fc8-1'], '--reinit=fc8 --labels'),
    ([row for row in ARRAYS if row[0] != 'conv1a'], 'no first convolution'),
    ([*ARRAYS, ('fc6', *ARRAYS[8][1:])], 'both fc6-1/0 and fc6/0'),
])
def test_what_does_not_fit_is_refused(arrays, message, tmp_path):
    source = weight_files.caffe_v1_0(tmp_path / 'model', arrays)
    with pytest.raises(errors.UsageError, match=message) as caught:
        import_weights.import_weights(source, str(tmp_path / 'out.keras'), mean='none')
    assert source in str(caught.value) and not (tmp_path / 'out.keras').exists()


@pytest.mark.parametrize(('mean', 'message'), [
    (np.zeros((16, 112, 112, 3), np.float32), 'the volume it was cut from'),
    (np.zeros((3, 8, 128, 171), np.float32), r'expected \(3, 16, height, width\)'),
    (np.full((3, 16, 128, 171), np.nan, np.float32), 'NaN'),
    (np.zeros(5, np.float32), r'\(3,\) or \(\)'),
])
def test_means_that_cannot_be(mean, message, caffe, tmp_path):
    np.save(tmp_path / 'mean.npy', mean)
    with pytest.raises(errors.UsageError, match=message) as caught:
        import_weights.import_weights(caffe[0], '', mean=str(tmp_path / 'mean.npy'))
    assert 'mean.npy' in str(caught.value)


def test_a_mean_of_other_frames_decides_their_size(caffe, tmp_path):
    np.save(tmp_path / 'mean.npy', MEAN[None, :, :, :, :128])
    net = import_weights.import_weights(caffe[0], '', mean=str(tmp_path / 'mean.npy'))
    assert net.preprocessing.frame_size == (128, 128) and net.preprocessing.centre() == (8, 8)


def test_a_file_without_the_last_layer(tmp_path):
    (tmp_path / 'labels.txt').write_text('ball\nwater\n')
    source = weight_files.caffe_v1_0(tmp_path / 'model', ARRAYS[:-1])
    net = import_weights.import_weights(source, '', mean='128', labels=str(tmp_path / 'labels.txt'),
                                        reinit=('fc8',))
    assert net.class_names == ('ball', 'water') and net.model.output.shape[-1] == 2
    assert net.model.get_layer('fc8').get_weights()[0].std() == pytest.approx(0.01, rel=0.2)


def test_labels_must_fit(caffe, tmp_path):
    (tmp_path / 'labels.txt').write_text('ball\nwater\n')
    with pytest.raises(errors.UsageError, match='2 classes, fc8 .* has 7'):
        import_weights.import_weights(caffe[0], '', mean='none', labels=str(tmp_path / 'labels.txt'))


def test_the_same_again_is_done_already_and_another_is_refused(caffe, capsys):
    mean = str(pathlib.Path(caffe[0]).with_name('mean.binaryproto'))
    before = pathlib.Path(caffe[1]).stat().st_mtime_ns
    import_weights.import_weights(caffe[0], caffe[1], mean=mean)
    assert 'imported already' in capsys.readouterr().out
    with pytest.raises(errors.UsageError, match="mean: was '.*', now '128'"):
        import_weights.import_weights(caffe[0], caffe[1], mean='128')
    assert pathlib.Path(caffe[1]).stat().st_mtime_ns == before


def test_the_front_door(caffe, tmp_path, capsys):
    words = ['c3d_tf', '--mode=import_weights', f'--source={caffe[0]}', '--mean=90.25,97.66,101.41',
             f'--weights={tmp_path}/out/c3d.keras']
    assert main.main([*words, '--dry_run']) == 0 and not list(tmp_path.iterdir())
    out = capsys.readouterr().out
    assert 'conv1a/0' in out and '(2, 3, 4, 1, 0), BGR → RGB' in out and 'mean 101.41, 97.66, 90.25 (RGB)' in out
    assert main.main(words) == 0
    assert artefact.load(f'{tmp_path}/out/c3d.keras').class_names[-1] == 'class_006'
    flagfile = f'--flagfile={tmp_path}/out/import_weights.flags'
    assert main.main(['c3d_tf', flagfile]) == 0 and 'imported already' in capsys.readouterr().out
    assert main.main(words[:3] + words[4:]) == 2 and '--mean' in capsys.readouterr().err


def test_res3d_18_with_batch_norm_and_scale_is_what_caffe_computes(tmp_path):
    net = models.build('res3d_18', num_classes=5, clip_length=8, width=1 / 16)
    rng = np.random.default_rng(0)
    rows, weights = [], {}
    for layer in net.layers:
        values = [rng.normal(0, 0.2, w.shape).astype(np.float32) for w in layer.weights]
        if layer.name.startswith('bn'):
            gamma, beta, mean = (1 + values[0]), values[1], values[2]
            variance, factor = 0.5 + values[3] ** 2, np.float32(rng.uniform(5, 1000))
            own = layer.name
            rows += [(own, 'BatchNorm', [mean * factor, variance * factor, np.array([factor])]),
                     (own.replace('bn', 'scale'), 'Scale', [gamma, beta])]
            weights[own] = [x.astype(np.float64) for x in (gamma, beta, mean, variance)]
        elif layer.name == 'fc8':
            rows.append(('fc8', 'InnerProduct', [values[0].T, values[1]]))
            weights['fc8'] = [x.astype(np.float64) for x in values]
        elif values:
            kernel = values[0]
            theirs = kernel.transpose(4, 3, 0, 1, 2)
            name = layer.name.removesuffix('_conv')
            rows.append((name, 'Convolution3D', [theirs[:, ::-1] if name == 'conv1' else theirs]))
            weights[layer.name] = [kernel.astype(np.float64)]
    source = weight_files.caffe_v1_1(tmp_path / 'res3d.caffemodel', rows)
    net = import_weights.import_weights(source, '', mean='128')
    spec = net.preprocessing
    assert (spec.clip_length, spec.stride, spec.mean.tolist()) == (8, 2, 128)
    clips = rng.normal(0, 50, (1, 8, 112, 112, 3)).astype(np.float32)
    blobs = models_test._res3d_18_in_numpy(clips.astype(np.float64), weights)
    inner = keras.Model(net.model.input, [net.model.get_layer(name).output for name in blobs])
    for name, value in zip(blobs, inner(clips)):
        assert models_test._relative(keras.ops.convert_to_numpy(value), blobs[name]) < 1e-5, name


def test_a_file_from_the_original_code_is_read(shared):
    # tiny_init.caffemodel is real, but of another network.
    with pytest.raises(errors.UsageError, match=r'(?s)wrong: conv2a/0 \(6, 4, 3, 3, 3\).*missing in the file: fc7'):
        import_weights.import_weights(str(shared / 'golden/tiny/tiny_init.caffemodel'), '', mean='none')


def test_killed_while_it_writes_leaves_the_file_whole_or_absent(caffe, tmp_path):
    weights = tmp_path / 'c3d.keras'
    command = [sys.executable, '-m', 'c3d_tf.main', '--mode=import_weights', f'--source={caffe[0]}', '--mean=128',
               f'--weights={weights}']
    for wait in (0.0, 0.02, 0.1):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            if 'clips of 16 frames' in line:  # the last line before the file is written
                break
        time.sleep(wait)
        process.kill()
        process.wait()
        if weights.exists():
            artefact.load(str(weights))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    _assert_same_weights(artefact.load(str(weights)).model, caffe[2].model)
