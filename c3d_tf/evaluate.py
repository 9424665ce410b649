# SPDX-License-Identifier: Apache-2.0
"""Records + weights → clip and video hit@k, mean class accuracy, the confusion matrix and its picture."""

import os
import time

import keras
import numpy as np
import tensorflow as tf

from c3d_tf import __version__
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.data import clips
from c3d_tf.data import pipeline
from c3d_tf.data import records
from c3d_tf.figures import plots
from c3d_tf.weights import artefact

RESULT = 'evaluate.json'
CONFUSION = 'confusion.png'


def evaluate(
    records_dir: str,
    weights: str,
    workdir: str,
    *,
    split: str = 'test',
    num_clips: int = 10,
    clip_choice: str = 'random',
    step: int = 0,
    batch_size: int = 16,
    seed: int = 0,
    overwrite: bool = False,
) -> dict:
    """Scores every video of a split exactly once.

    A clip's score is the softmax of its centre crop; a video's is the mean over its clips (section 4
    of the paper: 10 random clips).

    Args:
      records_dir: what prepare wrote.
      weights: an artefact.
      workdir: gets evaluate.json and confusion.png.
      split: a split of the records.
      num_clips, clip_choice, step, seed: see `clips.choose`.
      batch_size: clips a batch.
      overwrite: does again what is done already.

    Returns:
      the content of evaluate.json.

    Raises:
      errors.UsageError: the records and the weights do not fit each other.
    """
    index = records.read_index(records_dir)
    part = index.split(split)
    net = artefact.load(weights)
    spec = net.preprocessing
    check_fit(net, index)
    protocol = {
        'split': split, 'videos': part.num_videos, 'clips': num_clips, 'clip_choice': clip_choice,
        'step': (step or spec.clip_length) if clip_choice == 'all' else None, 'crops': 'centre',
        'score': 'mean softmax over clips', 'seed': seed, 'weights_sha256': net.sha256,
        'dataset': index.data['dataset'], 'list_hash': index.data['settings']['list_hash'],
        'preprocessing': spec.to_json(),
    }
    if clip_choice == 'all':
        protocol['clips'] = 'all'
    path = os.path.join(workdir, RESULT)
    before = files.read_json(path)
    if before is not None and before['protocol'] == protocol and not overwrite:
        console.say(f'evaluate: {path} is up to date')
        _say(before)
        return before

    names, labels = pipeline.read_labels(part)
    labels = _one_hot(labels, len(index.class_names))
    batches = pipeline.for_evaluation(part, spec, batch_size=batch_size, choice=clip_choice,
                                      count=num_clips, step=step, seed=seed)
    started = time.time()
    scores, videos = _scores(net.model, batches, part)
    result = {
        **metrics(scores, videos, labels),
        'protocol': protocol,
        'class_names': list(index.class_names),
        'seconds': round(time.time() - started, 1),
        'versions': {'c3d_tf': __version__, 'tensorflow': tf.__version__, 'keras': keras.__version__},
    }
    with files.replacing(os.path.join(workdir, CONFUSION)) as temporary:
        plots.confusion(np.array(result['confusion']), index.class_names, temporary,
                        title=f'{protocol["dataset"]} {split}: video hit@1 {result["video_hit@1"]:.3f}')
    files.write_json(path, result)
    _say(result)
    console.say(f'evaluate: wrote {path} and {CONFUSION}')
    return result


def check_fit(net: artefact.Artefact, index: records.Index) -> None:
    """Stops where the network was trained on other classes, or on frames of another size."""
    if net.class_names != index.class_names:
        raise errors.UsageError(
            f'the weights know {len(net.class_names)} classes ({_some(net.class_names)}), the records '
            f'in {index.directory} have {len(index.class_names)} ({_some(index.class_names)})')
    if net.preprocessing.frame_size != index.frame_size:
        raise errors.UsageError(
            f'the weights want frames of {net.preprocessing.frame_size}, the records in '
            f'{index.directory} hold {index.frame_size}; prepare them with that --frame_size')


def _some(names) -> str:
    return ', '.join(names[:3]) + (', …' if len(names) > 3 else '')


def _one_hot(labels: list[list[int]], classes: int) -> np.ndarray:
    table = np.zeros((len(labels), classes), bool)
    for row, own in zip(table, labels, strict=True):
        row[own] = True
    return table


def _scores(model, batches, part: records.Split) -> tuple[np.ndarray, np.ndarray]:
    """Returns (softmax float32 [C, K], video int64 [C]) of every clip."""
    forward = tf.function(lambda x: tf.nn.softmax(model(x, training=False)), reduce_retracing=True)
    scores, videos, seen = [], [], 0
    progress = console.Progress('evaluate', part.num_videos, 'videos')
    for batch, record in batches:
        scores.append(forward(batch).numpy())
        videos.append(part.videos[record.numpy()])
        seen = int(videos[-1][-1])
        progress.update(seen)
    progress.update(part.num_videos)
    progress.close()
    return np.concatenate(scores), np.concatenate(videos)


def metrics(scores: np.ndarray, videos: np.ndarray, labels: np.ndarray) -> dict:
    """Counts hits and divides once.

    Args:
      scores: float [C, K], one row a clip.
      videos: int [C], the clip's video.
      labels: bool [V, K]; a video with several labels is hit if any is among the top k (our choice).

    Returns:
      clip_hit@1, clip_hit@5, video_hit@1, video_hit@5, mean_class_accuracy, videos, clips, and
      confusion: [K][K], true class by predicted class, each video at its first label.
    """
    count = np.bincount(videos, minlength=len(labels))
    if not count.all():
        raise errors.RunError(f'{int((count == 0).sum())} videos of {len(labels)} gave no clip')
    video_scores = np.zeros((len(labels), scores.shape[1]))
    np.add.at(video_scores, videos, scores)
    video_scores /= count[:, None]
    truth = labels.argmax(axis=1)
    predicted = video_scores.argmax(axis=1)
    confusion = np.zeros((labels.shape[1],) * 2, int)
    np.add.at(confusion, (truth, predicted), 1)
    present = confusion.sum(axis=1) > 0
    recall = np.diag(confusion)[present] / confusion.sum(axis=1)[present]
    return {
        'clip_hit@1': _hits(scores, labels[videos], 1), 'clip_hit@5': _hits(scores, labels[videos], 5),
        'video_hit@1': _hits(video_scores, labels, 1), 'video_hit@5': _hits(video_scores, labels, 5),
        'mean_class_accuracy': float(recall.mean()),
        'videos': len(labels), 'clips': len(scores), 'confusion': confusion.tolist(),
    }


def _hits(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    best = np.argsort(-scores, axis=1, kind='stable')[:, :k]
    return float(np.take_along_axis(labels, best, axis=1).any(axis=1).mean())


def _say(result: dict) -> None:
    protocol = result['protocol']
    console.say(f'  video hit@1 {result["video_hit@1"]:.3f} · hit@5 {result["video_hit@5"]:.3f} · '
                f'clip hit@1 {result["clip_hit@1"]:.3f} · hit@5 {result["clip_hit@5"]:.3f} · '
                f'mean class accuracy {result["mean_class_accuracy"]:.3f}')
    console.say(f'  {protocol["dataset"]} {protocol["split"]}: {result["videos"]} videos, '
                f'{result["clips"]} clips ({protocol["clips"]} {protocol["clip_choice"]} a video x '
                '1 centre crop)')
