# SPDX-License-Identifier: Apache-2.0
"""How fast every stage is, beside what bounds it on the same machine in the same run.

Machines differ and are noisy, so what counts is the ratio: the network against a plain matrix product,
a training step against the same step without input, prepare against FFmpeg.
"""

import glob
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time

import av
import numpy as np
import tensorflow as tf

from c3d_tf import models
from c3d_tf import prepare
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.data import datasets
from c3d_tf.data import moving_shapes
from c3d_tf.data import pipeline
from c3d_tf.data import preprocess
from c3d_tf.data import records
from c3d_tf.training import recipe as recipes
from c3d_tf.training import trainer as trainers

RESULT = 'benchmark.json'
CLIP_MACS = 38_548_959_232  # of C3D with 487 classes on 16x112x112: the sum of the layers' products
MATMUL = 4096
PREPARE_VIDEOS, PREPARE_COPIES = 24, 20  # long enough that the start of the workers does not count
STEPS, STEP_REPEATS = 6, 3  # of training: steps of a run, and runs of each kind
STEPS_AHEAD = 4  # more batches than the input pipeline holds ready


def benchmark(workdir: str, *, only: tuple[str, ...] = (), batch_size: int = 8) -> dict:
    """Measures the stages and prints a line for each.

    Args:
      workdir: gets benchmark.json, and a folder of videos and records while it runs.
      only: stages to run, of STAGES; empty for all.
      batch_size: clips at once for the network.

    Returns:
      {stage: {'value', 'unit', 'ratio', 'of'}}; ratio is None where there is nothing to compare with.
    """
    unknown = set(only) - STAGES.keys()
    if unknown:
        raise errors.UsageError(f'--stages={",".join(sorted(unknown))}: expected {", ".join(STAGES)}')
    os.makedirs(workdir, exist_ok=True)
    results = {}
    with tempfile.TemporaryDirectory(dir=workdir) as scratch:
        for name, stage in STAGES.items():
            if only and name not in only:
                continue
            for key, (value, unit, ratio, of) in stage(scratch, batch_size).items():
                results[key] = {'value': round(value, 4), 'unit': unit,
                                'ratio': ratio and round(ratio, 3), 'of': of}
                beside = f'{ratio:6.2f} of {of}' if ratio else f'       {of}'
                console.say(f'  {key:24} {value:10.2f} {unit:14} {beside}')
    path = os.path.join(workdir, RESULT)
    files.write_json(path, results)
    console.say(f'benchmark: wrote {path}')
    return results


def _best(function, *, repeats: int = 5) -> float:
    """Returns the shortest of several times, in seconds; the first call is not counted."""
    function()
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        function()
        times.append(time.perf_counter() - before)
    return min(times)


def _matmul_rate(dtype: str) -> float:
    """Returns multiply-adds a second of a 4096³ product, best of 5."""
    a = tf.cast(tf.random.normal((MATMUL, MATMUL)), dtype)
    product = tf.function(lambda: tf.matmul(a, a)[0, 0])
    return MATMUL**3 / _best(lambda: product().numpy())


def _forward(scratch: str, batch_size: int) -> dict:
    out = {}
    clips = tf.random.normal((batch_size, 16, 112, 112, 3), stddev=50.0)
    for precision in ('float32', 'bfloat16'):
        model = models.build('c3d', num_classes=487, precision=precision)
        forward = tf.function(lambda x, model=model: model(x, training=False))
        seconds = _best(lambda forward=forward: forward(clips).numpy(), repeats=3) / batch_size
        out[f'forward/{precision}'] = (1 / seconds, 'clips/s', CLIP_MACS / seconds / _matmul_rate(precision),
                                       f'the rate of a {precision} matmul of {MATMUL}')
    return out


def _video_folder(scratch: str, videos: int, copies: int = 1) -> str:
    """Writes H.264 videos of 320x240 and 100 frames, the size of UCF101's, in a class folder a motion.

    Each is there `copies` times under names of its own.
    """
    folder = os.path.join(scratch, f'videos{videos}x{copies}')
    for i in range(videos):
        label = moving_shapes.CLASSES[i % 8]
        path = os.path.join(folder, 'train', label, f'{i}.mp4')
        os.makedirs(os.path.dirname(path), exist_ok=True)
        frames = moving_shapes.render(label, np.random.default_rng(i), height=240, width=320, num_frames=100)
        with av.open(path, 'w') as container:
            stream = container.add_stream('libx264', rate=25, options={'preset': 'superfast'})
            stream.width, stream.height, stream.pix_fmt = 320, 240, 'yuv420p'
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
            container.mux(stream.encode())
        for copy in range(1, copies):
            os.link(path, f'{path[:-4]}_{copy}.mp4')
    return folder


def _train_step(scratch: str, batch_size: int) -> dict:
    """Runs of steps with the input pipeline beside runs of steps on one batch in memory.

    Runs, since between two steps of the other kind the pipeline could work ahead unseen. The first
    steps of each run use up what it has prepared in the meantime, and do not count. The best run of
    each kind does: other work of the machine only ever makes one slower.
    """
    batch_size = min(batch_size, 4)  # a step of full C3D takes a CPU about a second a clip
    total = STEP_REPEATS * (STEPS_AHEAD + STEPS) + 1  # all within one epoch, as in a long one
    folder = _video_folder(scratch, 8, math.ceil((total + 2) * batch_size / 8))
    target = os.path.join(scratch, 'records')
    prepare.prepare(datasets.load('folder', videos=folder), target)
    index = records.read_index(target)
    spec = preprocess.Preprocessing(index.frame_size, 112, 16, 1, index.mean())
    recipe = recipes.Recipe(batch_size=batch_size)
    trainer = trainers.Trainer(recipe, lambda: recipe.network(8), total, tf.distribute.get_strategy())
    source = iter(pipeline.for_training(index.split('train'), spec, batch_size=batch_size, epoch=0,
                                        **recipe.choices()))
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


def _prepare(scratch: str, batch_size: int) -> dict:
    folder = _video_folder(scratch, PREPARE_VIDEOS, PREPARE_COPIES)
    paths = sorted(glob.glob(os.path.join(folder, '*/*/*.mp4')))
    dataset = datasets.load('folder', videos=folder)
    before = time.perf_counter()
    prepare.prepare(dataset, os.path.join(scratch, 'bench_records'))
    rate = len(paths) * 100 / (time.perf_counter() - before)
    if not shutil.which('ffmpeg'):
        return {'prepare': (rate, 'frames/s', None, 'ffmpeg is not installed: nothing to compare with')}
    before = time.perf_counter()
    for path in paths:
        subprocess.run(['ffmpeg', '-v', 'error', '-i', path, '-vf', 'scale=171:128', '-f', 'null', '-'],
                       check=True)
    ffmpeg = len(paths) * 100 / (time.perf_counter() - before)
    return {'prepare': (rate, 'frames/s', rate / ffmpeg, 'ffmpeg decoding and scaling the same files')}


def _memory(scratch: str, batch_size: int) -> dict:
    """Peak of prepare and its worker on one video, and on one ten times as long."""
    peaks = []
    for frames in (1500, 15000):
        folder = os.path.join(scratch, f'long{frames}')
        path = os.path.join(folder, 'train', 'a', 'x.mp4')
        os.makedirs(os.path.dirname(path))
        noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
        with av.open(path, 'w') as container:
            stream = container.add_stream('libx264', rate=25, options={'preset': 'ultrafast'})
            stream.width, stream.height, stream.pix_fmt = 320, 240, 'yuv420p'
            for t in range(frames):
                image = np.roll(noise, t, axis=1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
            container.mux(stream.encode())
        words = ['c3d_tf', '--mode=prepare', f'--videos={folder}', f'--records={scratch}/out{frames}',
                 '--num_workers=1']
        done = subprocess.run([sys.executable, '-c', _PEAK, *words], check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    return {'prepare_memory': (peaks[1], 'MiB', peaks[1] / peaks[0], 'its peak on a tenth of the length')}


# VmHWM and not ru_maxrss for the process itself: that one inherits the peak of the process that started it.
_PEAK = '''
import re, resource, sys
from c3d_tf import main
if __name__ == '__main__':
    assert main.main(sys.argv[1:]) == 0
    own = int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])
    print(own + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
'''


def _startup(scratch: str, batch_size: int) -> dict:
    folder = _video_folder(scratch, 8)
    target = os.path.join(scratch, 'startup_records')
    prepare.prepare(datasets.load('folder', videos=folder), target)
    command = [sys.executable, '-m', 'c3d_tf.main']
    before = time.perf_counter()
    subprocess.run([*command, '--help'], check=True, capture_output=True)
    help_seconds = time.perf_counter() - before
    before = time.perf_counter()
    process = subprocess.Popen(
        [*command, '--mode=train', f'--records={target}', f'--workdir={scratch}/startup', '--batch_size=2',
         '--steps=1'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    first = next(time.perf_counter() - before for line in process.stdout if line.startswith('train: the rate'))
    process.communicate()
    return {'startup/help': (help_seconds, 's', None, 'the bound is 1.5 s'),
            'startup/train': (first, 's', None, 'until the first step of full C3D starts; the bound is 15 s')}


STAGES = {
    'forward': _forward,
    'train_step': _train_step,
    'prepare': _prepare,
    'memory': _memory,
    'startup': _startup,
}
