# SPDX-License-Identifier: Apache-2.0
"""The network, its optimizer and one update of both, on one device or many."""

import keras
import numpy as np
import tensorflow as tf

from c3d_tf import models
from c3d_tf.training import schedules


class Trainer:
    """The network, its optimizer and one update of both."""

    def __init__(self, recipe, num_classes: int, total: int, strategy: tf.distribute.Strategy):
        """Builds both under the strategy; `recipe` is a train.Recipe, `total` the steps of the run.

        Raises:
          ValueError: the recipe names a model or a schedule that there is not.
        """
        self._recipe, self._strategy = recipe, strategy
        self.rate = schedules.make(
            recipe.schedule, recipe.learning_rate, total, decay_steps=recipe.decay_steps,
            decay_rate=recipe.decay_rate, warmup_steps=recipe.warmup_steps)
        keras.utils.set_random_seed(recipe.seed)
        tf.config.experimental.enable_op_determinism()
        with strategy.scope():
            self.model = models.build(
                recipe.model, num_classes=num_classes, clip_length=recipe.clip_length,
                crop_size=recipe.crop_size, width=recipe.width, batch_norm=recipe.batch_norm,
                initializer=recipe.initializer, head=recipe.head, dropout=recipe.dropout,
                precision=recipe.precision)
            self._optimizer = self._make_optimizer()
            self._optimizer.build(self.model.trainable_variables)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._dropouts = [layer.seed_generator.state for layer in self.model.layers
                          if isinstance(layer, keras.layers.Dropout) and layer.rate]
        self._dropout_seeds = np.random.default_rng(recipe.seed).integers(2**31, size=len(self._dropouts))
        self.checkpoint = tf.train.Checkpoint(
            model=self.model, optimizer=self._optimizer, step=self.step)

    def _make_optimizer(self) -> keras.optimizers.Optimizer:
        recipe = self._recipe
        if recipe.optimizer == 'sgd':
            return keras.optimizers.SGD(self.rate(0), momentum=recipe.momentum)
        optimizer = keras.optimizers.AdamW(self.rate(0), weight_decay=recipe.weight_decay)
        optimizer.exclude_from_weight_decay(
            [v for v in self.model.trainable_variables if not _is_kernel(v)])
        return optimizer

    def train_step(self, step: int, clips: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        """Updates the weights by one batch, shared by all devices.

        Args:
          step: the update's number, counted from 0.
          clips: float32 [B, T, S, S, 3].
          labels: int32 [B].

        Returns:
          [mean loss, hits, clips] of the batch.
        """
        self._optimizer.learning_rate.assign(self.rate(step))
        sums = self._distributed_step(tf.constant(step, tf.int64), clips, labels)
        self.step.assign(step + 1)
        return sums

    @tf.function(reduce_retracing=True)
    def _distributed_step(self, step, clips, labels):
        sums = self._strategy.run(self._replica_step, args=(step, clips, labels))
        return [self._strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None) for value in sums]

    def _replica_step(self, step, clips, labels):
        clips, labels, weights = self._own_rows(clips, labels)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        for state, seed in zip(self._dropouts, self._dropout_seeds):
            # tf.train.Checkpoint omits these states: so they are made anew from the step.
            value = tf.stack([step, seed + tf.cast(replica, tf.int64)])
            state.assign(tf.cast(value, state.dtype))
        with tf.GradientTape() as tape:
            logits = self.model(clips, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_sum(losses * weights)
        variables = self.model.trainable_variables
        gradients = tape.gradient(loss, [v.value for v in variables])
        if self._recipe.optimizer == 'sgd':
            gradients = caffe_gradients(
                gradients, variables, weight_decay=self._recipe.weight_decay,
                bias_rate=self._recipe.bias_rate, replicas=self._strategy.num_replicas_in_sync)
        self._optimizer.apply(gradients, variables)
        hit = tf.equal(tf.argmax(logits, 1, tf.int32), labels) & (weights > 0)
        hits = tf.reduce_sum(tf.cast(hit, tf.float32))
        return loss, hits, tf.reduce_sum(tf.cast(weights > 0, tf.float32))

    def _own_rows(self, clips, labels):
        """Returns this device's share of the batch, and each clip's weight in the mean loss.

        tf.distribute's own split leaves devices without clips at the end of an epoch, which Conv3D does
        not survive. Here shares differ by one clip at most; where there are fewer clips than devices,
        some get a clip of weight 0.
        """
        size = tf.shape(labels)[0]
        weight = 1 / tf.cast(size, tf.float32)
        devices = self._strategy.num_replicas_in_sync
        if devices == 1:
            return clips, labels, tf.fill([size], weight)
        number = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
        first, last = number * size // devices, (number + 1) * size // devices
        with tf.device('CPU:0'):  # so that only the share travels to the device
            rows = slice(tf.minimum(first, size - 1), tf.maximum(last, tf.minimum(first, size - 1) + 1))
            clips, labels = clips[rows], labels[rows]
        weight *= tf.cast(last > first, tf.float32)
        return clips, labels, tf.fill(tf.shape(labels), weight)


def caffe_gradients(gradients, variables, *, weight_decay: float, bias_rate: float, replicas: int = 1):
    """Returns gradients with which SGD with momentum does what Caffe's solver does.

    Caffe: h ← m·h + rate·rate_mult·(g + decay·decay_mult·w); w ← w − h, with (rate_mult, decay_mult)
    (1, 1) for kernels and (2, 0) for biases. Keras' SGD keeps the rate inside the momentum as well.

    Args:
      gradients: of the loss, one for each variable; they are summed over replicas afterwards.
      variables: the weights.
      weight_decay: decay, for kernels only.
      bias_rate: rate_mult of biases.
      replicas: how many times the decay will be summed.
    """
    out = []
    for gradient, variable in zip(gradients, variables, strict=True):
        if _is_kernel(variable):
            gradient = gradient + variable * (weight_decay / replicas)
        elif variable.path.endswith('/bias'):
            gradient = gradient * bias_rate
        out.append(gradient)
    return out


def _is_kernel(variable: keras.Variable) -> bool:
    return variable.path.endswith('/kernel')
