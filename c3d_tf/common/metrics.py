# SPDX-License-Identifier: Apache-2.0
"""Hits are counted and divided once, every video exactly once."""

import numpy as np

from c3d_tf.common import errors


def video_scores(scores: np.ndarray, videos: np.ndarray, num_videos: int) -> np.ndarray:
    """Returns float64 [V, K], the mean score of each video's clips.

    Args:
      scores: float [C, K], one row a clip.
      videos: int [C], the clip's video.
      num_videos: V; each must have a clip.
    """
    count = np.bincount(videos, minlength=num_videos)
    if not count.all():
        raise errors.RunError(f'{int((count == 0).sum())} videos of {num_videos} gave no clip')
    total = np.zeros((num_videos, scores.shape[1]))
    np.add.at(total, videos, scores)
    return total / count[:, None]


def hits(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Returns the share of rows with a true label among their k best scores.

    Args:
      scores: float [N, K].
      labels: bool [N, K]; a row with several labels is hit by any of them (our choice: the paper does not
        say).
      k: how many of the best count.
    """
    best = np.argsort(-scores, axis=1, kind='stable')[:, :k]
    return float(np.take_along_axis(labels, best, axis=1).any(axis=1).mean())


def confusion(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns int [K, K]: true class (a video's first label) by predicted class."""
    table = np.zeros((labels.shape[1],) * 2, int)
    np.add.at(table, (labels.argmax(axis=1), scores.argmax(axis=1)), 1)
    return table


def summary(scores: np.ndarray, videos: np.ndarray, labels: np.ndarray) -> dict:
    """Returns every number of an evaluation.

    Args:
      scores: float [C, K], one row a clip.
      videos: int [C], the clip's video.
      labels: bool [V, K].

    Returns:
      clip_hit@1, clip_hit@5, video_hit@1, video_hit@5; mean_class_accuracy over the classes that have
      videos; videos, clips; confusion as lists.
    """
    of_videos = video_scores(scores, videos, len(labels))
    table = confusion(of_videos, labels)
    present = table.sum(axis=1) > 0
    recall = np.diag(table)[present] / table.sum(axis=1)[present]
    return {
        'clip_hit@1': hits(scores, labels[videos], 1), 'clip_hit@5': hits(scores, labels[videos], 5),
        'video_hit@1': hits(of_videos, labels, 1), 'video_hit@5': hits(of_videos, labels, 5),
        'mean_class_accuracy': float(recall.mean()),
        'videos': len(labels), 'clips': len(scores), 'confusion': table.tolist(),
    }
