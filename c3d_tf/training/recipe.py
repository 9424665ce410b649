# SPDX-License-Identifier: Apache-2.0
"""What decides a run's weights, besides its records."""

import dataclasses

import keras

from c3d_tf import models


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides the weights, besides the records.

    Attributes:
      model, width, batch_norm, initializer, head, dropout, precision: see `models.build`.
      clip_length, crop_size, stride, short: see `preprocess.Preprocessing`.
      mean: see `preprocess.load_mean`.
      motion: see `preprocess.moving`.
      train_clips: 'random', one clip of each record an epoch, or 'all', every one; see
        `pipeline.for_training`.
      flip, max_stride, min_scale, colour, rand_augment, rand_magnitude: see `clips.plan`.
      random_crop: crops anywhere instead of the centre.
      mixup: alpha of MixUp; 0 mixes nothing.
      epochs: passes over the training split; ignored where `steps` is set.
      steps: updates in all; 0 means `epochs`.
      batch_size: clips an update over all replicas.
      optimizer: 'sgd', Caffe's with momentum, or 'adam'.
      learning_rate: the first rate, for batches of `base_batch_size`.
      base_batch_size: the rate is scaled by batch_size / base_batch_size; 0 takes it as it is.
      schedule, decay_steps, decay_rate, warmup_steps: see `schedules.make`.
      momentum: of 'sgd'.
      weight_decay: on kernels only: part of the gradient for 'sgd', as in Caffe; decoupled for 'adam'.
      clip_norm: largest norm of the whole gradient; 0 clips nothing.
      accumulate: parts that a batch is computed in, one after another, to save memory.
      label_smoothing: share of the target that is spread over all classes.
      class_weights: 'none', or 'balanced': a class counts the same however many clips of an epoch
        it has.
      ema: the final weights are moving averages with this momentum, e.g. 0.999; 0 takes the last.
      bias_rate: factor on the learning rate of biases for 'sgd'; 2 in the original.
      init_from: an artefact whose weights are the start; '' starts at random.
      reinit: layers that start at random all the same.
      freeze: layers that do not learn.
      patience: validations without a better one after which the run ends; 0 never ends early.
      max_loss_ratio: a loss above this many times the median of the last ones, or one that is no number,
        takes the run back to a checkpoint and on with other batches; see `guard.Guard`. 0: a loss that
        is no number ends the run.
      max_skips: how often, at most.
      strategy: 'default'; 'mirrored', all devices of this machine; or 'multi_worker', those of all
        machines that TF_CONFIG names.
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
    short: str = 'loop'
    mean: str = 'volume'
    motion: bool = False
    train_clips: str = 'random'
    flip: bool = True
    random_crop: bool = True
    max_stride: int = 0
    min_scale: float = 1.0
    colour: float = 0.0
    rand_augment: int = 0
    rand_magnitude: float = 7.0
    mixup: float = 0.0
    epochs: int = 16
    steps: int = 0
    batch_size: int = 30
    optimizer: str = 'sgd'
    learning_rate: float = 0.003
    base_batch_size: int = 0
    schedule: str = 'constant'
    decay_steps: int = 0
    decay_rate: float = 0.1
    warmup_steps: int = 0
    momentum: float = 0.9
    weight_decay: float = 0.0005
    bias_rate: float = 2.0
    clip_norm: float = 0.0
    accumulate: int = 1
    label_smoothing: float = 0.0
    class_weights: str = 'none'
    ema: float = 0.0
    init_from: str = ''
    reinit: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    patience: int = 0
    max_loss_ratio: float = 0.0
    max_skips: int = 3
    strategy: str = 'default'
    seed: int = 0

    def network(self, num_classes: int) -> keras.Model:
        """Returns the recipe's network.

        Raises:
          ValueError: the recipe names one that there is not.
        """
        return models.build(
            self.model, num_classes=num_classes, clip_length=self.clip_length, crop_size=self.crop_size,
            width=self.width, batch_norm=self.batch_norm, initializer=self.initializer, head=self.head,
            dropout=self.dropout, precision=self.precision)

    def rate(self) -> float:
        """Returns the first learning rate for this batch size (Goyal et al., 2017)."""
        return self.learning_rate * (self.batch_size / self.base_batch_size if self.base_batch_size else 1)

    def choices(self) -> dict:
        """Returns the arguments of `clips.plan` that are for training only."""
        return {'choice': self.train_clips, 'crops': 'random' if self.random_crop else 'centre',
                'flip': self.flip, 'max_stride': self.max_stride, 'min_scale': self.min_scale,
                'colour': self.colour, 'rand_augment': self.rand_augment,
                'rand_magnitude': self.rand_magnitude}
