# SPDX-License-Identifier: Apache-2.0
"""Records → a trained network: our own short loop, since `fit` cannot be resumed inside an epoch.

The position in the data is (epoch, step) and every random choice a pure function of the seed and that
position, so a run that was killed goes on from its last checkpoint to the same bits.
"""

import dataclasses
import glob
import math
import os
import shutil
import signal
import time

import keras
import numpy as np
import tensorflow as tf

from c3d_tf import __version__
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.data import pipeline
from c3d_tf.data import preprocess
from c3d_tf.data import records
from c3d_tf.training import curve as curves
from c3d_tf.training import monitor as monitors
from c3d_tf.training import trainer as trainers
from c3d_tf.training.recipe import Recipe
from c3d_tf.weights import artefact

RESULT = 'train.json'
MODEL = 'model.keras'
BEST = 'best.keras'
CALIBRATION_BATCHES = 64


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
      overwrite: starts anew over a run with another recipe instead of refusing.

    Returns:
      the content of train.json.

    Raises:
      errors.UsageError: the recipe cannot be, or the workdir holds a run with another one.
      errors.RunError: the loss or the weights are not numbers.
      errors.Interrupted: SIGTERM or Ctrl-C came; the state is saved.
    """
    index = records.read_index(records_dir)
    split = index.split('train')
    spec = preprocess.Preprocessing(
        index.frame_size, recipe.crop_size, recipe.clip_length, recipe.stride,
        preprocess.load_mean(recipe.mean, index, recipe.clip_length), recipe.short)
    settings = _settings(recipe, index)
    finished = _existing(workdir, settings, overwrite)
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
    strategy = _strategy(recipe.strategy)
    if recipe.precision == 'float16' and not tf.config.list_logical_devices('GPU'):
        raise errors.UsageError('--precision=float16 needs a GPU: TensorFlow has no 3-D pools in float16 '
                                'on CPUs; take bfloat16 here')
    try:
        trainer = trainers.Trainer(
            recipe, lambda: recipe.network(len(index.class_names)), total, strategy,
            _class_weights(recipe, index, split, per_record),
            pipeline.for_training(split, spec, batch_size=recipe.batch_size, epoch=0, seed=recipe.seed,
                                  **recipe.choices()).take(CALIBRATION_BATCHES))
    except ValueError as error:
        raise errors.UsageError(str(error)) from error
    validation, watched = (_middle_clips(index, name, spec, recipe) for name in ('val', watch))
    if watch and watched is None:
        raise errors.UsageError(f'--watch={watch}: {records_dir} has no video in that split')
    if recipe.patience and validation is None:
        raise errors.UsageError(f'--patience={recipe.patience} needs a val split in {records_dir}: prepare '
                                'with --val_fraction or --val_list')
    if recipe.min_scale < 1 and not recipe.random_crop:
        raise errors.UsageError(f'--min_scale={recipe.min_scale:g} needs --random_crop')
    checkpoints = os.path.join(workdir, 'checkpoints')
    files.remove_leftovers(workdir)
    for path in glob.glob(os.path.join(glob.escape(checkpoints), 'ckpt-*_temp')):
        shutil.rmtree(path)  # a checkpoint that was being written when its run was killed
    manager = tf.train.CheckpointManager(trainer.checkpoint, checkpoints, 2)
    if manager.latest_checkpoint:
        trainer.checkpoint.restore(manager.latest_checkpoint).assert_consumed()
        console.say(f'train: continues at step {int(trainer.step)} of {total}')
    elif recipe.init_from:
        _initialise(trainer.model, recipe, spec)
    files.write_json(os.path.join(workdir, RESULT), {'status': 'running', 'settings': settings})
    _announce(recipe, trainer, clips, len(index.class_names), total, strategy)

    def save(name, weights):
        provenance = {'trained_by': f'c3d_tf {__version__}', 'weights': weights, 'settings': settings}
        with trainer.final_weights():
            artefact.save(os.path.join(workdir, name),
                          artefact.Artefact(trainer.model, spec, index.class_names, provenance))

    def check(last):  # before good weights are replaced
        curve.check()
        if not trainer.finite():
            raise curves.BadLoss('the weights are not numbers any more; the last batch', last.numpy())

    kind = 'moving averages' if recipe.ema else 'weights'
    started = time.time()
    step = int(trainer.step)
    curve = curves.Curve(workdir, step, total, trainer.rate, log_every)
    monitor = monitors.Monitor(
        curve, trainer, spec, index.class_names, step, total, log_every=log_every, histograms=histograms,
        profile=profile)
    with _StopSignal() as stop, monitor:
        monitor.describe(records_dir, settings)
        while step < total and not _out_of_patience(recipe, trainer, steps_per_epoch):
            epoch, used = divmod(step, steps_per_epoch)
            batches = pipeline.for_training(split, spec, batch_size=recipe.batch_size, epoch=epoch,
                                            skip=used, seed=recipe.seed, **recipe.choices())
            for batch in curve.timed(batches):
                sums = monitor.step(step, *batch[:2])
                step += 1
                try:
                    curve.add(step, *sums, batch[2])
                    ends = step % steps_per_epoch == 0 or step == total
                    if ends and watched:
                        check(batch[2])
                        curve.draw(step, **{f'{watch}_accuracy': trainer.validate(watched)})
                    if ends and validation:
                        check(batch[2])
                        score = trainer.validate(validation)
                        curve.draw(step, val_accuracy=score)
                        if score > float(trainer.best_score):
                            trainer.best_score.assign(score)
                            trainer.best_step.assign(step)
                            save(BEST, f'{kind} at step {step}, best of the validations')
                    stopping = stop.came  # asked once: what is said below was done here
                    if step % checkpoint_every == 0 or step == total or stopping:
                        check(batch[2])
                        manager.save(checkpoint_number=step)
                except curves.BadLoss as bad:
                    raise _bad_loss(bad, split, manager.latest_checkpoint) from None
                if stopping:
                    raise errors.Interrupted(f'stopped at step {step} of {total} and saved; '
                                             'the same command goes on from there')
                if step == total:
                    break
    path = os.path.join(workdir, MODEL)
    if validation:
        with files.replacing(path) as temporary:
            shutil.copyfile(os.path.join(workdir, BEST), temporary)
    else:
        save(MODEL, f'{kind} at step {step}, the last')
    result = {'status': 'done', 'steps': step, 'seconds': round(time.time() - started, 1),
              **curve.close(step), 'settings': settings,
              'versions': {'c3d_tf': __version__, 'tensorflow': tf.__version__,
                           'keras': keras.__version__}}
    if validation:
        result |= {'best_val_accuracy': round(float(trainer.best_score), 6),
                   'best_step': int(trainer.best_step)}
    files.write_json(os.path.join(workdir, RESULT), result)
    console.say(f'train: wrote {path}')
    return result


def _announce(recipe, trainer, clips, classes, total, strategy) -> None:
    console.say(f'train: {recipe.model} with {trainer.model.count_params():,} parameters; {clips} clips an '
                f'epoch, {classes} classes; {total} steps of {recipe.batch_size} clips on '
                f'{strategy.num_replicas_in_sync} device(s)')
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


def _middle_clips(index: records.Index, split: str, spec: preprocess.Preprocessing, recipe: Recipe):
    """Returns (clips, labels) batches, a clip a video of the split, or None where it has no video."""
    if not index.data['splits'].get(split, {}).get('videos'):
        return None
    part = index.split(split)
    _, labels = pipeline.read_labels(part)
    labels = tf.constant([own[0] for own in labels])
    videos = tf.constant(part.videos)
    batches = pipeline.for_evaluation(part, spec, batch_size=recipe.batch_size, choice='uniform', count=1)
    return batches.map(lambda clips, record: (clips, tf.gather(labels, tf.gather(videos, record))))


def _out_of_patience(recipe: Recipe, trainer: trainers.Trainer, steps_per_epoch: int) -> bool:
    waited = (int(trainer.step) - int(trainer.best_step)) // steps_per_epoch
    if recipe.patience and int(trainer.best_step) and waited >= recipe.patience:
        console.say(f'train: no better validation for {waited} epochs')
        return True
    return False


def _bad_loss(bad: curves.BadLoss, split: records.Split, checkpoint: str | None) -> errors.RunError:
    names, _ = pipeline.read_labels(split)
    videos = [names[split.videos[record]] for record in bad.records]
    return errors.RunError(
        f'{bad.what}: {", ".join(videos)}.\nLower '
        '--learning_rate or set --clip_norm, in another --workdir; the newest checkpoint is '
        + (checkpoint or 'none') + '.')


def _settings(recipe: Recipe, index: records.Index) -> dict:
    recipe_values = dataclasses.asdict(recipe)
    return {**recipe_values, 'reinit': list(recipe.reinit), 'freeze': list(recipe.freeze),
            'records': index.fingerprint,
            'files': {path: files.sha256(path) for path in (recipe.mean, recipe.init_from)
                      if os.path.isfile(path)}}


def _existing(workdir: str, settings: dict, overwrite: bool) -> dict | None:
    """Returns the result of a finished run; clears the way on `overwrite`."""
    result = files.read_json(os.path.join(workdir, RESULT))
    # An option that the run's version did not have yet was then what is its default now.
    before = result and {**dataclasses.asdict(Recipe()), **result['settings']}
    if overwrite and result and (result['status'], before) != ('running', settings):
        # A run of the same recipe that was stopped goes on, with --overwrite as well.
        for name in ('checkpoints', os.path.join('tensorboard', 'train')):
            shutil.rmtree(os.path.join(workdir, name), ignore_errors=True)
        for name in (MODEL, BEST):
            if os.path.exists(os.path.join(workdir, name)):
                os.remove(os.path.join(workdir, name))
        return None
    if result is None or before == settings:
        done = result and result['status'] == 'done' and os.path.exists(os.path.join(workdir, MODEL))
        return result if done else None
    raise errors.changed_settings(
        f'the run in {workdir}', before, settings,
        'Give another --workdir, or --overwrite to start anew.')


def _strategy(name: str) -> tf.distribute.Strategy:
    if name == 'mirrored':
        # Logical devices where there are several: so the same code is tested without GPUs.
        devices = tf.config.list_logical_devices('GPU') or tf.config.list_logical_devices('CPU')
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def _initialise(model: keras.Model, recipe: Recipe, spec: preprocess.Preprocessing) -> None:
    """Copies the weights of `recipe.init_from` by layer name; says what starts at random, and where the
    run's preprocessing is another one than theirs."""
    net = artefact.load(recipe.init_from, flag='--init_from')
    source = {layer.name: layer for layer in net.model.layers}
    try:
        reinit = {layer.name for name in recipe.reinit for layer in trainers.layers_of(model, name)}
    except ValueError as error:
        raise errors.UsageError(f'--reinit: {error}') from error
    fresh = []
    for layer in model.layers:
        if not layer.weights:
            continue
        if layer.name in reinit:
            fresh.append(layer.name)
            continue
        theirs = source.get(layer.name)
        shapes = [tuple(w.shape) for w in layer.weights]
        have = [tuple(w.shape) for w in theirs.weights] if theirs else 'no such layer'
        if shapes != have:
            raise errors.UsageError(f'--init_from={recipe.init_from}: {layer.name} should be '
                                    f'{shapes}, there is {have}; name it in --reinit to start it at '
                                    'random')
        layer.set_weights(theirs.get_weights())
    console.say(f'train: weights of {recipe.init_from}; at random: {", ".join(fresh) or "none"}')
    own = net.preprocessing
    if own.to_json() != spec.to_json() or not np.array_equal(own.mean, spec.mean):
        console.say(f'  they were trained on {own}')
        console.say(f'  this run takes       {spec}')


class _StopSignal:
    """Notes SIGTERM and SIGINT, so that the step in work ends and is saved; a second one kills."""

    def __enter__(self):
        self.came = False
        self._before = {number: signal.signal(number, self._note)
                        for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number, frame):
        self.came = True
        signal.signal(number, self._before[number])

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
