# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from c3d_tf import evaluate
from c3d_tf.common import errors
from c3d_tf.common import metrics


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


@pytest.mark.parametrize(('make', 'message'), [
    (lambda path: str(path / 'none.npz'), 'no such file'),
    (lambda path: _write_scores(path / 'other.npz', [[1, 0]] * 3, names=('x', 'z')), 'of other names'),
])
def test_scores_of_other_videos_are_refused(tmp_path, make, message):
    one = _write_scores(tmp_path / 'one.npz', [[.9, .1], [.6, .4], [.6, .4]])
    with pytest.raises(errors.UsageError, match=message):
        evaluate.fuse([one, make(tmp_path)], str(tmp_path / 'w'))
