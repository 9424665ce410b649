# SPDX-License-Identifier: Apache-2.0
"""Records → a trained network: our own short loop, since `fit` cannot be resumed inside an epoch.

The position in the data is (epoch, step) and every random choice a pure function of the seed and that
position, so a run that was killed goes on from its last checkpoint to the same bits.
"""

import dataclasses
import math
import os
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

from c3d_tf import __version__
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.data import pipeline
from c3d_tf.data import preprocess
from c3d_tf.data import records
from c3d_tf.training import cluster as clusters
from c3d_tf.training import curve as curves
from c3d_tf.training import monitor as monitors
from c3d_tf.training import state as states
from c3d_tf.training import stopping
from c3d_tf.training import trainer as trainers
from c3d_tf.training import transfer
from c3d_tf.training.recipe import Recipe
from c3d_tf.weights import artefact

RESULT = 'train.json'
MODEL = 'model.keras'
BEST = 'best.keras'
CALIBRATION_BATCHES = 64


@records.names_damage
def fit(
    records_dir: str,
    workdir: str,
    recipe: Recipe = Recipe(),
    *,
    checkpoint_every: int = 1000,
    log_every: int = 50,
    watch: str = '',
    histograms: int = 0,
    profile: int = 0,
    worker_timeout: float = 600.0,
    overwrite: bool = False,
) -> dict:
    """Trains on the records' train split; the same call continues a stopped run.

    Where the records have a val split, it is scored after each epoch (one clip a video, from the
    middle), and the best weights are the result; else the last ones are.

    Args:
      records_dir: what prepare wrote.
      workdir: gets model.keras, checkpoints/, tensorboard/ and train.json.
      recipe: what decides the weights.
      checkpoint_every: steps between two checkpoints.
      log_every: steps between two points of the curves.
      watch: a split that is scored after each epoch as well, for its curve alone: it chooses nothing.
      histograms: steps between two histograms of all weights; 0: none.
      profile: steps of which a profiler's trace is written; 0: none.
      worker_timeout: seconds that a worker of many waits for the others at the start.
      overwrite: starts anew over a run with another recipe instead of refusing.

    Returns:
      the content of train.json; {} on a worker that is not the chief, which writes nothing there.

    Raises:
      errors.UsageError: the recipe cannot be, or the workdir holds a run with another one.
      errors.RunError: the loss or the weights are not numbers.
      errors.Interrupted: SIGTERM or Ctrl-C came, or another worker was lost; the state is saved.
    """
    index = records.read_index(records_dir)
    split = index.split('train')
    spec = preprocess.Preprocessing(
        index.frame_size, recipe.crop_size, recipe.clip_length, recipe.stride,
        preprocess.load_mean(recipe.mean, index, recipe.clip_length), recipe.short, recipe.motion)
    settings = _settings(recipe, index)
    cluster = clusters.read() if recipe.strategy == 'multi_worker' else clusters.Cluster()
    finished = _existing(workdir, settings, overwrite, cluster.is_chief)
    if finished is not None:
        console.say(f'train: {os.path.join(workdir, MODEL)} is trained already')
        return finished

    per_record = pipeline.training_clips(split, spec, recipe.train_clips)
    clips = int(per_record.sum())
    if not clips:
        raise errors.UsageError(f'--short=drop leaves no training clip: no video in {records_dir} has '
                                f'the {recipe.clip_length} frames of one')
    steps_per_epoch = math.ceil(clips / recipe.batch_size)
    total = recipe.steps or recipe.epochs * steps_per_epoch
    strategy = clusters.strategy(recipe.strategy, cluster, worker_timeout)
    worker = (cluster.index, cluster.count)
    if recipe.precision == 'float16' and not tf.config.list_logical_devices('GPU'):
        raise errors.UsageError('--precision=float16 needs a GPU: TensorFlow has no 3-D pools in float16 '
                                'on CPUs; take bfloat16 here')
    try:
        trainer = trainers.Trainer(
            recipe, lambda: recipe.network(len(index.class_names)), total, strategy,
            _class_weights(recipe, index, split, per_record),
            lambda: pipeline.for_training(split, spec, batch_size=recipe.batch_size, epoch=0, seed=recipe.seed,
                                          **recipe.choices()).take(CALIBRATION_BATCHES), cluster.count)
    except ValueError as error:
        raise errors.UsageError(str(error)) from error
    except tf.errors.OpError as error:  # the workers have the same weights from the start
        if (lost := cluster.lost(error)) is None:
            raise
        raise cluster.interrupted(lost, 'before the first step') from error
    validation, watched = (_middle_clips(index, name, spec, recipe, worker) for name in ('val', watch))
    if watch and watched is None:
        raise errors.UsageError(f'--watch={watch}: {records_dir} has no video in that split')
    if recipe.patience and validation is None:
        raise errors.UsageError(f'--patience={recipe.patience} needs a val split in {records_dir}: prepare '
                                'with --val_fraction or --val_list')
    if recipe.min_scale < 1 and not recipe.random_crop:
        raise errors.UsageError(f'--min_scale={recipe.min_scale:g} needs --random_crop')
    elsewhere = tempfile.TemporaryDirectory()  # the curves of the other workers
    folder = workdir if cluster.is_chief else elsewhere.name
    files.remove_leftovers(folder)
    state = states.State(workdir, trainer, cluster)
    if not state.resume() and recipe.init_from:
        transfer.initialise(trainer.model, recipe, spec)
    with state.saved_when_lost():
        trainer.follow(cluster.is_chief)
    if int(trainer.step):
        console.say(f'train: continues at step {int(trainer.step)} of {total}')
    elif trainer.guard:
        state.save(0)
    running = {'status': 'running', 'settings': settings, 'last': {}}
    if int(trainer.step) and (before := files.read_json(os.path.join(folder, RESULT))):
        running['last'] = before.get('last', {})
    files.write_json(os.path.join(folder, RESULT), running)
    _announce(recipe, trainer, clips, len(index.class_names), total, strategy, cluster)

    def save(name, weights):
        provenance = {'trained_by': f'c3d_tf {__version__}', 'weights': weights, 'settings': settings}
        with trainer.final_weights():
            if cluster.is_chief:
                artefact.save(os.path.join(workdir, name),
                              artefact.Artefact(trainer.model, spec, index.class_names, provenance))

    def check(last):  # before good weights are replaced
        curve.check()
        if not trainer.finite():
            raise curves.BadLoss('the weights are not numbers any more; the last batch', last.numpy())

    def score(last):
        if not (validation or watched):
            return
        check(last)
        if watched:
            curve.draw(step, **{f'{watch}_accuracy': trainer.validate(watched)})
        if validation:
            accuracy = trainer.validate(validation)
            curve.draw(step, val_accuracy=accuracy)
            # The best may be of this very step, and its file not there: the chief was lost while it wrote it.
            if accuracy > float(trainer.best_score) or int(trainer.best_step) == step:
                trainer.best_score.assign(accuracy)
                trainer.best_step.assign(step)
                save(BEST, f'{kind} at step {step}, best of the validations')

    kind = 'moving averages' if recipe.ema else 'weights'
    started = time.time()
    step = int(trainer.step)
    curve = curves.Curve(folder, step, total, trainer.rate, log_every)
    monitor = monitors.Monitor(
        curve, trainer, spec, index.class_names, step, total, log_every=log_every, histograms=histograms,
        profile=profile)
    with stopping.StopSignal() as stop, state.saved_when_lost(curve), curve, monitor:
        monitor.describe(records_dir, settings)
        if step and (step % steps_per_epoch == 0 or step == total) and cluster.count > 1:
            score(tf.constant([], tf.int64))  # a worker may have been lost before it was done
        while step < total and not _out_of_patience(recipe, trainer, steps_per_epoch):
            epoch, used = divmod(step, steps_per_epoch)
            batches = pipeline.for_training(split, spec, batch_size=recipe.batch_size, epoch=epoch,
                                            skip=used, seed=recipe.seed, worker=worker, **recipe.choices())
            for batch in curve.timed(batches):
                size = min(recipe.batch_size, clips - step % steps_per_epoch * recipe.batch_size)
                sums = monitor.step(step, *batch[:2], weight=pipeline.share(size, worker), stop=stop.came)
                step += 1
                try:
                    if not (trainer.guard and _skipped(trainer, state, step - 1, float(sums[0]),
                                                       checkpoint_every, batch[2])):
                        curve.add(step, *sums, batch[2])
                    if step % steps_per_epoch == 0 or step == total:
                        score(batch[2])
                    # Asked once: what is said below was done here. Many workers stop where they all know of it.
                    ending = stop.came if cluster.count == 1 else float(trainer.stops) > 0
                    if step % checkpoint_every == 0 or step == total or ending:
                        check(batch[2])
                        # A run that goes on from here has the same points, and the same last ones.
                        files.write_json(os.path.join(folder, RESULT), running | {'last': curve.point(step)})
                        state.save(step)
                except curves.BadLoss as bad:
                    raise _bad_loss(bad, split, state.newest()) from None
                if ending:
                    raise errors.Interrupted(f'stopped at step {step} of {total} and saved; '
                                             'the same command goes on from there')
                if step == total:
                    break
    path = os.path.join(workdir, MODEL)
    if not validation:
        save(MODEL, f'{kind} at step {step}, the last')
    elif cluster.is_chief:
        with files.replacing(path) as temporary:
            storage.copy(os.path.join(workdir, BEST), temporary)
    result = {'status': 'done', 'steps': step, 'seconds': round(time.time() - started, 1),
              **running['last'], **curve.close(step), 'settings': settings,
              'versions': {'c3d_tf': __version__, 'tensorflow': tf.__version__,
                           'keras': keras.__version__}}
    if validation:
        result |= {'best_val_accuracy': round(float(trainer.best_score), 6),
                   'best_step': int(trainer.best_step)}
    if trainer.guard:
        result['skipped_steps'] = trainer.guard.skipped
    files.write_json(os.path.join(folder, RESULT), result)
    with state.saved_when_lost():
        trainer.over_workers(tf.constant(0))  # so that all workers are done when the model is there
    if not cluster.is_chief:
        return {}
    console.say(f'train: wrote {path}')
    return result


def _skipped(trainer, state, step, loss, every, batch) -> bool:
    """Returns whether the loss of an update was bad; then the state is that of a checkpoint, behind it."""
    wrong = trainer.guard.bad(step, loss)
    if not wrong:
        return False
    number = state.go_back(step, every)
    if number is None:
        raise curves.BadLoss(f'{wrong}, and there is no checkpoint to go back to, or --max_skips is reached; '
                             'the batch', batch.numpy())
    console.say(f'train: {wrong}: back to the weights of step {number}, and on behind this batch')
    return True


def _announce(recipe, trainer, clips, classes, total, strategy, cluster) -> None:
    console.say(f'train: {recipe.model} with {trainer.model.count_params():,} parameters; {clips} clips an '
                f'epoch, {classes} classes; {total} steps of {recipe.batch_size} clips on '
                f'{strategy.num_replicas_in_sync} device(s)'
                + (f' of {cluster.count} workers, of which this is number {cluster.index}'
                   if cluster.count > 1 else ''))
    if recipe.base_batch_size:
        console.say(f'train: the rate is scaled to the batch: {recipe.learning_rate:g} x '
                    f'{recipe.batch_size}/{recipe.base_batch_size} = {recipe.rate():g}')
    else:
        console.say(f'train: the rate {recipe.rate():g} is not scaled to the batch of {recipe.batch_size} '
                    '(--base_batch_size says which batch it was chosen for)')


def _class_weights(recipe: Recipe, index: records.Index, split: records.Split,
                   per_record: np.ndarray) -> np.ndarray | None:
    """Returns float [K], factors on the loss with which each class counts the same in an epoch.

    Args:
      recipe: says whether.
      index: has the labels.
      split: the training split.
      per_record: int [R], clips of each record in an epoch.
    """
    if recipe.class_weights == 'none':
        return None
    shards = index.data['splits']['train']['shards']
    labels = [own for shard in shards for own in shard.get('labels', ())]
    if not labels:  # records of an earlier version: all are read for it
        _, labels = pipeline.read_labels(split)
    clips = np.bincount(split.videos, per_record)
    counts = np.zeros(len(index.class_names))
    for own, number in zip(labels, clips, strict=True):
        counts[own] += number / len(own)  # each clip takes one of them, drawn with the same chance
    # Mean 1 over the clips: sum(counts · weights) = sum(counts). A class without clips counts 0.
    mean = counts.sum() / np.count_nonzero(counts)
    return np.divide(mean, counts, out=np.zeros_like(counts), where=counts > 0)


def _middle_clips(index: records.Index, split: str, spec: preprocess.Preprocessing, recipe: Recipe,
                  worker: tuple[int, int]):
    """Returns the worker's (clips, labels) batches, a clip a video of the split, or None where it has no
    video."""
    if not index.data['splits'].get(split, {}).get('videos'):
        return None
    part = index.split(split)
    _, labels = pipeline.read_labels(part)
    labels = tf.constant([own[0] for own in labels])
    videos = tf.constant(part.videos)
    batches = pipeline.for_evaluation(part, spec, batch_size=recipe.batch_size, choice='uniform', count=1)
    return batches.shard(worker[1], worker[0]).map(
        lambda clips, record: (clips, tf.gather(labels, tf.gather(videos, record))))


def _out_of_patience(recipe: Recipe, trainer: trainers.Trainer, steps_per_epoch: int) -> bool:
    waited = (int(trainer.step) - int(trainer.best_step)) // steps_per_epoch
    if recipe.patience and int(trainer.best_step) and waited >= recipe.patience:
        console.say(f'train: no better validation for {waited} epochs')
        return True
    return False


def _bad_loss(bad: curves.BadLoss, split: records.Split, newest: str) -> errors.RunError:
    names, _ = pipeline.read_labels(split)
    videos = [names[split.videos[record]] for record in bad.records]
    return errors.RunError(
        f'{bad.what}: {", ".join(videos)}.\nLower '
        '--learning_rate or set --clip_norm, in another --workdir; the newest checkpoint is '
        + f'{newest}.')


def _settings(recipe: Recipe, index: records.Index) -> dict:
    recipe_values = dataclasses.asdict(recipe)
    return {**recipe_values, 'reinit': list(recipe.reinit), 'freeze': list(recipe.freeze),
            'records': index.fingerprint,
            'files': {path: files.sha256(path) for path in (recipe.mean, recipe.init_from)
                      if storage.isfile(path)}}


def _existing(workdir: str, settings: dict, overwrite: bool, is_chief: bool) -> dict | None:
    """Returns the result of a finished run; clears the way on `overwrite`, which is the chief's to do."""
    result = files.read_json(os.path.join(workdir, RESULT))
    # An option that the run's version did not have yet was then what is its default now.
    before = result and {**dataclasses.asdict(Recipe()), **result['settings']}
    if overwrite and result and (result['status'], before) != ('running', settings):
        # A run of the same recipe that was stopped goes on, with --overwrite as well.
        if not is_chief:
            return None
        for name in (states.FOLDER, curves.FOLDER):
            storage.rmtree(os.path.join(workdir, name), ignore_errors=True)
        for name in (MODEL, BEST):
            if storage.exists(os.path.join(workdir, name)):
                storage.remove(os.path.join(workdir, name))
        return None
    if result is None or before == settings:
        done = result and result['status'] == 'done' and storage.exists(os.path.join(workdir, MODEL))
        return result if done else None
    raise errors.changed_settings(
        f'the run in {workdir}', before, settings,
        'Give another --workdir, or --overwrite to start anew.')
