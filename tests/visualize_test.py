# SPDX-License-Identifier: Apache-2.0
"""Which clips and places are found, what is drawn and written; the deconvolution has its own test."""

import json

import keras
import numpy as np
import pytest
from PIL import Image

from c3d_tf import models
from c3d_tf import prepare
from c3d_tf import visualize
from c3d_tf.common import errors
from c3d_tf.data import datasets
from c3d_tf.data import preprocess
from c3d_tf.data import video
from c3d_tf.explain import gradcam
from c3d_tf.explain import scan
from c3d_tf.figures import strips
from c3d_tf.weights import artefact
from tests import conftest

SIZE, CROP, LENGTH = (24, 32), 20, 4


def _save(path, name='c3d', *, crop=CROP, length=LENGTH) -> str:
    keras.utils.set_random_seed(3)
    model = models.build(name, num_classes=3, clip_length=length, crop_size=crop, width=0.06,
                         initializer='he')
    mean = np.random.default_rng(0).uniform(90, 120, (length, *SIZE, 3)).astype(np.float32)
    spec = preprocess.Preprocessing(SIZE, crop, length, 1, mean)
    artefact.save(str(path), artefact.Artefact(model, spec, ('ball', 'water', 'dust'), {}))
    return str(path)


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> str:
    return _save(tmp_path_factory.mktemp('net') / 'model.keras')


@pytest.fixture(scope='module')
def videos(tmp_path_factory) -> str:
    """Three videos of 10, 6 and 14 frames of noise, of growing contrast, and one that is none."""
    root = tmp_path_factory.mktemp('noise')
    rng = np.random.default_rng(1)
    for name, frames, spread in (('a', 10, 20), ('b', 6, 60), ('c', 14, 110)):
        noise = rng.normal(110, spread, (frames, 6, 8, 3)).clip(0, 255).astype(np.uint8)
        conftest.write_video(root / f'{name}.avi', noise.repeat(4, axis=1).repeat(4, axis=2))
    (root / 'broken.avi').write_bytes(b'no video')
    return str(root)


def _by_hand(weights, videos, layer):
    """Returns [(video, start, float [T, H, W, C])] of all clips that follow one another."""
    net = artefact.load(weights)
    top, left = 2, 6  # (24 − 20) / 2, (32 − 20) / 2
    mean = net.preprocessing.mean[:, top:top + CROP, left:left + CROP]
    probe = keras.Model(net.model.input, net.model.get_layer(layer).output)
    found = []
    for name in 'abc':
        frames = np.stack([frame.image for frame in video.decode(f'{videos}/{name}.avi', size=SIZE)])
        for start in range(0, len(frames) - LENGTH + 1, LENGTH):
            clip = frames[start:start + LENGTH, top:top + CROP, left:left + CROP] - mean
            found.append((name, start, np.array(probe(clip[None]))[0]))
    return found


def test_finds_the_strongest_activations_and_draws_them(weights, videos, tmp_path):
    result = visualize.visualize(weights, str(tmp_path), videos=videos, layers=('conv2a', 'pool3'),
                                 maps=2, top=3)
    assert json.loads((tmp_path / 'figures/figures.json').read_text()) == result
    assert result['clips'] == 2 + 1 + 3
    assert [row['path'].endswith('broken.avi') for row in result['skipped']] == [True]
    for layer in ('conv2a', 'pool3'):
        clips = _by_hand(weights, videos, layer)
        peaks = np.array([maps.max(axis=(0, 1, 2)) for _, _, maps in clips])  # [clips, C]
        own = [figure for figure in result['figures'] if figure['layer'] == layer and 'unit' in figure]
        assert [figure['unit'] for figure in own] == list(np.argsort(-peaks.max(axis=0))[:2])
        for figure in own:
            unit = figure['unit']
            expected = []
            for name in 'abc':  # each video's best
                value, best = max((peaks[i, unit], i) for i, clip in enumerate(clips) if clip[0] == name)
                maps = clips[best][2]
                place = np.unravel_index(maps[..., unit].argmax(), maps.shape[:3])
                expected.append((value, name, clips[best][1], *place))
            expected.sort(reverse=True)
            assert [(clip['video'], clip['start_frame'], clip['frame'], clip['row'], clip['column'])
                    for clip in figure['clips']] == [row[1:] for row in expected]
            np.testing.assert_allclose([clip['activation'] for clip in figure['clips']],
                                       [row[0] for row in expected], rtol=1e-4)
            np.testing.assert_allclose([clip['time'] for clip in figure['clips']],
                                       [row[2] / 25 for row in expected], atol=1e-3)
    kinds = [figure['kind'] for figure in result['figures']]
    assert kinds == ['filters'] + ['deconvolution'] * 4 + ['gradcam'] * 2
    written = {figure[key] for figure in result['figures'] for key in ('file', 'animation')
               if key in figure}
    assert {path.name for path in (tmp_path / 'figures').iterdir()} == written | {'figures.json'}
    for name in written:
        with Image.open(tmp_path / 'figures' / name) as picture:
            assert picture.width > 300 and len(picture.convert('RGB').getcolors(1 << 24)) > 20, name
            assert getattr(picture, 'n_frames', 1) == (LENGTH if name.endswith('gif') else 1)


def test_pictures_show_the_very_pixels_that_the_network_saw(weights):
    net = artefact.load(weights)
    images = np.random.default_rng(0).integers(0, 256, (LENGTH, *SIZE, 3)).astype(np.uint8)
    scanned = scan.Scan(np.zeros(1, int), np.zeros(1, int), {}, np.ones((1, 3)))
    clip = visualize._Clips(net, [], scanned, {0: scan.Clip(0, 0, 0.0, images)})
    np.testing.assert_array_equal(clip.frames([0])[0], images[:, 2:22, 6:26])


def test_units_that_are_asked_for_and_one_video_with_several_clips(weights, videos, tmp_path):
    result = visualize.visualize(weights, str(tmp_path), videos=f'{videos}/c.avi', layers=('conv1a',),
                                 what=('deconvolution',), units=(2, 0), top=2)
    assert [figure['unit'] for figure in result['figures']] == [2, 0]
    clips = [clip for clip in _by_hand(weights, videos, 'conv1a') if clip[0] == 'c']
    for figure in result['figures']:
        best = sorted(clips, key=lambda clip: -clip[2][..., figure['unit']].max())[:2]
        assert [clip['start_frame'] for clip in figure['clips']] == [start for _, start, _ in best]


def test_done_work_is_not_done_twice_and_other_settings_stop(weights, videos, tmp_path, capsys):
    options = {'videos': videos, 'what': ('deconvolution',), 'maps': 2, 'top': 1}
    first = visualize.visualize(weights, str(tmp_path), **options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'figures').iterdir()}
    assert visualize.visualize(weights, str(tmp_path), **options) == first
    assert 'up to date' in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / 'figures').iterdir()}
    with pytest.raises(errors.UsageError, match=r'top: was 1, now 2(.|\n)*--overwrite'):
        visualize.visualize(weights, str(tmp_path), **options | {'top': 2})
    (tmp_path / 'figures/notes.txt').write_text('mine')
    again = visualize.visualize(weights, str(tmp_path), **options | {'maps': 1}, overwrite=True)
    names = {again['figures'][0]['file'], again['figures'][0]['animation'], 'figures.json', 'notes.txt'}
    assert {path.name for path in (tmp_path / 'figures').iterdir()} == names


def test_records_give_what_the_videos_give(weights, videos, tmp_path):
    root = tmp_path / 'videos/test/ball'
    root.mkdir(parents=True)
    for name in 'abc':
        (root / f'{name}.avi').symlink_to(f'{videos}/{name}.avi')
    (tmp_path / 'videos/train/ball').mkdir(parents=True)
    (tmp_path / 'videos/train/ball/d.avi').symlink_to(f'{videos}/a.avi')
    prepare.prepare(datasets.load('folder', videos=str(tmp_path / 'videos')), str(tmp_path / 'records'),
                    frame_size=SIZE, frame_format='png', num_workers=1)
    options = {'layers': ('conv5b',), 'what': ('deconvolution', 'gradcam')}
    one = visualize.visualize(weights, str(tmp_path / 'one'), videos=videos, **options)
    two = visualize.visualize(weights, str(tmp_path / 'two'), records_dir=str(tmp_path / 'records'),
                              **options)
    for first, second in zip(one['figures'], two['figures'], strict=True):
        assert first['file'] == second['file']
        for left, right in zip(first['clips'], second['clips'], strict=True):
            assert right['video'].endswith(left['video'])
            np.testing.assert_allclose([left.get('activation', 0), left['probability']],
                                       [right.get('activation', 0), right['probability']], rtol=1e-4)


def test_grad_cam_explains_the_class_that_is_named(weights, videos, tmp_path):
    options = {'videos': videos, 'what': ('gradcam',), 'top': 2}
    named = visualize.visualize(weights, str(tmp_path / 'named'), label='dust', **options)
    assert {clip['label'] for clip in named['figures'][0]['clips']} == {'dust'}
    values = [clip['label_probability'] for clip in named['figures'][0]['clips']]
    assert values == sorted(values, reverse=True)
    own = visualize.visualize(weights, str(tmp_path / 'own'), **options)
    assert all(clip['label'] == clip['taken_for'] and clip['label_probability'] == clip['probability']
               for clip in own['figures'][0]['clips'])


def test_each_class_that_clips_are_taken_for_comes_before_a_second_of_any():
    probability = np.array([[.9, .1], [.8, .2], [.4, .6], [.45, .55]])
    scanned = scan.Scan(np.arange(4), np.zeros(4, int), {}, probability)
    net = artefact.Artefact(None, None, ('x', 'y'), {})
    assert visualize._explained(scanned, net, '', 3) == {0: 0, 2: 1, 1: 0}
    assert visualize._explained(scanned, net, 'y', 2) == {2: 1, 3: 1}


def test_each_videos_best_comes_before_any_videos_second():
    scanned = scan.Scan(np.array([0, 0, 0, 1, 2]), np.array([0, 4, 8, 0, 0]), {}, np.ones((5, 1)))
    value = np.array([5.0, 9.0, 7.0, 1.0, 0.0])
    assert scan.best(scanned, value, 2) == [1, 3]
    assert scan.best(scanned, value, 3) == [1, 2, 3]
    assert scan.best(scanned, value, 9) == [1, 2, 0, 3]  # the last one does not fire


def test_grad_cam_by_hand():
    # conv keeps the input; the logits are fixed weights of the two maps' means: the gradient is known.
    clips = keras.Input((4, 3, 5, 3))
    maps = keras.layers.Conv3D(2, 1, activation='relu', name='conv')(clips)
    model = keras.Model(clips, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling3D()(maps)))
    kernel = np.zeros((1, 1, 1, 3, 2))
    kernel[..., 0, 0] = kernel[..., 1, 1] = 1
    head = np.array([[2.0, -1.0], [-3.0, -2.0]])  # [map, class]
    model.set_weights([kernel, np.zeros(2), head, np.zeros(2)])
    batch = np.random.default_rng(0).normal(size=(3, 4, 3, 5, 3)).astype(np.float32)
    share = gradcam.grad_cam(model, 'conv', batch, np.array([0, 0, 1]))
    rectified = np.maximum(batch[..., :2], 0)
    for i, label in enumerate((0, 0, 1)):
        expected = np.maximum(rectified[i] @ head[:, label], 0)
        np.testing.assert_allclose(share[i], expected / max(expected.max(), 1e-12), atol=1e-5)
    assert share[0].max() == 1 and not share[2].any()  # nothing speaks for class 1


def test_a_map_is_stretched_by_the_pools_before_it():
    # 7 pixels pooled by two, twice: cells of 4 pixels, at 1.5 and 5.5, of which the second is cut off.
    array = np.array([[[[1.0, 0.0]]]])
    stretched = gradcam.stretch(array, 3, 7)[0, 0, 0]
    np.testing.assert_allclose(stretched, [1, 1, .875, .625, .375, .125, 0])


def test_strips_show_what_a_small_unit_sees(tmp_path):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 200, (6, 20, 20, 3)).astype(np.uint8) for _ in range(2)]
    signals = [np.zeros((6, 20, 20, 3)) for _ in range(2)]
    signals[0][1:4, 5:8, 9:12] = 1.0   # three frames, three pixels
    signals[0][2, 6, 10] = -4.0
    signals[1][5, 19, 0] = 2.0         # at an edge: the cut stays inside
    kept = [whole.copy() for whole in frames]
    drawn = strips.beside(frames, signals, ['one', 'two'])
    assert [(strip.first, strip.box, strip.at) for strip in drawn] == [
        (1, (3, 7, 7, 7), 2), (3, (13, 0, 7, 7), 5)]
    np.testing.assert_array_equal(drawn[0].rows[0], frames[0][1:4, 3:10, 7:14])
    grey = drawn[0].rows[1]
    assert (grey[:, 0] == 128).all() and grey[1, 3, 3].max() == 0 and (grey[0, 2:5, 2:5] > 128).all()
    strips.sheet(str(tmp_path / 'a.png'), drawn, ('input', 'deconvolution'), title='title')
    strips.animation(str(tmp_path / 'a.gif'), drawn)
    np.testing.assert_array_equal(frames, kept)  # the box is drawn on a copy
    with Image.open(tmp_path / 'a.gif') as picture:
        assert picture.n_frames == 6
    large = strips.beside(frames, [np.ones((6, 20, 20, 3))] * 2, ['one', 'two'])
    assert all(strip.whole is None and strip.rows[0].shape == (6, 20, 20, 3) for strip in large)


def test_filters_need_no_videos(weights, tmp_path):
    result = visualize.visualize(weights, str(tmp_path), what=('filters',))
    assert [figure['file'] for figure in result['figures']] == ['filters_conv1a.png']


def test_res3d_18_has_grad_cam_and_filters_and_says_why_no_deconvolution(videos, tmp_path):
    path = _save(tmp_path / 'res3d.keras', 'res3d_18', crop=24, length=8)
    with pytest.raises(errors.UsageError, match='res3d_18 adds up branches .* --what=gradcam,filters'):
        visualize.visualize(path, str(tmp_path), videos=videos)
    result = visualize.visualize(path, str(tmp_path), videos=f'{videos}/c.avi', top=1,
                                 what=('gradcam', 'filters'))
    assert [(figure['kind'], figure['layer']) for figure in result['figures']] == [
        ('filters', 'conv1'), ('gradcam', 'res5b')]


def test_layers_of_features_are_left_out(weights, videos, tmp_path, capsys):
    result = visualize.visualize(weights, str(tmp_path), videos=videos, what=('gradcam',),
                                 layers=('fc6', 'prob', 'pool5'))
    assert result['protocol']['layers'] == ['pool5']
    assert 'without feature maps' in capsys.readouterr().out


def test_a_unit_that_never_fires_has_no_picture(tmp_path, videos, capsys):
    net = artefact.load(_save(tmp_path / 'net.keras'))
    kernel, bias = net.model.get_layer('conv2a').get_weights()
    kernel[..., 1], bias[1] = 0, -1
    net.model.get_layer('conv2a').set_weights([kernel, bias])
    artefact.save(str(tmp_path / 'net.keras'), net)
    result = visualize.visualize(str(tmp_path / 'net.keras'), str(tmp_path), videos=videos,
                                 layers=('conv2a',), units=(0, 1), what=('deconvolution',))
    assert [bool(figure['file']) for figure in result['figures']] == [True, False]
    assert 'conv2a 1 fires on no clip' in capsys.readouterr().out


@pytest.mark.parametrize(('options', 'message'), [
    ({'layers': ('conv9',)}, 'conv9: c3d has no such layer; its feature maps are conv1a, pool1'),
    ({'layers': ('conv1a',), 'units': (1, 99)}, '--units=99: conv1a has the maps 0 to 3'),
    ({'label': 'fire'}, '--label=fire: the weights know ball, water, dust'),
    ({'what': ('dreams',)}, '--what=dreams: expected some of deconvolution, gradcam, filters'),
    ({'videos': ''}, 'neither --input nor --records is set'),
    ({'videos': '/no/such/place'}, 'no such file'),
])
def test_wrong_use_stops_before_any_work(weights, videos, tmp_path, options, message):
    with pytest.raises(errors.UsageError, match=message):
        visualize.visualize(weights, str(tmp_path), **{'videos': videos, **options})
    assert not (tmp_path / 'figures').exists()


def test_no_readable_video_is_an_error_that_names_one(weights, videos, tmp_path):
    with pytest.raises(errors.RunError, match='broken.avi: no frame could be decoded'):
        visualize.visualize(weights, str(tmp_path), videos=f'{videos}/broken.avi')


def test_a_real_video(shared, weights, tmp_path):
    path = next((shared / 'data/ucf101_mini/Biking').iterdir())
    result = visualize.visualize(weights, str(tmp_path), videos=str(path), what=('deconvolution',),
                                 maps=1)
    assert result['clips'] > 20 and len(result['figures'][0]['clips']) == 4
