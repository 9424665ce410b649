# SPDX-License-Identifier: Apache-2.0
"""Videos and lists → sharded TFRecords, their index, the mean clip, and what was skipped.

A shard is the unit of work, of rename and of resume: example i of the sorted list goes to shard
i mod S, so the bytes are the same for any number of workers.
"""

import collections
import dataclasses
import functools
import json
import math
import os

import cv2
import numpy as np
import tensorflow as tf

from c3d_tf import __version__
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.data import clips
from c3d_tf.data import datasets
from c3d_tf.data import encode_video
from c3d_tf.data import local_runner
from c3d_tf.data import pipeline
from c3d_tf.data import records

VIDEOS_PER_SHARD = 64
MEAN_CLIPS = 10_000  # more would not move the mean: the original averages every tenth clip
PROGRESS = '.progress'  # what a stopped run has finished, one JSON file a shard


def prepare(
    dataset: datasets.Dataset,
    records_dir: str,
    *,
    frame_size: tuple[int, int] = (128, 171),
    frame_format: str = 'jpeg',
    clip_length: int = 16,
    max_frames: int = 304,
    clips_per_video: int = 0,
    test_clips_per_video: int = 0,
    clip_seconds: float = 2.0,
    seed: int = 0,
    max_failures: int = 0,
    num_workers: int = 0,
    video_timeout: float = 60.0,
    runner: str = 'local',
    beam_options: tuple[str, ...] = (),
    overwrite: bool = False,
) -> dict:
    """Writes the records of all splits below `records_dir`.

    Args:
      dataset: what to read, from `datasets.load`.
      records_dir: where to write; a folder with a part of the same work is continued.
      frame_size, frame_format, clip_length, max_frames, clips_per_video, test_clips_per_video,
      clip_seconds, seed: see
        `encode_video.Settings`.
      max_failures: broken videos that are tolerated; -1 for any number.
      num_workers: processes; 0 means one a core.
      video_timeout: seconds without a decoded frame after which a file counts as stuck.
      runner: 'local', or 'beam': an engine of Apache Beam does the shards, to the same bytes.
      beam_options: of Beam and its engine, e.g. '--runner=DaskRunner'.
      overwrite: deletes records made with other settings instead of refusing.

    Returns:
      the content of `index.json`.

    Raises:
      errors.UsageError: the folder holds records made with other settings.
      errors.RunError: more videos failed than `max_failures`, or a shard could not be written.
    """
    settings = encode_video.Settings(
        tuple(frame_size), frame_format, clip_length, max_frames, clips_per_video,
        test_clips_per_video, clip_seconds, seed)
    if clip_length > max_frames:
        raise errors.UsageError(f'--clip_length={clip_length}: expected at most {max_frames}, the longest '
                                'span of a record')
    if runner == 'beam':
        from c3d_tf.data import beam_runner  # Beam is an extra

        empty = beam_runner.pipeline(beam_options)
    elif runner != 'local':
        raise errors.UsageError(f'--runner={runner}: expected local or beam')
    described = _describe(dataset, settings)
    index = _existing(records_dir, described, overwrite)
    tasks = _plan(dataset, records_dir)
    if index is not None and _lost(records_dir, index):
        _reopen(records_dir, index, tasks)
        index = None
    if index is not None:
        # Of a run that was killed last.
        storage.rmtree(os.path.join(records_dir, PROGRESS), ignore_errors=True)
        failed = index['found'] - index['taken']
        _check_failures(failed, max_failures, records_dir)
        console.say(f'prepare: {records_dir} is complete: {index["taken"]} videos, {failed} skipped')
        return index

    storage.makedirs(os.path.join(records_dir, PROGRESS))
    files.remove_leftovers(records_dir)
    files.remove_leftovers(os.path.join(records_dir, PROGRESS))
    files.write_json(os.path.join(records_dir, PROGRESS, 'settings.json'), described)
    work = functools.partial(encode_video.write_shard, class_names=dataset.class_names,
                             settings=settings)
    if runner == 'beam':
        beam_runner.write_shards(empty, tasks, work, video_timeout=video_timeout)
    else:
        local_runner.run(tasks, work, num_workers=num_workers or os.cpu_count(),
                         video_timeout=video_timeout, in_process=any(map(
                             storage.private, [records_dir, *(one.path for one in dataset.examples)])))
    files.remove_leftovers(records_dir)  # of workers that a video took down

    reports = [files.read_json(task.report) for task in tasks]
    skipped = sorted((skip for report in reports for skip in report['skipped']),
                     key=lambda skip: skip['path'])
    files.write_text(os.path.join(records_dir, records.SKIPPED),
                     ''.join(json.dumps(skip, ensure_ascii=False) + '\n' for skip in skipped))
    _check_failures(len(skipped), max_failures, records_dir)
    index = {
        'dataset': dataset.name,
        'class_names': list(dataset.class_names),
        'frame_size': list(settings.frame_size),
        'found': len(dataset.examples),
        'taken': len(dataset.examples) - len(skipped),
        'splits': _splits(tasks, reports, dataset),
        'settings': described,
        'versions': {'c3d_tf': __version__, 'tensorflow': tf.__version__, 'opencv': cv2.__version__},
    }
    index['channel_means'] = _write_mean(records_dir, index, clip_length)
    files.write_json(os.path.join(records_dir, records.INDEX), index)  # last: it says "complete"
    storage.rmtree(os.path.join(records_dir, PROGRESS))
    _summarise(index, records_dir)
    return index


def _describe(dataset: datasets.Dataset, settings: encode_video.Settings) -> dict:
    # Compared with what an earlier run wrote as JSON, hence the round trip.
    listed = [[dataset.media_id(e), e.labels, e.split] for e in dataset.examples]
    return json.loads(json.dumps({
        **dataclasses.asdict(settings),
        'dataset': dataset.name,
        'class_names': dataset.class_names,
        'videos': len(dataset.examples),
        'list_hash': files.text_hash(json.dumps(listed)),
    }))


def _existing(records_dir: str, described: dict, overwrite: bool) -> dict | None:
    """Returns the finished index, or None where there is work left; clears the way on `overwrite`."""
    index = files.read_json(os.path.join(records_dir, records.INDEX))
    before = index['settings'] if index else files.read_json(
        os.path.join(records_dir, PROGRESS, 'settings.json'))
    # An unfinished run of the same settings goes on, with --overwrite as well.
    if before is None or before == described and not (overwrite and index):
        return index
    if not overwrite:
        raise errors.changed_settings(
            records_dir, before, described,
            'Give another --records folder, or --overwrite to make them anew.')
    # The index first: without it nobody takes the rest for complete.
    for name in sorted(storage.listdir(records_dir), key=lambda name: name != records.INDEX):
        if name.endswith('.tfrecord') or name in (records.INDEX, records.MEAN, records.SKIPPED):
            storage.remove(os.path.join(records_dir, name))
    storage.rmtree(os.path.join(records_dir, PROGRESS), ignore_errors=True)
    return None


def _lost(records_dir: str, index: dict) -> list[str]:
    """Returns the files that are gone, cut or grown since the index was written."""
    others = [os.path.join(records_dir, name) for name in (records.MEAN, records.SKIPPED)]
    return records.Index(records_dir, index).lost() + [path for path in others if not storage.exists(path)]


def _reopen(records_dir: str, index: dict, tasks: list[local_runner.Task]) -> None:
    """Makes finished records unfinished again: what is there stays, what is lost is made anew."""
    lost = _lost(records_dir, index)
    console.say(f'prepare: {lost[0]} is gone or not as long as it was ({len(lost)} such files); made anew')
    shards = {shard['file']: shard for part in index['splits'].values() for shard in part['shards']}
    skipped_file = os.path.join(records_dir, records.SKIPPED)
    if skipped_file in lost:  # which shard's videos were skipped is not known any more: all of them anew
        tasks = []
    else:
        with storage.open(skipped_file, encoding='utf-8', errors='surrogateescape') as file:
            skips = {skip['path']: skip for skip in map(json.loads, file)}
    for task in tasks:
        if task.path not in lost:
            shard = shards[os.path.basename(task.path)]
            files.write_json(task.report, {
                'records': shard['records'], 'frames': shard['frames'],
                'skipped': [skips[e.source] for _, _, e in task.examples if e.source in skips],
                'bytes': storage.getsize(task.path)})
    files.write_json(os.path.join(records_dir, PROGRESS, 'settings.json'), index['settings'])
    storage.remove(os.path.join(records_dir, records.INDEX))


def _plan(dataset: datasets.Dataset, records_dir: str) -> list[local_runner.Task]:
    by_split = collections.defaultdict(list)
    for example in dataset.examples:
        rows = by_split[example.split]
        rows.append((len(rows), dataset.media_id(example), example))
    tasks = []
    for split, numbered in by_split.items():
        shards = math.ceil(len(numbered) / VIDEOS_PER_SHARD)
        for shard in range(shards):
            name = records.shard_name(split, shard, shards)
            tasks.append(local_runner.Task(os.path.join(records_dir, name),
                               os.path.join(records_dir, PROGRESS, f'{name}.json'),
                               split, numbered[shard::shards]))
    return tasks


def _check_failures(failed: int, max_failures: int, records_dir: str) -> None:
    if 0 <= max_failures < failed:
        path = os.path.join(records_dir, records.SKIPPED)
        with storage.open(path, encoding='utf-8') as file:
            first = json.loads(file.readline())
        raise errors.RunError(
            f'{failed} videos could not be read, {max_failures} are tolerated; see {path}.\n'
            f'The first: {first["path"]}: {first["reason"]}\n'
            f'--max_failures={failed} goes on without them (nothing is done twice).')


def _splits(tasks: list[local_runner.Task], reports: list[dict], dataset: datasets.Dataset) -> dict:
    splits = {}
    for task, report in zip(tasks, reports, strict=True):
        part = splits.setdefault(task.split, {'videos': 0, 'videos_per_class': [], 'shards': []})
        part['videos'] += len(report['records'])
        gone = {skip['path'] for skip in report['skipped']}
        part['shards'].append({
            'file': os.path.basename(task.path), 'bytes': report['bytes'],
            'records': report['records'], 'frames': report['frames'],
            'labels': [list(e.labels) for _, _, e in task.examples if e.source not in gone]})
    for part in splits.values():
        taken = [label for shard in part['shards'] for own in shard['labels'] for label in own]
        part['videos_per_class'] = np.bincount(taken, minlength=len(dataset.class_names)).tolist()
    return splits


@records.names_damage
def _write_mean(records_dir: str, data: dict, clip_length: int) -> list[float]:
    """Writes the mean clip of the training split; returns its RGB means.

    The mean is over non-overlapping clips of the stored frames, every k-th where there are more than
    MEAN_CLIPS; sums are exact integers.
    """
    index = records.Index(records_dir, data)
    name = 'train' if data['splits'].get('train', {}).get('videos') else 'test'
    split = index.split(name)
    height, width = index.frame_size
    record, start = clips.choose(split.frames, split.videos, choice='all', clip_length=clip_length,
                                 rng=np.random.default_rng(0))
    every = math.ceil(len(record) / MEAN_CLIPS)
    record, start = record[::every], start[::every]
    total = np.zeros((clip_length, height, width, 3), np.int64)
    for batch in pipeline.read_clips(split, record, start, clip_length=clip_length).batch(16):
        total += batch.numpy().sum(axis=0, dtype=np.int64)
    mean = (total / len(record)).astype(np.float32)
    with files.replacing(os.path.join(index.directory, records.MEAN)) as temporary:
        with open(temporary, 'wb') as file:
            np.save(file, mean)
    return [float(value) for value in (total / len(record)).mean(axis=(0, 1, 2))]


def _summarise(index: dict, records_dir: str) -> None:
    for name, part in index['splits'].items():
        frames = sum(sum(shard['frames']) for shard in part['shards'])
        size = sum(storage.getsize(os.path.join(records_dir, s['file'])) for s in part['shards'])
        console.say(f'  {name}: {part["videos"]} videos, {frames} frames, '
                    f'{len(part["shards"])} shard{"s" * (len(part["shards"]) > 1)}, {size / 1e6:.1f} MB')
        empty = [index['class_names'][i] for i, n in enumerate(part['videos_per_class']) if not n]
        if empty:
            console.say(f'  {name} has no video of {len(empty)} class{"es" * (len(empty) > 1)}: {", ".join(empty[:5])}'
                        f'{", …" * (len(empty) > 5)}')
    skipped = index['found'] - index['taken']
    console.say(f'prepare: wrote {records_dir}: {index["taken"]} of {index["found"]} videos, '
                f'{skipped} skipped{f" (see {records.SKIPPED})" if skipped else ""}')
