# SPDX-License-Identifier: Apache-2.0
"""The original's numbers: full-size weights in the layout of its own file, its own clip, its own outputs.

The outputs come from the original Caffe code run on these weights; nothing here computes them.
"""

import struct
import tarfile

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from c3d_tf import features
from c3d_tf import import_weights
from c3d_tf import prepare
from c3d_tf.data import datasets
from c3d_tf.data import preprocess
from c3d_tf.data import sources
from c3d_tf.weights import artefact
from tests import weight_files

VIDEO = 'v_ApplyEyeMakeup_g01_c01'
STARTS = list(range(0, 160, 16))
# Between two BLAS kernels the original itself differs by 6e-7 on fc6 and 3e-6 on prob.
TOLERANCE = {'pool5': 1e-5, 'fc6': 1e-5, 'fc7': 1e-5, 'fc8': 1e-5, 'prob': 1e-4}
NAMES = {'fc6': 'fc6-1', 'fc7': 'fc7-1', 'fc8': 'fc8-1'}


@pytest.fixture(scope='module')
def weights(shared, tmp_path_factory):
    """The artefact of the golden weights with the golden mean, by way of a .caffemodel."""
    folder = tmp_path_factory.mktemp('golden')
    source = weight_files.caffe_v1_0(folder / 'sport1m', weight_files.golden(shared))
    for name, mean in (('golden', shared / 'golden/golden_mean_128x171.binaryproto'),
                       ('fbmean', shared / 'data/mean/i380k_fb_train16_128_mean.binaryproto')):
        import_weights.import_weights(source, str(folder / f'{name}.keras'), mean=str(mean))
    (folder / 'sport1m').unlink()
    return folder


@pytest.fixture(scope='module')
def frames(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp('frames')
    with tarfile.open(shared / f'golden/input/{VIDEO}_frames.tar.gz') as archive:
        archive.extractall(folder, filter='data')
    return folder / VIDEO


def _error(ours, theirs):
    """Relative L2 of each clip."""
    ours, theirs = (x.reshape(len(x), -1).astype(np.float64) for x in (ours, theirs))
    return np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)


def _extract(folder, weights, **options):
    features.extract(str(folder), str(weights), layers=('conv5b', 'pool1', *TOLERANCE), step=16, batch_size=10,
                     **options)
    (path,) = folder.rglob('*.npz')
    with np.load(path) as archive:
        return dict(archive)


def _assert_equal(found, golden):
    assert found['start_frame'].tolist() == STARTS
    for layer, bound in TOLERANCE.items():
        assert _error(found[layer], golden[NAMES.get(layer, layer)]).max() < bound, layer
    for layer in ('conv5b', 'pool1'):
        flat = found[layer].reshape(10, -1).astype(np.float64)
        spot = flat[:, golden[f'{layer}_spot_index']]
        assert _error(spot, golden[f'{layer}_spot']).max() < 1e-5, layer
        stats = golden[f'{layer}_stats']
        np.testing.assert_allclose(np.sqrt((flat ** 2).sum(axis=1)), np.sqrt(stats[:, 2]), rtol=1e-5)
    assert _error(found['conv5b'][:1], golden['conv5b_clip0'][None]).max() < 1e-5


def test_from_the_video_file(weights, shared, tmp_path):
    found = _extract(tmp_path, weights / 'golden.keras', videos=str(shared / f'golden/input/{VIDEO}.avi'))
    _assert_equal(found, np.load(shared / 'golden/apply_video.npz'))


def test_from_the_folder_of_jpegs(weights, frames, shared, tmp_path):
    found = _extract(tmp_path, weights / 'golden.keras', videos=str(frames))
    _assert_equal(found, np.load(shared / 'golden/apply_frm.npz'))


def test_from_png_records(weights, shared, tmp_path):
    folder = tmp_path / 'videos/test/makeup'
    folder.mkdir(parents=True)
    (folder / f'{VIDEO}.avi').symlink_to(shared / f'golden/input/{VIDEO}.avi')
    prepare.prepare(datasets.load('folder', videos=str(tmp_path / 'videos')), str(tmp_path / 'records'),
                    frame_format='png', num_workers=1)
    found = _extract(tmp_path / 'out', weights / 'golden.keras', records_dir=str(tmp_path / 'records'))
    _assert_equal(found, np.load(shared / 'golden/apply_video.npz'))


def test_with_the_other_mean(weights, shared, tmp_path):
    """I380K's: frames of 128x128, the crop at (8, 8)."""
    found = _extract(tmp_path, weights / 'fbmean.keras', videos=str(shared / f'golden/input/{VIDEO}.avi'))
    golden = np.load(shared / 'golden/apply_video_fbmean.npz')
    for layer, bound in TOLERANCE.items():
        theirs = golden[NAMES.get(layer, layer)]
        assert _error(found[layer][:len(theirs)], theirs).max() < bound, layer


@pytest.mark.parametrize('kind', ['video', 'frm'])
def test_the_tools_own_files(kind, weights, frames, shared, tmp_path):
    videos = frames if kind == 'frm' else shared / f'golden/input/{VIDEO}.avi'
    features.extract(str(tmp_path), str(weights / 'golden.keras'), videos=str(videos), step=16,
                     file_format='caffe', batch_size=10,
                     layers=('fc6-1', 'fc7', 'pool5', 'prob'))
    golden = shared / f'golden/tool_output_{kind}' / VIDEO
    ours = {path.name: path for path in (tmp_path / VIDEO).iterdir() if not path.name.startswith('.')}
    assert sorted(ours) == sorted(path.name for path in golden.iterdir())
    for path in golden.iterdir():
        theirs, own = path.read_bytes(), ours[path.name].read_bytes()
        assert own[:20] == theirs[:20] and len(own) == len(theirs), path.name
        assert struct.unpack('<5i', own[:20])[0] == 1
        bound = TOLERANCE['prob'] if path.suffix == '.prob' else 1e-5
        error = _error(*(np.frombuffer(data[20:], '<f4')[None] for data in (own, theirs)))
        assert error.max() < bound, path.name


def _input(shared):
    """The video's frames after the resize, uint8 [T, 128, 171, 3] RGB."""
    found = sources.frames(str(shared / f'golden/input/{VIDEO}.avi'), size=(128, 171))
    return np.stack([frame.image for frame in found])


def test_the_networks_input_is_equal_bit_for_bit(weights, shared):
    spec = artefact.load(str(weights / 'golden.keras')).preprocessing
    golden = np.load(shared / 'golden/apply_video.npz')
    images = _input(shared)
    clips = np.stack([images[start:start + 16] for start in STARTS])
    ours = preprocess.for_inference(tf.constant(clips), spec).numpy()[..., ::-1].transpose(0, 4, 1, 2, 3)  # BGR, planar
    mean = spec.mean[..., ::-1].transpose(3, 0, 1, 2)
    np.testing.assert_array_equal(ours, golden['input_u8'].astype(np.float32) - mean[:, :, 8:120, 29:141])
    clip0 = np.load(shared / 'golden/apply_video_input_clip0.npz')
    np.testing.assert_array_equal(ours[0], clip0[clip0.files[0]].reshape(ours[0].shape))


@pytest.mark.large
@pytest.mark.parametrize('write', [
    lambda path, arrays: weight_files.keras_h5(path, arrays),
    lambda path, arrays: weight_files.numpy_dict(f'{path}.npy', arrays),
    lambda path, arrays: weight_files.tf1_checkpoint(path, arrays),
], ids=['keras_h5', 'numpy', 'tf1'])
def test_other_formats_of_the_full_size_give_the_same_bits(write, weights, shared, tmp_path):
    source = write(tmp_path / 'weights', list(weight_files.golden(shared)))
    net = import_weights.import_weights(source, '', mean='128', channel_order='bgr', pool5='aligned',
                                        flip_time=False)
    expected = artefact.load(str(weights / 'golden.keras')).model.get_weights()
    for ours, theirs in zip(net.model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# Each mistake that ports have made, with what it does to fc6 of the first clip: golden/README.md.
MISTAKES = {
    'RGB for BGR': 0.048, 'frames reversed': 0.048, 'mirrored': 0.31, 'mean cropped at (0, 0)': 0.018,
    'a mean per channel': 0.026, 'one frame late': 0.035, 'crop column 30': 0.055, 'INTER_AREA': 0.022,
    'the next clip': 0.059,
}


def test_every_mistake_is_far_above_the_tolerance(weights, shared):
    net = artefact.load(str(weights / 'golden.keras'))
    fc6 = keras.Model(net.model.input, net.model.get_layer('fc6').output)
    mean, golden = net.preprocessing.mean, np.load(shared / 'golden/apply_video.npz')['fc6-1'][0]
    images = _input(shared)
    raw = np.stack([f.image for f in sources.frames(str(shared / f'golden/input/{VIDEO}.avi'))])
    area = np.stack([cv2.resize(image, (171, 128), interpolation=cv2.INTER_AREA) for image in raw[:16]])

    def cut(images, column=29, mean=mean[:, 8:120, 29:141]):
        return images[:, 8:120, column:column + 112].astype(np.float32) - mean

    right = cut(images[:16])
    wrong = {
        'RGB for BGR': (images[:16, 8:120, 29:141, ::-1] - mean[:, 8:120, 29:141]),
        'frames reversed': right[::-1],
        'mirrored': right[:, :, ::-1],
        'mean cropped at (0, 0)': cut(images[:16], mean=mean[:, :112, :112]),
        'a mean per channel': cut(images[:16], mean=mean.mean(axis=(0, 1, 2))),
        'one frame late': cut(images[1:17]),
        'crop column 30': cut(images[:16], column=30, mean=mean[:, 8:120, 30:142]),
        'INTER_AREA': cut(area),
        'the next clip': cut(images[16:32]),
    }
    assert wrong.keys() == MISTAKES.keys()
    values = keras.ops.convert_to_numpy(fc6(np.stack([right, *wrong.values()]).astype(np.float32)))
    found = dict(zip(['right', *wrong], _error(values, np.broadcast_to(golden, values.shape))))
    assert found.pop('right') < 1e-5
    for name, error in found.items():
        assert error == pytest.approx(MISTAKES[name], rel=0.25), (name, found)
