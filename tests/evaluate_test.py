# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from c3d_tf import evaluate


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
    result = evaluate.metrics(scores, np.array([0, 0, 1, 2]), labels)
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
    result = evaluate.metrics(np.array([[.1, .2, .7]]), np.array([0]), labels)
    assert result['video_hit@1'] == 1


def test_a_video_without_clips_is_an_error():
    with pytest.raises(Exception, match='1 videos of 2 gave no clip'):
        evaluate.metrics(np.ones((1, 2)), np.array([0]), np.eye(2, dtype=bool))
