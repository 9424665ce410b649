# SPDX-License-Identifier: Apache-2.0
"""TensorBoard on runs of the front door: what the events hold, what a browser shows, what it costs the weights."""

import dataclasses
import io
import json
import pathlib
import re
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.plugins.projector import projector_config_pb2

from c3d_tf import main
from c3d_tf import train
from c3d_tf.data import moving_shapes
from c3d_tf.weights import artefact
from tests import browser
from tests import conftest

TINY = ['--model=depth_3', '--frame_size=40x48', '--crop_size=32', '--clip_length=8', '--width=0.03', '--batch_size=4',
        '--steps=14', '--checkpoint_every=100', '--log_every=5', '--clips=2', '--clip_choice=uniform', '--eval_batch_size=4']
CLASSES = moving_shapes.CLASSES[:4]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Two evaluated runs on 24 videos of four motions: of a learning rate each, one with all options."""
    root = tmp_path_factory.mktemp('tensorboard')
    for i in range(24):
        label = CLASSES[i % 4]
        frames = moving_shapes.render(label, np.random.default_rng(i), height=48, width=64, num_frames=14)
        frames[5:8] = frames[5]  # as in a video whose maker has raised its frame rate
        conftest.write_video(root / f'v/{"train" if i < 12 else "test"}/{label}/{i}.avi', frames)
    flags = [f'--videos={root}/v', f'--records={root}/r', *TINY]
    assert main.main(['c3d_tf', '--mode=prepare,train,evaluate', *flags, f'--workdir={root}/runs/one',
                      '--histograms=7', '--profile=3']) == 0
    assert main.main(['c3d_tf', '--mode=train,evaluate', *flags, f'--workdir={root}/runs/two',
                      '--learning_rate=0.001', '--embed=0']) == 0
    return root


def _events(folder: pathlib.Path) -> dict[str, list]:
    """Returns tag → its (step, summary value), of the one file of events that a run has."""
    path, = folder.glob('events*')
    found = {}
    for serialized in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(serialized)
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value))
    return found


def _picture(value) -> Image.Image:
    width, height, content = tf.make_ndarray(value.tensor).tolist()
    picture = Image.open(io.BytesIO(content))
    assert (b'%d' % picture.width, b'%d' % picture.height) == (width, height)
    return picture


def test_a_training_shows_itself(root):
    found = _events(root / 'runs/one/tensorboard/train')
    for name in ('loss', 'accuracy', 'hit@5', 'learning_rate', 'clips_per_second', 'input_wait'):
        assert [step for step, _ in found[name]] == [5, 10, 14], name
    assert all(float(tf.make_ndarray(value.tensor)) == 1 for _, value in found['hit@5'])  # of four classes
    model = artefact.load(str(root / 'runs/one/model.keras')).model
    for layer in (layer for layer in model.layers if layer.weights):
        steps, values = zip(*[(step, float(tf.make_ndarray(value.tensor)))
                              for step, value in found[f'weight_norm/{layer.name}']])
        expected = np.sqrt(sum((w.astype(float) ** 2).sum() for w in layer.get_weights()))
        assert steps == (5, 10, 14) and values[-1] == pytest.approx(expected, rel=1e-5)
        assert [step for step, _ in found[f'gradient_norm/{layer.name}']] == [5, 10, 14]
    for weights in model.weights:  # the last at step 14 are those of the result
        assert [step for step, _ in found[weights.path]] == [7, 14]
        buckets = tf.make_ndarray(found[weights.path][-1][1].tensor)
        assert buckets[:, 2].sum() == np.prod(weights.shape)
        assert buckets[[0, -1], [0, 1]] == pytest.approx([np.min(weights), np.max(weights)])
    first, value = found['clips'][0]
    picture = _picture(value)
    assert first == 1 and picture.format == 'GIF' and picture.n_frames == 8
    text = tf.make_ndarray(found['flagfile'][0][1].tensor)[()].decode()
    assert '    --width=0.03\n' in text and f'    --records={root}/r\n' in text
    trace, = root.glob('runs/one/tensorboard/train/plugins/profile/*/*.xplane.pb')
    assert b'train' in trace.read_bytes()
    assert not list(root.glob('runs/two/tensorboard/train/plugins'))
    assert not any(path in _events(root / 'runs/two/tensorboard/train') for path in (w.path for w in model.weights))


def test_an_evaluation_shows_itself(root):
    result = json.loads((root / 'runs/one/evaluate.json').read_text())
    folder = root / 'runs/one/tensorboard/evaluate'
    found = _events(folder)
    for name in ('video_hit@1', 'video_hit@5', 'clip_hit@1', 'clip_hit@5', 'mean_class_accuracy'):
        assert float(tf.make_ndarray(found[name][0][1].tensor)) == pytest.approx(result[name])
    for name in ('confusion', 'class_accuracy', 'taken_for'):
        assert _picture(found[name][0][1]).format == 'PNG'
    wrong = _picture(found['wrong_clips'][0][1])
    assert wrong.format == 'GIF' and wrong.n_frames == 8
    assert '"clip_choice": "uniform"' in tf.make_ndarray(found['protocol'][0][1].tensor)[()].decode()

    config = text_format.Parse((folder / 'projector_config.pbtxt').read_text(),
                               projector_config_pb2.ProjectorConfig())
    entry, = config.embeddings
    assert entry.tensor_name == 'fc6 of test'
    values = np.loadtxt(folder / entry.tensor_path, delimiter='\t')
    header, *rows = [line.split('\t') for line in (folder / entry.metadata_path).read_text().splitlines()]
    assert header == ['class', 'taken_for', 'right', 'video'] and len(values) == len(rows) == 12
    assert sum(row[2] == 'yes' for row in rows) == sum(row['right'] for row in result['per_class'])
    with np.load(root / 'runs/one/scores.npz') as scores:
        assert [row[3] for row in rows] == scores['names'].tolist()
    with Image.open(folder / entry.sprite.image_path) as sprite:
        assert sprite.size == (4 * 48, 4 * 48)
        tiles = np.asarray(sprite).reshape(4, 48, 4, 48, 3).swapaxes(1, 2).reshape(16, -1)
    assert (tiles[:12].std(axis=1) > 1).all() and (tiles[12:] == 128).all()
    assert not (root / 'runs/two/tensorboard/evaluate/projector_config.pbtxt').exists()


def test_runs_are_lines_of_the_tab_hparams(root):
    groups = {}
    for name in ('one', 'two'):
        for part in ('train', 'evaluate'):
            (_, value), = _events(root / f'runs/{name}/tensorboard/{part}')[hparams.SESSION_START_INFO_TAG]
            data = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
            info = data.session_start_info
            groups.setdefault(name, set()).add(info.group_name)
            assert info.hparams['learning_rate'].number_value == (0.003 if name == 'one' else 0.001)
    assert all(len(own) == 1 for own in groups.values())  # an evaluation is on the line of its training
    assert groups['one'] != groups['two']


def test_looking_changes_no_weight(root, tmp_path):
    recipe = train.Recipe(model='depth_3', width=0.03, clip_length=8, crop_size=32, batch_size=4, steps=8,
                          batch_norm=True, mean='channel', clip_norm=1.0, ema=0.9, learning_rate=0.01)
    train.fit(str(root / 'r'), str(tmp_path), recipe, log_every=1, histograms=2, profile=2)
    much = artefact.load(str(tmp_path / 'model.keras')).model.get_weights()
    # A constant rate does not ask for decay_steps: so this is another run, with the same weights.
    train.fit(str(root / 'r'), str(tmp_path), dataclasses.replace(recipe, decay_steps=1), log_every=1000,
              overwrite=True)
    little = artefact.load(str(tmp_path / 'model.keras')).model.get_weights()
    for a, b in zip(much, little, strict=True):
        np.testing.assert_array_equal(a, b)
    # Nothing is left of the curves that were there before.
    assert [step for step, _ in _events(tmp_path / 'tensorboard/train')['loss']] == [8]


@pytest.fixture(scope='module')
def url(root):
    """TensorBoard's address, on both runs."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'tensorboard.main', f'--logdir={root}/runs', '--host=127.0.0.1', '--port=0'],
        stderr=subprocess.PIPE, text=True)
    try:
        said = ''
        for line in process.stderr:
            said += line
            found = re.search(r'http://127\.0\.0\.1:\d+/', line)
            if found:
                break
        else:
            pytest.fail(f'TensorBoard did not start: {said}')
        yield found[0]
    finally:
        process.terminate()
        process.communicate()


def test_in_a_browser(url):
    with browser.open_page(f'{url}#scalars', viewport={'width': 1400, 'height': 1000}) as page:
        page.get_by_text('gradient_norm').first.wait_for()  # a group of scalars
        page.locator('tf-line-chart-data-loader, vz-line-chart2, tf-scalar-card').first.wait_for()

        page.goto(f'{url}#images')
        for tag, frames in (('clips', 8), ('wrong_clips', 8), ('confusion', 1)):
            page.locator('tf-image-dashboard tf-tag-filterer input').fill(f'^{tag}$')
            picture = page.locator('tf-image-loader', has_text=f'tag: {tag}').first.locator('img').first
            picture.wait_for()
            with urllib.request.urlopen(picture.evaluate('image => image.src')) as answer:
                shown = Image.open(io.BytesIO(answer.read()))
            assert answer.headers['Content-Type'] == f'image/{shown.format.lower()}' and shown.n_frames == frames
            assert picture.evaluate('image => image.decode().then(() => image.naturalWidth)') == shown.width
            if frames > 1:  # it moves
                looks = set()
                for _ in range(20):
                    looks.add(picture.screenshot())
                    page.wait_for_timeout(100)
                assert len(looks) > 1

        page.goto(f'{url}#projector')
        projector = page.frame_locator('iframe').frame_locator('iframe')
        projector.get_by_text('Points: 12').wait_for()
        projector.get_by_text('fc6 of test').first.wait_for(state='attached')
        page.goto(f'{url}#hparams')
        page.locator('tf-hparams-main').get_by_text('learning_rate').first.wait_for()
        page.goto(f'{url}#text')
        page.locator('tf-text-dashboard').get_by_text('--width=0.03').first.wait_for()
