# SPDX-License-Identifier: Apache-2.0
"""Records → a trained network: our own short loop, since `fit` cannot be resumed inside an epoch.

The position in the data is (epoch, step) and every random choice a pure function of the seed and that
position, so a run that was killed goes on from its last checkpoint to the same bits.
"""

import dataclasses
import math
import os
import signal
import time

import keras
import tensorflow as tf

from c3d_tf import __version__
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.data import pipeline
from c3d_tf.data import preprocess
from c3d_tf.data import records
from c3d_tf.training import curve as curves
from c3d_tf.training import trainer as trainers
from c3d_tf.weights import artefact

RESULT = 'train.json'
MODEL = 'model.keras'


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides the weights, besides the records.

    Attributes:
      model, width, batch_norm, initializer, head, dropout, precision: see `models.build`.
      clip_length, crop_size, stride: see `preprocess.Preprocessing`.
      mean: see `preprocess.load_mean`.
      flip, random_crop: see `clips.plan`.
      epochs: passes over the training split; ignored where `steps` is set.
      steps: updates in all; 0 means `epochs`.
      batch_size: clips an update over all replicas.
      optimizer: 'sgd', Caffe's with momentum, or 'adam'.
      learning_rate: the first rate; it is not scaled to the batch.
      schedule, decay_steps, decay_rate, warmup_steps: see `schedules.make`.
      momentum: of 'sgd'.
      weight_decay: on kernels only: part of the gradient for 'sgd', as in Caffe; decoupled for 'adam'.
      bias_rate: factor on the learning rate of biases for 'sgd'; 2 in the original.
      init_from: an artefact whose weights are the start; '' starts at random.
      reinit: layers that start at random all the same.
      strategy: 'default' or 'mirrored'.
      seed: of the weights, the order, crops, flips and dropout.
    """

    model: str = 'c3d'
    width: float = 1.0
    batch_norm: bool = False
    initializer: str = 'caffe'
    head: str = 'fc'
    dropout: float = 0.5
    precision: str = 'float32'
    clip_length: int = 16
    crop_size: int = 112
    stride: int = 1
    mean: str = 'volume'
    flip: bool = True
    random_crop: bool = True
    epochs: int = 16
    steps: int = 0
    batch_size: int = 30
    optimizer: str = 'sgd'
    learning_rate: float = 0.003
    schedule: str = 'constant'
    decay_steps: int = 0
    decay_rate: float = 0.1
    warmup_steps: int = 0
    momentum: float = 0.9
    weight_decay: float = 0.0005
    bias_rate: float = 2.0
    init_from: str = ''
    reinit: tuple[str, ...] = ()
    strategy: str = 'default'
    seed: int = 0


def fit(
    records_dir: str,
    workdir: str,
    recipe: Recipe = Recipe(),
    *,
    checkpoint_every: int = 1000,
    log_every: int = 50,
    overwrite: bool = False,
) -> dict:
    """Trains on the records' train split; the same call continues a stopped run.

    Args:
      records_dir: what prepare wrote.
      workdir: gets model.keras, checkpoints/, tensorboard/ and train.json.
      recipe: what decides the weights.
      checkpoint_every: steps between two checkpoints.
      log_every: steps between two points of the curves.
      overwrite: starts anew over a run with another recipe instead of refusing.

    Returns:
      the content of train.json.

    Raises:
      errors.UsageError: the recipe cannot be, or the workdir holds a run with another one.
      errors.RunError: the loss is not a number.
      errors.Interrupted: SIGTERM or Ctrl-C came; the state is saved.
    """
    index = records.read_index(records_dir)
    split = index.split('train')
    spec = preprocess.Preprocessing(index.frame_size, recipe.crop_size, recipe.clip_length,
                                    recipe.stride, preprocess.load_mean(recipe.mean, index,
                                                                        recipe.clip_length))
    settings = _settings(recipe, index)
    finished = _existing(workdir, settings, overwrite)
    if finished is not None:
        console.say(f'train: {os.path.join(workdir, MODEL)} is trained already')
        return finished

    steps_per_epoch = math.ceil(len(split.frames) / recipe.batch_size)
    total = recipe.steps or recipe.epochs * steps_per_epoch
    strategy = _strategy(recipe.strategy)
    try:
        trainer = trainers.Trainer(recipe, len(index.class_names), total, strategy)
    except ValueError as error:
        raise errors.UsageError(str(error)) from error
    manager = tf.train.CheckpointManager(trainer.checkpoint, os.path.join(workdir, 'checkpoints'), 2)
    if manager.latest_checkpoint:
        trainer.checkpoint.restore(manager.latest_checkpoint).assert_consumed()
        console.say(f'train: continues at step {int(trainer.step)} of {total}')
    elif recipe.init_from:
        _initialise(trainer.model, recipe)
    files.write_json(os.path.join(workdir, RESULT), {'status': 'running', 'settings': settings})
    console.say(f'train: {recipe.model} with {trainer.model.count_params():,} parameters on '
                f'{len(split.frames)} records, {len(index.class_names)} classes; {total} steps of '
                f'{recipe.batch_size} clips, {strategy.num_replicas_in_sync} device(s)')

    started = time.time()
    step = int(trainer.step)
    curve = curves.Curve(workdir, step, total, trainer.rate, log_every)
    with _StopSignal() as stop:
        while step < total:
            epoch, used = divmod(step, steps_per_epoch)
            batches = pipeline.for_training(
                split, spec, batch_size=recipe.batch_size, epoch=epoch, skip=used, seed=recipe.seed,
                random_crop=recipe.random_crop, flip=recipe.flip)
            for clips, labels, _ in curve.timed(batches):
                sums = trainer.train_step(step, clips, labels)
                step += 1
                curve.add(step, *sums)
                if step % checkpoint_every == 0 or step == total or stop.came:
                    curve.check()
                    manager.save(checkpoint_number=step)
                if stop.came:
                    raise errors.Interrupted(f'stopped at step {step} of {total} and saved; '
                                             'the same command goes on from there')
                if step == total:
                    break
    result = {'status': 'done', 'steps': total, 'seconds': round(time.time() - started, 1),
              **curve.close(total), 'settings': settings,
              'versions': {'c3d_tf': __version__, 'tensorflow': tf.__version__,
                           'keras': keras.__version__}}
    provenance = {'trained_by': f'c3d_tf {__version__}', 'weights': 'last', 'steps': total,
                  'settings': settings}
    path = os.path.join(workdir, MODEL)
    artefact.save(path, artefact.Artefact(trainer.model, spec, index.class_names, provenance))
    files.write_json(os.path.join(workdir, RESULT), result)
    console.say(f'train: wrote {path}')
    return result


def _settings(recipe: Recipe, index: records.Index) -> dict:
    recipe_values = dataclasses.asdict(recipe)
    return {**recipe_values, 'reinit': list(recipe.reinit),
            'records': {key: index.data['settings'][key] for key in ('dataset', 'list_hash', 'seed')}}


def _existing(workdir: str, settings: dict, overwrite: bool) -> dict | None:
    """Returns the result of a finished run; clears the way on `overwrite`."""
    result = files.read_json(os.path.join(workdir, RESULT))
    if overwrite and result is not None:
        tf.io.gfile.rmtree(os.path.join(workdir, 'checkpoints'))
        return None
    if result is None or result['settings'] == settings:
        done = result and result['status'] == 'done' and os.path.exists(os.path.join(workdir, MODEL))
        return result if done else None
    raise errors.changed_settings(
        f'the run in {workdir}', result['settings'], settings,
        'Give another --workdir, or --overwrite to start anew.')


def _strategy(name: str) -> tf.distribute.Strategy:
    if name == 'mirrored':
        # Logical devices where there are several: so the same code is tested without GPUs.
        devices = tf.config.list_logical_devices('GPU') or tf.config.list_logical_devices('CPU')
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def _initialise(model: keras.Model, recipe: Recipe) -> None:
    """Copies the weights of `recipe.init_from` by layer name; says what starts at random."""
    source = {layer.name: layer for layer in artefact.load(recipe.init_from).model.layers}
    unknown = set(recipe.reinit) - {layer.name for layer in model.layers}
    if unknown:
        raise errors.UsageError(f'--reinit={",".join(sorted(unknown))}: no such layer in '
                                f'{recipe.model}; it has '
                                f'{", ".join(layer.name for layer in model.layers if layer.weights)}')
    fresh = []
    for layer in model.layers:
        if not layer.weights:
            continue
        if layer.name in recipe.reinit:
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
