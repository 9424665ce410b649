# SPDX-License-Identifier: Apache-2.0
"""A video file → what happens in it: the top classes, and a timeline."""

import json
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import storage
from c3d_tf.data import clips
from c3d_tf.data import preprocess
from c3d_tf.data import sources
from c3d_tf.data import video
from c3d_tf.data import windows
from c3d_tf.weights import artefact

BATCH = 8  # clips at once: more is no faster on a CPU


def predict(path: str, weights: str, *, step: int = 0, top_k: int = 5) -> dict:
    """Classifies one video; memory stays flat however long it is.

    Args:
      path: what `sources.frames` reads: a video file or a folder of images.
      weights: an artefact.
      step: frames from one clip's start to the next; 0 means a clip's extent. A tail shorter than a
        clip is dropped; a video shorter than a clip starts over.
      top_k: classes to name.

    Returns:
      {'video', 'frames', 'clips', 'top': [{'label', 'probability'}], 'timeline': [{'start', 'end',
      'label', 'probability'}]}: probabilities are means over clips, times are seconds; neighbours in
      the timeline with the same best class are one entry.

    Raises:
      errors.UsageError: the file is missing or cannot be read as video.
    """
    if not path:
        raise errors.UsageError('--input is not set: expected a video file or a folder of images')
    if not storage.exists(path):
        raise errors.UsageError(f'--input={path}: no such file')
    net = artefact.load(weights)
    spec = net.preprocessing
    forward = tf.function(
        lambda x: tf.nn.softmax(net.model(preprocess.for_inference(x, spec), training=False)))
    scores, spans, frames = [], [], 0
    try:
        for batch, times, frames in _batches(path, spec, step or clips.extent(spec.clip_length, spec.stride)):
            if batch is not None:
                scores.append(forward(tf.constant(batch)).numpy())
            spans += times
    except video.VideoError as error:
        raise errors.UsageError(f'--input={path}: {error}') from error
    scores = np.concatenate(scores)
    mean = scores.mean(axis=0)
    best = np.argsort(-mean, kind='stable')[:top_k]
    return {
        'video': path,
        'frames': frames,
        'clips': len(scores),
        'top': [{'label': net.class_names[i], 'probability': float(mean[i])} for i in best],
        'timeline': _timeline(scores, spans, net.class_names),
    }


def _batches(path: str, spec, step: int) -> Iterator[tuple[np.ndarray, list, int]]:
    """Yields (uint8 [N, T, H, W, 3] or None, [(start, end) seconds], frames decoded so far)."""
    count = 0

    def counted():
        nonlocal count
        for frame in sources.frames(path, size=spec.frame_size):
            count += 1
            yield frame

    batch, times = [], []
    # One video that is asked for is not left out, whatever training does with those shorter than a clip.
    short = 'loop' if spec.short == 'drop' else spec.short
    for clip in windows.cut(counted(), clip_length=spec.clip_length, stride=spec.stride, short=short,
                            step=step):
        batch.append(clip.images)
        times.append((clip.time, clip.end))
        if len(batch) == BATCH:
            yield np.stack(batch), times, count
            batch, times = [], []
    # Even without a clip: the frames of the tail count.
    yield np.stack(batch) if batch else None, times, count


def _timeline(scores: np.ndarray, spans: list, class_names) -> list[dict]:
    entries = []
    for row, (start, end) in zip(scores, spans, strict=True):
        label = class_names[int(row.argmax())]
        if entries and entries[-1]['label'] == label:
            entries[-1]['end'] = end
            entries[-1]['scores'].append(float(row.max()))
        else:
            entries.append({'start': start, 'end': end, 'label': label, 'scores': [float(row.max())]})
    for entry in entries:
        values = entry.pop('scores')
        entry['probability'] = sum(values) / len(values)
    return entries


def show(result: dict, *, as_json: bool = False) -> None:
    """Prints a result for a person, or as one JSON object."""
    if as_json:
        console.say(json.dumps(result, ensure_ascii=False))
        return
    noun = 'clip' if result['clips'] == 1 else 'clips'
    console.say(f'{result["video"]}: {result["frames"]} frames, {result["clips"]} {noun}')
    width = max(len(entry['label']) for entry in result['top'])
    for entry in result['top']:
        bar = '█' * round(30 * entry['probability'])
        console.say(f'  {entry["label"]:{width}}  {entry["probability"]:6.1%}  {bar}')
    if len(result['timeline']) > 1:
        console.say('what happens when:')
        for entry in result['timeline']:
            console.say(f'  {_clock(entry["start"])} – {_clock(entry["end"])}  '
                        f'{entry["label"]:{width}}  {entry["probability"]:6.1%}')


def _clock(seconds: float) -> str:
    return f'{int(seconds) // 60:d}:{seconds % 60:04.1f}'
