# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import cv2
import numpy as np
import pytest
from google.protobuf import text_format
from sklearn import decomposition
from sklearn import svm as sklearn_svm
from tensorboard.plugins.projector import projector_config_pb2

from c3d_tf import prepare
from c3d_tf import svm
from c3d_tf.classifiers import linear_svm
from c3d_tf.common import errors
from c3d_tf.data import datasets
from c3d_tf.data import feature_sets
from c3d_tf.data import samples as sampling
from tests import conftest
from tests import feature_files

QUIET = {'pca': (), 'embed': 0}


def _dataset(train=6, test=3, classes=3, fold=0):
    """A data set of videos named c/NN.avi; other folds have other test videos."""
    each = train + test
    examples = [
        datasets.Example(f'videos/{c}/{i:02d}.avi', (c,), f'{c}/{i:02d}',
                         'test' if (i - fold * test) % each < test else 'train')
        for c in range(classes) for i in range(each)]
    return datasets.Dataset('toy', 'videos', tuple('abcdefgh'[:classes]), tuple(examples))


def _vectors(dataset, *, size=20, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(dataset.class_names), size))
    return {dataset.media_id(e): np.float32(centres[e.labels[0]] + noise * rng.normal(size=size))
            for e in dataset.examples}


def _unit(vectors):
    return {name: vector / np.linalg.norm(vector) for name, vector in vectors.items()}


def _by_hand(dataset, vectors, *, cost=1.0, dim=0):
    """A straightforward scikit-learn script."""
    side = {split: [e for e in dataset.examples if e.split == split] for split in ('train', 'test')}
    x = {split: np.stack([vectors[dataset.media_id(e)] for e in own]) for split, own in side.items()}
    y = {split: [e.labels[0] for e in own] for split, own in side.items()}
    if dim:
        pca = decomposition.PCA(dim, svd_solver='full').fit(x['train'])
        x = {split: pca.transform(values) for split, values in x.items()}
    model = sklearn_svm.LinearSVC(C=cost, random_state=0, max_iter=10_000).fit(x['train'], y['train'])
    return model.score(x['test'], y['test'])


# Learning.


def test_equals_a_plain_scikit_learn_script(tmp_path):
    dataset = _dataset(train=20, test=10)
    vectors = _vectors(dataset, noise=3)
    path = feature_files.write_npz(tmp_path / 'f', vectors)
    result = svm.svm([path], str(tmp_path / 'w'), folds=[dataset], pca=(2, 5, 20, 100), embed=0)
    expected = _by_hand(dataset, _unit(vectors))
    assert result['accuracy'] == pytest.approx(expected) and 0.4 < expected < 1
    curve, = json.loads((tmp_path / 'w/compactness.json').read_text())['curves']
    assert curve['dimensions'] == [2, 5, 20] and curve['too_many'] == [100]
    for dim, accuracy in zip(curve['dimensions'], curve['accuracy']):
        assert accuracy == pytest.approx(_by_hand(dataset, _unit(vectors), dim=dim))
    assert len(set(curve['accuracy'])) > 1
    assert curve['variance_kept'][-1] == pytest.approx(1)
    saved = json.loads((tmp_path / 'w/svm.json').read_text())
    assert saved == result and saved['per_class'][0]['tested'] == 10
    assert sum(row['right'] for row in saved['per_class']) == round(30 * expected)


def test_the_result_is_the_mean_of_the_splits(tmp_path):
    folds = [_dataset(fold=fold) for fold in range(3)]
    vectors = _vectors(folds[0], noise=2)
    path = feature_files.write_npz(tmp_path / 'f', vectors)
    result = svm.svm([path], str(tmp_path / 'w'), folds=folds, **QUIET)
    each = [_by_hand(fold, _unit(vectors)) for fold in folds]
    assert len(set(each)) > 1
    assert [split['accuracy'] for split in result['splits']] == pytest.approx(each)
    assert result['accuracy'] == pytest.approx(np.mean(each))
    assert result['splits'][0] | {'accuracy': 0, 'standard_error': 0} == {
        'split': 'split 1', 'train': 18, 'test': 9, 'C': 1.0, 'accuracy': 0, 'standard_error': 0,
        'converged': True}


def test_several_nets_are_concatenated_after_l2(tmp_path):
    dataset = _dataset(train=20, test=10)
    one, two = _vectors(dataset, noise=3), _vectors(dataset, size=30, noise=4, seed=1)
    np.savez(tmp_path / 'idt.npz', names=list(two), features=1000 * np.stack(list(two.values())))
    sets = [feature_files.write_npz(tmp_path / 'f', one), str(tmp_path / 'idt.npz')]
    result = svm.svm(sets, str(tmp_path / 'w'), folds=[dataset], **QUIET)
    both = {name: np.concatenate([_unit(one)[name], _unit(two)[name]]) for name in one}
    assert result['accuracy'] == pytest.approx(_by_hand(dataset, both))
    assert [alone['accuracy'] for alone in result['alone']] == pytest.approx(
        [_by_hand(dataset, _unit(one)), _by_hand(dataset, _unit(two))])
    assert [entry['dimensions'] for entry in result['protocol']['features']] == [20, 30]


def test_leave_one_out_leaves_out_groups(tmp_path):
    # Twins of a group have one vector: if a twin could teach, every test would be right.
    dataset = _dataset(train=6, test=2, classes=2)
    rng = np.random.default_rng(0)
    examples = tuple(dataclasses.replace(e, group=f'{e.path[:9]}{int(e.path[-6:-4]) // 2}')
                     for e in dataset.examples)
    grouped = dataclasses.replace(dataset, examples=examples)
    noise = {e.group: rng.normal(size=40).astype(np.float32) for e in examples}
    vectors = {grouped.media_id(e): noise[e.group] for e in examples}
    path = feature_files.write_npz(tmp_path / 'f', vectors)
    result = svm.svm([path], str(tmp_path / 'w'), folds=[grouped], leave_one_out=True, **QUIET)
    assert len(result['splits']) == 8 and sum(row['tested'] for row in result['per_class']) == 16
    assert result['accuracy'] < 0.8
    alone = svm.svm([path], str(tmp_path / 'v'), folds=[dataset], leave_one_out=True, **QUIET)
    assert len(alone['splits']) == 16 and alone['accuracy'] == 1


def test_cross_validation_of_c_keeps_groups_together():
    # Group by group the labels are chance, within a group they are certain.
    rng = np.random.default_rng(1)
    groups = np.repeat([f'g{i}' for i in range(20)], 4)
    labels = np.repeat(np.arange(20) % 2, 4)
    values = np.repeat(rng.normal(size=(20, 60)), 4, axis=0) + 0.01 * rng.normal(size=(80, 60))
    seen = []
    plain = linear_svm.classify

    def spy(train, own, test, **options):
        rounded = [{tuple(np.round(row, 0)) for row in side} for side in (test, train)]
        seen.append(rounded[0] & rounded[1])
        return plain(train, own, test, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_svm, 'classify', spy)
        cost = linear_svm.choose_cost(values.astype(np.float32), labels, groups)
    assert cost in linear_svm.CHOICES_OF_C and len(seen) == 5 * len(linear_svm.CHOICES_OF_C)
    # Rounded, most videos of a group are equal, and those of different groups never are.
    assert not any(seen)
    with pytest.raises(errors.UsageError, match='class number 1 has one group'):
        linear_svm.choose_cost(values, labels, np.where(labels == 1, 'same', groups))


def test_c_is_chosen_where_it_matters(tmp_path):
    dataset = _dataset(train=20, test=10)
    path = feature_files.write_npz(tmp_path / 'f', _vectors(dataset, noise=3))
    result = svm.svm([path], str(tmp_path / 'w'), folds=[dataset], C=0, **QUIET)
    own = result['splits'][0]['C']
    assert own in linear_svm.CHOICES_OF_C
    vectors = {f'{name}.avi': vector for name, vector in feature_sets.read(path).items()}
    assert result['accuracy'] == pytest.approx(_by_hand(dataset, vectors, cost=own))


def _objects(rows, folder):
    """Returns [(clip, object)] that stay of a video with clips at 0, 8, 16 and 24; and the samples."""
    samples = sampling.Samples('toy', ('x',), ('v.avi',), ((0,),), ('v',),
                               (('split 1', np.array([0]), np.array([], int)),), {})
    path = folder / 'frames.csv'
    lines = [f'v.avi,{frame},{thing}\n' for frame, thing in rows]
    path.write_text('video,frame,object\n' + ''.join(lines))
    found = sampling.objects_of_clips(samples, str(path), {'v.avi': np.array([0, 8, 16, 24])})
    kept = [(int(clip), found.class_names[own[0]]) for clip, own in zip(found.clips, found.labels)]
    return kept, found


def test_a_clip_needs_its_object_in_eight_frames_of_sixteen(tmp_path):
    # Frames 0-7 cup, 8-14 pan, 24-39 cup and pan by turns; 15-23 nothing.
    rows = [(t, 'cup') for t in range(8)] + [(t, 'pan') for t in range(8, 15)]
    rows += [(t, 'pan' if t % 2 else 'cup') for t in range(24, 40)]
    found, clips = _objects(rows, tmp_path)
    # Clip 0: cup 8, pan 7. Clip 8: pan 7. Clip 16: cup 4, pan 4. Clip 24: a tie of 8, first by name.
    assert found == [(0, 'cup'), (3, 'cup')]
    assert clips.splits[0][1].tolist() == [0, 1] and clips.unit == 'clips'
    with pytest.raises(errors.UsageError, match='no clip shows an object'):
        _objects([(t, 'cup') for t in range(7)], tmp_path)
    with pytest.raises(errors.UsageError, match='line 3: frame 0 of v.avi has two objects'):
        _objects([(0, 'cup'), (0, 'pan')], tmp_path)
    with pytest.raises(errors.UsageError, match='line 3: expected video, frame'):
        _objects([(0, 'cup'), ('x', 'pan')], tmp_path)


def test_egocentric_objects_end_to_end(tmp_path):
    dataset = _dataset(train=2, test=1, classes=2)
    rows = ['video,frame,object']
    for number, example in enumerate(dataset.examples):
        name = dataset.media_id(example)
        clips = np.zeros((3, 4), np.float32)
        clips[0, 0] = clips[1, 3] = clips[2, 1] = 1  # first a cup, then nothing, then a pan
        path = tmp_path / 'f' / f'{name[:-4]}.npz'
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, fc6=clips + 0.01 * number, video_fc6=np.ones(4), start_frame=[0, 16, 32],
                 time=[0, 1, 2])
        rows += [f'{name},{t},{"cup" if t < 16 else "pan"}' for t in [*range(16), *range(32, 48)]]
    (tmp_path / 'frames.csv').write_text('\n'.join(rows))
    result = svm.svm([str(tmp_path / 'f')], str(tmp_path / 'w'), folds=[dataset], pca=(2,), embed=10,
                     frames_labels=str(tmp_path / 'frames.csv'))
    assert result['accuracy'] == 1 and result['class_names'] == ['cup', 'pan']
    assert (result['protocol']['unit'], result['protocol']['samples']) == ('clips', 12)
    assert result['splits'][0]['train'] == 8


def test_labels_come_from_records(tmp_path, folder):
    dataset = datasets.load('folder', videos=str(folder))
    prepare.prepare(dataset, str(tmp_path / 'records'), frame_size=(32, 40), num_workers=1)
    vectors = {dataset.media_id(e): np.eye(2, dtype=np.float32)[e.labels[0]] for e in dataset.examples}
    path = feature_files.write_npz(tmp_path / 'f', vectors)
    result = svm.svm([path], str(tmp_path / 'w'), records_dir=str(tmp_path / 'records'), **QUIET)
    assert (result['accuracy'], result['splits'][0]['train'], result['splits'][0]['test']) == (1, 4, 2)
    assert result['class_names'] == ['ball', 'water']
    same = svm.svm([path], str(tmp_path / 'v'), folds=[dataset], **QUIET)
    assert same['confusion'] == result['confusion']


# What is refused.


def _leak(dataset):
    return dataclasses.replace(dataset, examples=tuple(
        dataclasses.replace(e, group='film' if e.path.endswith(('00.avi', '05.avi')) else e.group)
        for e in dataset.examples))


def _without(dataset, wanted):
    return dataclasses.replace(dataset, examples=tuple(e for e in dataset.examples if wanted(e)))


@pytest.mark.parametrize(('change', 'error', 'message'), [
    (_leak, errors.UsageError, r'groups on both sides \(1\): film'),
    (lambda d: _without(d, lambda e: e.labels != (1,) or e.path.endswith('00.avi')), errors.UsageError,
     r'class b has one of the videos \(1/00.avi\)'),
    (lambda d: _without(d, lambda e: e.labels != (1,) or e.split == 'test'), errors.UsageError,
     'class b is tested, but none of its videos'),
    (lambda d: _without(d, lambda e: e.split == 'train'), errors.UsageError, 'no videos to test'),
    (lambda d: _without(d, lambda e: e.labels == (0,)), errors.UsageError, 'are of 1 class'),
])
def test_what_cannot_be_learnt_is_refused(tmp_path, change, error, message):
    path = feature_files.write_npz(tmp_path / 'f', _vectors(_dataset()))
    with pytest.raises(error, match=message):
        svm.svm([path], str(tmp_path / 'w'), folds=[change(_dataset())], **QUIET)
    assert not (tmp_path / 'w').exists()


def test_videos_without_features_are_named_and_tolerated(tmp_path):
    dataset = _dataset()
    path = feature_files.write_npz(tmp_path / 'f', _vectors(dataset))
    (tmp_path / 'f/1/04.npz').unlink()
    with pytest.raises(errors.RunError, match='f: no features for 1 of the 27 .* The first: 1/04.avi'):
        svm.svm([path], str(tmp_path / 'w'), folds=[dataset], **QUIET)
    result = svm.svm([path], str(tmp_path / 'w'), folds=[dataset], max_failures=1, **QUIET)
    assert result['splits'][0]['train'] == 17 and result['protocol']['without_features'] == ['1/04.avi']
    np.savez(tmp_path / 'other.npz', names=['elsewhere/x'], features=[[1.0]])
    other = str(tmp_path / 'other.npz')
    with pytest.raises(errors.UsageError, match='any of the 27 videos of toy; it has elsewhere/x'):
        svm.svm([other], str(tmp_path / 'v'), folds=[dataset], max_failures=-1, **QUIET)


def test_a_result_of_other_settings_is_not_replaced(tmp_path, capsys):
    dataset = _dataset()
    path = feature_files.write_npz(tmp_path / 'f', _vectors(dataset))
    first = svm.svm([path], str(tmp_path / 'w'), folds=[dataset], **QUIET)
    capsys.readouterr()
    assert svm.svm([path], str(tmp_path / 'w'), folds=[dataset], **QUIET) == first
    assert 'up to date' in capsys.readouterr().out
    with pytest.raises(errors.UsageError, match='C: was 1.0, now 2.0'):
        svm.svm([path], str(tmp_path / 'w'), folds=[dataset], C=2.0, **QUIET)
    feature_files.write_npz(tmp_path / 'f', _vectors(dataset, seed=5))
    with pytest.raises(errors.UsageError, match='features: was'):
        svm.svm([path], str(tmp_path / 'w'), folds=[dataset], **QUIET)
    assert svm.svm([path], str(tmp_path / 'w'), folds=[dataset], overwrite=True, **QUIET) != first


# Embedding.


def test_projector_has_every_clip_with_its_thumbnail(tmp_path):
    dataset = _dataset(train=2, test=2, classes=2)
    path = feature_files.write_npz(tmp_path / 'f', _vectors(dataset))
    for number, example in enumerate(dataset.examples):  # frame t of video n is grey 20 n + t
        if number != 1:  # a video that is not there gets grey thumbnails
            images = [np.full((48, 64, 3), 20 * number + t, np.uint8) for t in range(32)]
            conftest.write_video(tmp_path / example.path, images, codec='ffv1')
    dataset = dataclasses.replace(dataset, root=str(tmp_path / 'videos'), examples=tuple(
        dataclasses.replace(e, path=str(tmp_path / e.path)) for e in dataset.examples))
    result = svm.svm([path], str(tmp_path / 'w'), folds=[dataset], pca=(), embed=100)
    assert result['embedding'][0] | {'silhouette': 0} == {
        'features': 'f, fc6', 'points': 12, 'unit': 'clips', 'silhouette': 0}
    folder = tmp_path / 'w/tensorboard'
    config = text_format.Parse((folder / 'projector_config.pbtxt').read_text(),
                               projector_config_pb2.ProjectorConfig())
    assert len(config.embeddings) == 2
    for entry in config.embeddings:
        values = np.loadtxt(folder / entry.tensor_path, delimiter='\t')
        lines = (folder / entry.metadata_path).read_text().splitlines()
        header, *rows = [line.split('\t') for line in lines]
        assert len(values) == len(rows) == 12 and values.shape[1] >= 3
        assert header == ['class', 'video', 'first_frame']
        assert rows[4] == ['a', '0/01.avi', '8'] and rows[-1] == ['b', '1/01.avi', '16']
        assert list(entry.sprite.single_image_dim) == [48, 48]
    sprite = cv2.imread(str(folder / config.embeddings[0].sprite.image_path))
    assert sprite.shape == (4 * 48, 4 * 48, 3)  # 12 points in a square of 4 x 4
    shades = sprite.reshape(4, 48, 4, 48, 3).mean(axis=(1, 3, 4)).ravel()[:12]
    # Test videos 0, 1 of class a and 4, 5 of class b; the clips at 0, 8 and 16 show frames 8, 16 and 24.
    expected = [8, 16, 24, 128, 128, 128, 88, 96, 104, 108, 116, 124]
    np.testing.assert_allclose(shades, expected, atol=2)
    assert cv2.imread(str(tmp_path / 'w/tsne.png')) is not None
