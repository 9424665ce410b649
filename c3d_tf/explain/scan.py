# SPDX-License-Identifier: Apache-2.0
"""All clips of many videos, seen once by a network: which of them excite a unit."""

import collections
from collections.abc import Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.data import inputs
from c3d_tf.data import preprocess
from c3d_tf.data import video
from c3d_tf.data import windows
from c3d_tf.weights import artefact

BATCH = 8  # clips at once


class Clip(NamedTuple):
    """One clip.

    Attributes:
      number: of its video among all.
      start: its first frame in the video.
      time: seconds of that frame.
      images: uint8 [T, H, W, 3].
    """

    number: int
    start: int
    time: float
    images: np.ndarray


class Scan(NamedTuple):
    """What the network said of every clip, N in all.

    Attributes:
      number, start: int [N], the clip's video and first frame.
      strongest: layer → float32 [N, C], the strongest activation of each feature map.
      probability: float32 [N, K].
    """

    number: np.ndarray
    start: np.ndarray
    strongest: dict[str, np.ndarray]
    probability: np.ndarray


def _clips(spec, one: inputs.Video, number: int, step: int) -> Iterator[Clip]:
    for window in windows.cut(one.frames(), clip_length=spec.clip_length, stride=spec.stride,
                              short=spec.short, step=step):
        yield Clip(number, window.start, window.time, window.images)


def scan(
    net: artefact.Artefact, found: list[inputs.Video], layers: tuple[str, ...], step: int
) -> tuple[Scan, list[dict]]:
    """Shows every clip of the videos to the network.

    Args:
      net: the network; memory stays flat however long the videos are.
      found: the videos.
      layers: names of layers with values [B, T, H, W, C].
      step: see `windows.cut`.

    Returns:
      (what it said, [{'path', 'reason'}] of the videos that could not be read).

    Raises:
      errors.RunError: none could be read.
    """
    model, spec = net.model, net.preprocessing
    probe = keras.Model(model.input, [[model.get_layer(layer).output for layer in layers], model.output])

    @tf.function(reduce_retracing=True)
    def forward(images):
        maps, logits = probe(preprocess.for_inference(images, spec), training=False)
        return [tf.reduce_max(one, axis=(1, 2, 3)) for one in maps], tf.nn.softmax(logits)

    numbers, starts, strongest, probability, skipped = [], [], [], [], []
    waiting = []

    def show():
        if waiting:
            maps, scores = forward(tf.constant(np.stack([clip.images for clip in waiting])))
            strongest.append([one.numpy() for one in maps])
            probability.append(scores.numpy())
            numbers.extend(clip.number for clip in waiting)
            starts.extend(clip.start for clip in waiting)
            waiting.clear()

    progress = console.Progress('visualize', len(found), 'videos')
    for number, one in enumerate(found):
        try:
            for clip in _clips(spec, one, number, step):
                waiting.append(clip)
                if len(waiting) == BATCH:
                    show()
        except video.VideoError as error:
            skipped.append({'path': one.path, 'reason': str(error)})
        progress.update(number + 1)
    show()
    progress.close()
    for row in skipped[:5]:
        console.say(f'  skipped {row["path"]}: {row["reason"]}')
    if not numbers:
        raise errors.RunError(f'no clip could be read: {skipped[0]["path"]}: {skipped[0]["reason"]}')
    by_layer = {layer: np.concatenate(maps) for layer, maps in zip(layers, zip(*strongest))}
    return Scan(np.array(numbers), np.array(starts), by_layer, np.concatenate(probability)), skipped


def best(scanned: Scan, value: np.ndarray, top: int) -> list[int]:
    """Returns the clips with the largest values, the largest first.

    Each video's best is taken before any video's second, since clips of one video look alike.

    Args:
      scanned: the clips.
      value: float [N]; clips of value 0 or less are left out.
      top: how many, at most.
    """
    order = [i for i in np.argsort(-value, kind='stable') if value[i] > 0]
    times, rank = collections.Counter(), {}
    for i in order:
        rank[i] = times[scanned.number[i]]
        times[scanned.number[i]] += 1
    taken = sorted(order, key=lambda i: min(rank[i], 1))[:top]  # stable: the largest first in each
    return [int(i) for i in sorted(taken, key=lambda i: -value[i])]


def read(spec, found: list[inputs.Video], scanned: Scan, wanted, step: int) -> dict[int, Clip]:
    """Returns the wanted clips by their number in the scan; they are decoded again.

    To keep all clips of the scan until it is known which are wanted would take the memory of all.
    """
    at = {(int(scanned.number[i]), int(scanned.start[i])): i for i in wanted}
    last = {}
    for number, start in at:
        last[number] = max(start, last.get(number, 0))
    seen = {}
    for number in sorted(last):
        for clip in _clips(spec, found[number], number, step):
            if (number, clip.start) in at:
                seen[at[number, clip.start]] = clip
            if clip.start >= last[number]:
                break
    return seen
