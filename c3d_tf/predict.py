# SPDX-License-Identifier: Apache-2.0
"""A video → what happens in it: the top classes, and a timeline; a file, or live."""

import collections
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import storage
from c3d_tf.data import clips
from c3d_tf.data import preprocess
from c3d_tf.data import sources
from c3d_tf.data import streams
from c3d_tf.data import video
from c3d_tf.data import windows
from c3d_tf.explain import gradcam
from c3d_tf.models import deconvolution
from c3d_tf.rendering import heatmap as heatmaps
from c3d_tf.rendering import panel
from c3d_tf.rendering import render as rendering
from c3d_tf.runtimes import exported
from c3d_tf.runtimes import networks
from c3d_tf.weights import artefact

BATCH = 8  # clips at once: more is no faster on a CPU
LATENCIES = 1000  # of the newest clips, whose median and 90th percentile are shown


def predict(
    path: str, weights: str, *, step: int = 0, top_k: int = 5, precision: str = 'float32',
    runtime: str = 'tensorflow', export_dir: str = '', render: str = '', heatmap: bool = False,
    overwrite: bool = False, quiet: bool = True,
) -> dict:
    """Classifies one video; memory stays flat however long it is.

    Args:
      path: what `sources.frames` reads: a video file or a folder of images.
      weights: an artefact.
      step: frames from one clip's start to the next; 0 means a clip's extent. A tail shorter than a
        clip is dropped; a video shorter than a clip starts over.
      top_k: classes to name.
      precision, runtime, export_dir: see `features.extract`.
      render: an MP4 to write, the video with its classes over time below it; '' for none.
      heatmap: lays Grad-CAM of each clip's class over that video; `precision` is float32 then.
      overwrite: replaces `render` where it exists.
      quiet: shows no progress.

    Returns:
      {'video', 'frames', 'clips', 'top': [{'label', 'probability'}], 'timeline': [{'start', 'end',
      'label', 'probability'}]}: probabilities are means over clips, times are seconds; neighbours in
      the timeline with the same best class are one entry.

    Raises:
      errors.UsageError: the file is missing or no video, or `render` is not to be written to.
    """
    if not path:
        raise errors.UsageError('--input is not set: expected a video file, a folder of images, or live '
                                'camera:0, rtsp://… or http://…')
    if not storage.exists(path):
        raise errors.UsageError(f'--input={path}: no such file')
    _check_render(path, render, heatmap, overwrite)
    precision = 'float32' if heatmap else precision
    net = artefact.load(weights, precision=exported.keras_precision(runtime, precision))
    spec = net.preprocessing
    layer = _last_maps(net.model) if heatmap else ''
    forward = _forward(net, precision, runtime, export_dir)
    scores, spans, cells = [], [], []
    progress = None if quiet else console.Progress('predict', video.claimed(path), 'frames')
    frames = _Counted(path, spec.frame_size, progress)
    try:
        for batch, times in _batches(frames, spec, step or clips.extent(spec.clip_length, spec.stride)):
            scores.append(forward(batch))
            if heatmap:
                seen = preprocess.for_inference(tf.constant(batch), spec)
                cells.append(gradcam.cells(net.model, layer, seen, scores[-1].argmax(axis=1)))
            spans += times
    except video.VideoError as error:
        raise errors.UsageError(f'--input={path}: {error}') from error
    if progress:
        progress.clear()
    scores = np.concatenate(scores)
    if render:
        track = panel.Track(scores, np.array(spans), net.class_names, frames.end)
        heat = heatmaps.Heatmap(np.concatenate(cells), track.spans, spec) if heatmap else None
        comment = json.dumps({'weights_sha256': net.sha256, 'preprocessing': spec.to_json(),
                              'step': step, 'heatmap': layer})
        left_out = rendering.render(path, render, track, heat=heat, total=frames.count, comment=comment,
                                    quiet=quiet)
        if not quiet:
            console.say(f'predict: wrote {render}' + (
                f'; without its sound, since {left_out} does not fit in an MP4' if left_out else ''))
    return {
        'video': path,
        'frames': frames.count,
        'clips': len(scores),
        'top': _top(scores.mean(axis=0), net.class_names, top_k),
        'timeline': _timeline(scores, spans, net.class_names),
    }


def live(
    given: str, weights: str, *, step: int = 0, top_k: int = 5, precision: str = 'float32',
    runtime: str = 'tensorflow', export_dir: str = '', duration: float = 0.0, as_json: bool = False,
) -> dict:
    """Classifies a live stream, always its newest clip, and prints a line for each.

    Args:
      given: see `streams.is_live`.
      weights: an artefact.
      step: frames that must have come since the last clip; 0 means a clip's extent, so that clips follow
        one another. Where the network is slower than that, frames are dropped.
      top_k: classes to name.
      precision, runtime, export_dir: see `features.extract`.
      duration: seconds after which it ends; 0: with the stream, or by Ctrl-C.
      as_json: prints one JSON object a line.

    Returns:
      what is printed last: {'video', 'seconds', 'frames' (that came until the last clip's end),
      'dropped' (of them, those in no clip), 'clips', 'breaks' (how often the stream came back), 'latency_ms':
      {'p50', 'p90'} (from the arrival of a clip's last frame to the answer), 'top'}.

    Raises:
      errors.UsageError: nothing can be read there.
      errors.RunError: not one clip came, or the stream broke and did not come back.
    """
    net = artefact.load(weights, precision=exported.keras_precision(runtime, precision))
    spec = net.preprocessing
    length = clips.extent(spec.clip_length, spec.stride)
    forward = _forward(net, precision, runtime, export_dir)
    # The first call takes seconds.
    forward(np.zeros((1, spec.clip_length, *spec.frame_size, 3), np.uint8))
    total, count, last, dropped = 0, 0, 0, 0
    latencies = collections.deque(maxlen=LATENCIES)
    with streams.Stream(given, size=spec.frame_size, length=length) as stream:
        def left():
            return stream.begin + duration - time.monotonic() if duration else None

        try:
            while shot := stream.newest(last + (step or length), left()):
                scores = forward(shot.images[None, ::spec.stride])[0]
                latencies.append((time.monotonic() - shot.arrived) * 1e3)
                dropped += max(0, shot.last - length - last)
                total, count, last = total + scores, count + 1, shot.last
                _say_clip(
                    {'time': round(shot.arrived - stream.begin, 3),
                     'top': _top(scores, net.class_names, top_k),
                     'latency_ms': {'now': round(latencies[-1], 1), **_percentiles(latencies)},
                     'frames': last, 'dropped': dropped}, as_json)
        except KeyboardInterrupt:  # how one ends what has no end
            pass
        seconds = time.monotonic() - stream.begin
    if not count:
        raise errors.RunError(f'--input={streams.shown(given)}: no clip of {length} frames in '
                              f'{seconds:.1f} s{stream.error and f" ({stream.error})"}')
    result = {'video': streams.shown(given), 'seconds': round(seconds, 3), 'frames': last,
              'dropped': dropped, 'clips': count, 'breaks': stream.breaks,
              'latency_ms': _percentiles(latencies),
              'top': _top(total / count, net.class_names, top_k)}
    _say_end(result, as_json)
    if stream.error:
        raise errors.RunError(f'--input={streams.shown(given)}: {stream.error}; it did not come back')
    return result


def _forward(net: artefact.Artefact, precision: str, runtime: str, export_dir: str):
    """Returns the function clips uint8 [N, T, H, W, 3] → probabilities float32 [N, K]."""
    network = exported.load(net, (networks.PROB,), runtime, precision=precision, export_dir=export_dir)
    of_frames = networks.of_frames(network, net.preprocessing)
    return lambda clips: of_frames(clips)[networks.PROB]


def _check_render(path: str, render: str, heatmap: bool, overwrite: bool) -> None:
    if heatmap and not render:
        raise errors.UsageError('--heatmap is drawn into a video: give --render=FILE.mp4 too')
    if render and not render.lower().endswith('.mp4'):
        raise errors.UsageError(f'--render={render}: expected a name that ends in .mp4')
    if render and storage.exists(render):
        if os.path.samefile(path, render):
            raise errors.UsageError(f'--render={render} is --input itself; give another name')
        if not overwrite:
            raise errors.UsageError(f'--render={render} exists; --overwrite replaces it')


def _last_maps(model) -> str:
    """Returns the layer that Grad-CAM explains: the last convolution, as visualize takes it."""
    names = [name for name in deconvolution.feature_maps(model) if not name.startswith('pool')]
    if not names:
        raise errors.UsageError(f'--heatmap: {model.name} has no feature maps over time and space')
    return names[-1]


class _Counted:
    """The frames of a video, counted as they are read.

    Attributes:
      count: how many there were so far.
      end: seconds, when the last of them ends.
    """

    def __init__(self, path: str, size: tuple[int, int], progress: console.Progress | None):
        self._frames, self._progress = sources.frames(path, size=size), progress
        self.count, self.end = 0, 0.0

    def __iter__(self) -> Iterator[video.Frame]:
        for frame in self._frames:
            self.count += 1
            # The last one stays as long as others do on average.
            self.end = (frame.time * 1e-6 * self.count / (self.count - 1) if frame.time else
                        1 / sources.FRAME_RATE)
            if self._progress:
                self._progress.update(self.count)
            yield frame


def _batches(frames: _Counted, spec, step: int) -> Iterator[tuple[np.ndarray, list]]:
    """Yields (uint8 [N, T, H, W, 3], [(start, end) seconds])."""
    # One video that is asked for is not left out, whatever training does with those shorter than a clip.
    short = 'loop' if spec.short == 'drop' else spec.short
    cut = windows.cut(frames, clip_length=spec.clip_length, stride=spec.stride, short=short, step=step)
    while batch := list(itertools.islice(cut, BATCH)):
        yield np.stack([clip.images for clip in batch]), [(clip.time, clip.end) for clip in batch]


def _top(probabilities: np.ndarray, class_names, top_k: int) -> list[dict]:
    best = np.argsort(-probabilities, kind='stable')[:top_k]
    return [{'label': class_names[i], 'probability': float(probabilities[i])} for i in best]


def _timeline(scores: np.ndarray, spans: list, class_names) -> list[dict]:
    entries = []
    for row, (start, end) in zip(scores, spans, strict=True):
        label = class_names[int(row.argmax())]
        if entries and entries[-1]['label'] == label:
            entries[-1]['end'] = end
            entries[-1]['scores'].append(float(row.max()))
        else:
            entries.append({'start': start, 'end': end, 'label': label, 'scores': [float(row.max())]})
    for entry in entries:
        values = entry.pop('scores')
        entry['probability'] = sum(values) / len(values)
    return entries


def show(result: dict, *, as_json: bool = False) -> None:
    """Prints a result for a person, or as one JSON object."""
    if as_json:
        console.say(json.dumps(result, ensure_ascii=False))
        return
    noun = 'clip' if result['clips'] == 1 else 'clips'
    console.say(f'{result["video"]}: {result["frames"]} frames, {result["clips"]} {noun}')
    _say_top(result['top'])
    if len(result['timeline']) > 1:
        console.say('what happens when:')
        labels = console.aligned(entry['label'] for entry in result['timeline'])
        for entry, label in zip(result['timeline'], labels):
            console.say(f'  {_clock(entry["start"])} – {_clock(entry["end"])}  {label}  {entry["probability"]:6.1%}')


def _say_top(top: list[dict]) -> None:
    for entry, label in zip(top, console.aligned(entry['label'] for entry in top)):
        bar = '█' * round(30 * entry['probability'])
        console.say(f'  {label}  {entry["probability"]:6.1%}  {bar}')


def _clock(seconds: float) -> str:
    return f'{int(seconds) // 60:d}:{seconds % 60:04.1f}'


def _percentiles(latencies) -> dict:
    return {f'p{share}': round(float(np.percentile(latencies, share)), 1) for share in (50, 90)}


def _say_clip(clip: dict, as_json: bool) -> None:
    if as_json:
        console.say(json.dumps(clip, ensure_ascii=False))
        return
    best, latency = clip['top'][0], clip['latency_ms']
    console.redraw(f'{_clock(clip["time"])}  {best["label"]}  {best["probability"]:.1%} · '
                   f'latency {latency["now"]:.0f} ms (p50 {latency["p50"]:.0f}, '
                   f'p90 {latency["p90"]:.0f}) · {clip["dropped"]} of {clip["frames"]} frames dropped')


def _say_end(result: dict, as_json: bool) -> None:
    if as_json:
        console.say(json.dumps(result, ensure_ascii=False))
        return
    latency = result['latency_ms']
    if sys.stdout.isatty():
        console.say()  # below the line that was redrawn
    console.say(f'{result["video"]}: {result["seconds"]:.1f} s, {result["clips"]} clips, latency p50 '
                f'{latency["p50"]:.0f} ms, p90 {latency["p90"]:.0f} ms, {result["dropped"]} of '
                f'{result["frames"]} frames dropped' + (
                    f', broke and came back {result["breaks"]} times' if result['breaks'] else ''))
    _say_top(result['top'])
