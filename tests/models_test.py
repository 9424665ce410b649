# SPDX-License-Identifier: Apache-2.0
import keras
import numpy as np
import pytest

from c3d_tf import models
from c3d_tf.models import precisions

# name → (parameters of the convolutions, of the whole net with 101 classes); appendix of the paper
# and the shapes of Figure 3. The paper's own "17K parameters a step" forgot the input channels.
PARAMETERS = {
    'c3d': (27_655_936, 78_409_573),
    'depth_1': (1_550_976, 14_344_933),
    'depth_3': (4_651_008, 17_444_965),
    'depth_5': (7_751_040, 20_544_997),
    'depth_7': (10_851_072, 23_645_029),
    'increasing': (8_779_776, 21_573_733),
    'decreasing': (5_395_200, 18_189_157),
}


def test_every_network_is_in_the_table():
    assert PARAMETERS.keys() == models.MODELS.keys()


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameter_counts(name):
    model = models.build(name, num_classes=101)
    convolutions = sum(layer.count_params() for layer in model.layers if layer.name.startswith('conv'))
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


def test_initialisers_are_the_prototxts():
    keras.utils.set_random_seed(0)
    model = models.build('c3d', num_classes=101)
    expected = {'conv1a': (0.01, 0), 'conv2a': (0.01, 1), 'conv5b': (0.01, 1), 'fc6': (0.005, 1),
                'fc7': (0.005, 1), 'fc8': (0.01, 0)}
    for name, (stddev, bias) in expected.items():
        kernel, biases = model.get_layer(name).get_weights()
        assert kernel.std() == pytest.approx(stddev, rel=0.03), name
        assert (biases == bias).all(), name


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


def test_pools_cover_what_caffes_ceil_mode_covers():
    # 7 cells: windows {0,1} {2,3} {4,5} {6}; a shifted port would give 0, 2, 4, 6.
    pool = models.build('c3d', num_classes=2, width=0.02).get_layer('pool5')
    ramp = np.broadcast_to(np.arange(7.0), (1, 2, 7, 7))[..., None]
    out = keras.ops.convert_to_numpy(pool(ramp))[0, 0, 0, :, 0]
    assert out.tolist() == [1, 3, 5, 6]


@pytest.mark.parametrize(('clip_length', 'crop_size'), [(8, 112), (16, 56), (24, 160), (16, 224)])
def test_other_sizes(clip_length, crop_size):
    model = models.build('c3d', num_classes=2, clip_length=clip_length, crop_size=crop_size, width=0.02)
    assert model.output_shape == (None, 2)


@pytest.mark.parametrize(('options', 'message'), [
    ({'name': 'c4d'}, 'expected one of c3d, depth_1'),
    ({'precision': 'int8'}, 'expected one of float32'),
    ({'head': 'none'}, 'expected one of fc, pool'),
])
def test_wrong_use(options, message):
    with pytest.raises(ValueError, match=message):
        models.build(**{'name': 'c3d', 'num_classes': 2, **options})


def test_short_convolutions_stay_in_float32():
    assert precisions.for_convolution('bfloat16', time=2, depth=3) == 'float32'
    assert precisions.for_convolution('bfloat16', time=1, depth=3) == 'mixed_bfloat16'
    assert precisions.for_convolution('bfloat16', time=4, depth=3) == 'mixed_bfloat16'
    model = models.build('c3d', num_classes=2, precision='bfloat16', width=0.02)
    short = [layer.name for layer in model.layers
             if layer.name.startswith('conv') and layer.compute_dtype == 'float32']
    assert short == ['conv5a', 'conv5b']
    assert model.output.dtype == 'float32'
