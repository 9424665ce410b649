# SPDX-License-Identifier: Apache-2.0
import keras
import numpy as np
import pytest

from c3d_tf.common import errors
from c3d_tf.models import imagenet as network
from c3d_tf.weights import imagenet

SIZE, LENGTH = 64, 3


def test_features_are_the_mean_over_frames(tmp_path):
    # Weights by file, and the network's own preprocessing (VGG16: BGR minus the mean of ImageNet).
    keras.utils.set_random_seed(3)
    net = keras.applications.VGG16(include_top=False, weights=None, pooling='avg',
                                   input_shape=(SIZE, SIZE, 3))
    path = str(tmp_path / 'vgg16_notop.weights.h5')
    net.save_weights(path)
    clips = np.random.default_rng(0).uniform(0, 255, (2, LENGTH, SIZE, SIZE, 3)).astype(np.float32)
    bgr = clips.reshape(-1, SIZE, SIZE, 3)[..., ::-1] - [103.939, 116.779, 123.68]
    expected = net.predict(bgr, verbose=0).reshape(2, LENGTH, -1).mean(axis=1)
    found = imagenet.load(f'imagenet:VGG16:{path}', clip_length=LENGTH, crop_size=SIZE)
    values = found.model.predict(clips, verbose=0)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)
    assert values.std() > 0 and found.model.get_layer('features').output.shape == (None, 512)
    assert found.preprocessing.frame_size == (SIZE, SIZE) and found.provenance['weights'] == path


def test_random_weights_say_so_and_repeat():
    one, two = (imagenet.load('imagenet:MobileNetV2', clip_length=LENGTH, crop_size=SIZE)
                for _ in range(2))
    assert one.provenance['weights'] == 'random, seed 0' and one.sha256 == two.sha256
    for a, b in zip(one.model.get_weights(), two.model.get_weights()):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(('weights', 'message'), [
    ('imagenet:Nothing', 'expected a network of keras.applications: .*MobileNetV2'),
    ('imagenet:VGG16:nowhere.h5', 'no such file as nowhere.h5'),
    ('imagenet:VGG16:{bad}', 'not the weights of VGG16'),
])
def test_bad_names_and_files_are_refused(tmp_path, weights, message):
    (tmp_path / 'bad.weights.h5').write_bytes(b'nothing')
    with pytest.raises(errors.UsageError, match=message):
        imagenet.load(weights.format(bad=tmp_path / 'bad.weights.h5'), clip_length=LENGTH,
                      crop_size=SIZE)


def test_the_network_opens_in_plain_keras(tmp_path):
    model = network.build('MobileNetV2', clip_length=LENGTH, crop_size=SIZE)
    model.save(tmp_path / 'model.keras')
    clips = np.full((1, LENGTH, SIZE, SIZE, 3), 100, np.float32)
    again = keras.models.load_model(tmp_path / 'model.keras', safe_mode=True)
    np.testing.assert_array_equal(again.predict(clips, verbose=0), model.predict(clips, verbose=0))
