# SPDX-License-Identifier: Apache-2.0
"""One update of the weights, against the original's solver and against sums done by hand."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from c3d_tf.training import recipe as recipes
from c3d_tf.training import trainer as trainers
from c3d_tf.training import updates

GOLDEN = pathlib.Path(__file__).parent / 'testdata/tiny_solver.npz'


def _trainer(make_model, total=8, **options):
    return trainers.Trainer(recipes.Recipe(**options), make_model, total, tf.distribute.get_strategy(),
                            options.pop('weights', None))


def _tiny():
    """The network of the original's tiny_train.prototxt."""
    layers = keras.layers
    clips = keras.Input((4, 14, 14, 3))
    x = layers.Conv3D(4, 3, padding='same', activation='relu', name='conv1a')(clips)
    x = layers.MaxPooling3D((1, 2, 2), padding='same')(x)
    x = layers.Conv3D(6, 3, padding='same', activation='relu', name='conv2a')(x)
    x = layers.MaxPooling3D(2, padding='same')(x)
    x = layers.Dense(8, activation='relu', name='fc6')(layers.Flatten()(x))
    return keras.Model(clips, layers.Dense(5, name='fc8')(x))


def _to_keras(name, value):
    if value.ndim == 5:
        return value.transpose(2, 3, 4, 1, 0)
    if name == 'fc6.w':  # 192 inputs in Caffe's order (C, T, H, W) = (6, 2, 4, 4)
        return value.reshape(8, 6, 2, 4, 4).transpose(2, 3, 4, 1, 0).reshape(192, 8)
    return value.T


def test_eight_updates_equal_the_originals_solver():
    golden = np.load(GOLDEN)
    names = [f'{layer}.{kind}' for layer in ('conv1a', 'conv2a', 'fc6', 'fc8') for kind in 'wb']

    def expect(prefix):
        return [_to_keras(name, golden[f'{prefix}.{name}']) for name in names]

    trainer = _trainer(_tiny, learning_rate=0.003, schedule='step', decay_steps=5, weight_decay=0.005,
                       batch_size=4)
    for variable, value in zip(trainer.model.trainable_variables, expect('w0'), strict=True):
        variable.assign(value)
    history = trainer._optimizer.momentums

    def close(values, prefix):
        for name, value, expected in zip(names, values, expect(prefix), strict=True):
            error = np.linalg.norm(value - expected) / np.linalg.norm(expected)
            assert error <= 1e-5, (prefix, name, error)

    clips = golden['input.data'].transpose(0, 2, 3, 4, 1)
    labels = golden['input.label'].astype(np.int32)
    for update in range(1, 9):
        rows = np.arange(4 * (update - 1), 4 * update) % 12
        batch = tf.constant(clips[rows]), tf.constant(labels[rows])
        _, gradients = trainer._gradients(tf.constant(0, tf.int64), tf.constant(0, tf.int64), *batch,
                                          tf.fill([4], 0.25))
        close([g.numpy() for g in gradients], f'grad{update}')
        loss, *_ = trainer.train_step(update - 1, *batch)
        assert float(loss) == pytest.approx(golden['loss'][update - 1], rel=1e-5)
        close([-v.numpy() for v in history], f'update{update}')
        close([v.numpy() for v in trainer.model.trainable_variables], f'w{update}')


def _linear(classes=3, precision='float32'):
    """Logits are the clip's four numbers times a kernel: sums that can be done by hand."""
    keras.utils.set_random_seed(1)
    clips = keras.Input((4,))
    policy = 'float32' if precision == 'float32' else f'mixed_{precision}'
    x = keras.layers.Dense(5, dtype=policy, activation='tanh', name='fc7')(clips)
    return keras.Model(clips, keras.layers.Dense(classes, name='fc8', dtype='float32')(x))


def _batch(size=6, seed=0):
    rng = np.random.default_rng(seed)
    return (tf.constant(rng.normal(size=(size, 4)).astype(np.float32)),
            tf.constant(rng.integers(0, 3, size).astype(np.int32)))


def _run(steps=5, **options):
    trainer = _trainer(_linear, **{'learning_rate': 0.1, 'weight_decay': 0.0, **options})
    losses = [float(trainer.train_step(step, *_batch(seed=step))[0]) for step in range(steps)]
    return trainer, losses


def _weights(trainer):
    return [v.numpy() for v in trainer.model.trainable_variables]


def test_parts_of_a_batch_add_up_to_the_batch():
    whole, losses = _run()
    for parts in (2, 4, 100):
        split, others = _run(accumulate=parts)
        np.testing.assert_allclose(others, losses, rtol=1e-5)
        for a, b in zip(_weights(whole), _weights(split)):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_clipped_as_a_whole():
    trainer, _ = _run(steps=0, clip_norm=0.01, momentum=0.0, bias_rate=1.0)
    before = _weights(trainer)
    trainer.train_step(0, *_batch())
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(_weights(trainer), before)))
    assert moved == pytest.approx(0.1 * 0.01, rel=1e-4)
    assert _run(clip_norm=1e6)[1] == pytest.approx(_run()[1], rel=1e-6)


def test_norms_are_of_the_losses_gradient_and_of_the_new_weights():
    """Of the gradient before it is clipped or decay is added; the update is the same without them."""
    for precision in ('float32', 'float16'):  # whose loss is scaled
        options = {'clip_norm': 0.01, 'weight_decay': 0.1, 'learning_rate': 0.1, 'precision': precision}
        trainer, other = (_trainer(lambda: _linear(precision=precision), **options) for _ in range(2))
        clips, labels = _batch()
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, trainer.model(clips)))
        gradients = tape.gradient(loss, [v.value for v in trainer.model.trainable_variables])
        trainer.train_step(0, clips, labels, norms=True)
        other.train_step(0, clips, labels)
        for found, arrays in zip(trainer.norms.numpy(), (gradients, _weights(trainer)), strict=True):
            np.testing.assert_allclose(found, [np.linalg.norm(array) for array in arrays],
                                       rtol=1e-5 if precision == 'float32' else 0.02)
        assert other.norms is None
        for a, b in zip(_weights(trainer), _weights(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_hits_among_the_five_best():
    trainer = trainers.Trainer(recipes.Recipe(), lambda: _linear(classes=9), 1, tf.distribute.get_strategy())
    clips, _ = _batch(size=9)
    best = np.argsort(-trainer.model(clips).numpy(), axis=1)
    labels = tf.constant(best[np.arange(9), np.arange(9)], tf.int32)  # the best, the second best, …
    _, hits, among_five, seen = trainer.train_step(0, clips, labels)
    assert (float(hits), float(among_five), float(seen)) == (1, 5, 9)


def test_label_smoothing_and_class_weights_by_hand():
    trainer = trainers.Trainer(recipes.Recipe(label_smoothing=0.3), _linear, 1,
                               tf.distribute.get_strategy(), np.array([2.0, 1.0, 0.5]))
    clips, labels = _batch()
    log = tf.nn.log_softmax(trainer.model(clips)).numpy()
    targets = np.eye(3)[labels.numpy()] * 0.7 + 0.1
    expected = np.mean(-(targets * log).sum(axis=1) * np.array([2.0, 1.0, 0.5])[labels.numpy()])
    assert float(trainer.train_step(0, clips, labels)[0]) == pytest.approx(expected, rel=1e-5)


def test_moving_averages_become_the_final_weights():
    trainer, _ = _run(steps=0, ema=0.9)
    trainer.train_step(0, *_batch(seed=0))
    average = _weights(trainer)  # the averages start after the first update
    for step in range(1, 5):
        trainer.train_step(step, *_batch(seed=step))
        average = [0.9 * a + 0.1 * w for a, w in zip(average, _weights(trainer))]
    last = _weights(trainer)
    with trainer.final_weights():
        for value, expected in zip(_weights(trainer), average):
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)
    assert all(np.array_equal(a, b) for a, b in zip(_weights(trainer), last))


def _normalised():
    layers = keras.layers
    clips = keras.Input((2, 4, 4, 3))
    x = layers.BatchNormalization(name='first')(layers.Conv3D(4, 1, name='conv')(clips))
    x = layers.BatchNormalization(name='second')(layers.Conv3D(4, 1, name='conv2')(layers.ReLU()(x)))
    return keras.Model(clips, layers.Dense(3)(layers.GlobalAveragePooling3D()(x)))


@pytest.mark.parametrize('options', [{'mixup': 0.4}, {'ema': 0.9}, {}], ids=str)
def test_statistics_of_batch_normalisation_fit_the_final_weights(options):
    rng = np.random.default_rng(0)
    clips = rng.normal(3, 5, (24, 2, 4, 4, 3)).astype(np.float32)
    labels = rng.integers(3, size=24).astype(np.int32)
    batches = tf.data.Dataset.from_tensor_slices((clips, labels)).batch(16)  # 16 and 8
    trainer = trainers.Trainer(recipes.Recipe(learning_rate=0.01, **options), _normalised, 4,
                               tf.distribute.get_strategy(), calibration=lambda: batches)
    for step in range(4):
        trainer.train_step(step, clips[:16], labels[:16])
    last = trainer.model.get_weights()
    with trainer.final_weights():
        model = trainer.model
        first, second = (model.get_layer(name) for name in ('first', 'second'))
        seen = [model.get_layer('conv')(part) for part in (clips[:16], clips[16:])]
        mean = sum(len(x) * np.mean(x, axis=(0, 1, 2, 3)) for x in seen) / 24
        variance = sum(len(x) * np.var(x, axis=(0, 1, 2, 3)) for x in seen) / 24
        fits = np.allclose(first.moving_mean, mean, rtol=1e-4) and np.allclose(
            first.moving_variance, variance, rtol=1e-4)
        assert fits == bool(options)
        # The second sees what the first makes of its batch, not of the statistics.
        normed = [model.get_layer('conv2')(tf.nn.relu(first(x, training=True))) for x in seen]
        again = sum(len(x) * np.mean(x, axis=(0, 1, 2, 3)) for x in normed) / 24
        assert np.allclose(second.moving_mean, again, rtol=1e-3, atol=1e-5) == bool(options)
    for a, b in zip(last, trainer.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_frozen_layers_do_not_move():
    trainer = _trainer(_linear, freeze=('fc7',), learning_rate=0.1)
    before = trainer.model.get_layer('fc7').get_weights()
    for step in range(3):
        trainer.train_step(step, *_batch())
    after = trainer.model.get_layer('fc7').get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(before, after))
    with pytest.raises(ValueError, match='fc9'):
        _trainer(_linear, freeze=('fc9',))


def test_float16_scales_the_loss_and_computes_the_same():
    exact, losses = _run(weight_decay=0.01, clip_norm=1.0)
    trainer = _trainer(lambda: _linear(precision='float16'), precision='float16', learning_rate=0.1,
                       weight_decay=0.01, clip_norm=1.0)
    scaled = [float(trainer.train_step(step, *_batch(seed=step))[0]) for step in range(5)]
    assert float(trainer._optimizer.dynamic_scale) >= 2**15
    np.testing.assert_allclose(scaled, losses, rtol=0.01)
    for a, b in zip(_weights(exact), _weights(trainer)):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=2e-3)


def test_mixup_mixes_clips_and_targets_alike():
    clips, targets = tf.constant([[1.0], [3.0]]), tf.constant([[1.0, 0.0], [0.0, 1.0]])
    mixed, soft = updates.mix(clips, targets, 0.4, tf.constant([5, 0], tf.int64))
    share = float(soft[0, 0])
    assert 0 < share < 1 and float(mixed[0, 0]) == pytest.approx(share + 3 * (1 - share))
    assert float(tf.reduce_sum(soft)) == pytest.approx(2)
    again, _ = updates.mix(clips, targets, 0.4, tf.constant([5, 0], tf.int64))
    other, _ = updates.mix(clips, targets, 0.4, tf.constant([6, 0], tf.int64))
    assert np.array_equal(mixed, again) and not np.array_equal(mixed, other)


def test_the_rate_is_scaled_to_the_batch_when_asked():
    assert recipes.Recipe(learning_rate=0.3, batch_size=10).rate() == 0.3
    assert recipes.Recipe(learning_rate=0.3, batch_size=10, base_batch_size=30).rate() == pytest.approx(0.1)


def test_layers_of_the_paper_are_found_with_batch_norm_as_well():
    model = recipes.Recipe(model='c3d', width=0.02, crop_size=16, batch_norm=True).network(2)
    assert [layer.name for layer in updates.layers_of(model, 'conv1a')] == ['conv1a_conv', 'conv1a_bn']
    assert [layer.name for layer in updates.layers_of(model, 'fc8')] == ['fc8']
    with pytest.raises(ValueError, match="'pool1' has weights"):
        updates.layers_of(model, 'pool1')
