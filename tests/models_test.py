# SPDX-License-Identifier: Apache-2.0
import math

import keras
import numpy as np
import pytest

from c3d_tf import models
from c3d_tf.models import precisions

# name → (parameters of the convolutions, of the whole net with 101 classes); appendix of the paper
# and the shapes of Figure 3. The paper's own "17K parameters a step" forgot the input channels.
#
# c3d_bn: 64 + 128 + 2·256 + 4·512 = 2,752 filters lose their bias and get gamma, beta, mean and
#   variance, so it is c3d and 3·2,752 = 8,256.
# res3d_18: kernels, by stage:       3·7·7·3·64                          =     28,224
#   4·27·64·64 + 64·64  (res2)       442,368 +  4,096                    =    446,464
#   27·64·128 + 3·27·128·128 + 64·128  (res3)                            =  1,556,480
#   the same with twice, four times the filters: times 4, times 16       = 31,129,600  sum 33,160,768
#   channels of batch norm: 64·(1 + 5) + 5·(128 + 256 + 512) = 4,864, times 4 = 19,456: gamma and
#   beta, the original's 9,728, and the moving mean and variance, which Keras counts too.
#   fc8: 513·101 = 51,813.
PARAMETERS = {
    'c3d': (27_655_936, 78_409_573),
    'c3d_bn': (27_655_936 + 8_256, 78_409_573 + 8_256),
    'depth_1': (1_550_976, 14_344_933),
    'depth_3': (4_651_008, 17_444_965),
    'depth_5': (7_751_040, 20_544_997),
    'depth_7': (10_851_072, 23_645_029),
    'increasing': (8_779_776, 21_573_733),
    'decreasing': (5_395_200, 18_189_157),
    'res3d_18': (33_160_768 + 19_456, 33_160_768 + 19_456 + 51_813),
}


def test_every_network_is_in_the_table():
    assert PARAMETERS.keys() == models.MODELS.keys()


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameter_counts(name):
    model = models.build(name, num_classes=101)
    convolutions = sum(layer.count_params() for layer in model.layers if not layer.name.startswith('fc'))
    assert (convolutions, model.count_params()) == PARAMETERS[name]


def test_c3d_of_sports1m():
    model = models.build('c3d', num_classes=487)
    assert model.count_params() == 79_991_015
    shapes = {layer.name: tuple(layer.output.shape[1:]) for layer in model.layers}
    assert shapes == {
        'clips': (16, 112, 112, 3), 'conv1a': (16, 112, 112, 64), 'pool1': (16, 56, 56, 64),
        'conv2a': (16, 56, 56, 128), 'pool2': (8, 28, 28, 128), 'conv3a': (8, 28, 28, 256),
        'conv3b': (8, 28, 28, 256), 'pool3': (4, 14, 14, 256), 'conv4a': (4, 14, 14, 512),
        'conv4b': (4, 14, 14, 512), 'pool4': (2, 7, 7, 512), 'conv5a': (2, 7, 7, 512),
        'conv5b': (2, 7, 7, 512), 'pool5': (1, 4, 4, 512), 'flatten': (8192,), 'fc6': (4096,),
        'drop6': (4096,), 'fc7': (4096,), 'drop7': (4096,), 'fc8': (487,)}


def test_res3d_18_of_sports1m():
    model = models.build('res3d_18', num_classes=487, clip_length=8)
    trainable = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    assert trainable == 33_160_768 + 9_728 + 249_831  # kernels, gamma and beta, fc8
    shapes = {name: tuple(model.get_layer(name).output.shape[1:])
              for name in ('conv1', 'res2b', 'res3b', 'res4b', 'res5b', 'pool5', 'fc8')}
    assert shapes == {
        'conv1': (8, 56, 56, 64), 'res2b': (8, 56, 56, 64), 'res3b': (4, 28, 28, 128),
        'res4b': (2, 14, 14, 256), 'res5b': (1, 7, 7, 512), 'pool5': (512,), 'fc8': (487,)}


# Multiplications of a clip with 487 classes. res3d_18: kernels as above, each times its output's cells:
#   28,224·25,088 + 446,464·25,088 + 1,556,480·3,136 + 6,225,920·392 + 24,903,680·49 + 512·487
@pytest.mark.parametrize(('name', 'clip_length', 'expected'), [
    ('c3d', 16, 38_548_959_232), ('c3d_bn', 16, 38_548_959_232), ('res3d_18', 8, 20_451_184_128)])
def test_multiplications(name, clip_length, expected):
    model = models.build(name, num_classes=487, clip_length=clip_length)
    assert sum(math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
               for layer in model.layers if hasattr(layer, 'kernel')) == expected


def test_initialisers_are_the_prototxts():
    keras.utils.set_random_seed(0)
    model = models.build('c3d', num_classes=101)
    expected = {'conv1a': (0.01, 0), 'conv2a': (0.01, 1), 'conv5b': (0.01, 1), 'fc6': (0.005, 1),
                'fc7': (0.005, 1), 'fc8': (0.01, 0)}
    for name, (stddev, bias) in expected.items():
        kernel, biases = model.get_layer(name).get_weights()
        assert kernel.std() == pytest.approx(stddev, rel=0.03), name
        assert (biases == bias).all(), name


def test_initialisers_of_res3d_18_are_the_prototxts():
    keras.utils.set_random_seed(0)
    model = models.build('res3d_18', num_classes=101, clip_length=8)
    # msra by FAN_OUT: a Gaussian of variance 2 / (filters · cells of the kernel)
    expected = {'conv1': (64, 147), 'res2a_branch1': (64, 1), 'res3a_branch2a': (128, 27),
                'res5a_branch1': (512, 1), 'res5b_branch2b': (512, 27)}
    for name, (filters, cells) in expected.items():
        kernel, = model.get_layer(f'{name}_conv').get_weights()
        assert kernel.std() == pytest.approx((2 / (filters * cells)) ** 0.5, rel=0.03), name
        assert abs(kernel).max() > 2.5 * kernel.std()  # not cut off at two deviations
    kernel, bias = model.get_layer('fc8').get_weights()
    assert kernel.std() == pytest.approx(0.01, rel=0.03)
    assert (bias == 0).all()


@pytest.mark.parametrize('name', PARAMETERS)
@pytest.mark.parametrize('batch_norm', [False, True])
def test_convolutions_and_hidden_layers_give_the_value_after_relu(name, batch_norm):
    keras.utils.set_random_seed(0)
    model = models.build(name, num_classes=40, crop_size=32, width=0.05, batch_norm=batch_norm,
                         initializer='he')
    names = [layer.name for layer in model.layers
             if layer.name.startswith(('conv', 'fc')) and '_' not in layer.name]
    inner = keras.Model(model.input, [model.get_layer(n).output for n in names])
    clips = np.random.default_rng(0).normal(0, 50, (2, 16, 32, 32, 3)).astype('float32')
    for layer, value in zip(names, inner(clips)):
        assert (keras.ops.min(value) < 0 if layer == 'fc8' else keras.ops.min(value) == 0), layer


def test_res3d_18_is_what_caffe_computes():
    """Every named layer against numpy, at even and odd sides and lengths: 20 10 5 3 2, 6 3 2 1."""
    keras.utils.set_random_seed(0)
    model = models.build('res3d_18', num_classes=5, clip_length=6, crop_size=20, width=0.05)
    rng = np.random.default_rng(0)
    weights = {}
    for layer in model.layers:
        if layer.name.startswith('bn'):
            gamma, beta, mean, variance = rng.normal(0, 0.25, (4, *layer.gamma.shape))
            layer.set_weights([1 + gamma, beta, mean, 0.5 + variance ** 2])
        weights[layer.name] = [value.astype('float64') for value in layer.get_weights()]
    clips = rng.normal(size=(2, 6, 20, 20, 3)).astype('float32')
    expected = _res3d_18_in_numpy(clips.astype('float64'), weights)
    assert len(expected) == 1 + 4 * 2 + 16 + 4 + 2  # conv1, res*, branches 2, branches 1, pool5 and fc8
    inner = keras.Model(model.input, [model.get_layer(name).output for name in expected])
    for name, value in zip(expected, inner(clips)):
        error = _relative(keras.ops.convert_to_numpy(value), expected[name])
        assert error < 1e-5, name
    # In a graph TensorFlow merges padding, convolution and normalisation.
    assert _relative(model.predict(clips, verbose=0), expected['fc8']) < 1e-5


def _relative(value, expected):
    return abs(value - expected).max() / abs(expected).max()


def _res3d_18_in_numpy(x, weights):
    """Returns what each of Caffe's blobs holds in the end, by name: [B, T, H, W, C] clips → logits."""
    blobs = {}

    def convolve(x, name, kernel, stride, pad, relu):
        x = _conv3d_in_numpy(x, *weights[f'{name}_conv'], stride, pad)
        assert weights[f'{name}_conv'][0].shape[:3] == kernel
        norm = {'conv1': 'bn_conv1'}.get(name, f'bn{name[3:]}')
        gamma, beta, mean, variance = weights[norm]  # (C) each
        x = (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta
        blobs[name] = np.maximum(x, 0) if relu else x
        return blobs[name]

    x = convolve(x, 'conv1', (3, 7, 7), (1, 2, 2), (1, 3, 3), relu=True)
    for block in ('res2a', 'res2b', 'res3a', 'res3b', 'res4a', 'res4b', 'res5a', 'res5b'):
        stride = (2, 2, 2) if block in ('res3a', 'res4a', 'res5a') else (1, 1, 1)
        shortcut = x
        if block.endswith('a'):
            shortcut = convolve(x, f'{block}_branch1', (1, 1, 1), stride, (0, 0, 0), relu=False)
        x = convolve(x, f'{block}_branch2a', (3, 3, 3), stride, (1, 1, 1), relu=True)
        x = convolve(x, f'{block}_branch2b', (3, 3, 3), (1, 1, 1), (1, 1, 1), relu=False)
        x = blobs[block] = np.maximum(shortcut + x, 0)
    x = blobs['pool5'] = x.mean((1, 2, 3))
    kernel, bias = weights['fc8']
    blobs['fc8'] = x @ kernel + bias
    return blobs


def _conv3d_in_numpy(x, kernel, stride, pad):
    """Returns the convolution as Caffe defines it: `pad` zeros on both sides, then every window."""
    x = np.pad(x, [(0, 0), *((p, p) for p in pad), (0, 0)])
    sides = [(size - cells) // step + 1
             for size, cells, step in zip(x.shape[1:4], kernel.shape[:3], stride)]
    out = np.zeros((len(x), *sides, kernel.shape[-1]))
    for place in np.ndindex(*sides):
        window = x[:, *(slice(i * step, i * step + cells)
                        for i, step, cells in zip(place, stride, kernel.shape[:3]))]
        out[:, *place] = np.tensordot(window, kernel, 4)  # (B, t, h, w, C) with (t, h, w, C, F)
    return out


def test_pools_cover_what_caffes_ceil_mode_covers():
    # 7 cells: windows {0,1} {2,3} {4,5} {6}; a shifted port would give 0, 2, 4, 6.
    pool = models.build('c3d', num_classes=2, width=0.02).get_layer('pool5')
    ramp = np.broadcast_to(np.arange(7.0), (1, 2, 7, 7))[..., None]
    out = keras.ops.convert_to_numpy(pool(ramp))[0, 0, 0, :, 0]
    assert out.tolist() == [1, 3, 5, 6]


@pytest.mark.parametrize('name', ['c3d', 'res3d_18'])
@pytest.mark.parametrize(('clip_length', 'crop_size'),
                         [(8, 112), (16, 56), (24, 160), (16, 224), (7, 45)])
def test_other_sizes(name, clip_length, crop_size):
    model = models.build(name, num_classes=2, clip_length=clip_length, crop_size=crop_size, width=0.02)
    assert model.output_shape == (None, 2)


def test_options_that_belong_to_a_network_change_nothing():
    options = {'num_classes': 2, 'crop_size': 32, 'width': 0.05}
    names = [layer.name for layer in models.build('c3d', **options, batch_norm=True).layers]
    for batch_norm in (False, True):
        model = models.build('c3d_bn', **options, batch_norm=batch_norm)
        assert (model.name, [layer.name for layer in model.layers]) == ('c3d_bn', names)
    plain, asked = (models.build('res3d_18', **options, **more) for more in
                    ({}, {'batch_norm': True, 'head': 'pool', 'dropout': 0.0}))
    assert [layer.name for layer in plain.layers] == [layer.name for layer in asked.layers]


@pytest.mark.parametrize(('options', 'message'), [
    ({'name': 'c4d'}, 'expected one of c3d, c3d_bn, depth_1'),
    ({'precision': 'int8'}, 'expected one of float32'),
    ({'head': 'none'}, 'expected one of fc, pool'),
])
def test_wrong_use(options, message):
    with pytest.raises(ValueError, match=message):
        models.build(**{'name': 'c3d', 'num_classes': 2, **options})


@pytest.mark.parametrize(('name', 'clip_length', 'expected'), [
    ('c3d', 16, ['conv5a', 'conv5b']),
    ('c3d_bn', 16, ['conv5a_conv', 'conv5b_conv']),
    # res4 has 2 frames, res5 one. To res5a_branch2a come 2 frames and a zero frame on each side: 4.
    ('res3d_18', 8, ['res4a_branch2b_conv', 'res4b_branch2a_conv', 'res4b_branch2b_conv']),
])
def test_short_convolutions_stay_in_float32(name, clip_length, expected):
    assert precisions.for_convolution('bfloat16', time=2, depth=3) == 'float32'
    assert precisions.for_convolution('bfloat16', time=1, depth=3) == 'mixed_bfloat16'
    assert precisions.for_convolution('bfloat16', time=4, depth=3) == 'mixed_bfloat16'
    model = models.build(name, num_classes=2, precision='bfloat16', width=0.02, clip_length=clip_length)
    short = [layer.name for layer in model.layers
             if isinstance(layer, keras.layers.Conv3D) and layer.compute_dtype == 'float32']
    assert short == expected
    assert model.output.dtype == 'float32'


@pytest.mark.parametrize('name', PARAMETERS)
def test_a_network_converted_to_bfloat16_is_one_built_so(name):
    options = {'num_classes': 3, 'width': 0.1, 'crop_size': 64}
    model = models.build(name, **options)
    converted = precisions.convert(model, 'bfloat16')
    built = models.build(name, precision='bfloat16', **options)
    assert [layer.dtype_policy.name for layer in converted.layers] == [
        layer.dtype_policy.name for layer in built.layers]
    assert len({layer.dtype_policy.name for layer in converted.layers}) == 2
    for ours, theirs in zip(model.get_weights(), converted.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    back = precisions.convert(converted, 'float32')
    assert {layer.dtype_policy.name for layer in back.layers} == {'float32'}


def test_pool5_shifted_is_padded_on_both_sides():
    # c3d-pytorch: MaxPool3d(kernel_size=(2, 2, 2), stride=(2, 2, 2), padding=(0, 1, 1))
    model = models.build('c3d', num_classes=2, width=0.1, pool5='shifted')
    x = np.arange(2 * 49 * 51, dtype=np.float32).reshape(1, 2, 7, 7, 51)
    tail = keras.Model(model.get_layer('pool5_pad').input, model.get_layer('pool5').output)
    found = keras.ops.convert_to_numpy(tail(x))[0, 0]
    edges = [(0, 1), (1, 3), (3, 5), (5, 7)]
    expected = [[x[0, :, a:b, c:d].max(axis=(0, 1, 2)) for c, d in edges] for a, b in edges]
    np.testing.assert_array_equal(found, np.array(expected))
