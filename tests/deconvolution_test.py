# SPDX-License-Identifier: Apache-2.0
"""The deconvolution against one written out cell by cell, with its own network in numpy."""

import itertools

import keras
import numpy as np
import pytest

from c3d_tf import models
from c3d_tf.models import deconvolution

EPSILON = 1e-5


def _network(rng, *, batch_norm=False, shifted=False):
    """Three convolutions with a pool each, whose windows are cut off at the end of 5 x 7 x 9 cells."""
    clips = x = keras.Input((5, 7, 9, 3))
    stages = [(4, 3, (1, 2, 2)), (5, 3, (2, 2, 2)), (6, 1, (2, 2, 2))]
    for number, (filters, depth, pool) in enumerate(stages, 1):
        name = f'conv{number}'
        x = keras.layers.Conv3D(filters, (depth, 3, 3), padding='same', use_bias=not batch_norm,
                                activation=None if batch_norm else 'relu',
                                name=f'{name}_conv' if batch_norm else name)(x)
        if batch_norm:
            x = keras.layers.BatchNormalization(epsilon=EPSILON)(x)
            x = keras.layers.ReLU(name=name)(x)
        if shifted and number == 3:
            x = keras.layers.ZeroPadding3D(((0, 0), (1, 0), (1, 0)))(x)
        x = keras.layers.MaxPooling3D(pool, pool, padding='same', name=f'pool{number}')(x)
    model = keras.Model(clips, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    for variable in model.variables:
        value = rng.normal(size=variable.shape)
        variable.assign(np.abs(value) + 0.5 if 'variance' in variable.path else value)
    return model


def _clip(rng):
    # Few values, and a corner where nothing changes: many windows have several maxima.
    clip = rng.integers(-1, 2, (5, 7, 9, 3)).astype(np.float32)
    clip[:, :5, :6] = 1
    return clip


def _windows(shape, size):
    """Yields (pooled cell, the window's cells inside, in scan order)."""
    for cell in itertools.product(*(range(-(-n // s)) for n, s in zip(shape, size))):
        places = itertools.product(*(range(c * s, c * s + s) for c, s in zip(cell, size)))
        yield cell, [place for place in places if all(p < n for p, n in zip(place, shape))]


def _taps(shape, kernel):
    """Yields (output cell, input cell, kernel cell) of a convolution that keeps the size."""
    for out in itertools.product(*map(range, shape)):
        for at in itertools.product(*map(range, kernel)):
            place = tuple(o + a - k // 2 for o, a, k in zip(out, at, kernel))
            if all(0 <= p < n for p, n in zip(place, shape)):
                yield out, place, at


def _forward(model, clip, last):
    """Returns (activation of layer `last`, the steps that lead back, first step first)."""
    x, steps = clip.astype(np.float64), []
    for layer in model.layers[1:]:
        if isinstance(layer, keras.layers.Conv3D):
            kernel = np.array(layer.kernel, np.float64)
            y = np.zeros((*x.shape[:3], kernel.shape[-1]))
            y += np.array(layer.bias) if layer.use_bias else 0
            for out, place, at in _taps(x.shape[:3], kernel.shape[:3]):
                y[out] += x[place] @ kernel[at]
            steps.append(('conv', kernel))
            if layer.use_bias:
                y = np.maximum(y, 0)
                steps.append(('relu', None))
        elif isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = (value.astype(np.float64) for value in layer.get_weights())
            y = gamma * (x - mean) / np.sqrt(variance + EPSILON) + beta
            steps.append(('scale', gamma / np.sqrt(variance + EPSILON)))
        elif isinstance(layer, keras.layers.ReLU):
            y = np.maximum(x, 0)
            steps.append(('relu', None))
        elif isinstance(layer, keras.layers.ZeroPadding3D):
            y = np.pad(x, [(0, 0), (1, 0), (1, 0), (0, 0)])
            steps.append(('pad', None))
        else:
            pooled = [-(-n // s) for n, s in zip(x.shape, layer.pool_size)]
            y, switches = np.zeros((*pooled, x.shape[-1])), {}
            for cell, inside in _windows(x.shape[:3], layer.pool_size):
                for channel in range(x.shape[-1]):
                    best = inside[0]
                    for place in inside[1:]:
                        if x[place][channel] > x[best][channel]:  # of equal ones the first stays
                            best = place
                    y[cell][channel] = x[best][channel]
                    switches[(*cell, channel)] = best
            steps.append(('pool', (x.shape, switches)))
        x = y
        if layer.name == last:
            return x, steps


def _backward(signal, steps):
    for kind, value in reversed(steps):
        if kind == 'relu':
            signal = np.maximum(signal, 0)
        elif kind == 'scale':
            signal = signal * value
        elif kind == 'pad':
            signal = signal[:, 1:, 1:]
        elif kind == 'conv':
            below = np.zeros((*signal.shape[:3], value.shape[3]))
            for out, place, at in _taps(signal.shape[:3], value.shape[:3]):
                below[place] += value[at] @ signal[out]
            signal = below
        else:
            shape, switches = value
            below = np.zeros(shape)
            for (*cell, channel), place in switches.items():
                below[place][channel] = signal[tuple(cell)][channel]
            signal = below
    return signal


@pytest.mark.parametrize(('last', 'options'), [
    ('conv1', {}), ('conv2', {}), ('conv3', {}), ('pool3', {}), ('conv3', {'batch_norm': True}),
    ('pool3', {'shifted': True})])
def test_equals_a_slow_one(last, options):
    rng = np.random.default_rng(5)
    model, clips = _network(rng, **options), np.stack([_clip(rng), _clip(rng)])
    chain = deconvolution.path(model, last)
    values = deconvolution.forward(chain)(clips)
    checked = 0
    for unit in range(values['activation'].shape[-1]):
        kept, value, place = deconvolution.strongest(values['activation'], unit)
        pixels = keras.ops.convert_to_numpy(deconvolution.project(chain, kept, values))
        for i, clip in enumerate(clips):
            activation, steps = _forward(model, clip, last)
            best = int(np.argmax(activation[..., unit]))  # numpy takes the first of equal ones
            alone = np.zeros(activation.shape)
            cell = np.unravel_index(best, activation.shape[:3])
            alone[cell][unit] = activation[cell][unit]
            expected = _backward(alone, steps)
            assert float(value[i]) == pytest.approx(alone.max(), rel=1e-5)
            assert int(place[i]) == best
            scale = max(np.abs(expected).max(), 1e-9)
            np.testing.assert_allclose(pixels[i] / scale, expected / scale, atol=1e-5)
            checked += expected.any()
    assert checked >= 4


def test_of_equal_maxima_the_first_in_scan_order_is_the_switch():
    clips = keras.Input((2, 2, 2, 1))
    x = keras.layers.Conv3D(1, 1, activation='relu', name='conv')(clips)
    model = keras.Model(clips, keras.layers.MaxPooling3D(2, 2, padding='same', name='pool')(x))
    model.set_weights([np.ones((1, 1, 1, 1, 1)), np.zeros(1)])
    clip = np.zeros((1, 2, 2, 2, 1), np.float32)
    clip[0, 0, 1, 1] = clip[0, 1, 0, 0] = 3
    chain = deconvolution.path(model, 'pool')
    values = deconvolution.forward(chain)(clip)
    pixels = np.array(deconvolution.project(chain, np.full((1, 1, 1, 1, 1), 7, np.float32), values))
    assert pixels[0, 0, 1, 1, 0] == 7 and pixels.sum() == 7


def test_only_what_a_unit_sees_gets_a_signal():
    # conv2a sees 5 frames and, behind pool1, 8 pixels: 3 cells of 2, and 1 on both sides.
    model = models.build('c3d', num_classes=3, crop_size=32, width=0.05, initializer='he')
    chain = deconvolution.path(model, 'conv2a')
    values = deconvolution.forward(chain)(np.random.default_rng(0).normal(size=(1, 16, 32, 32, 3)))
    kept, value, _ = deconvolution.strongest(values['activation'], 0)
    assert float(value[0]) > 0
    pixels = np.array(deconvolution.project(chain, kept, values))[0]
    extent = [np.ptp(axis) + 1 for axis in pixels.any(axis=-1).nonzero()]
    assert 0 < extent[0] <= 5 and 0 < extent[1] <= 8 and 0 < extent[2] <= 8


@pytest.mark.parametrize('name', [name for name in models.MODELS if name != 'res3d_18'])
@pytest.mark.parametrize('pool5', models.POOL5)
def test_every_chain_of_the_models_goes_back_to_pixels(name, pool5):
    model = models.build(name, num_classes=3, clip_length=8, crop_size=24, width=0.03, pool5=pool5,
                         initializer='he')
    chain = deconvolution.path(model, deconvolution.feature_maps(model)[-1])
    assert chain[-1].name == 'pool5'
    values = deconvolution.forward(chain)(np.random.default_rng(1).normal(size=(2, 8, 24, 24, 3)))
    unit = int(np.array(values['activation']).max(axis=(0, 1, 2, 3)).argmax())
    kept, _, _ = deconvolution.strongest(values['activation'], unit)
    pixels = np.array(deconvolution.project(chain, kept, values))
    assert pixels.shape == (2, 8, 24, 24, 3) and np.isfinite(pixels).all() and pixels.any()


def test_what_has_no_way_back_is_refused():
    with pytest.raises(ValueError, match='res3d_18 adds up branches'):
        deconvolution.path(models.build('res3d_18', num_classes=2, crop_size=32, width=0.05), 'res5b')
    model = models.build('c3d', num_classes=2, crop_size=24, width=0.03)
    with pytest.raises(ValueError, match="'fc6' has no feature maps; c3d has conv1a, pool1, conv2a"):
        deconvolution.path(model, 'fc6')
    clips = keras.Input((4, 4, 4, 3))
    overlapping = keras.Model(clips, keras.layers.MaxPooling3D(3, 2, padding='same', name='pool')(clips))
    chain = deconvolution.path(overlapping, 'pool')
    values = deconvolution.forward(chain)(np.zeros((1, 4, 4, 4, 3)))
    with pytest.raises(ValueError, match='overlap'):
        deconvolution.project(chain, values['activation'], values)


@pytest.mark.parametrize('batch_norm', [False, True])
def test_filters_are_kernels_times_the_factor_of_their_normalisation(batch_norm):
    model = models.build('c3d', num_classes=2, crop_size=24, width=0.05, batch_norm=batch_norm)
    kernel = model.layers[1].get_weights()[0]
    factor = np.ones(3)
    if batch_norm:
        gamma, beta, mean, variance = model.layers[2].get_weights()
        factor = np.array([-2.0, 0.5, 3.0])
        model.layers[2].set_weights([factor, beta, mean, variance])
        factor = factor / np.sqrt(1 + EPSILON)
    name, found = deconvolution.filters(model)
    assert name == 'conv1a' and found.shape == (3, 3, 3, 3, 3)
    np.testing.assert_allclose(found, kernel * factor, rtol=1e-6)
