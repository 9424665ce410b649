# SPDX-License-Identifier: Apache-2.0
"""How fast every stage is, beside what bounds it on the same machine in the same run.

Machines differ and are noisy, so what counts is the ratio: the network against a plain matrix product,
a training step against the same step without input, prepare against FFmpeg.
"""

import glob
import json
import math
import os
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from c3d_tf import features
from c3d_tf import prepare
from c3d_tf.benchmarks import network
from c3d_tf.benchmarks import optical_flow
from c3d_tf.benchmarks import videos
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.data import datasets
from c3d_tf.data import inputs
from c3d_tf.data import pipeline
from c3d_tf.data import preprocess
from c3d_tf.data import records
from c3d_tf.training import recipe as recipes
from c3d_tf.training import trainer as trainers
from c3d_tf.weights import artefact

RESULT = 'benchmark.json'
RUNTIME = 'runtime.json'
PREPARE_VIDEOS, PREPARE_COPIES = 24, 20  # long enough that the start of the workers does not count
INPUT_COPIES = 20  # of 24 videos: 480 clips a pass
STEPS, STEP_REPEATS = 6, 3  # of training: steps of a run, and runs of each kind
FEATURE_VIDEOS, FEATURE_FRAMES = 16, 168  # at step 8: 20 clips a video
TABLE_VIDEOS = 8  # of the runtime table, where none are given
UCF101_FRAMES = 2_486_000  # 2.2 hours at 313.9 frames a second: Table 6 of the paper
STEPS_AHEAD = 4  # more batches than the input pipeline holds ready


class Bench(NamedTuple):
    """What every stage is given.

    Attributes:
      scratch: a folder for its files.
      batch_size: clips at once for the network.
      torch_python: a Python that has PyTorch, or ''.
    """

    scratch: str
    batch_size: int
    torch_python: str


def benchmark(
    workdir: str, *, only: tuple[str, ...] = (), batch_size: int = 8, torch_python: str = ''
) -> dict:
    """Measures the stages and prints a line for each.

    Args:
      workdir: gets benchmark.json, and a folder of videos and records while it runs.
      only: stages to run, of STAGES; empty for all.
      batch_size: clips at once for the network.
      torch_python: a Python that has PyTorch, for the comparison with it; '' leaves that out.

    Returns:
      {stage: {'value', 'unit', 'ratio', 'of'}}; ratio is None where there is nothing to compare with.
    """
    unknown = set(only) - STAGES.keys()
    if unknown:
        raise errors.UsageError(f'--stages={",".join(sorted(unknown))}: expected {", ".join(STAGES)}')
    results = {}
    with storage.scratch(workdir) as scratch:
        for name, stage in STAGES.items():
            if only and name not in only:
                continue
            for key, (value, unit, ratio, of) in stage(Bench(scratch, batch_size, torch_python)).items():
                results[key] = {'value': round(value, 4), 'unit': unit,
                                'ratio': ratio and round(ratio, 3), 'of': of}
                beside = f'{ratio:6.2f} of {of}' if ratio else f'       {of}'
                console.say(f'  {key:24} {value:10.2f} {unit:14} {beside}')
    path = os.path.join(workdir, RESULT)
    files.write_json(path, results)
    console.say(f'benchmark: wrote {path}')
    return results


def runtime_table(workdir: str, *, videos_given: str = '', weights: str = '', batch_size: int = 8) -> dict:
    """Measures Table 6 of the paper on this machine: fc6 from video files beside dense optical flow.

    Everything counts from opening the files to the results on disk, on all cores and the device there is;
    only the start of the programs does not.

    Args:
      workdir: gets runtime.json, and a folder of results while it runs.
      videos_given: what `inputs.find` takes; '' makes eight videos of 320x240.
      weights: an artefact with a layer fc6; '' takes full C3D at random, which costs the same.
      batch_size: clips at once for the network.

    Returns:
      {'videos', 'frames', 'device', 'rows': [{'method', 'frames_per_second', 'times_slower' than the first
      row, 'hours_for_ucf101' at that rate}]}, C3D's rows first.
    """
    rows = []
    with storage.scratch(workdir) as scratch:
        weights = weights or network.random_weights(scratch)
        given = videos_given or os.path.dirname(videos.avi_files(scratch, TABLE_VIDEOS, FEATURE_FRAMES)[0])
        paths = [video.path for video in inputs.find(given, size=(128, 171))[1]]
        for precision in ('bfloat16', 'float32'):
            for step in (16, 8):
                before = time.perf_counter()
                features.extract(os.path.join(scratch, f'{precision}{step}'), weights, videos=given, step=step,
                                 precision=precision, batch_size=batch_size)
                rows.append((f'C3D fc6, {precision}, step {step}', None, time.perf_counter() - before))
        for method in optical_flow.METHODS:
            why = optical_flow.missing(method)
            if why:
                console.say(f'  {method}: left out, {why}')
                continue
            rows.append((method, *optical_flow.measure(paths, method, os.path.join(scratch, method))))
    frames = max(count for _, count, _ in rows if count)  # of all videos, by a method that came to the end
    rates = {method: (count or frames) / seconds for method, count, seconds in rows}
    fastest = next(iter(rates.values()))
    result = {'videos': len(paths), 'frames': frames, 'device': network.device(), 'rows': [
        {'method': method, 'frames_per_second': round(rate, 2), 'times_slower': round(fastest / rate, 2),
         'hours_for_ucf101': round(UCF101_FRAMES / rate / 3600, 2)} for method, rate in rates.items()]}
    console.say(f'  {len(paths)} videos, {frames} frames, {result["device"]}\n'
                f'  {"":26} {"frames/s":>9} {"x slower":>9} {"hours, UCF101":>14}')
    for row in result['rows']:
        console.say(f'  {row["method"]:26} {row["frames_per_second"]:9.1f} {row["times_slower"]:9.2f} '
                    f'{row["hours_for_ucf101"]:14.1f}')
    path = os.path.join(workdir, RUNTIME)
    files.write_json(path, result)
    console.say(f'benchmark: wrote {path}')
    return result


def _train_step(bench: Bench) -> dict:
    """Runs of steps with the input pipeline beside runs of steps on one batch in memory.

    Runs, since between two steps of the other kind the pipeline could work ahead unseen. The first
    steps of each run use up what it has prepared in the meantime, and do not count. The best run of
    each kind does: other work of the machine only ever makes one slower.
    """
    batch_size = min(bench.batch_size, 4)  # a step of full C3D takes a CPU about a second a clip
    total = STEP_REPEATS * (STEPS_AHEAD + STEPS) + 1  # all within one epoch, as in a long one
    split, spec = _records(bench, 8, math.ceil((total + 2) * batch_size / 8))
    recipe = recipes.Recipe(batch_size=batch_size)
    trainer = trainers.Trainer(recipe, lambda: recipe.network(8), total, tf.distribute.get_strategy())
    source = iter(pipeline.for_training(split, spec, batch_size=batch_size, epoch=0, **recipe.choices()))
    cached = next(source)
    step = 0

    def run(steps: int, next_batch) -> float:
        nonlocal step
        before = time.perf_counter()
        for _ in range(steps):
            clips, labels, _ = next_batch()
            float(trainer.train_step(step, clips, labels)[0])
            step += 1
        return (time.perf_counter() - before) / steps

    run(1, lambda: cached)  # makes the graph
    times = {'cached': [], 'input': []}
    for _ in range(STEP_REPEATS):
        for kind, next_batch in (('cached', lambda: cached), ('input', lambda: next(source))):
            run(STEPS_AHEAD, next_batch)
            times[kind].append(run(STEPS, next_batch))
    cached_seconds, seconds = (min(times[kind]) for kind in ('cached', 'input'))
    return {'train_step/float32': (batch_size / seconds, 'clips/s', cached_seconds / seconds,
                                   'the same step on one batch in memory')}


def _input(bench: Bench) -> dict:
    """Records → batches that are ready for the network, beside the same number of JPEGs merely decoded."""
    split, spec = _records(bench, 24, INPUT_COPIES)
    recipe = recipes.Recipe(batch_size=30, random_crop=True, flip=True)
    ours = network.best(lambda: sum(1 for _ in pipeline.for_training(
        split, spec, batch_size=30, epoch=0, **recipe.choices())), repeats=3)
    images = tf.data.TFRecordDataset(split.files).map(lambda x: records.parse(x)[records.IMAGE][:16])
    decoded = images.map(lambda x: tf.map_fn(records.decode_image, x, fn_output_signature=tf.uint8),
                         tf.data.AUTOTUNE)
    plain = network.best(lambda: sum(1 for _ in decoded), repeats=3)
    return {'input': (len(split.frames) / ours, 'clips/s', plain / ours, 'decoding as many JPEGs and no more')}


def _records(bench: Bench, count: int, copies: int) -> tuple[records.Split, preprocess.Preprocessing]:
    """Prepares `count` videos, each `copies` times; returns the records and what full C3D makes of them."""
    target = os.path.join(bench.scratch, f'records{count}x{copies}')
    prepare.prepare(datasets.load('folder', videos=videos.folder(bench.scratch, count, copies)), target)
    index = records.read_index(target)
    return index.split('train'), preprocess.Preprocessing(index.frame_size, 112, 16, 1, index.mean())


def _prepare(bench: Bench) -> dict:
    folder = videos.folder(bench.scratch, PREPARE_VIDEOS, PREPARE_COPIES)
    paths = sorted(glob.glob(os.path.join(folder, '*/*/*.mp4')))
    dataset = datasets.load('folder', videos=folder)
    before = time.perf_counter()
    prepare.prepare(dataset, os.path.join(bench.scratch, 'bench_records'))
    rate = len(paths) * 100 / (time.perf_counter() - before)
    if not shutil.which('ffmpeg'):
        return {'prepare': (rate, 'frames/s', None, 'ffmpeg is not installed: nothing to compare with')}
    before = time.perf_counter()
    for path in paths:
        subprocess.run(['ffmpeg', '-v', 'error', '-i', path, '-vf', 'scale=171:128', '-f', 'null', '-'],
                       check=True)
    ffmpeg = len(paths) * 100 / (time.perf_counter() - before)
    return {'prepare': (rate, 'frames/s', rate / ffmpeg, 'ffmpeg decoding and scaling the same files')}


def _memory(bench: Bench) -> dict:
    """Peak of prepare and its worker on one video, and on one ten times as long."""
    peaks = []
    for frames in (1500, 15000):
        folder = os.path.join(bench.scratch, f'long{frames}')
        path = os.path.join(folder, 'train', 'a', 'x.mp4')
        os.makedirs(os.path.dirname(path))
        videos.write(path, videos.rolling_noise(frames), 'libx264', preset='ultrafast')
        peaks.append(_peak('--mode=prepare', f'--videos={folder}', f'--records={bench.scratch}/out{frames}',
                           '--num_workers=1'))
    return {'prepare_memory': (peaks[1], 'MiB', peaks[1] / peaks[0], 'its peak on a tenth of the length')}


def _peak(*words: str) -> float:
    """Returns the peak memory of a command and its children together, in MiB."""
    command = [sys.executable, '-m', 'c3d_tf.benchmarks.peak', *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) / 1024


def _features(bench: Bench) -> dict:
    """Video files → fc6 on disk, start included, beside the network alone on clips in memory."""
    weights = network.random_weights(bench.scratch)
    paths = videos.avi_files(bench.scratch, FEATURE_VIDEOS, FEATURE_FRAMES)
    clips = tf.random.normal((bench.batch_size, *network.CLIP), stddev=50.0)
    out = {}
    for precision in ('float32', 'bfloat16'):
        model = artefact.load(weights, precision=precision).model
        fc6 = tf.function(keras.Model(model.input, model.get_layer('fc6').output))
        before = bench.batch_size / network.best(lambda fc6=fc6: fc6(clips).numpy(), repeats=3)
        started = time.perf_counter()
        done = features.extract(
            os.path.join(bench.scratch, precision), weights, videos=os.path.dirname(paths[0]),
            precision=precision, batch_size=bench.batch_size)
        rate = done['clips'] / (time.perf_counter() - started)
        after = bench.batch_size / network.best(lambda fc6=fc6: fc6(clips).numpy(), repeats=3)
        out[f'features/{precision}'] = (rate, 'clips/s', 2 * rate / (before + after),
                                        'the network alone on clips in memory')
    return out


def _features_memory(bench: Bench) -> dict:
    """Peak of features and its decoders on a minute of video, and on thirty."""
    weights, peaks = network.random_weights(bench.scratch), []
    for minutes in (1, 30):
        path = os.path.join(bench.scratch, f'{minutes}min.avi')
        videos.write(path, videos.rolling_noise(1500 * minutes), 'mpeg4')
        peaks.append(_peak(
            '--mode=features', f'--weights={weights}', f'--input={path}', '--step=160',
            f'--output={bench.scratch}/peak{minutes}', f'--eval_batch_size={bench.batch_size}'))
    return {'features_memory': (peaks[1], 'MiB', peaks[1] / peaks[0],
                                'its peak on a thirtieth of the length')}


def _pytorch(bench: Bench) -> dict:
    """The same network with the same weights in PyTorch, each at the best of its batch sizes and modes.

    Prints every cell. Ours runs before and after, so that a machine that slows down is seen.
    """
    if not bench.torch_python:
        console.say('  pytorch: left out; --torch_python=PYTHON names one that has it (make test-torch makes '
                    '.venv-torch/bin/python)')
        return {}
    model = artefact.load(network.random_weights(bench.scratch)).model
    clips = np.random.default_rng(0).normal(0, 50, (16, *network.CLIP)).astype(np.float32)
    np.savez(f'{bench.scratch}/weights.npz', **network.channels_first(model))
    np.save(f'{bench.scratch}/clips.npy', clips.transpose(0, 4, 1, 2, 3))
    paths = videos.avi_files(bench.scratch, 2, FEATURE_FRAMES)
    ours = [network.by_batch(model, clips)]
    program = os.path.join(os.path.dirname(__file__), 'benchmarks', 'pytorch.py')
    done = subprocess.run(
        [bench.torch_python, program, f'{bench.scratch}/weights.npz', f'{bench.scratch}/clips.npy',
         str(os.cpu_count()), *paths], check=True, stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    ours.append(network.by_batch(model, clips))
    theirs, here = np.array(lines[0]['logits']), model(clips[:1]).numpy()
    error = np.linalg.norm(theirs - here) / np.linalg.norm(here)
    console.say(f'  pytorch {lines[0]["torch"]}: its logits of a clip differ from ours by {error:.1e} '
                '(relative L2)')
    for cell in lines[2:]:
        console.say(f'    pytorch {cell["precision"]:8} {cell["mode"]:8} batch {cell["batch"]:2d}  '
                    f'{cell["clips/s"]:6.2f} clips/s')
    out = {}
    for precision in ('float32', 'bfloat16'):
        for batch in (1, 4, 8, 16):
            console.say(f'    ours    {precision:8} graph    batch {batch:2d}  '
                        + ', '.join(f'{turn[precision, batch]:6.2f}' for turn in ours) + ' clips/s')
        best = max(cell['clips/s'] for cell in lines[2:] if cell['precision'] == precision)
        rate = np.mean([max(rate for key, rate in turn.items() if key[0] == precision) for turn in ours])
        out[f'pytorch/{precision}'] = (rate, 'clips/s', rate / best, "PyTorch's best")
    started = time.perf_counter()
    found = features.extract(f'{bench.scratch}/beside', network.random_weights(bench.scratch),
                             videos=os.path.dirname(paths[0]), batch_size=bench.batch_size)
    rate = found['clips'] / (time.perf_counter() - started)
    out['pytorch/end to end'] = (rate, 'clips/s', rate / lines[1]['by_the_book'],
                                 'PyTorch fed by OpenCV, clip by clip')
    return out


def _startup(bench: Bench) -> dict:
    split, _ = _records(bench, 8, 1)
    command = [sys.executable, '-m', 'c3d_tf.main']
    before = time.perf_counter()
    subprocess.run([*command, '--help'], check=True, capture_output=True)
    help_seconds = time.perf_counter() - before
    before = time.perf_counter()
    process = subprocess.Popen(
        [*command, '--mode=train', f'--records={os.path.dirname(split.files[0])}', '--batch_size=2',
         f'--workdir={bench.scratch}/startup', '--steps=1'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    first = next(time.perf_counter() - before for line in process.stdout
                 if line.startswith('train: the rate'))
    process.communicate()
    return {'startup/help': (help_seconds, 's', None, 'the bound is 1.5 s'),
            'startup/train': (first, 's', None, 'until the first step of full C3D starts; the bound is 15 s')}


STAGES = {
    'forward': lambda bench: network.forward(bench.batch_size),
    'train_step': _train_step,
    'input': _input,
    'prepare': _prepare,
    'memory': _memory,
    'features': _features,
    'features_memory': _features_memory,
    'pytorch': _pytorch,
    'startup': _startup,
}
