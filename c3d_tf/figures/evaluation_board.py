# SPDX-License-Identifier: Apache-2.0
"""An evaluation in TensorBoard: numbers, what is taken for what, clips that misled, points of fc6."""

import io
import json
import os
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from c3d_tf.common import metrics
from c3d_tf.common import storage
from c3d_tf.data import records
from c3d_tf.figures import embedding
from c3d_tf.figures import mistakes
from c3d_tf.figures import plots
from c3d_tf.figures import strips
from c3d_tf.figures import tensorboard

NUMBERS = ('video_hit@1', 'video_hit@5', 'clip_hit@1', 'clip_hit@5', 'mean_class_accuracy')
WRONG = 8  # clips


def write(
    workdir: str,
    result: dict,
    arrays: Mapping[str, np.ndarray],
    confusion: str,
    *,
    index: records.Index | None = None,
    seen: embedding.Seen | None = None,
    settings: dict | None = None,
) -> None:
    """Writes tensorboard/evaluate in the folder of a run, in place of what was there.

    Args:
      workdir: of the evaluation.
      result: the content of evaluate.json.
      arrays: those of scores.npz.
      confusion: the picture of the confusion matrix, a PNG.
      index: the evaluated records; None where they are not known, as of fused scores.
      seen: the videos of the projector, of two or more; None for none.
      settings: of the training, where it was one of ours: the evaluation joins its line in HParams.
    """
    folder = os.path.join(workdir, tensorboard.FOLDER, 'evaluate')
    storage.rmtree(folder, ignore_errors=True)
    names, table = result['class_names'], np.array(result['confusion'])
    writer = tf.summary.create_file_writer(folder)
    with writer.as_default(0):
        for name in NUMBERS:
            tf.summary.scalar(name, result[name])
        with storage.open(confusion, 'rb') as file:
            tensorboard.pictures('confusion', [file.read()], 0)
        png = io.BytesIO()
        plots.classes(result['per_class'], png, title='Accuracy by class')
        tensorboard.pictures('class_accuracy', [png.getvalue()], 0)
        png = io.BytesIO()
        plots.taken_for(table, names, png, title='What each class is taken for')
        tensorboard.pictures('taken_for', [png.getvalue()], 0)
        wrong = mistakes.find(arrays)[:WRONG]
        if wrong and index is not None:
            _wrong_clips(wrong, mistakes.Clips(index, result['protocol'], len(arrays['videos'])), names)
        tensorboard.code('protocol', json.dumps(result['protocol'], indent=2, ensure_ascii=False))
        if settings:
            tensorboard.recipe(settings)
    writer.close()
    if seen is not None:
        scores = metrics.video_scores(arrays['scores'], arrays['videos'], len(arrays['names']))
        best = scores.argmax(axis=1)
        rows = [['class', 'taken_for', 'right', 'video']]
        for video in seen.chosen:
            own = np.flatnonzero(arrays['labels'][video])
            rows.append([', '.join(names[label] for label in own), names[best[video]],
                         'yes' if best[video] in own else 'no', str(arrays['names'][video])])
        embedding.project(folder, f'{seen.layer} of {result["protocol"]["split"]}', seen, rows)


def _wrong_clips(wrong: list[mistakes.Mistake], clips: mistakes.Clips, names) -> None:
    shown = []
    for one, moving in clips.read(wrong):
        if isinstance(moving, Exception):
            continue  # the report names it
        label, taken = ', '.join(names[i] for i in one.labels), one.top[0]
        caption = f'true: {label}\nsaid: {names[taken]} {one.score[taken]:.2f}'
        shown.append(strips.Strip(caption, (np.stack(moving.pictures),)))
    if shown:
        tensorboard.clips(
            'wrong_clips', shown, 0, 'The most confident mistakes: the label, and below it what the '
            'video was taken for, with its score.', side=strips.SIDE)
