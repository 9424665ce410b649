# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from c3d_tf import evaluate
from c3d_tf import models
from c3d_tf import prepare
from c3d_tf.common import errors
from c3d_tf.common import metrics
from c3d_tf.data import datasets
from c3d_tf.data import preprocess
from c3d_tf.weights import artefact
from tests import conftest


def test_metrics_by_hand():
    # Two clips of video 0, one each of 1 and 2; six classes so that hit@5 can miss.
    scores = np.array([
        [.6, .4, 0, 0, 0, 0],
        [.1, .9, 0, 0, 0, 0],    # video 0: (.35, .65): class 1
        [0, 0, 1, 0, 0, 0],      # video 1: class 2
        [.3, .2, .2, .2, .1, 0]  # video 2: class 0, class 5 comes last
    ])
    labels = np.zeros((3, 6), bool)
    labels[[0, 1, 2], [0, 2, 5]] = True
    result = metrics.summary(scores, np.array([0, 0, 1, 2]), labels)
    assert result['clip_hit@1'] == 2 / 4  # the first clip and the third
    assert result['clip_hit@5'] == 3 / 4
    assert result['video_hit@1'] == pytest.approx(1 / 3)
    assert result['video_hit@5'] == pytest.approx(2 / 3)
    assert result['mean_class_accuracy'] == pytest.approx(1 / 3)  # of classes 0, 2, 5: 0, 1, 0
    assert (result['videos'], result['clips']) == (3, 4)
    confusion = np.array(result['confusion'])
    assert confusion[0, 1] == confusion[2, 2] == confusion[5, 0] == 1 and confusion.sum() == 3


def test_any_of_several_labels_is_a_hit():
    labels = np.array([[True, False, True]])
    result = metrics.summary(np.array([[.1, .2, .7]]), np.array([0]), labels)
    assert result['video_hit@1'] == 1


def test_a_video_without_clips_is_an_error():
    with pytest.raises(errors.RunError, match='1 videos of 2 gave no clip'):
        metrics.summary(np.ones((1, 2)), np.array([0]), np.eye(2, dtype=bool))


def _write_scores(path, scores, videos=(0, 1, 1), names=('x', 'y')):
    np.savez(path, scores=np.array(scores), videos=np.array(videos), labels=np.eye(2, dtype=bool),
             names=np.array(names), class_names=np.array(['a', 'b']))
    return str(path)


def test_scores_are_read_again_and_fused_by_video(tmp_path):
    # The first net is right on x, the second on y; y has two clips in the first, one in the second.
    one = _write_scores(tmp_path / 'one.npz', [[.9, .1], [.6, .4], [.6, .4]])
    two = _write_scores(tmp_path / 'two.npz', [[.4, .6], [.1, .9]], videos=(0, 1))
    assert evaluate.fuse([one], str(tmp_path / 'w1'))['video_hit@1'] == 0.5
    result = evaluate.fuse([one, two], str(tmp_path / 'w2'))
    assert result['video_hit@1'] == 1 and result['videos'] == 2
    with np.load(tmp_path / 'w2/scores.npz') as fused:
        np.testing.assert_allclose(fused['scores'], [[.65, .35], [.35, .65]])
    assert result['per_class'][1] == {'class': 'b', 'videos': 1, 'right': 1, 'mostly_taken_for': ''}


def test_another_protocol_in_the_same_folder_is_shown_and_refused(tmp_path, capsys):
    one = _write_scores(tmp_path / 'one.npz', [[.9, .1], [.6, .4], [.6, .4]])
    two = _write_scores(tmp_path / 'two.npz', [[.9, .1], [.1, .9], [.1, .9]])
    workdir = str(tmp_path / 'w')
    evaluate.fuse([one], workdir)
    before = (tmp_path / 'w/evaluate.json').read_bytes()
    with pytest.raises(errors.UsageError) as error:
        evaluate.fuse([two], workdir)
    said = str(error.value)
    assert f"fused.0.scores: was '{one}', now '{two}'" in said and 'fused.0.sha256' in said
    assert '--overwrite' in said and '--weights' in said
    assert (tmp_path / 'w/evaluate.json').read_bytes() == before
    assert evaluate.fuse([two], workdir, overwrite=True)['video_hit@1'] == 1
    capsys.readouterr()
    evaluate.fuse([two], workdir)
    assert 'is up to date' in capsys.readouterr().out
    (tmp_path / 'w/scores.npz').unlink()
    evaluate.fuse([two], workdir)
    assert (tmp_path / 'w/scores.npz').exists()


def test_what_differs_in_a_nested_protocol_is_shown_by_itself():
    protocol = {'split': 'test', 'preprocessing': {'frame_size': [24, 32], 'short': 'loop'}}
    assert dict(evaluate._flat(protocol)) == {
        'split': 'test', 'preprocessing.frame_size': [24, 32], 'preprocessing.short': 'loop'}


def test_videos_too_short_for_the_training_are_scored_all_the_same(tmp_path, capsys):
    """The weights of --short=drop; e has one clip in full, f and g start over."""
    for name, frames in (('train/a/x', 20), ('train/b/y', 20), ('test/a/e', 40), ('test/b/f', 9), ('test/b/g', 5)):
        conftest.counting_video(tmp_path / f'v/{name}.avi', frames)
    records_dir = str(tmp_path / 'r')
    prepare.prepare(datasets.load('folder', videos=str(tmp_path / 'v')), records_dir, frame_size=(24, 32))
    for short in ('drop', 'loop'):
        spec = preprocess.Preprocessing((24, 32), 20, 16, 1, np.zeros((), np.float32), short)
        net = models.build('depth_3', num_classes=2, crop_size=20, width=0.05)
        for variable in net.variables:
            variable.assign(np.random.default_rng(variable.shape.num_elements()).normal(size=variable.shape))
        artefact.save(str(tmp_path / f'{short}.keras'), artefact.Artefact(net, spec, ('a', 'b'), {}))
        result = evaluate.evaluate(records_dir, str(tmp_path / f'{short}.keras'), str(tmp_path / short),
                                   clip_choice='all')
        assert (result['videos'], result['clips'], np.sum(result['confusion'])) == (3, 4, 3)
        said = capsys.readouterr().out
        assert ('2 of 3 videos are shorter than a clip' in said and 'test/b/f.avi' in said) == (short == 'drop')
        assert ('short_videos' in result['protocol']) == (short == 'drop')
    scores = [np.load(tmp_path / short / 'scores.npz')['scores'] for short in ('drop', 'loop')]
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize(('make', 'message'), [
    (lambda path: str(path / 'none.npz'), 'no such file'),
    (lambda path: _write_scores(path / 'other.npz', [[1, 0]] * 3, names=('x', 'z')), 'of other names'),
])
def test_scores_of_other_videos_are_refused(tmp_path, make, message):
    one = _write_scores(tmp_path / 'one.npz', [[.9, .1], [.6, .4], [.6, .4]])
    with pytest.raises(errors.UsageError, match=message):
        evaluate.fuse([one, make(tmp_path)], str(tmp_path / 'w'))
