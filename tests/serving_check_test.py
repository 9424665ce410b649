# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from c3d_tf import export
from c3d_tf import main
from c3d_tf.common import errors
from c3d_tf.serving import check
from c3d_tf.serving import warmup
from tests import serving_files


@pytest.fixture(scope='module')
def exported(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp('check')
    return export.export(serving_files.saved(root / 'model.keras'), str(root / 'thin'))


def _other(folder, function, *specs) -> str:
    """A SavedModel of another program."""
    module = tf.Module()
    module.function = tf.function(function, input_signature=specs, autograph=False)
    tf.saved_model.save(module, str(folder), signatures=module.function)
    return str(folder)


def test_an_export_of_ours(exported, capsys):
    before = {path: path.stat().st_mtime_ns for path in pathlib.Path(exported).rglob('*')}
    found = check.check(str(pathlib.Path(exported).parent), rounds=3)  # the newest version of the model
    said = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in pathlib.Path(exported).rglob('*')} == before
    names = {'serving_default', 'frames', 'gif', 'mjpeg', 'float_clips', 'features'}
    assert found['signatures'].keys() == found['latency'].keys() == found['warm_up'].keys() == names
    assert found['signatures']['frames'] == {'inputs': {'frames': 'string [N, N]'}, 'outputs': {
        'probabilities': 'float32 [N, 5]', 'top_k_labels': 'string [N, 5]', 'top_k_scores': 'float32 [N, 5]'}}
    assert set(map(tuple, found['warm_up'].values())) == {(1, 2, 4, 8)}
    assert found['foreign'] == [] and found['operations']['DecodeJpeg'] > 0
    assert sum(found['bytes'].values()) == serving_files.size_of(exported)
    for name in names:
        for count in (1, 8):
            row = found['latency'][name][count]
            assert row['requests'] == 3 and 0 < row['p50'] <= row['p99']
            assert f'{1000 * row["p50"]:.1f} ms' in said
    assert found['latency']['float_clips'][8]['of_float_clips'] == 1
    assert 'not in the stock server: none' in said


def test_by_the_front_door(exported, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(check, 'check', lambda directory: asked.update(directory=directory))
    assert main.main(['c3d_tf', '--mode=export', f'--check={exported}']) == 0
    assert asked == {'directory': exported} and 'next:' not in capsys.readouterr().out


def test_broken_warm_up_fails(exported, tmp_path):
    shutil.copytree(exported, tmp_path / '1')
    path = tmp_path / '1' / warmup.FILE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(errors.RunError, match=f'{path}: a server cannot replay this'):
        check.check(str(tmp_path), rounds=1)
    record = warmup.prediction_log_pb2.PredictionLog()
    record.predict_log.request.model_spec.signature_name = 'frames'
    record.predict_log.request.inputs['frames'].CopyFrom(tf.make_tensor_proto([[b'no image']]))
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(record.SerializeToString())
    with pytest.raises(errors.RunError, match='the warm-up request of frames: .*\n*.*neither a JPEG'):
        check.check(str(tmp_path), rounds=1)


def test_other_programs_export(tmp_path, capsys):
    folder = _other(tmp_path / 'other', lambda x: {'y': 2 * x}, tf.TensorSpec([None, 3], tf.float32, name='x'))
    found = check.check(folder, rounds=3)
    assert found['signatures'] == {'serving_default': {'inputs': {'x': 'float32 [N, 3]'},
                                                       'outputs': {'y': 'float32 [N, 3]'}}}
    assert found['latency']['serving_default'][1]['of_float_clips'] is None
    assert 'none: its first client waits' in capsys.readouterr().out


def test_strings_cannot_be_made_up(tmp_path, capsys):
    folder = _other(tmp_path / 'other', lambda x: {'y': tf.strings.length(x)},
                    tf.TensorSpec([None], tf.string, name='x'))
    assert check.check(folder, rounds=1)['latency'] == {}
    assert "no warm-up shows it: ['serving_default']" in capsys.readouterr().out


@pytest.mark.parametrize(('function', 'named'), [
    (lambda x: {'y': tf.ensure_shape(tf.numpy_function(np.sin, [x], tf.float32), [None])}, 'PyFunc'),
    (lambda x: {'y': tf.function(tf.sin, jit_compile=True)(x)}, 'XLA'),
])
def test_what_the_stock_server_lacks_is_named(function, named, tmp_path):
    folder = _other(tmp_path / 'other', function, tf.TensorSpec([None], tf.float32, name='x'))
    with pytest.raises(errors.RunError, match=f'the stock server has no .*{named}'):
        check.check(folder, rounds=1)


def test_no_saved_model(exported, tmp_path):
    for path in (tmp_path, tmp_path / 'nothing', os.path.join(exported, 'saved_model.pb')):
        with pytest.raises(errors.UsageError, match=f'--check={path}: no SavedModel; expected a folder'):
            check.check(str(path))
    (tmp_path / 'saved_model.pb').write_bytes(b'not one')
    with pytest.raises(errors.RunError, match='saved_model.pb is damaged'):
        check.check(str(tmp_path))
