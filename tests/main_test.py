# SPDX-License-Identifier: Apache-2.0
"""Through the front door, with real flags and real files."""

import json
import pathlib
import signal
import subprocess
import sys
import time
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from c3d_tf import main
from c3d_tf import models
from c3d_tf.data import preprocess
from c3d_tf.data import video
from c3d_tf.weights import artefact
from tests import conftest

ROOT = pathlib.Path(main.__file__).resolve().parents[1]
SMALL = ['--frame_size=24x32', '--crop_size=20', '--width=0.05', '--model=depth_3', '--batch_norm',
         '--initializer=he', '--head=pool', '--mean=channel', '--optimizer=adam', '--batch_size=4',
         '--epochs=2', '--clips=2', '--log_every=1']


def _main(*words):
    return main.main(['c3d_tf', *map(str, words)])


@pytest.fixture(scope='module')
def run(folder, tmp_path_factory):
    """A small experiment after prepare, train, evaluate and export."""
    root = tmp_path_factory.mktemp('run')
    flags = [*SMALL, f'--videos={folder}', f'--records={root}/records', f'--workdir={root}/run',
             f'--export_dir={root}/export']
    assert _main('--mode=prepare,train,evaluate,export', *flags) == 0
    return root, flags


def test_every_verb_leaves_its_result(run):
    root, _ = run
    result = json.loads((root / 'run/evaluate.json').read_text())
    assert (result['videos'], result['clips']) == (2, 4)
    assert result['protocol']['clip_choice'] == 'random' and result['protocol']['clips'] == 2
    assert json.loads((root / 'run/train.json').read_text())['status'] == 'done'
    assert (root / 'run/confusion.png').read_bytes().startswith(b'\x89PNG')
    assert list((root / 'run/tensorboard/train').glob('events*'))
    for path in ('records/prepare.flags', 'run/train.flags', 'run/evaluate.flags', 'export/export.flags'):
        assert (root / path).exists()


def test_the_same_command_again_changes_nothing(run, capsys):
    root, flags = run
    before = {p: p.stat().st_mtime_ns for p in root.rglob('*') if p.is_file() and p.suffix != '.flags'}
    assert _main('--mode=prepare,train,evaluate,export', *flags) == 0
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob('*') if p.is_file() and p.suffix != '.flags'}
    assert 'trained already' in capsys.readouterr().out


def test_the_flagfile_that_a_run_leaves_repeats_it(run, capsys):
    root, _ = run
    assert _main(f'--flagfile={root}/run/train.flags') == 0
    assert 'trained already' in capsys.readouterr().out


def test_other_flags_are_shown_and_refused(run, capsys):
    root, flags = run
    assert _main('--mode=train', *flags, '--learning_rate=0.5') == 2
    said = capsys.readouterr().err
    assert 'learning_rate: was 0.003, now 0.5' in said and '--overwrite' in said


def test_the_artefact_opens_in_plain_keras(run):
    root, _ = run
    path = root / 'run/model.keras'
    model = keras.models.load_model(path)
    assert model.input_shape == (None, 16, 20, 20, 3) and model.output_shape == (None, 2)
    assert {'preprocessing.json', 'mean.npy', 'labels.txt', 'provenance.json'} < set(
        zipfile.ZipFile(path).namelist())
    model.save(root / 'again.keras')
    assert _main('--mode=predict', f'--weights={root}/again.keras', f'--input={path}') == 2


def test_predict_names_the_classes(run, folder, capsys):
    root, flags = run
    path = str(folder / 'test/ball/e.avi')
    assert _main('--mode=predict', *flags, f'--input={path}', '--json') == 0
    result = json.loads(capsys.readouterr().out)
    assert result['frames'] == 40 and result['clips'] == 2  # 16 + 16, a tail of 8
    assert [row['label'] for row in result['top']] in (['ball', 'water'], ['water', 'ball'])
    assert sum(row['probability'] for row in result['top']) == pytest.approx(1, abs=1e-6)
    net = artefact.load(str(root / 'run/model.keras'))
    frames = np.stack([f.image for f in video.decode(path, size=(24, 32))])[:32].reshape(2, 16, 24, 32, 3)
    expected = tf.nn.softmax(net.model(preprocess.for_inference(tf.constant(frames), net.preprocessing)))
    best = net.class_names.index(result['top'][0]['label'])
    assert result['top'][0]['probability'] == pytest.approx(float(np.mean(expected[:, best])), abs=1e-6)
    assert _main('--mode=predict', *flags, f'--input={path}') == 0
    assert 'e.avi: 40 frames, 2 clips' in capsys.readouterr().out


def test_the_saved_model_needs_neither_us_nor_keras(run, folder, tmp_path):
    root, _ = run
    frames = np.stack([f.image for f in video.decode(str(folder / 'test/ball/e.avi'))])[None]
    np.save(tmp_path / 'frames.npy', frames)
    script = '''
import sys, numpy as np, tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
frames = np.load(sys.argv[2])
for clips in (frames, frames[:, :9]):  # longer and shorter than a clip
    out = loaded.signatures['serving_default'](clips=tf.constant(clips))
    print(sorted(out), out['probabilities'].shape, out['top_k_labels'].numpy()[0].tolist())
np.save(sys.argv[3], loaded.signatures['serving_default'](clips=tf.constant(frames))['probabilities'])
assert not any(name.startswith('c3d_tf') for name in sys.modules)
'''
    out = tmp_path / 'out.npy'
    done = subprocess.run([sys.executable, '-c', script, root / 'export/1', tmp_path / 'frames.npy', out],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "['probabilities', 'top_k_labels', 'top_k_scores'] (1, 2)" in done.stdout
    net = artefact.load(str(root / 'run/model.keras'))
    clips = frames[0, :32].reshape(2, 16, 48, 64, 3)
    expected = tf.nn.softmax(net.model(preprocess.for_inference(tf.constant(clips), net.preprocessing)))
    np.testing.assert_allclose(np.load(out)[0], np.mean(expected, axis=0), atol=1e-5)
    assert (root / 'export/1/assets.extra/labels.txt').read_text() == 'ball\nwater\n'


def test_other_classes_are_refused(run, tmp_path, capsys):
    root, flags = run
    conftest.counting_video(tmp_path / 'v/test/cat/x.avi', 16)
    conftest.counting_video(tmp_path / 'v/train/cat/y.avi', 16)
    other = [*flags, f'--videos={tmp_path}/v', f'--records={tmp_path}/r']
    assert _main('--mode=prepare,evaluate', *other) == 2
    assert 'know 2 classes (ball, water), the records' in capsys.readouterr().err


@pytest.mark.parametrize(('words', 'message'), [
    (['--mode=train', '--modle=c3d'], "Unknown command line flag 'modle'"),
    (['--mode=train', 'c3d'], 'stray words: c3d'),
    (['--mode=train', '--flip', 'false'], 'stray words: false'),
    (['--mode=dance'], 'expected prepare, train'),
    (['--mode=train', '--batch_size=0'], '--batch_size=0'),
    (['--mode=train', '--epochs=many'], '--epochs=many'),
    (['--mode=prepare', '--frame_size=big'], 'expected HEIGHTxWIDTH'),
    (['--flagfile=nowhere.flags'], 'nowhere.flags'),
    (['--mode=train'], '--workdir is not set'),
    (['--mode=train', '--workdir=w'], '--records is not set'),
    (['--mode=train', '--workdir=w', '--records=nowhere'], 'nowhere: no index.json there'),
    (['--mode=prepare', '--records=r'], '--videos is not set'),
    (['--mode=predict', '--input=nowhere.avi'], 'nowhere.avi: no such file'),
    (['--mode=export', '--export_dir=e'], '--weights is not set'),
    (['--mode=evaluate', '--workdir=w', '--records=RECORDS'], 'model.keras: no such file'),
    (['--mode=train', '--workdir=w', '--records=RECORDS'], 'crop 112x112 is larger than the frames'),
    (['--mode=train', '--workdir=w', '--records=RECORDS', '--crop_size=20', '--model=c4d'],
     'expected one of c3d'),
    (['--mode=train', '--workdir=w', '--records=RECORDS', '--crop_size=20', '--mean=x'],
     'expected volume, channel'),
    (['--mode=train', '--workdir=w', '--records=RECORDS', '--crop_size=20', '--schedule=step'],
     'needs decay_steps'),
    (['--mode=train', '--workdir=w', '--records=RECORDS', '--crop_size=20', '--freeze=conv9'], 'conv9'),
    (['--mode=train', '--workdir=w', '--records=RECORDS', '--crop_size=20', '--precision=float16'],
     'float16 needs a GPU'),
    (['--mode=train', '--workdir=w', '--records=RECORDS', '--crop_size=20', '--clip_length=99',
      '--short=drop', '--mean=none'], 'leaves no training clip'),
    (['--mode=train', '--workdir=w', '--records=RECORDS', '--crop_size=20', '--patience=3'],
     'needs a val split'),
    (['--mode=train', '--workdir=w', '--records=RECORDS', '--crop_size=20', '--min_scale=0.5',
      '--norandom_crop'], 'needs --random_crop'),
    (['--mode=evaluate', '--workdir=w', '--scores=nowhere.npz'], 'nowhere.npz: no such file'),
    (['--mode=train', '--workdir=w', '--records=RECORDS', '--crop_size=20', '--init_from=x.keras'],
     '--init_from=x.keras: no such file'),
], ids=str)
def test_wrong_use_answers_what_was_expected_and_what_came(run, words, message, capsys, monkeypatch,
                                                           tmp_path):
    monkeypatch.chdir(tmp_path)
    words = [word.replace('RECORDS', str(run[0] / 'records')) for word in words]
    assert _main(*words) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith('c3d_tf: ')


def test_weights_with_nan_are_refused(run, folder, capsys, tmp_path):
    net = artefact.load(str(run[0] / 'run/model.keras'))
    net.model.get_layer('fc8').bias.assign([np.nan, 0])
    artefact.save(str(tmp_path / 'nan.keras'), net)
    assert _main('--mode=predict', f'--weights={tmp_path}/nan.keras',
                 f'--input={folder}/test/ball/e.avi') == 2
    assert 'fc8/bias holds NaN' in capsys.readouterr().err


def _command(*words):
    return [sys.executable, '-m', 'c3d_tf.main', *words]


def test_help_is_quick_and_complete():
    started = time.monotonic()
    done = subprocess.run(_command('--help'), capture_output=True, text=True, cwd=ROOT)
    assert time.monotonic() - started < 1.5
    assert done.returncode == 0 and not done.stderr
    assert all(verb in done.stdout for verb in main.MODES)
    assert all(name in done.stdout for name in models.MODELS)


def test_wrong_use_answers_at_once_and_on_standard_error(tmp_path):
    started = time.monotonic()
    done = subprocess.run(_command('--nonsense'), capture_output=True, text=True, cwd=ROOT)
    assert time.monotonic() - started < 1.5
    assert done.returncode == 2 and not done.stdout and done.stderr.startswith('c3d_tf: ')


def test_a_stopped_run_is_continued_by_the_same_command(run, tmp_path):
    _, flags = run
    words = ['--mode=train', *flags, f'--workdir={tmp_path}/w', '--steps=80', '--dropout=0.3']
    process = subprocess.Popen(_command(*words), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    events = tmp_path / 'w/tensorboard/train'
    while process.poll() is None and not (events.exists() and any(
            f.stat().st_size > 2000 for f in events.iterdir())):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and 'the same command goes on' in said
    done = subprocess.run(_command(*words), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and 'train: continues at step' in done.stdout
    assert _main(*words[:-3], f'--workdir={tmp_path}/unbroken', *words[-2:]) == 0
    broken, whole = (artefact.load(f'{tmp_path}/{name}/model.keras').model for name in ('w', 'unbroken'))
    for a, b in zip(broken.get_weights(), whole.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_an_evaluation_on_five_videos_with_batch_two_counts_five(run, tmp_path, capsys):
    root, flags = run
    for i in range(5):
        conftest.counting_video(tmp_path / f'v/test/{("ball", "water")[i % 2]}/{i}.avi', 17 + i)
    words = [*flags, f'--videos={tmp_path}/v', f'--records={tmp_path}/r', f'--workdir={tmp_path}/w',
             f'--weights={root}/run/model.keras', '--eval_batch_size=2']
    assert _main('--mode=prepare,evaluate', *words, '--clips=1') == 0
    result = json.loads((tmp_path / 'w/evaluate.json').read_text())
    assert (result['videos'], result['clips'], np.sum(result['confusion'])) == (5, 5, 5)
    assert _main('--mode=evaluate', *words, '--clips=3', '--crops=ten') == 2
    said = capsys.readouterr().err
    assert "crops: was 'centre', now 'ten'" in said and '--overwrite' in said
    assert json.loads((tmp_path / 'w/evaluate.json').read_text()) == result
    assert _main('--mode=evaluate', *words, '--clips=3', '--crops=ten', '--overwrite') == 0
    result = json.loads((tmp_path / 'w/evaluate.json').read_text())
    assert (result['videos'], result['clips'], np.sum(result['confusion'])) == (5, 15, 5)
    assert _main('--mode=evaluate', f'--scores={tmp_path}/w/scores.npz,{tmp_path}/w/scores.npz',
                 f'--workdir={tmp_path}/fused') == 0
    fused = json.loads((tmp_path / 'fused/evaluate.json').read_text())
    assert fused['video_hit@1'] == result['video_hit@1']
