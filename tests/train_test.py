# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from c3d_tf import prepare
from c3d_tf import train
from c3d_tf.common import errors
from c3d_tf.data import datasets
from c3d_tf.data import moving_shapes
from c3d_tf.data import pipeline
from c3d_tf.data import preprocess
from c3d_tf.data import records
from c3d_tf.training import updates
from c3d_tf.weights import artefact
from tests import conftest

SMALL = dict(model='depth_3', width=0.05, crop_size=20, mean='channel', batch_size=4, steps=3)


@pytest.fixture(scope='module')
def records_dir(folder, tmp_path_factory):
    target = str(tmp_path_factory.mktemp('train') / 'records')
    prepare.prepare(datasets.load('folder', videos=str(folder)), target, frame_size=(24, 32))
    return target


def _variables():
    layer = keras.layers.Dense(2, name='fc')
    layer.build((None, 3))
    return layer.trainable_variables


def test_sgd_is_caffes():
    rng = np.random.default_rng(0)
    variables = _variables()
    weights = [rng.normal(size=v.shape).astype('float32') for v in variables]
    for variable, value in zip(variables, weights):
        variable.assign(value)
    history = [np.zeros_like(value) for value in weights]
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(variables)
    for rate in (0.1, 0.1, 0.01):  # the rate falls while there is momentum
        gradients = [rng.normal(size=v.shape).astype('float32') for v in variables]
        for i, (rate_mult, decay_mult) in enumerate([(1, 1), (2, 0)]):
            history[i] = 0.9 * history[i] + rate * rate_mult * (
                gradients[i] + 0.005 * decay_mult * weights[i])
            weights[i] = weights[i] - history[i]
        optimizer.learning_rate.assign(rate)
        optimizer.apply(updates.caffe_gradients(gradients, variables, weight_decay=0.005, bias_rate=2.0),
                        variables)
        for variable, expected in zip(variables, weights):
            np.testing.assert_allclose(variable.numpy(), expected, rtol=2e-6)


def test_a_run_is_the_same_whatever_its_process_did_before(records_dir, tmp_path):
    """Statistics for averaged weights are of batches, so they depend on which clips are in one."""
    recipe = train.Recipe(**SMALL | {'batch_norm': True, 'ema': 0.9})
    found = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        train.fit(records_dir, str(tmp_path / str(seed)), recipe)
        found.append(artefact.load(str(tmp_path / str(seed) / 'model.keras')).model.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_network_learns_and_says_how_it_was_made(records_dir, tmp_path):
    recipe = train.Recipe(**{**SMALL, 'steps': 60}, batch_norm=True, initializer='he', head='pool',
                          dropout=0.0, optimizer='adam', learning_rate=0.01, flip=False)
    result = train.fit(records_dir, str(tmp_path), recipe, log_every=10)
    assert result['loss'] < 0.3 and result['steps'] == 60
    net = artefact.load(str(tmp_path / 'model.keras'))
    assert net.class_names == ('ball', 'water')
    assert net.provenance['settings']['learning_rate'] == 0.01


def test_init_from_copies_all_but_the_layers_named(records_dir, tmp_path, capsys):
    train.fit(records_dir, str(tmp_path / 'a'), train.Recipe(**SMALL))
    start = str(tmp_path / 'a/model.keras')
    recipe = train.Recipe(**{**SMALL, 'steps': 1}, learning_rate=0.0, init_from=start, reinit=('fc8',))
    train.fit(records_dir, str(tmp_path / 'b'), recipe)
    said = capsys.readouterr().out
    assert 'at random: fc8' in said and 'this run takes' not in said  # the same preprocessing
    other = dataclasses.replace(recipe, mean='none', short='repeat_last')
    train.fit(records_dir, str(tmp_path / 'other'), other)
    theirs, own = capsys.readouterr().out.split('they were trained on ')[1].splitlines()[:2]
    assert 'short loop, mean ' in theirs and 'this run takes' in own and 'short repeat_last, mean 0.00' in own
    a, b = (artefact.load(str(tmp_path / name / 'model.keras')).model for name in 'ab')
    for layer in a.layers:
        same = [np.array_equal(x, y) for x, y in zip(layer.get_weights(), b.get_layer(layer.name).get_weights())]
        assert all(same) or layer.name == 'fc8'
    with pytest.raises(errors.UsageError, match="no such layer as 'fc9' has weights in depth_3"):
        train.fit(records_dir, str(tmp_path / 'c'), train.Recipe(**SMALL, init_from=start, reinit=('fc9',)))
    with pytest.raises(errors.UsageError, match='conv1 should be'):
        train.fit(records_dir, str(tmp_path / 'c'),
                  train.Recipe(**{**SMALL, 'model': 'depth_5'}, init_from=start))


def test_a_loss_that_is_no_number_stops_before_it_is_saved(records_dir, tmp_path):
    recipe = train.Recipe(**{**SMALL, 'steps': 50}, learning_rate=1e30)
    with pytest.raises(errors.RunError, match='loss is not a number'):
        train.fit(records_dir, str(tmp_path), recipe, log_every=5)
    assert not (tmp_path / 'model.keras').exists()


def test_weights_that_are_no_numbers_are_never_saved(records_dir, tmp_path):
    # The first loss is finite; its update multiplies the weights by 1e60.
    recipe = train.Recipe(**{**SMALL, 'steps': 1}, learning_rate=1e30, weight_decay=1e30)
    with pytest.raises(errors.RunError, match='weights are not numbers any more; the last batch: train/') as error:
        train.fit(records_dir, str(tmp_path), recipe)
    assert '--learning_rate' in str(error.value)
    assert not (tmp_path / 'model.keras').exists() and not (tmp_path / 'checkpoints').exists()


def test_balanced_weights_count_the_clips_of_an_epoch(records_dir, tmp_path):
    """ball has 20 and 31 frames, water 16 and 7: at clips of 7 frames 2 + 4 clips against 2 + 1."""
    index = records.read_index(records_dir)
    split = index.split('train')
    spec = preprocess.Preprocessing((24, 32), 20, 7, 1, np.zeros((), np.float32))
    per_record = pipeline.training_clips(split, spec, 'all')
    assert per_record.tolist() == [2, 4, 2, 1]
    balanced = train.Recipe(class_weights='balanced')
    weights = train._class_weights(balanced, index, split, per_record)
    np.testing.assert_allclose(weights, [4.5 / 6, 4.5 / 3])
    # One random clip of each record: the classes count the same as they are.
    np.testing.assert_allclose(train._class_weights(balanced, index, split, np.ones(4, int)), [1, 1])
    # Records without labels in their index are read.
    data = json.loads(json.dumps(index.data))
    del data['splits']['train']['shards'][0]['labels']
    old = train._class_weights(balanced, records.Index(records_dir, data), split, per_record)
    np.testing.assert_array_equal(old, weights)
    # Of two labels a clip takes each half of the time; a class without clips counts 0.
    data['splits']['train']['shards'][0]['labels'] = [[0], [0, 2], [2], [2]]
    data['class_names'] = ['a', 'b', 'c']
    several = train._class_weights(balanced, records.Index(records_dir, data), split, per_record)
    np.testing.assert_allclose(several, [4.5 / 4, 0, 4.5 / 5])


def test_an_option_that_an_older_run_did_not_know_had_its_default(records_dir, tmp_path):
    train.fit(records_dir, str(tmp_path), train.Recipe(**SMALL))
    result = json.loads((tmp_path / 'train.json').read_text())
    del result['settings']['rand_augment']
    (tmp_path / 'train.json').write_text(json.dumps(result))
    assert train.fit(records_dir, str(tmp_path), train.Recipe(**SMALL))['status'] == 'done'
    with pytest.raises(errors.UsageError, match='rand_augment: was 0, now 2'):
        train.fit(records_dir, str(tmp_path), train.Recipe(**SMALL, rand_augment=2))


def test_plain_keras_fit_works_on_the_pipeline(records_dir):
    index = records.read_index(records_dir)
    spec = preprocess.Preprocessing((24, 32), 20, 16, 1, np.float32(100) * np.ones((), np.float32))
    batches = pipeline.for_training(index.split('train'), spec, batch_size=4, epoch=0)
    model = train.Recipe(**SMALL).network(2)
    model.compile('sgd', keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(batches.map(lambda clips, labels, _: (clips, labels)), verbose=0)
    assert np.isfinite(history.history['loss'][0])


def test_two_devices_compute_what_one_does(tmp_path):
    """In a process of its own, since logical devices are made before TensorFlow starts."""
    script = '''
import sys
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from c3d_tf import train
from c3d_tf.weights import artefact
for strategy in ('default', 'mirrored'):
    recipe = train.Recipe(model='depth_3', width=0.05, crop_size=20, mean='channel', batch_size=3, steps=20,
                          dropout=0.0, initializer='he', batch_norm=sys.argv[3] == 'bn',
                          learning_rate=0.001 if sys.argv[3] == 'bn' else 1e-6,
                          strategy=strategy)
    train.fit(sys.argv[1], f'{sys.argv[2]}/{strategy}', recipe, log_every=1)
'''
    # Pictures with texture: on flat ones the variance of one clip is all rounding.
    for i in range(7):
        label = moving_shapes.CLASSES[i % 2]
        frames = moving_shapes.render(label, np.random.default_rng(i), height=48, width=64, num_frames=18)
        conftest.write_video(tmp_path / f'v/train/{label}/{i}.avi', frames)
    records_dir = str(tmp_path / 'r')
    prepare.prepare(datasets.load('folder', videos=str(tmp_path / 'v')), records_dir, frame_size=(24, 32))
    for batch_norm in ('plain', 'bn'):
        out = tmp_path / batch_norm
        done = subprocess.run([sys.executable, '-c', script, records_dir, str(out), batch_norm], text=True,
                              capture_output=True, cwd=pathlib.Path(train.__file__).parents[1])
        assert done.returncode == 0, done.stderr[-2000:]
        assert '2 device(s)' in done.stdout
        for name in ('loss', 'gradient_norm/all', 'weight_norm/all'):
            one, two = (_curve(out / strategy, name) for strategy in ('default', 'mirrored'))
            assert len(one) == 20  # batches of 3, 3 and 1: at the end of an epoch one device has no clip
            np.testing.assert_allclose(two, one, rtol=1e-4 if name == 'loss' else 1e-3, atol=1e-5)


def _curve(workdir, name):
    path, = (workdir / 'tensorboard/train').glob('events*')
    found = []
    for event in tf.compat.v1.train.summary_iterator(str(path)):
        found += [float(tf.make_ndarray(value.tensor)) for value in event.summary.value if value.tag == name]
    return found
