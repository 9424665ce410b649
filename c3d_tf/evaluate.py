# SPDX-License-Identifier: Apache-2.0
"""Records + weights → clip and video hit@k, mean class accuracy, per class, the confusion picture, scores.

The scores of an evaluation are a file of their own, so that nets are fused and scores read again
without any network.
"""

import os
import time
import zipfile

import keras
import numpy as np
import tensorflow as tf

from c3d_tf import __version__
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import metrics
from c3d_tf.common import storage
from c3d_tf.data import clips
from c3d_tf.data import pipeline
from c3d_tf.data import preprocess
from c3d_tf.data import records
from c3d_tf.figures import embedding
from c3d_tf.figures import evaluation_board
from c3d_tf.figures import plots
from c3d_tf.weights import artefact

RESULT = 'evaluate.json'
SCORES = 'scores.npz'
CONFUSION = 'confusion.png'


@records.names_damage
def evaluate(
    records_dir: str,
    weights: str,
    workdir: str,
    *,
    split: str = 'test',
    num_clips: int = 10,
    clip_choice: str = 'random',
    step: int = 0,
    crops: str = 'centre',
    batch_size: int = 16,
    seed: int = 0,
    embed: int = 2000,
    overwrite: bool = False,
) -> dict:
    """Scores every video of a split exactly once.

    A clip's score is the softmax of each of its crops; a video's is the mean over all of them (section 4
    of the paper: 10 random clips, centre crop). Videos shorter than a clip count as well: with weights
    whose training left such videos out (--short=drop) they start over, as they do in predict.

    Args:
      records_dir: what prepare wrote.
      weights: an artefact.
      workdir: gets evaluate.json, scores.npz, confusion.png and tensorboard/evaluate.
      split: a split of the records.
      num_clips, clip_choice, step, seed: see `clips.choose`.
      crops: 'centre', 'three' or 'ten'; see `clips.plan`.
      batch_size: crops a batch.
      embed: videos in TensorBoard's projector; 0: none.
      overwrite: does again what is done already.

    Returns:
      the content of evaluate.json.

    Raises:
      errors.UsageError: the records and the weights do not fit each other, or the workdir holds an
        evaluation with another protocol.
    """
    index = records.read_index(records_dir)
    part = index.split(split)
    net = artefact.load(weights)
    spec = net.preprocessing
    check_fit(net, index)
    every = clip_choice == 'all'
    protocol = {
        'dataset': index.data['dataset'], 'split': split, 'videos': part.num_videos,
        'clips': 'all' if every else num_clips, 'clip_choice': clip_choice,
        'step': (step or spec.clip_length) if every else None, 'crops': crops,
        'score': 'mean softmax over clips and crops', 'seed': seed, 'weights_sha256': net.sha256,
        'records': index.fingerprint, 'preprocessing': spec.to_json(),
    }
    too_short = _too_short(part, spec)
    if len(too_short):
        protocol['short_videos'] = f'{len(too_short)}, scored as with --short=loop'
    done = _existing(workdir, protocol, overwrite)
    if done is not None:
        return done

    files.remove_leftovers(workdir)
    names, labels = pipeline.read_labels(part)
    if len(too_short):
        console.say(f'evaluate: {len(too_short)} of {part.num_videos} videos are shorter than a clip, which '
                    'the training left out (--short=drop); here they start over. The first: '
                    f'{names[too_short[0]]}')
    batches = pipeline.for_evaluation(part, spec, batch_size=batch_size, choice=clip_choice,
                                      count=num_clips, step=step, crops=crops, seed=seed)
    started = time.time()
    has_fc6 = any(layer.name == 'fc6' for layer in net.model.layers)
    described = 'fc6' if has_fc6 else 'last layer before fc8'
    seen = None
    if min(embed, part.num_videos) > 1:
        seen = embedding.Seen(described, part.num_videos, embed, spec)
    scores, videos = _scores(net.model, batches, part, seen)
    if crops != 'centre':  # a clip is counted once: with the mean of its crops
        views = {'three': 3, 'ten': 10}[crops]
        scores, videos = scores.reshape(-1, views, scores.shape[1]).mean(axis=1), videos[::views]
    arrays = {'scores': scores, 'videos': videos, 'labels': _one_hot(labels, len(index.class_names)),
              'names': np.array(names), 'class_names': np.array(index.class_names)}
    board = {'index': index, 'seen': seen, 'settings': net.provenance.get('settings')}
    return _report(arrays, workdir, protocol, board, seconds=round(time.time() - started, 1))


def fuse(score_files: list[str], workdir: str, *, overwrite: bool = False) -> dict:
    """Evaluates scores that are there already: of one net again, or of several nets averaged by video.

    Args:
      score_files: scores.npz of evaluations of the same videos.
      workdir: gets evaluate.json, scores.npz and confusion.png.
      overwrite: does again what is done already.

    Raises:
      errors.UsageError: a file is missing, or is of other videos or classes, or the workdir holds an
        evaluation with another protocol.
    """
    own = storage.abspath(os.path.join(workdir, SCORES))
    if len(score_files) > 1 and own in map(storage.abspath, score_files):
        raise errors.UsageError(f'--workdir={workdir}: its {SCORES} is one of those to fuse and would be '
                                'replaced; give another folder')
    loaded = [_read_scores(path) for path in score_files]
    first = loaded[0]
    for path, other in zip(score_files, loaded):
        for key in ('names', 'class_names', 'labels'):
            if not np.array_equal(first[key], other[key]):
                raise errors.UsageError(f'--scores: {path} is of other {key} than {score_files[0]}')
    protocol = {'fused': [{'scores': path, 'sha256': files.sha256(path)} for path in score_files],
                'dataset': '+'.join(score_files), 'split': '', 'clips': 'all', 'clip_choice': 'given',
                'crops': 'given', 'score': 'mean over nets of the mean softmax over clips'}
    done = _existing(workdir, protocol, overwrite)
    if done is not None:
        return done
    if len(loaded) == 1:
        return _report(first, workdir, protocol)
    videos = len(first['names'])
    mean = np.mean([metrics.video_scores(one['scores'], one['videos'], videos) for one in loaded], axis=0)
    return _report({**first, 'scores': mean, 'videos': np.arange(videos)}, workdir, protocol)


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


def _existing(workdir: str, protocol: dict, overwrite: bool) -> dict | None:
    """Returns a result of the same protocol that is there already, None where there is work to do.

    Raises:
      errors.UsageError: there is one of another protocol, and it is not to be overwritten.
    """
    path = os.path.join(workdir, RESULT)
    before = files.read_json(path)
    if before is None or overwrite:
        return None
    if before['protocol'] != protocol:
        raise errors.changed_settings(
            path, dict(_flat(before['protocol'])), dict(_flat(protocol)),
            'Give another --workdir (and --weights, where they are in this one), or --overwrite to '
            'evaluate anew.')
    if not all(storage.exists(os.path.join(workdir, name)) for name in (SCORES, CONFUSION)):
        return None
    console.say(f'evaluate: {path} is up to date')
    _say(before)
    return before


def _flat(value, name: str = ''):
    """Yields (name, value) of all that is nested, e.g. ('preprocessing.crop_size', 112)."""
    if isinstance(value, dict):
        nested = value.items()
    elif name == 'fused':  # one dict a file of scores
        nested = enumerate(value)
    else:
        yield name, value
        return
    for key, inner in nested:
        yield from _flat(inner, f'{name}.{key}' if name else key)


def _too_short(part: records.Split, spec: preprocess.Preprocessing) -> np.ndarray:
    """Returns the numbers of the videos that a training with --short=drop would leave out."""
    if spec.short != 'drop':
        return np.array([], int)
    longest = np.zeros(part.num_videos, int)
    np.maximum.at(longest, part.videos, part.frames)
    return np.flatnonzero(longest < clips.extent(spec.clip_length, spec.stride))


def _one_hot(labels: list[list[int]], classes: int) -> np.ndarray:
    table = np.zeros((len(labels), classes), bool)
    for row, own in zip(table, labels, strict=True):
        row[own] = True
    return table


def _scores(model, batches, part: records.Split, seen) -> tuple[np.ndarray, np.ndarray]:
    """Returns (softmax float32 [C, K], video int64 [C]) of every crop of every clip; shows all to `seen`,
    an `embedding.Seen` or None."""
    described = model.get_layer('fc6').output if seen and seen.layer == 'fc6' else model.layers[-1].input
    both = keras.Model(model.input, [model.output, described])

    @tf.function(reduce_retracing=True)
    def forward(x):
        logits, features = both(x, training=False)
        return tf.nn.softmax(logits), tf.cast(features, tf.float32)

    scores, videos = [], []
    progress = console.Progress('evaluate', part.num_videos, 'videos')
    for batch, record in batches:
        softmax, features = forward(batch)
        scores.append(softmax.numpy())
        videos.append(part.videos[record.numpy()])
        if seen:
            seen.add(videos[-1], features.numpy(), batch.numpy())
        progress.update(int(videos[-1][-1]))
    progress.update(part.num_videos)
    progress.close()
    return np.concatenate(scores), np.concatenate(videos)


def _read_scores(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(storage.readable(path), allow_pickle=False) as archive:
            return {key: archive[key] for key in ('scores', 'videos', 'labels', 'names', 'class_names')}
    except FileNotFoundError as error:
        raise errors.UsageError(f'--scores={path}: no such file') from error
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise errors.UsageError(f'--scores={path}: not the scores of an evaluation ({error})') from error


def _report(arrays: dict[str, np.ndarray], workdir: str, protocol: dict, board: dict | None = None,
            **more) -> dict:
    """Writes scores, picture, events (`board`: see `evaluation_board.write`), numbers; says the numbers."""
    class_names = [str(name) for name in arrays['class_names']]
    result = metrics.summary(arrays['scores'], arrays['videos'], arrays['labels'])
    table = np.array(result['confusion'])
    result |= {
        'per_class': [{'class': name, 'videos': int(row.sum()), 'right': int(row[i]),
                       'mostly_taken_for': _mistake(row, i, class_names)}
                      for i, (name, row) in enumerate(zip(class_names, table))],
        'protocol': protocol, 'class_names': class_names, **more,
        'versions': {'c3d_tf': __version__, 'tensorflow': tf.__version__, 'keras': keras.__version__},
    }
    with files.replacing(os.path.join(workdir, SCORES)) as temporary:
        with open(temporary, 'wb') as file:
            np.savez_compressed(file, **arrays)
    with files.replacing(os.path.join(workdir, CONFUSION)) as temporary:
        plots.confusion(table, class_names, temporary,
                        title=f'{protocol["dataset"]} {protocol["split"]}: video hit@1 '
                              f'{result["video_hit@1"]:.3f}')
    evaluation_board.write(workdir, result, arrays, os.path.join(workdir, CONFUSION), **board or {})
    files.write_json(os.path.join(workdir, RESULT), result)
    _say(result)
    console.say(f'evaluate: wrote {os.path.join(workdir, RESULT)}, {SCORES} and {CONFUSION}')
    return result


def _mistake(row: np.ndarray, own: int, class_names: list[str]) -> str:
    others = row.copy()
    others[own] = 0
    return class_names[int(others.argmax())] if others.any() else ''


def _say(result: dict) -> None:
    protocol = result['protocol']
    console.say(f'  video hit@1 {result["video_hit@1"]:.3f} · hit@5 {result["video_hit@5"]:.3f} · '
                f'clip hit@1 {result["clip_hit@1"]:.3f} · hit@5 {result["clip_hit@5"]:.3f} · '
                f'mean class accuracy {result["mean_class_accuracy"]:.3f}')
    console.say(f'  {protocol["dataset"]} {protocol["split"]}: {result["videos"]} videos, '
                f'{result["clips"]} clips ({protocol["clips"]} {protocol["clip_choice"]} a video, crops: '
                f'{protocol["crops"]})')
    worst = sorted((row for row in result['per_class'] if row['right'] < row['videos']),
                   key=lambda row: row['right'] / row['videos'])[:10]
    for row, name in zip(worst, console.aligned(row['class'] for row in worst)):
        console.say(f'    {name}  {row["right"]:4d} of {row["videos"]:4d} right, mostly taken for '
                    f'{row["mostly_taken_for"]}')
