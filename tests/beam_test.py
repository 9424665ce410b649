# SPDX-License-Identifier: Apache-2.0
"""Real engines of Apache Beam give the local runner's files: `make test-beam` sets it up beside the project."""

import functools
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from c3d_tf import features
from c3d_tf import main
from c3d_tf import prepare
from c3d_tf.common import errors
from c3d_tf.data import datasets
from c3d_tf.data import inputs
from c3d_tf.data import local_runner
from tests import conftest
from tests import features_test

HAS_BEAM = importlib.util.find_spec('apache_beam') is not None
needs_beam = pytest.mark.skipif(not HAS_BEAM, reason='Apache Beam is not installed; make test-beam runs this')
ROOT = pathlib.Path(__file__).resolve().parents[1]
THREAD = ('--runner=FnApiRunner',)
ENGINES = {
    'direct': ('--runner=DirectRunner', '--direct_num_workers=2', '--direct_running_mode=multi_processing'),
    'dask': ('--runner=apache_beam.runners.dask.dask_runner.DaskRunner', '--dask_npartitions=3'),
}


@pytest.fixture(scope='module')
def videos(tmp_path_factory) -> pathlib.Path:
    """Five shards of good videos, one that is none, one that hangs, and a name that is no UTF-8."""
    root = tmp_path_factory.mktemp('beam_videos')
    for i in range(9):
        conftest.counting_video(root / f'{"train" if i < 6 else "test"}/{"ab"[i % 2]}/{i}.avi', 12 + 4 * i)
    os.rename(root / 'train/a/0.avi', bytes(root / 'train/a') + b'/\xff.avi')
    (root / 'train/b/none.avi').write_bytes(b'not a video')
    os.mkfifo(root / 'test/b/pipe.mp4')
    return root


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> str:
    return features_test._artefact(tmp_path_factory.mktemp('weights') / 'model.keras', width=0.03)


def _prepare(videos, output, **options):
    dataset = datasets.load('folder', videos=str(videos))
    return prepare.prepare(dataset, str(output), **{
        'frame_size': (24, 32), 'max_failures': -1, 'num_workers': 2, 'video_timeout': 3.0, **options})


def _extract(weights, videos, output, **options):
    return features.extract(str(output), weights, videos=str(videos), **{
        'layers': ('fc6', 'conv5b'), 'batch_size': 4, 'max_failures': -1, 'num_workers': 2,
        'video_timeout': 3.0, **options})


@pytest.fixture(scope='module')
def local(videos, weights, tmp_path_factory) -> pathlib.Path:
    """What the local runner makes: records/ and features/."""
    root = tmp_path_factory.mktemp('local')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, 'VIDEOS_PER_SHARD', 2)
        _prepare(videos, root / 'records')
    _extract(weights, videos, root / 'features')
    return root


@needs_beam
@pytest.mark.parametrize('engine', ENGINES)
def test_prepare_leaves_the_local_runners_bytes(engine, videos, local, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, 'VIDEOS_PER_SHARD', 2)
    _prepare(videos, tmp_path, runner='beam', beam_options=ENGINES[engine])
    expected = features_test._tree(local / 'records')
    assert sum(name.endswith('.tfrecord') for name in expected) == 6 and features_test._tree(tmp_path) == expected
    skipped = [json.loads(line) for line in expected['skipped.jsonl'].splitlines()]
    assert [os.path.basename(skip['path']) for skip in skipped] == ['pipe.mp4', 'none.avi']


@needs_beam
@pytest.mark.parametrize('engine', ENGINES)
def test_features_leaves_the_local_runners_bytes(engine, videos, weights, local, tmp_path):
    _extract(weights, videos, tmp_path, runner='beam', beam_options=ENGINES[engine])
    expected = features_test._tree(local / 'features')
    assert sum(name.endswith('.npz') for name in expected) == 9 and features_test._tree(tmp_path) == expected


@needs_beam
@pytest.mark.parametrize('file_format', ['hdf5', 'caffe'])
def test_the_other_formats_too(file_format, weights, folder, tmp_path):
    for runner in ('local', 'beam'):
        _extract(weights, folder / 'test', tmp_path / runner, file_format=file_format, runner=runner,
                 beam_options=THREAD)
    found = features_test._tree(tmp_path / 'beam')
    assert len(found) > 2 and found == features_test._tree(tmp_path / 'local')


@needs_beam
def test_what_is_there_is_not_done_again(videos, local, weights, folder, tmp_path):
    for _ in range(2):
        _extract(weights, folder / 'train', tmp_path, runner='beam', beam_options=THREAD)
        if _ == 0:
            before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.npz')}
            os.remove(tmp_path / 'ball/a.npz')
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.npz')}
    assert [path.name for path in after if after[path] != before[path]] == ['a.npz'] and len(after) == 4
    said = subprocess.run([sys.executable, '-m', 'c3d_tf.main', '--mode=prepare', f'--videos={folder}',
                           f'--records={tmp_path}/r', '--runner=beam', f'--beam_options={THREAD[0]}'],
                          cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 'prepare: 2/2 shards' in said and '--beam_options' in (tmp_path / 'r/prepare.flags').read_text()
    os.remove(tmp_path / 'r/index.json')
    os.remove(tmp_path / 'r/test-00000-of-00001.tfrecord')
    _prepare(folder, tmp_path / 'r', runner='beam', beam_options=THREAD, frame_size=(128, 171))


def _load_once(path: str):
    with open(path, 'a', encoding='utf-8') as file:
        file.write(f'{os.getpid()}\n')
    return lambda batch: {'fc6': batch.mean(axis=(1, 2, 3), dtype='float32')}


@needs_beam
def test_a_process_loads_the_network_once(folder, tmp_path):
    from c3d_tf.data import beam_runner

    settings = {'format': 'npz', 'pool': 'mean'}
    _, found = inputs.find(str(folder), size=(24, 32))
    extraction = beam_runner.Extraction(
        functools.partial(_load_once, str(tmp_path / 'loads')), str(tmp_path / 'out'), {'fc6': 'fc6'}, settings, 60,
        {'cutting': {'clip_length': 8, 'stride': 1, 'step': 8, 'short': 'loop'}, 'batch_size': 4,
         'clip_shape': (8, 24, 32, 3), 'video_timeout': 30, 'num_workers': 1})
    beam_runner.extract(beam_runner.pipeline(ENGINES['direct']), found,
                        lambda one: (tmp_path / f'out/{one.name}.npz').exists(), extraction)
    pids = (tmp_path / 'loads').read_text().split()
    assert len(pids) == len(set(pids)) == 2 and str(os.getpid()) not in pids
    assert len(list((tmp_path / 'out').rglob('*.npz'))) == len(found) == 6


@needs_beam
@pytest.mark.parametrize(('options', 'message'), [
    (('--runner=FnApiRunner', '--direct_num_wrkers=2'), 'knows no --direct_num_wrkers'),
    (('--runner=FnApiRunner', '--direct_running_mode=best'), "direct_running_mode: invalid choice: 'best'"),
    (('--runner=Nowhere',), 'Unexpected pipeline runner: Nowhere'),
])
def test_options_that_beam_does_not_take(options, message, folder, tmp_path):
    with pytest.raises(errors.UsageError, match=message):
        _prepare(folder, tmp_path / 'r', runner='beam', beam_options=options)
    assert not (tmp_path / 'r').exists()


def _nothing(task, given_up, reading):
    pass


def _fails(task, given_up, reading):
    raise OSError('no space left')


@needs_beam
@pytest.mark.parametrize('engine', ['thread', *ENGINES])
@pytest.mark.parametrize(('work', 'message'), [
    (_nothing, r'the engine has ended, and 1 are not done'), (_fails, r'beam: .*/shard: no space left')])
def test_a_shard_that_is_not_there_ends_the_run(engine, work, message, tmp_path):
    from c3d_tf.data import beam_runner

    task = local_runner.Task(str(tmp_path / 'shard'), str(tmp_path / 'report'), 'train', [()])
    with pytest.raises(errors.RunError, match=message):
        beam_runner.write_shards(beam_runner.pipeline({'thread': THREAD, **ENGINES}[engine]), [task], work,
                                 video_timeout=3)


@needs_beam
@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_run_again(sent, videos, weights, local, tmp_path):
    command = [sys.executable, '-m', 'c3d_tf.main', '--mode=features', f'--weights={weights}', '--runner=beam',
               f'--input={videos}', f'--output={tmp_path}', '--layers=fc6,conv5b', '--eval_batch_size=4',
               '--max_failures=-1', '--video_timeout=3', f'--beam_options={",".join(ENGINES["direct"])}']
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    deadline = time.monotonic() + 300
    while not list(tmp_path.rglob('*.npz')) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    assert process.wait(120) == (-9 if sent == signal.SIGKILL else 75)
    deadline = time.monotonic() + 60
    while _session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not _session(process.pid)  # nothing is left at work
    _extract(weights, videos, tmp_path, runner='beam', beam_options=ENGINES['direct'])
    assert features_test._tree(tmp_path) == features_test._tree(local / 'features')


def _session(number: int) -> list[str]:
    said = subprocess.run(['ps', '-o', 'pid=,stat=,args=', '-s', str(number)], capture_output=True, text=True).stdout
    return [line for line in said.splitlines() if line.split()[1][0] != 'Z']


@pytest.mark.skipif(HAS_BEAM, reason='Apache Beam is installed')
def test_without_beam_the_remedy_is_said(folder, tmp_path, capsys):
    assert main.main(['', '--mode=prepare', f'--videos={folder}', f'--records={tmp_path}/r',
                      '--runner=beam']) == errors.EXIT_USAGE
    assert 'Apache Beam is not installed' in capsys.readouterr().err and not (tmp_path / 'r').exists()
