# SPDX-License-Identifier: Apache-2.0
"""The same network in several runtimes and precisions, side by side: accuracy, agreement, speed."""

import dataclasses
import time

import numpy as np

from c3d_tf.common import console
from c3d_tf.common import metrics
from c3d_tf.data import pipeline
from c3d_tf.data import preprocess
from c3d_tf.data import records
from c3d_tf.models import precisions
from c3d_tf.runtimes import networks
from c3d_tf.weights import artefact

REFERENCE = 'tensorflow float32'
BATCHES = (1, 8)
ROUNDS = 5


def references(net: artefact.Artefact) -> dict[str, networks.Network]:
    """Returns what others are compared with: TensorFlow in float32 and bfloat16."""
    halved = dataclasses.replace(net, model=precisions.convert(net.model, 'bfloat16'))
    return {REFERENCE: networks.tensorflow(net, (networks.PROB,)),
            'tensorflow bfloat16': networks.tensorflow(halved, (networks.PROB,))}


def seconds(runs: dict[str, networks.Network], shape: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Returns {network: {batch size: seconds a clip}}, the shortest of ROUNDS in which all take turns.

    Args:
      runs: the networks.
      shape: of a clip.
    """
    best = {name: {} for name in runs}
    for batch in BATCHES:
        clips = np.random.default_rng(0).normal(0, 50, (batch, *shape)).astype(np.float32)
        for number in range(ROUNDS + 1):
            for name, run in runs.items():
                before = time.perf_counter()
                run(clips)
                took = (time.perf_counter() - before) / batch
                if number:  # the first call traces and allocates
                    best[name][str(batch)] = min(took, best[name].get(str(batch), took))
    return best


def accuracy(runs: dict[str, networks.Network], index: records.Index, spec: preprocess.Preprocessing,
             num_clips: int) -> dict[str, dict[str, float]]:
    """Returns {network: clip_hit@1, video_hit@1, and the share of clips that it names as REFERENCE does}.

    Args:
      runs: the networks, REFERENCE among them.
      index: records, whose test split is taken.
      spec: what the networks must be given.
      num_clips: uniform clips a video.
    """
    part = index.split('test')
    _, labels = pipeline.read_labels(part)
    truth = np.zeros((len(labels), len(index.class_names)), bool)
    for row, own in zip(truth, labels, strict=True):
        row[own] = True
    scores, videos = {name: [] for name in runs}, []
    progress = console.Progress('compare', part.num_videos, 'videos')
    for batch, record in pipeline.for_evaluation(part, spec, batch_size=8, choice='uniform', count=num_clips):
        for name, run in runs.items():
            scores[name].append(run(batch)[networks.PROB])
        videos.append(part.videos[record.numpy()])
        progress.update(int(videos[-1][-1]))
    progress.update(part.num_videos)
    progress.close()
    scores = {name: np.concatenate(values) for name, values in scores.items()}
    named = scores[REFERENCE].argmax(axis=1)
    found = {}
    for name, values in scores.items():
        summary = metrics.summary(values, np.concatenate(videos), truth)
        found[name] = {key: summary[key] for key in ('clip_hit@1', 'video_hit@1', 'videos', 'clips')}
        found[name]['same_class'] = float((values.argmax(axis=1) == named).mean())
    return found


def table(found: dict) -> str:
    """Returns what was found as text, a line for each network."""
    heads = [*(f'ms, batch {batch}' for batch in BATCHES)]
    heads += ['clip hit@1', 'video hit@1', 'same class'] if 'test' in found else []
    lines = [f'  {"a clip":20}' + ''.join(f'{head:>13}' for head in heads)]
    for name, times in found['seconds a clip'].items():
        cells = [f'{1000 * took:.3g}' for took in times.values()]
        if 'test' in found:
            test = found['test'][name]
            cells += [f'{test["clip_hit@1"]:.3f}', f'{test["video_hit@1"]:.3f}', f'{test["same_class"]:.1%}']
        lines.append(f'  {name:20}' + ''.join(f'{cell:>13}' for cell in cells))
    return '\n'.join(lines)
