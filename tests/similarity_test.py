# SPDX-License-Identifier: Apache-2.0
"""The twelve measures by slow formulas and by hand, ASLAN's protocol, and what it refuses."""

import csv
import json
import math

import h5py
import numpy as np
import pytest
from scipy import io

from c3d_tf import similarity
from c3d_tf.common import errors
from c3d_tf.common import measures
from c3d_tf.data import datasets
from c3d_tf.data import pairs as pairs_room

EPSILON = 1e-10


def _slow(x, y):
    """The table of the paper, one coordinate at a time, row by row; zeros as the module's head says."""
    def quotient(a, b):
        return a / b if b else 0.0

    both = list(zip(x, y))
    rows = [
        sum(a * b for a, b in both),
        math.sqrt(sum(a * b for a, b in both)),
        math.sqrt(sum(math.sqrt(a) * math.sqrt(b) for a, b in both)),
        math.sqrt(sum(quotient(a * b, a + b) for a, b in both)),
        quotient(sum(a * b for a, b in both),
                 math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))),
        math.sqrt(sum(quotient((a - b) ** 2, a + b) for a, b in both)),
        sum(abs(a - b) for a, b in both),
        math.sqrt(sum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in both)),
    ]
    x, y = [quotient(a, sum(x)) for a in x], [quotient(b, sum(y)) for b in y]
    both = list(zip(x, y))
    return rows + [
        math.sqrt(sum((a - b) ** 2 for a, b in both)),
        (sum(a * math.log((a + EPSILON) / (b + EPSILON)) for a, b in both)
         + sum(b * math.log((b + EPSILON) / (a + EPSILON)) for a, b in both)) / 2,
        sum(quotient(math.sqrt(max(a, b)), math.sqrt(a + b)) for a, b in both),
        quotient(sum(min(a, b) for a, b in both), sum(x) * sum(y)),
    ]


def test_the_twelve_measures_by_hand():
    # x = (1, 4, 0), y = (4, 0, 0); of sum 1: (.2, .8, 0) and (1, 0, 0).
    got = measures.twelve(np.array([[1., 4, 0]]), np.array([[4., 0, 0]]))[0]
    logs = (.2 * math.log(.2) + .8 * math.log(.8 / EPSILON) + math.log(5)) / 2
    by_hand = [4, 2, math.sqrt(2), math.sqrt(4 / 5), 1 / math.sqrt(17), math.sqrt(9 / 5 + 4), 7,
               math.sqrt(5), math.sqrt(.64 + .64), logs, math.sqrt(1 / 1.2) + 1, .2]
    assert len(by_hand) == len(measures.NAMES) == 12
    np.testing.assert_allclose(got, by_hand, rtol=1e-8)


def test_measures_of_equal_vectors_and_of_zeros_by_hand():
    x = np.array([[.6, .8, 0]])  # of length 1; of sum 1: (3/7, 4/7, 0)
    np.testing.assert_allclose(
        measures.twelve(x, x)[0],
        [1, 1, math.sqrt(1.4), math.sqrt(.7), 1, 0, 0, 0, 0, 0, 2 / math.sqrt(2), 1], rtol=1e-12)
    zero = np.zeros((1, 3))
    np.testing.assert_array_equal(measures.twelve(zero, zero), np.zeros((1, 12)))
    got = measures.twelve(x, zero)[0]
    np.testing.assert_allclose(got[[0, 1, 2, 3, 4, 11]], 0)
    np.testing.assert_allclose(got[[5, 6, 7, 8, 10]], [math.sqrt(1.4), 1.4, math.sqrt(1.4), 5 / 7, 2])
    assert np.isfinite(got).all() and got[9] > 5


def test_measures_equal_slow_formulas():
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 40, 7)) * (rng.random((2, 40, 7)) > .4)
    x[:3], y[2:5] = 0, 0
    y[5:8] = x[5:8]
    slow = np.array([_slow(a.tolist(), b.tolist()) for a, b in zip(x, y)])
    for row in range(12):
        np.testing.assert_allclose(measures.twelve(x, y)[:, row], slow[:, row], rtol=1e-9, atol=1e-12,
                                   err_msg=measures.NAMES[row])


def test_many_pairs_are_measured_in_parts(monkeypatch):
    x, y = np.random.default_rng(1).random((2, 10, 5), np.float32)
    whole = measures.twelve(x, y)
    monkeypatch.setattr(measures, '_AT_ONCE', 15)
    np.testing.assert_array_equal(measures.twelve(x, y), whole)
    assert measures.twelve(x[:0], y[:0]).shape == (0, 12)


def _values(pairs=200, folds=5):
    rng = np.random.default_rng(2)
    same = np.arange(pairs) % 2 == 0
    return rng.normal(size=(pairs, 3)) + same[:, None], same, np.repeat(np.arange(folds), pairs // folds)


def test_normalisation_and_training_never_see_the_test_fold():
    values, same, folds = _values()
    before, _ = similarity.cross_validate(values, same, folds, C=1.0)
    changed, other = values.copy(), same.copy()
    rest = np.flatnonzero(folds == 3)[1:]  # all of a test fold but its first pair
    changed[rest] = changed[rest] * 1000 + 500
    other[rest] = ~other[rest]
    after, _ = similarity.cross_validate(changed, other, folds, C=1.0)
    first = np.flatnonzero(folds == 3)[0]
    assert after[first] == before[first]
    assert abs(after[folds != 3] - before[folds != 3]).max() > 0.1


def test_z_normalisation_makes_the_scale_of_a_measure_irrelevant():
    values, same, folds = _values()
    before, _ = similarity.cross_validate(values, same, folds, C=1.0)
    after, _ = similarity.cross_validate(values * [1e-6, 1, 1e4] + [5, 0, -1e3], same, folds, C=1.0)
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)


def test_C_is_chosen_within_the_training_folds():
    values, same, folds = _values(100)
    noise = np.random.default_rng(3).normal(size=(100, 12))  # more numbers than such few pairs can bear
    values = np.concatenate([values, noise], axis=1)
    scores, chosen = similarity.cross_validate(values, same, folds, C=0)
    for fold in range(5):
        rest = folds != fold
        right = {}
        for one in (1e-4, 1e-3, .01, .1, 1., 10.):
            inner, _ = similarity.cross_validate(values[rest], same[rest], folds[rest], C=one)
            right[one] = ((inner > 0) == same[rest]).mean()
        assert chosen[str(fold)] == max(right, key=right.get)
        own, _ = similarity.cross_validate(values, same, folds, C=chosen[str(fold)])
        np.testing.assert_array_equal(scores[folds == fold], own[folds == fold])
    assert len({*chosen.values(), 1.0}) > 1


def test_summary_by_hand():
    # Fold a: 2 of 2 right; fold b: 1 of 2. Of the four (same, other) couples three are in order.
    same, folds = np.array([True, False, True, False]), np.array([*'aabb'])
    result = similarity.summary(np.array([2., -1, .5, 1]), same, folds)
    assert result['accuracy'] == .75
    assert result['standard_error'] == pytest.approx(np.std([1, .5], ddof=1) / math.sqrt(2)) == .25
    assert result['auc'] == .75
    assert result['per_fold'] == [{'fold': 'a', 'pairs': 2, 'accuracy': 1},
                                  {'fold': 'b', 'pairs': 2, 'accuracy': .5}]


def _labels(classes=10, videos=8):
    return {f'class{c}/v{v}.avi': f'class{c}' for c in range(classes) for v in range(videos)}


def test_drawn_pairs_are_balanced_disjoint_and_reproducible():
    labels = _labels()
    groups = {name: name.split('/')[0] + '/' + 'xy'[int(name[-5]) % 2] for name in labels}
    drawn = pairs_room.draw(labels, groups=groups, folds=5, pairs_per_fold=20, seed=1)
    fold_of = {}
    for a, b, same, fold, classes in zip(drawn.a, drawn.b, drawn.same, drawn.folds, drawn.classes):
        assert a != b and (labels[a] == labels[b]) == same and classes == (labels[a], labels[b])
        assert groups[a] != groups[b]
        for name in classes:
            assert fold_of.setdefault(name, fold) == fold
    assert len({frozenset(pair) for pair in zip(drawn.a, drawn.b)}) == len(drawn.a) == 100
    assert sorted(fold_of.values()) == sorted('12345' * 2)
    for fold in '12345':
        own = drawn.same[np.array(drawn.folds) == fold]
        assert (own.sum(), len(own)) == (10, 20)
    again = pairs_room.draw(labels, groups=groups, folds=5, pairs_per_fold=20, seed=1)
    assert (again.a, again.b, again.folds) == (drawn.a, drawn.b, drawn.folds)
    assert pairs_room.draw(labels, folds=5, pairs_per_fold=20, seed=2).a != drawn.a


def test_a_fold_with_few_videos_gives_as_many_pairs_of_either_kind():
    drawn = pairs_room.draw(_labels(4, 2), folds=2, pairs_per_fold=600)
    assert len(drawn.a) == 8 and drawn.same.sum() == 4  # a fold has two classes of two videos


@pytest.mark.parametrize(('labels', 'folds', 'message'), [
    (_labels(10), 6, 'expected 2 to 5 for 10 classes'),
    (_labels(3), 1, 'two folds or more'),
    ({**_labels(3), 'one/v.avi': 'one'}, 2, "class 'one' has 1 video"),
])
def test_labels_that_give_no_pairs_are_refused(labels, folds, message):
    with pytest.raises(errors.UsageError, match=message):
        pairs_room.draw(labels, folds=folds)


def test_pairs_are_the_same_after_writing_and_reading(tmp_path):
    drawn = pairs_room.draw(_labels(), folds=5, pairs_per_fold=20)
    path = str(tmp_path / 'pairs.csv')
    pairs_room.write(path, drawn)
    assert (tmp_path / 'pairs.csv').read_text().startswith('a,b,same,fold,class_a,class_b\n')
    read = pairs_room.read(path)
    assert (read.a, read.b, read.folds, read.classes) == (drawn.a, drawn.b, drawn.folds, drawn.classes)
    np.testing.assert_array_equal(read.same, drawn.same)


GOOD = 'a,b,same,fold\nx1,x2,1,1\nx1,y1,0,1\nz1,z2,1,2\nz1,w1,0,2\n'


@pytest.mark.parametrize(('text', 'message'), [
    (None, 'no such file'),
    ('', 'no column a, b, same, fold'),
    ('a,b,same\nx,y,1\n', 'no column fold'),
    (GOOD + 'q,r,yes,2\n', "line 6: same is 'yes'"),
    (GOOD + 'q,r,1\n', 'line 6: expected 4 values, got 3'),
    (GOOD + 'x1,q,0,2\n', "video 'x1' is in folds 1 and 2"),
    ('a,b,same,fold\nx,y,1,1\nx,z,0,1\n', 'expected two folds or more.*has 1'),
    (GOOD + 'q,r,1,3\n', 'fold 3 has only pairs with same=1'),
    ('a,b,same,fold,class_a,class_b\nx1,x2,1,1,run,run\nz1,z2,0,2,run,walk\n',
     "class 'run' is in folds 1 and 2"),
    ('a,b,same,fold,class_a,class_b\nx1,x2,1,1,run,walk\n', 'of classes run, walk has same=1'),
])
def test_pairs_that_are_wrong_are_refused(tmp_path, text, message):
    path = tmp_path / 'pairs.csv'
    if text is not None:
        path.write_text(text)
    with pytest.raises(errors.UsageError, match=message):
        pairs_room.read(str(path))


def _write_features(folder, labels, *, informative, layers=('prob', 'fc6'), seed=0):
    """Non-negative vectors: noise, plus a pattern of the class where they are to tell."""
    rng = np.random.default_rng(seed)
    patterns = {name: rng.random(24) * (rng.random(24) > .7) for name in sorted(set(labels.values()))}
    for name, label in labels.items():
        path = folder / name.removesuffix('.avi')
        path.parent.mkdir(parents=True, exist_ok=True)
        vectors = {}
        for layer in layers:
            vector = rng.random(24) * (rng.random(24) > .3) * (.2 if informative else 1)
            vector += patterns[label] if informative else 0
            vectors[f'video_{layer}'] = (vector / np.linalg.norm(vector)).astype(np.float32)
        np.savez(f'{path}.npz', **vectors)
    return str(folder)


@pytest.fixture
def told(tmp_path):
    """A folder of features that tell the classes, its pairs, and a folder for the result."""
    features = _write_features(tmp_path / 'features', _labels(), informative=True)
    similarity.make_pairs(_labels(), str(tmp_path / 'pairs.csv'), folds=5, pairs_per_fold=40)
    return features, str(tmp_path / 'pairs.csv'), tmp_path / 'run'


def test_features_that_tell_give_almost_one_on_unseen_classes(told, capsys):
    features, pairs, run = told
    result = similarity.similarity([features], pairs, str(run), layers=('prob', 'fc6'))
    assert result['accuracy'] > .95 and result['auc'] > .98 and result['standard_error'] < .03
    assert json.loads((run / 'similarity.json').read_text()) == result
    assert (run / 'roc.png').read_bytes().startswith(b'\x89PNG')
    assert [row['fold'] for row in result['per_fold']] == [*'12345']
    assert [row['pairs'] for row in result['per_fold']] == [40] * 5
    assert len(result['per_measure']) == 24 and len(result['per_layer']) == 2
    assert all(row['accuracy'] > .8 for row in result['per_measure'])
    assert result['protocol']['features'][1]['dimensions'] == 24
    # The same again is not done again; with other settings it is refused and shows both.
    capsys.readouterr()
    assert similarity.similarity([features], pairs, str(run), layers=('prob', 'fc6')) == result
    assert 'up to date' in capsys.readouterr().out
    with pytest.raises(errors.UsageError, match="C: was 1.0, now 2.0"):
        similarity.similarity([features], pairs, str(run), layers=('prob', 'fc6'), C=2.0)
    again = similarity.similarity([features], pairs, str(run), layers=('prob', 'fc6'), C=2.0,
                                  overwrite=True)
    assert again['protocol']['C'] == 2.0


def test_features_that_tell_nothing_give_chance(tmp_path):
    labels = _labels(20, 12)
    features = _write_features(tmp_path / 'features', labels, informative=False)
    path = str(tmp_path / 'pairs.csv')
    similarity.make_pairs(labels, path, folds=10, pairs_per_fold=100)
    result = similarity.similarity([features], path, str(tmp_path / 'run'), layers=('fc6',))
    assert abs(result['accuracy'] - .5) < .06 and abs(result['auc'] - .5) < .06


def test_each_measure_alone_is_the_svm_of_its_column(told):
    features, path, run = told
    result = similarity.similarity([features], path, str(run), layers=('prob', 'fc6'))
    pairs = pairs_room.read(path)

    def vector(name):
        return np.load(f'{features}/{name.removesuffix(".avi")}.npz')['video_fc6'].astype(float).tolist()

    column = np.array([_slow(vector(a), vector(b))[10] for a, b in zip(pairs.a, pairs.b)])
    scores, _ = similarity.cross_validate(column[:, None], pairs.same, np.array(pairs.folds), C=1.0)
    row = result['per_measure'][12 + 10]
    assert (row['layer'], row['row']) == ('fc6', 11)
    assert row['accuracy'] == pytest.approx(((scores > 0) == pairs.same).mean())


def test_several_networks_are_concatenated(told, tmp_path):
    features, pairs, run = told
    other = _write_features(tmp_path / 'other', _labels(), informative=False)
    result = similarity.similarity([features, other], pairs, str(run), layers=('fc6',))
    assert [row['layer'] for row in result['per_layer']] == ['features fc6', 'other fc6']
    assert result['per_layer'][0]['accuracy'] > .9 > .7 > result['per_layer'][1]['accuracy']


def test_hdf5_gives_what_npz_gives(told, tmp_path):
    features, pairs, run = told
    (tmp_path / 'h5').mkdir()
    with h5py.File(tmp_path / 'h5/features.h5', 'w') as file:
        for name in _labels():
            name = name.removesuffix('.avi')
            file[f'{name}/video_fc6'] = np.load(f'{features}/{name}.npz')['video_fc6']
    one = similarity.similarity([features], pairs, str(run), layers=('fc6',))
    other = similarity.similarity([str(tmp_path / 'h5')], pairs, str(tmp_path / 'run2'), layers=('fc6',))
    assert one['per_measure'] == other['per_measure'] and one['accuracy'] == other['accuracy']
    assert one['protocol']['features'][0]['sha256'] == other['protocol']['features'][0]['sha256']


def _replace(features, **vectors):
    path = f'{features}/class1/v1.npz'
    np.savez(path, **{**np.load(path), **vectors})


@pytest.mark.parametrize(('spoil', 'message'), [
    (lambda features, tmp: _replace(features, video_fc6=np.full(24, np.nan)), "class1/v1 hold NaN"),
    (lambda features, tmp: _replace(features, video_fc6=np.full(24, -1.)),
     "fc6 of 'class1/v1' has values below 0"),
    (lambda features, tmp: (tmp / 'features/class1/v1.npz').unlink(),
     "1 of 80 videos have no features in .*'class1/v1.avi'"),
])
def test_features_that_are_wrong_are_refused(told, tmp_path, spoil, message):
    features, pairs, run = told
    spoil(features, tmp_path)
    with pytest.raises(errors.UsageError, match=message):
        similarity.similarity([features], pairs, str(run), layers=('fc6',))
    assert not run.exists()


def test_a_missing_video_may_be_tolerated(told, tmp_path):
    features, pairs, run = told
    (tmp_path / 'features/class1/v1.npz').unlink()
    result = similarity.similarity([features], pairs, str(run), layers=('fc6',), max_failures=1)
    with open(pairs, newline='') as file:
        lost = sum('class1/v1.avi' in (row['a'], row['b']) for row in csv.DictReader(file))
    assert lost and result['protocol']['pairs_without_features'] == lost
    assert sum(row['pairs'] for row in result['per_fold']) == 200 - lost


def test_a_layer_that_is_not_there_is_refused(told):
    features, pairs, run = told
    with pytest.raises(errors.UsageError, match='pool5'):
        similarity.similarity([features], pairs, str(run), layers=('fc6', 'pool5'))


def test_the_official_splits_are_read_and_samples_found_by_their_number(tmp_path):
    # As the data set's ReadMe says: 600 x 5 x 10; here 4 pairs, 2 splits, ids from 1.
    splits = np.zeros((4, 5, 2))
    splits[:, :, 0] = [[1, 2, 1, 7, 7], [3, 4, 1, 8, 8], [1, 3, 0, 7, 8], [2, 4, 0, 7, 8]]
    splits[:, :, 1] = [[5, 6, 1, 9, 9], [117, 8, 1, 4, 4], [5, 117, 0, 9, 4], [6, 8, 0, 9, 4]]
    path = str(tmp_path / 'View2.mat')
    io.savemat(path, {'action_splits_pairs': splits})
    pairs = pairs_room.read(path)
    assert pairs.a == ('0001', '0003', '0001', '0002', '0005', '0117', '0005', '0006')
    assert pairs.folds == ('1',) * 4 + ('2',) * 4 and pairs.classes[7] == ('9', '4')
    np.testing.assert_array_equal(pairs.same, [True, True, False, False] * 2)
    ids = {f'clips/sample-{i:04d}.avi': str(i) for i in (1, 2, 3, 4, 5, 6, 8, 117)}
    features = _write_features(tmp_path / 'features', ids, informative=False)
    result = similarity.similarity([features], path, str(tmp_path / 'run'), layers=('fc6',))
    assert result['protocol']['pairs_used'] == 8 and result['protocol']['folds'] == 2


def test_another_mat_file_is_refused(tmp_path):
    io.savemat(tmp_path / 'other.mat', {'x': np.zeros(3)})
    (tmp_path / 'text.mat').write_text('no matrix')
    for name in ('other.mat', 'text.mat'):
        with pytest.raises(errors.UsageError, match="expected ASLAN's View2.mat"):
            pairs_room.read(str(tmp_path / name))


def test_pairs_are_made_of_a_labelled_folder_and_of_videos_with_features(tmp_path):
    examples = tuple(datasets.Example(f'v/{name}', (int(name[5]),), name, 'test') for name in _labels())
    several = datasets.Example('v/both.avi', (0, 1), 'both', 'test')
    class_names = tuple(f'class{c}' for c in range(10))
    dataset = datasets.Dataset('folder', 'v', class_names, (*examples, several))
    labels, groups = similarity.labels_of_dataset(dataset)
    assert labels == _labels() and groups['class0/v1.avi'] == 'class0/v1.avi'
    there = {name: label for name, label in labels.items() if '/v7' not in name}
    options = {'features': [_write_features(tmp_path / 'features', there, informative=True)],
               'layers': ('fc6',), 'folds': 5}
    drawn = similarity.make_pairs(labels, str(tmp_path / 'p.csv'), **options)
    assert {*drawn.a, *drawn.b} == set(there)
    with pytest.raises(errors.UsageError, match='none of the 1 labelled videos'):
        similarity.make_pairs({'q': 'c'}, str(tmp_path / 'p.csv'), **options)


def test_pairs_are_made_of_records(folder, tmp_path):
    from c3d_tf import prepare

    dataset = datasets.load('folder', videos=str(folder))
    prepare.prepare(dataset, str(tmp_path / 'records'), frame_size=(24, 32), num_workers=1)
    labels = similarity.labels_of_records(str(tmp_path / 'records'), 'train')
    assert labels == {'train/ball/a.avi': 'ball', 'train/ball/b.mp4': 'ball',
                      'train/water/c.avi': 'water', 'train/water/d.avi': 'water'}
