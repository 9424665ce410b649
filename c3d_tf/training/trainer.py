# SPDX-License-Identifier: Apache-2.0
"""The network, its optimizer and one update of both, on one device or many."""

import contextlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from c3d_tf.training import guard as guards
from c3d_tf.training import schedules
from c3d_tf.training import updates


class Trainer:
    """The network, its optimizer and one update of both.

    Attributes:
      model: the network.
      rate: learning rate by step.
      step: updates done; in the checkpoint.
      best_score, best_step: the best validation so far; in the checkpoint.
      guard: what watches the loss, or None; in the checkpoint.
      stops: how many workers wanted to stop at the last step; float32 [].
      norms: float32 [2, V], of the last update that was asked for them: the norms of the loss' gradient
        and of the new weights, a column for each trainable variable; None before, and with several workers.
      checkpoint: all that a stopped run needs.
    """

    def __init__(self, recipe, make_model: Callable[[], keras.Model], total: int,
                 strategy: tf.distribute.Strategy, class_weights: np.ndarray | None = None,
                 calibration: Callable[[], tf.data.Dataset] | None = None, workers: int = 1):
        """Builds both under the strategy.

        Args:
          recipe: a Recipe.
          make_model: returns the network; called under the strategy, with the seed set.
          total: steps of the run.
          strategy: which devices.
          class_weights: float [K], factors on the loss of each class; None for all 1.
          calibration: returns batches of (clips, …) for the statistics of batch normalisation that the final
            weights get where MixUp or averages of the weights make others of them; None leaves them. Called
            with the seed set, as the order of tf.data's shuffle depends on that as well.
          workers: processes, of which each calls this, that the strategy's devices belong to.

        Raises:
          ValueError: the recipe names a schedule or a layer that there is not, or asks for parts of a
            batch where batch normalisation goes over several devices.
        """
        self._recipe, self._strategy = recipe, strategy
        self._class_weights = None if class_weights is None else tf.constant(class_weights, tf.float32)
        self.rate = schedules.make(
            recipe.schedule, recipe.rate(), total, decay_steps=recipe.decay_steps,
            decay_rate=recipe.decay_rate, warmup_steps=recipe.warmup_steps)
        keras.utils.set_random_seed(recipe.seed)
        tf.config.experimental.enable_op_determinism()
        with strategy.scope():
            self.model = make_model()
            if recipe.accumulate > 1 and strategy.num_replicas_in_sync > 1 and any(
                    isinstance(layer, keras.layers.BatchNormalization) for layer in self.model.layers):
                # Its sums over devices cannot be taken within a loop in the graph.
                raise ValueError('--accumulate on several devices: expected a network without batch '
                                 'normalisation; take a smaller --batch_size instead')
            for name in recipe.freeze:
                for layer in updates.layers_of(self.model, name):
                    layer.trainable = False
            self._optimizer = updates.optimizer(recipe, self.rate(0), self.model.trainable_variables)
            self._optimizer.build(self.model.trainable_variables)
        self._calibration = calibration
        self._norms = [layer for layer in self.model.layers
                       if isinstance(layer, keras.layers.BatchNormalization)]
        if self._norms:
            self._before_norms = keras.Model(self.model.input, [layer.input for layer in self._norms])
        self._dropouts = [layer.seed_generator.state for layer in self.model.layers
                          if isinstance(layer, keras.layers.Dropout) and layer.rate]
        self._dropout_seeds = np.random.default_rng(recipe.seed).integers(2**31, size=len(self._dropouts))
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.best_score = tf.Variable(-1.0, trainable=False)
        self.best_step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.stops = self.norms = None
        self._workers = workers
        self.checkpoint = tf.train.Checkpoint(
            model=self.model, optimizer=self._optimizer, step=self.step, best_score=self.best_score,
            best_step=self.best_step)
        # One graph for batches of all sizes: workers that made another one at another time than the others
        # would miss each other in it.
        self._step = tf.function(self._distributed_step, [
            tf.TensorSpec([], tf.int64), tf.TensorSpec([None, *self.model.input_shape[1:]]),
            tf.TensorSpec([None], tf.int32), tf.TensorSpec([]), tf.TensorSpec([]), tf.TensorSpec([], tf.bool)])
        self.guard = None
        if recipe.max_loss_ratio:
            self.guard = self.checkpoint.guard = guards.Guard(recipe.max_loss_ratio, recipe.max_skips)

    def train_step(self, step: int, clips: tf.Tensor, labels: tf.Tensor, *, weight: float | None = None,
                   stop: bool = False, norms: bool = False) -> list[tf.Tensor]:
        """Updates the weights by one batch, shared by all devices.

        With several workers, an update that fails for one of them leaves the state as it was, and `step`.

        Args:
          step: the update's number, counted from 0.
          clips: float32 [B, T, S, S, 3].
          labels: int32 [B].
          weight: of each clip in the mean loss; None: 1/B. With several workers these clips are one
            worker's, and the mean is over those of all.
          stop: this worker wants to stop; see `stops`.
          norms: sets `norms`; the update is the same to the bit.

        Returns:
          [mean loss, hits, hits among the five best classes, clips] of the batch of all workers.

        Raises:
          tf.errors.OpError: a worker was lost.
        """
        self._inner_optimizer().learning_rate.assign(self.rate(step))
        # What changes before the workers' gradients are there.
        early = [*self._moving(), self._optimizer.iterations, self._inner_optimizer().iterations]
        before = [tf.identity(variable.value) for variable in early] if self._workers > 1 else []
        try:
            (*sums, self.stops), found = self._step(
                tf.constant(step, tf.int64), clips, labels,
                tf.constant(1 / len(labels) if weight is None else weight, tf.float32),
                tf.constant(stop, tf.float32), tf.constant(norms))
        except tf.errors.OpError:
            if int(self.step) == step:
                for variable, value in zip(early, before):
                    variable.assign(value)
            raise
        if norms and self._workers == 1:
            self.norms = found
        return sums

    def _inner_optimizer(self) -> keras.optimizers.Optimizer:
        return getattr(self._optimizer, 'inner_optimizer', self._optimizer)

    def _distributed_step(self, step, clips, labels, weight, stop, watched):
        scale = self._optimizer.scale_loss(1.0)  # of this step: the update may change it
        sums, gradients = self._strategy.run(self._replica_step, args=(step, clips, labels, weight, stop))

        def total(value):
            return self._strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)

        sums = total(sums)
        self._strategy.run(self._update, args=(sums, gradients))
        # Read, since a dependency on a variable itself does not wait for what was assigned to it.
        state = [tf.identity(v.value) for v in (*self.model.weights, *self._optimizer.variables)]
        with tf.control_dependencies(state):
            self.step.assign(step + 1)

        def norms():  # l2_loss is half the sum of squares, without an array of them
            return tf.sqrt(2 * tf.stack([
                [tf.nn.l2_loss(total(gradient)) for gradient in gradients],
                [tf.nn.l2_loss(v.value) for v in self.model.trainable_variables]])) / [[scale], [1.0]]

        def none():
            return tf.zeros([2, len(self.model.trainable_variables)])

        # One graph for steps with norms and without: another one might round the update another way. Adding
        # the gradients up once more would be another exchange in which a worker can be missed.
        found = tf.cond(watched, norms, none) if self._workers == 1 else none()
        return tf.unstack(sums), found

    def _update(self, sums, gradients):
        # Adding up the gradients, one exchange for all of them, is the last thing in which a worker can be
        # missed: what follows is done by each for itself, so that a state is of one step or of the next.
        with tf.control_dependencies([sums]):
            gradients = [tf.identity(gradient) for gradient in gradients]
        self._optimizer.apply(self._ready(gradients), self.model.trainable_variables)

    def _replica_step(self, step, clips, labels, weight, stop):
        clips, labels, weights = self._own_rows(clips, labels, weight)
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64)
        parts = self._recipe.accumulate
        if parts == 1:
            sums, gradients = self._gradients(step, replica, clips, labels, weights)
        else:
            sums, gradients = self._accumulated(step, replica, parts, clips, labels, weights)
        return tf.stack([*sums, stop]), gradients

    def _accumulated(self, step, replica, parts, clips, labels, weights):
        """Adds up the gradients of `parts` parts of the batch, one after another: less memory."""
        size = tf.shape(labels)[0]
        parts = tf.minimum(parts, size)

        def add(part, sums, gradients):
            rows = slice(part * size // parts, (part + 1) * size // parts)
            # Every part draws dropout and mixes of its own.
            seed = step + tf.cast(part, tf.int64) * (1 << 40)
            more = self._gradients(seed, replica, clips[rows], labels[rows], weights[rows])
            return part + 1, *tf.nest.map_structure(tf.add, (sums, gradients), more)

        variables = self.model.trainable_variables
        start = (0, [0.0] * 4, [tf.zeros(v.shape) for v in variables])
        _, sums, gradients = tf.while_loop(lambda part, *_: part < parts, add, start, parallel_iterations=1)
        return sums, gradients

    def _gradients(self, step, replica, clips, labels, weights):
        """Returns [loss, hits, hits@5, clips] and the gradients of the loss, both sums over the rows."""
        for state, seed in zip(self._dropouts, self._dropout_seeds):
            # tf.train.Checkpoint omits these states: so they are made anew from the step.
            state.assign(tf.cast(tf.stack([step, seed + replica]), state.dtype))
        smoothing, classes = self._recipe.label_smoothing, self.model.output_shape[-1]
        targets = tf.one_hot(labels, classes, 1 - smoothing + smoothing / classes,
                             smoothing / classes)
        counted = tf.cast(weights > 0, tf.float32)
        if self._class_weights is not None:
            weights *= tf.gather(self._class_weights, labels)
        if self._recipe.mixup:
            seed = tf.stack([step, replica + (self._recipe.seed << 24)])
            clips, targets = updates.mix(clips, targets, self._recipe.mixup, seed)
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.model(clips, training=True)
            loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(targets, logits) * weights)
            scaled = self._optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [v.value for v in variables])
        hits = tf.cast(tf.equal(tf.argmax(logits, 1, tf.int32), labels), tf.float32) * counted
        among = tf.cast(tf.math.in_top_k(labels, logits, min(5, classes)), tf.float32) * counted
        return [loss, tf.reduce_sum(hits), tf.reduce_sum(among), tf.reduce_sum(counted)], gradients

    def _ready(self, gradients):
        """Clips the gradients and adds what is not in the loss, all in the scale of the loss."""
        recipe = self._recipe
        replicas = self._strategy.num_replicas_in_sync
        scale = self._optimizer.scale_loss(1.0)
        if recipe.clip_norm:
            # The norm is of the sum over devices; the optimizer will add up once more.
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            gradients, _ = tf.clip_by_global_norm(gradients, recipe.clip_norm * scale)
            gradients = [gradient / replicas for gradient in gradients]
        if recipe.optimizer == 'sgd':
            gradients = updates.caffe_gradients(
                gradients, self.model.trainable_variables,
                weight_decay=recipe.weight_decay * scale / replicas, bias_rate=recipe.bias_rate)
        return gradients

    def _own_rows(self, clips, labels, weight):
        """Returns this device's share of its worker's clips, and each clip's weight in the mean loss.

        tf.distribute's own split leaves devices without clips at the end of an epoch, which Conv3D does
        not survive. Here shares differ by one clip at most; where there are fewer clips than devices,
        some get a clip of weight 0.
        """
        size = tf.shape(labels)[0]
        devices = self._strategy.num_replicas_in_sync // self._workers  # of this worker
        if devices == 1:
            return clips, labels, tf.fill([size], weight)
        number = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32) % devices
        first, last = number * size // devices, (number + 1) * size // devices
        with tf.device('CPU:0'):  # so that only the share travels to the device
            rows = slice(tf.minimum(first, size - 1), tf.maximum(last, tf.minimum(first, size - 1) + 1))
            clips, labels = clips[rows], labels[rows]
        weight *= tf.cast(last > first, tf.float32)
        return clips, labels, tf.fill(tf.shape(labels), weight)

    @contextlib.contextmanager
    def final_weights(self):
        """Within the block the model has the weights that a run leaves: the moving averages, where the
        recipe keeps them, and statistics of batch normalisation that fit them."""
        moving = self._moving()
        before = [tf.identity(variable.value) for variable in moving]
        self._exchange()
        try:
            if self._calibration is not None and self._norms and (self._recipe.mixup or self._recipe.ema):
                self._calibrate()
            yield
        finally:
            self._exchange()
            for variable, value in zip(moving, before, strict=True):
                variable.assign(value)

    def _moving(self):
        return [variable for norm in self._norms for variable in (norm.moving_mean, norm.moving_variance)]

    def _calibrate(self) -> None:
        """Sets the statistics of batch normalisation to those of unmixed clips under the weights of now.

        A mixture has less contrast than a clip, and no clip has ever gone through averaged weights: what
        the layers gathered in training is of something else than what they will see.
        """
        seen, sums = 0, [0.0] * (2 * len(self._norms))
        for clips, *_ in self._calibration():
            size = len(clips)
            sums = [total + size * found for total, found in zip(sums, self._moments(clips))]
            seen += size
        for norm, mean, variance in zip(self._norms, sums[::2], sums[1::2]):
            norm.moving_mean.assign(mean / seen)
            norm.moving_variance.assign(variance / seen)

    @tf.function(reduce_retracing=True)
    def _moments(self, clips):
        """Returns mean and variance of what each batch normalisation is given, one after another."""

        def on_replica(clips):  # all devices compute the same
            found = []
            for value in tf.nest.flatten(self._before_norms(clips, training=True)):
                found += tf.nn.moments(tf.cast(value, tf.float32), [0, 1, 2, 3])
            return found

        values = self._strategy.run(on_replica, args=(clips,))
        return [self._strategy.experimental_local_results(value)[0] for value in values]

    def _exchange(self) -> None:
        if not self._recipe.ema:
            return
        averages = self._inner_optimizer()._model_variables_moving_average
        for variable, average in zip(self.model.trainable_variables, averages, strict=True):
            value = tf.identity(variable.value)
            variable.assign(average)
            average.assign(value)

    def validate(self, batches) -> float:
        """Returns the share of (clips, labels) batches' clips that the final weights get right; with several
        workers these batches are one worker's, and the share is of those of all."""
        hits = seen = 0
        with self.final_weights():
            for clips, labels in batches:
                predicted = self._predict(clips).numpy()
                hits += int((predicted == np.asarray(labels)).sum())
                seen += len(predicted)
        hits, seen = self.over_workers(tf.constant([hits, seen], tf.int64)).numpy()
        return hits / seen

    def follow(self, is_chief: bool) -> None:
        """Gives all workers the chief's state."""
        state = [v.value for v in (*self.model.weights, *self._optimizer.variables)]
        guard = self.guard.variables if self.guard else []
        for variable in (*state, self.step, self.best_score, self.best_step, *guard):
            value = tf.identity(variable)
            variable.assign(self.over_workers(value if is_chief else tf.zeros_like(value)))

    def over_workers(self, value: tf.Tensor) -> tf.Tensor:
        """Returns the sum of all workers' values, as soon as all are here."""
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None) if self._workers > 1 else value

    @tf.function
    def finite(self) -> tf.Tensor:
        """Returns bool []: no weight is NaN or infinite, as it may be after a step with a finite loss."""
        return tf.reduce_all([tf.reduce_all(tf.math.is_finite(w.value)) for w in self.model.weights])

    @tf.function(reduce_retracing=True)
    def _predict(self, clips):
        return tf.argmax(self.model(clips, training=False), axis=1, output_type=tf.int32)
