# SPDX-License-Identifier: Apache-2.0
import h5py
import numpy as np
import pytest

from c3d_tf.common import errors
from c3d_tf.data import feature_sets
from tests import feature_files


def test_all_forms_of_a_feature_set_read_alike(tmp_path):
    vectors = {'a/x.avi': np.array([3, 4, 0], np.float32), 'b/y.z.avi': np.array([0, 0, 2], np.float32)}
    feature_files.write_npz(tmp_path / 'npz', vectors)
    with h5py.File(tmp_path / 'features.h5', 'w') as file:
        for name, vector in vectors.items():
            group = file.create_group(name.removesuffix('.avi'))
            group['video_fc6'] = vector
            group['fc6'] = np.stack([vector, vector])
            group['start_frame'] = [0, 8]
            group['time'] = [0, .32]
    for name, vector in vectors.items():
        path = tmp_path / 'npy' / name.replace('.avi', '.npy')
        path.parent.mkdir(parents=True)
        np.save(path, np.stack([vector, 3 * vector]) if name[0] == 'a' else vector)
    np.savez(tmp_path / 'table.npz', names=list(vectors), features=list(vectors.values()))
    (tmp_path / 'table.csv').write_text('name,f0,f1,f2\na/x.avi,3,4,0\nb/y.z.avi,0,0,2\n')
    (tmp_path / 'bare.csv').write_text('a/x.avi,3,4,0\nb/y.z.avi,0,0,2\n')
    for path in ('npz', '', 'features.h5', 'npy', 'table.npz', 'table.csv', 'bare.csv'):
        found = feature_sets.read(str(tmp_path / path))
        pairs = feature_sets.match(vectors, found)
        assert list(pairs) == list(vectors), path
        np.testing.assert_allclose(found[pairs['a/x.avi']], [.6, .8, 0], atol=1e-6)
        np.testing.assert_allclose(found[pairs['b/y.z.avi']], [0, 0, 1], atol=1e-6)
    clips = dict(feature_sets.read_clips(str(tmp_path), ['a/x']))['a/x']
    np.testing.assert_allclose(clips.features, [[.6, .8, 0]] * 2, atol=1e-6)
    assert clips.start_frame.tolist() == [0, 8]


def test_zeros_stay_zeros_and_pooled_layers_are_flat(tmp_path):
    np.testing.assert_array_equal(feature_sets.normalised(np.zeros((2, 3))), np.zeros((2, 3)))
    np.savez(tmp_path / 'v.npz', pool5=np.ones((2, 3, 1, 2, 2), np.float32), video_pool5=np.ones(12),
             start_frame=[0, 8], time=[0., .3])
    (_, clips), = feature_sets.read_clips(str(tmp_path), ['v'], 'pool5')
    assert clips.features.shape == (2, 12)
    assert feature_sets.read(str(tmp_path), 'pool5')['v'].shape == (12,)


@pytest.mark.parametrize(('wanted', 'found', 'pairs'), [
    (['a.avi'], ['a'], {'a.avi': 'a'}),
    (['a'], ['a.avi'], {'a': 'a.avi'}),
    (['a.avi', 'a.mp4'], ['a.avi', 'a.mp4'], {'a.avi': 'a.avi', 'a.mp4': 'a.mp4'}),
    (['a'], ['a.avi', 'a.mp4'], {}),
    (['v.1', 'v.2'], ['v.1', 'v.2'], {'v.1': 'v.1', 'v.2': 'v.2'}),
    (['c/a.avi'], ['a'], {}),
])
def test_names_match_with_and_without_endings(wanted, found, pairs):
    assert feature_sets.match(wanted, found) == pairs


def test_one_feature_for_two_videos_is_refused():
    with pytest.raises(errors.UsageError, match='a.avi and a.mp4 would both'):
        feature_sets.match(['a.avi', 'a.mp4'], ['a'])


@pytest.mark.parametrize(('write', 'message'), [
    (lambda p: (p / 'f.csv').write_text('a,1,nan\n'), 'f.csv: the features of a hold NaN'),
    (lambda p: (p / 'f.csv').write_text('a,1,2\nb,1\n'), 'b has 1 numbers, a has 2'),
    (lambda p: (p / 'f.csv').write_text('a,1,2\na,1,2\n'), 'a is there twice'),
    (lambda p: (p / 'f.csv').write_text('a,1,2\nb,1,x\n'), "f.csv, b: could not convert"),
    (lambda p: (p / 'f.csv').write_text(''), 'no video in it'),
    (lambda p: np.savez(p / 'f.npz', names=['a'], other=[[1]]), 'expected the arrays names and feat'),
    (lambda p: np.savez(p / 'f.npz', names=['a'], features=[[1], [2]]), r'got \(1,\)'),
    (lambda p: (p / 'f.npz').write_bytes(b'PK\x03\x04'), 'f.npz: not readable'),
    (lambda p: (p / 'f.h5').write_bytes(b'nothing'), 'f.h5: not readable as HDF5'),
    (lambda p: None, 'no such file or folder'),
    (lambda p: (p / 'f').mkdir(), 'no features.h5, .npz or .npy'),
    (lambda p: feature_files.write_npz(p / 'f', {'a': np.ones(2)}, layer='fc7'),
     'no layer fc6; it has fc7'),
    (lambda p: ((p / 'f').mkdir(), np.save(p / 'f/a.npy', np.ones((2, 2, 2)))), 'numbers of shape'),
    (lambda p: ((p / 'f').mkdir(), np.save(p / 'f/a.npy', [1]), np.savez(p / 'f/a.npz', [1])),
     'a is there as .npy and as .npz'),
])
def test_bad_features_are_refused_by_name(tmp_path, write, message):
    write(tmp_path)
    path = next(iter(sorted(tmp_path.iterdir())), tmp_path / 'f')
    with pytest.raises(errors.UsageError, match=message):
        feature_sets.read(str(path))
