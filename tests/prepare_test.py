# SPDX-License-Identifier: Apache-2.0
import csv
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import av
import cv2
import numpy as np
import pytest
import tensorflow as tf

from c3d_tf import prepare
from c3d_tf.common import errors
from c3d_tf.data import datasets
from c3d_tf.data import local_runner
from c3d_tf.data import records
from tests import conftest

SIZE = {'frame_size': (24, 32)}


def _prepare(videos, target, **options):
    dataset = datasets.load('folder', videos=str(videos))
    return prepare.prepare(dataset, str(target), **{**SIZE, **options})


@pytest.fixture(scope='module')
def prepared(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp('records')
    _prepare(folder, target)
    return target


def _examples(path):
    return [tf.train.SequenceExample.FromString(raw)
            for raw in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]


def test_the_index_counts_what_was_decoded(prepared):
    index = records.read_index(str(prepared))
    train = index.split('train')
    assert train.frames.tolist() == [20, 31, 16, 7]
    assert train.num_videos == 4 and index.split('test').frames.tolist() == [40, 18]
    assert index.data['splits']['train']['videos_per_class'] == [2, 2]
    assert (index.data['found'], index.data['taken']) == (6, 6)
    assert (prepared / 'skipped.jsonl').read_text() == ''


def test_a_record_has_the_keys_that_others_read(prepared):
    example = _examples(prepared / 'train-00000-of-00001.tfrecord')[1]
    context, lists = example.context.feature, example.feature_lists.feature_list
    assert context['clip/label/index'].int64_list.value == [0]
    assert context['clip/label/text'].bytes_list.value == [b'ball']
    assert context['clip/media_id'].bytes_list.value == [b'train/ball/b.mp4']
    assert context['image/format'].bytes_list.value == [b'jpeg']
    assert (context['image/height'].int64_list.value, context['image/width'].int64_list.value) == ([24], [32])
    times = [f.int64_list.value[0] for f in lists['image/timestamp'].feature]
    assert times == [40_000 * t for t in range(31)]
    assert context['clip/end/timestamp'].int64_list.value == [times[-1]]
    frames = [cv2.imdecode(np.frombuffer(f.bytes_list.value[0], np.uint8), 1)
              for f in lists['image/encoded'].feature]
    assert [round(frame.mean() / 4) for frame in frames] == list(range(31))


def test_the_mean_is_the_plain_mean_of_all_whole_clips(prepared):
    clips = []
    for example in _examples(prepared / 'train-00000-of-00001.tfrecord'):
        frames = [cv2.imdecode(np.frombuffer(f.bytes_list.value[0], np.uint8), 1)[..., ::-1]
                  for f in example.feature_lists.feature_list['image/encoded'].feature]
        frames = [frames[i % len(frames)] for i in range(max(16, len(frames) // 16 * 16))]
        clips += [frames[i:i + 16] for i in range(0, len(frames), 16)]
    expected = np.array(clips, np.float64).mean(axis=0)
    mean = records.read_index(str(prepared)).mean()
    assert mean.dtype == np.float32 and mean.shape == (16, 24, 32, 3)
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    np.testing.assert_allclose(records.read_index(str(prepared)).channel_means,
                               expected.mean(axis=(0, 1, 2)), rtol=1e-9)


def _content(target):
    return {path.name: path.read_bytes() for path in sorted(pathlib.Path(target).iterdir())}


def test_one_worker_and_two_write_the_same_bytes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, 'VIDEOS_PER_SHARD', 2)
    _prepare(folder, tmp_path / 'one', num_workers=1)
    _prepare(folder, tmp_path / 'two', num_workers=2)
    one, two = _content(tmp_path / 'one'), _content(tmp_path / 'two')
    assert len(one) == 6 and one == two


def test_the_same_command_does_nothing_twice(folder, tmp_path):
    _prepare(folder, tmp_path / 'r')
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'r').iterdir()}
    _prepare(folder, tmp_path / 'r')
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / 'r').iterdir()}
    with pytest.raises(errors.UsageError, match=r'frame_size: was \[24, 32\], now \[24, 40\]'):
        _prepare(folder, tmp_path / 'r', frame_size=(24, 40))
    assert _prepare(folder, tmp_path / 'r', frame_size=(24, 40), overwrite=True)['frame_size'] == [24, 40]


def test_a_finished_shard_is_kept_by_the_next_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, 'VIDEOS_PER_SHARD', 2)
    target = tmp_path / 'r'
    whole = tmp_path / 'whole'
    _prepare(folder, whole)
    conftest.write_video(folder.parent / 'x.avi', [np.zeros((24, 32, 3), np.uint8)])
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        def interrupted(*args):
            raise KeyboardInterrupt
        patch.setattr(prepare, '_splits', interrupted)
        _prepare(folder, target)
    shards = sorted(target.glob('*.tfrecord'))
    os.remove(shards[0])  # as if it had not been finished
    before = shards[1].stat().st_mtime_ns
    _prepare(folder, target)
    assert shards[1].stat().st_mtime_ns == before
    assert _content(target) == _content(whole)


def test_broken_videos_are_reported_and_the_rest_goes_on(folder, tmp_path):
    videos = tmp_path / 'videos'
    conftest.counting_video(videos / 'a/good.avi', 20)
    conftest.counting_video(videos / 'b/good.avi', 20)
    (videos / 'a/empty.avi').write_bytes(b'')
    (videos / 'b/notes.txt').write_text('not a video')
    os.mkfifo(videos / 'b/pipe.mp4')
    options = {'num_workers': 2, 'video_timeout': 3.0}
    dataset = datasets.load('folder', videos=str(videos), test_fraction=0.0)
    with pytest.raises(errors.RunError, match='--max_failures=3 goes on'):
        prepare.prepare(dataset, str(tmp_path / 'r'), **SIZE, **options)
    started = time.monotonic()
    index = prepare.prepare(dataset, str(tmp_path / 'r'), **SIZE, **options, max_failures=3)
    assert time.monotonic() - started < 3  # nothing was done again
    skipped = [json.loads(line) for line in (tmp_path / 'r/skipped.jsonl').read_text().splitlines()]
    assert [os.path.basename(s['path']) for s in skipped] == ['empty.avi', 'notes.txt', 'pipe.mp4']
    assert skipped[2]['reason'] == 'timed out: no frame for 3 s'
    assert not list((tmp_path / 'r').glob('*.tmp-*'))
    assert index['taken'] + len(skipped) == index['found'] == 5
    train = index['splits']['train']
    # In the order of the records, and only of videos that have some: a/good.avi and b/good.avi.
    assert [shard['labels'] for shard in train['shards']] == [[[0], [1]]]
    assert train['videos_per_class'] == [1, 1]


def _crash(task, given_up, reading, number=signal.SIGSEGV):
    for place in range(len(task.examples)):
        reading(place)
        if place == 1 and place not in given_up:
            os.kill(os.getpid(), number)
    pathlib.Path(task.path).write_text(json.dumps(given_up))
    pathlib.Path(task.report).write_text('{"bytes": 1}')


def test_a_decoder_that_crashes_costs_its_file_only(tmp_path):
    task = local_runner.Task(str(tmp_path / 'shard'), str(tmp_path / 'report'), 'train', [()] * 3)
    local_runner.run([task], _crash, num_workers=1, video_timeout=30)
    assert json.loads((tmp_path / 'shard').read_text()) == {'1': 'the decoder crashed (SIGSEGV)'}


def test_a_decoder_that_is_told_to_stop_is_no_fault_of_the_file(tmp_path):
    task = local_runner.Task(str(tmp_path / 'shard'), str(tmp_path / 'report'), 'train', [()] * 3)
    with pytest.raises(errors.Interrupted, match='stopped'):
        local_runner.run([task], functools.partial(_crash, number=signal.SIGTERM), num_workers=1, video_timeout=30)
    assert not (tmp_path / 'shard').exists()


def test_a_long_video_becomes_records_that_lose_no_window(tmp_path):
    conftest.counting_video(tmp_path / 'v/train/a/long.avi', 60)
    index = _prepare(tmp_path / 'v', tmp_path / 'r', max_frames=32)
    split = records.read_index(str(tmp_path / 'r')).split('train')
    # 32 frames from 0, 36 from 24: half a clip of overlap, and no record of 12 frames, less than a clip.
    assert split.frames.tolist() == [32, 36] and split.num_videos == 1
    assert index['splits']['train']['videos'] == 1
    starts = [e.context.feature['clip/start/timestamp'].int64_list.value[0]
              for e in _examples(tmp_path / 'r/train-00000-of-00001.tfrecord')]
    assert starts == [0, 24 * 40_000]


def test_random_spans_of_training_videos(tmp_path):
    conftest.counting_video(tmp_path / 'v/train/a/long.avi', 60)
    conftest.counting_video(tmp_path / 'v/test/a/other.avi', 60)
    _prepare(tmp_path / 'v', tmp_path / 'r', clips_per_video=5, clip_seconds=1.0, frame_format='png')
    index = records.read_index(str(tmp_path / 'r'))
    assert index.split('train').frames.tolist() == [25] * 5 and index.split('train').num_videos == 1
    starts = []
    for example in _examples(tmp_path / 'r/train-00000-of-00001.tfrecord'):
        times = [f.int64_list.value[0] // 40_000
                 for f in example.feature_lists.feature_list['image/timestamp'].feature]
        shown = [round(cv2.imdecode(np.frombuffer(f.bytes_list.value[0], np.uint8), 1).mean() / 4)
                 for f in example.feature_lists.feature_list['image/encoded'].feature]
        assert shown == times == list(range(times[0], times[0] + 25))
        starts.append(times[0])
    assert starts == sorted(starts) and len(set(starts)) > 2
    assert index.split('test').frames.tolist() == [60]
    _prepare(tmp_path / 'v', tmp_path / 'r2', test_clips_per_video=3, clip_seconds=0.0)
    index = records.read_index(str(tmp_path / 'r2'))
    assert index.split('test').frames.tolist() == [16] * 3  # never shorter than a clip
    assert index.split('train').frames.tolist() == [60]


def test_a_full_disk_is_named(folder, tmp_path, monkeypatch):
    if os.geteuid() or os.system(f'mkdir {tmp_path}/m && mount -t tmpfs -o size=4k none {tmp_path}/m'):
        pytest.skip('needs the right to mount a small disk')
    try:
        with pytest.raises((errors.RunError, OSError), match=r'(?i)no space'):
            _prepare(folder, tmp_path / 'm' / 'r')
        assert not list((tmp_path / 'm').rglob('*.tfrecord'))
    finally:
        os.system(f'umount {tmp_path}/m')


def test_png_records_hold_the_exact_pixels(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (5, 24, 32, 3), np.uint8)
    path = conftest.write_video(tmp_path / 'v/train/a/noise.avi', noise)
    _prepare(tmp_path / 'v', tmp_path / 'r', frame_format='png')
    with av.open(path) as container:
        frames = [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]
    raw, = tf.data.TFRecordDataset(str(tmp_path / 'r/train-00000-of-00001.tfrecord')).as_numpy_iterator()
    images = records.parse(raw)[records.IMAGE]
    np.testing.assert_array_equal([records.decode_image(image) for image in images], frames)


def _sleep(task, given_up, reading):
    for place in range(len(task.examples)):
        reading(place)
        if place == 1 and place not in given_up:
            time.sleep(60)
    pathlib.Path(task.path).write_text(json.dumps(given_up))
    pathlib.Path(task.report).write_text('{"bytes": 1}')


def test_a_decoder_that_hangs_costs_its_file_only(tmp_path):
    task = local_runner.Task(str(tmp_path / 'shard'), str(tmp_path / 'report'), 'train', [()] * 3)
    local_runner.run([task], _sleep, num_workers=1, video_timeout=1.0)
    assert json.loads((tmp_path / 'shard').read_text()) == {'1': 'timed out: no frame for 1 s'}


def test_every_odd_file_is_prepared_or_reported(shared, tmp_path):
    with open(shared / 'data/odd/EXPECT.tsv', encoding='utf-8') as file:
        expected = {row['file']: int(row['pyav_frames'] or 0) for row in csv.DictReader(file, delimiter='\t')}
    (tmp_path / 'list.txt').write_text(''.join(f'{name} 0\n' for name in expected))
    dataset = datasets.load('list', videos=str(shared / 'data'), train_list=str(tmp_path / 'list.txt'))
    index = prepare.prepare(dataset, str(tmp_path / 'r'), frame_size=(24, 32), max_failures=-1,
                            max_frames=10_000)
    found = {}
    for shard in index['splits']['train']['shards']:
        for example in _examples(tmp_path / 'r' / shard['file']):
            name = example.context.feature['clip/media_id'].bytes_list.value[0].decode()
            found[name] = len(example.feature_lists.feature_list['image/encoded'].feature)
    skipped = [json.loads(line) for line in (tmp_path / 'r/skipped.jsonl').read_text().splitlines()]
    assert found == {name: count for name, count in expected.items() if count}
    assert all(skip['reason'] for skip in skipped)
    assert len(found) + len(skipped) == len(expected) == index['found']


def test_a_read_only_folder_is_named(folder, tmp_path):
    (tmp_path / 'm').mkdir()
    if os.geteuid() or os.system(f'mount -t tmpfs none {tmp_path}/m && mount -o remount,ro {tmp_path}/m'):
        pytest.skip('needs the right to mount')
    try:
        with pytest.raises(OSError, match=f'Read-only file system.*{tmp_path}/m'):
            _prepare(folder, tmp_path / 'm' / 'r')
    finally:
        os.system(f'umount {tmp_path}/m')


def test_killed_in_the_middle_and_run_again_gives_the_same_bytes(tmp_path):
    for i in range(130):  # three shards of 64 at the most
        conftest.counting_video(tmp_path / f'v/train/{"ab"[i % 2]}/{i:03d}.avi', 40)
    command = [sys.executable, '-m', 'c3d_tf.main', '--mode=prepare', f'--videos={tmp_path}/v',
               '--frame_size=24x32']
    root = pathlib.Path(prepare.__file__).resolve().parents[1]
    subprocess.run([*command, f'--records={tmp_path}/whole'], cwd=root, check=True, capture_output=True)
    killed = tmp_path / 'killed'
    for kills in (1, 2):  # once with a shard half written, once more after one is finished
        process = subprocess.Popen([*command, f'--records={killed}'], cwd=root, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        def begun():
            return list(killed.glob('*.tmp-*')) if kills == 1 else list(killed.glob('*.tfrecord'))
        while process.poll() is None and not begun():
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert not (killed / 'index.json').exists()
    subprocess.run([*command, f'--records={killed}'], cwd=root, check=True, capture_output=True)
    whole = _content(tmp_path / 'whole')
    assert {name: data for name, data in _content(killed).items() if name != 'prepare.flags'} == {
        name: data for name, data in whole.items() if name != 'prepare.flags'}


def test_a_name_that_is_no_utf8_is_a_name(tmp_path):
    conftest.counting_video(tmp_path / 'v/train/a/x.avi', 20)
    os.rename(tmp_path / 'v/train/a/x.avi', bytes(tmp_path / 'v/train/a') + b'/\xff.avi')
    (tmp_path / 'v/train/a').joinpath('ok.avi').write_bytes(b'')
    os.rename(tmp_path / 'v/train/a/ok.avi', bytes(tmp_path / 'v/train/a') + b'/\xfe.avi')
    index = _prepare(tmp_path / 'v', tmp_path / 'r', max_failures=1)
    assert (index['taken'], index['found']) == (1, 2)


def test_a_file_that_was_repaired_is_tried_again(tmp_path):
    conftest.counting_video(tmp_path / 'v/train/a/good.avi', 20)
    (tmp_path / 'v/train/a/late.avi').write_bytes(b'')
    with pytest.raises(errors.RunError, match='late.avi'):
        _prepare(tmp_path / 'v', tmp_path / 'r')
    conftest.counting_video(tmp_path / 'v/train/a/late.avi', 20)
    assert _prepare(tmp_path / 'v', tmp_path / 'r')['taken'] == 2
    os.remove(tmp_path / 'r/train-00000-of-00001.tfrecord')  # a lost shard is made anew, too
    assert _prepare(tmp_path / 'v', tmp_path / 'r')['taken'] == 2
    assert (tmp_path / 'r/train-00000-of-00001.tfrecord').exists()
