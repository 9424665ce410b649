# SPDX-License-Identifier: Apache-2.0
"""One video → its records: the work that every runner of prepare shares."""

import collections
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import tensorflow as tf

from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.data import records
from c3d_tf.data import sources
from c3d_tf.data import video

JPEG_QUALITY = 95  # the original lost 3 points of accuracy to ffmpeg's default (issue 118 of C3D)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the bytes of a record.

    Attributes:
      frame_size: (height, width) of the stored frames.
      frame_format: 'jpeg' or 'png'.
      clip_length: frames of the clips that will be cut from the records.
      max_frames: longest span of a record; longer videos become several, which overlap by half a
        clip so that a window of any step of half a clip is whole in one of them.
      clips_per_video: spans drawn at random from a training video (5 in the paper); 0 keeps all of it.
      test_clips_per_video: the same for the other splits (10 in the paper).
      clip_seconds: length of such a span (2 in the paper).
      seed: draws the spans.
    """

    frame_size: tuple[int, int]
    frame_format: str
    clip_length: int
    max_frames: int
    clips_per_video: int
    test_clips_per_video: int
    clip_seconds: float
    seed: int


def encode(
    path: str,
    *,
    number: int,
    labels: tuple[int, ...],
    label_texts: list[str],
    media_id: str,
    spans: int,
    settings: Settings,
    start: float = 0.0,
    end: float = math.inf,
    alive: Callable[[], None] = lambda: None,
) -> Iterator[tuple[bytes, int]]:
    """Yields (record, frames in it) for the spans of one video, in order.

    Args:
      path: what `sources.frames` reads.
      number: the video's place in its split; seeds its random spans.
      labels, label_texts, media_id: see `records.encode`.
      spans: how many are drawn at random; 0 keeps the whole video.
      settings: what decides the bytes.
      start, end: seconds; only frames with start <= time < end are taken.
      alive: called at every frame, so that a watcher knows a slow file from a stuck one.

    Raises:
      video.VideoError: the video cannot be read, or has no frame in that time.
    """
    size = settings.frame_size

    def record(span):
        images = [_encode_image(frame.image, settings.frame_format) for frame in span]
        return records.encode(
            images, [frame.time for frame in span], image_format=settings.frame_format, size=size,
            labels=labels, label_texts=label_texts, media_id=media_id, path=path), len(span)

    first, stop = round(start * 1e6), end if math.isinf(end) else round(end * 1e6)  # in microseconds

    def taken(**options):
        found = False
        for frame in sources.frames(path, **options):
            alive()
            if frame.time >= stop:
                break
            if frame.time >= first:
                found = True
                yield frame
        if not found:
            raise video.VideoError(f'no frame from {start:g} s to {end:g} s: the reading ended at the '
                                   f'frame of {frame.time / 1e6:g} s')

    if not spans:
        overlap = settings.clip_length // 2
        # A record waits until its successor has a whole clip; the last one takes what is left.
        full = settings.max_frames + settings.clip_length - overlap
        span = []
        for frame in taken(size=size):
            span.append(frame)
            if len(span) == full:
                yield record(span[:settings.max_frames])
                span = span[settings.max_frames - overlap:]
        yield record(span)
        return

    # The length is known only once the file is decoded, so it is decoded twice: memory stays flat.
    times = []
    for frame in taken():
        times.append(frame.time)
    drawn = collections.deque(_draw_spans(np.array(times), spans, number, settings))
    held = []  # the frames of the oldest span that is not written, and all since
    for index, frame in enumerate(taken()):
        if index >= drawn[0][0]:
            held.append(video.Frame(frame.time, video.resize(frame.image, size)))
        while drawn and index + 1 == drawn[0][1]:  # several spans may be the same
            first, last = drawn.popleft()
            yield record(held[:last - first])
            held = held[drawn[0][0] - first:] if drawn else []
        if not drawn:
            break


def _draw_spans(times: np.ndarray, count: int, number: int, settings: Settings) -> list[tuple[int, int]]:
    """Returns (first, last + 1) of every span, sorted; each lasts `clip_seconds` where it can."""
    rng = np.random.default_rng([settings.seed, number])
    seconds = (times[-1] - times[0]) * 1e-6
    rate = (len(times) - 1) / seconds if seconds > 0 else 25.0
    length = max(round(settings.clip_seconds * rate), settings.clip_length)
    length = min(length, len(times), settings.max_frames)
    starts = np.sort(rng.integers(0, len(times) - length + 1, count))
    return [(int(start), int(start) + length) for start in starts]


def _encode_image(image: np.ndarray, image_format: str) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if image_format == 'jpeg' else []
    return cv2.imencode(f'.{image_format}', image[..., ::-1], options)[1].tobytes()


def write_shard(task, given_up: dict[int, str], reading: Callable[[int], None], *,
                class_names: tuple[str, ...], settings: Settings) -> None:
    """Writes one shard of `local_runner`, and its report: records, frames and what was skipped.

    Args:
      task, given_up, reading: see `local_runner.run`.
      class_names: in order of their index.
      settings: what decides the bytes.

    Raises:
      OSError: the shard cannot be written.
    """
    cv2.setNumThreads(1)  # there is a process a core already
    spans = settings.clips_per_video if task.split == 'train' else settings.test_clips_per_video
    report = {'records': [], 'frames': [], 'skipped': []}
    with files.replacing(task.path) as temporary:
        with _writer(temporary) as write:
            for place, (number, name, example) in enumerate(task.examples):
                reading(place)
                lengths = []
                try:
                    if place in given_up:
                        raise video.VideoError(given_up[place])
                    for record, length in encode(
                            example.path, number=number, labels=example.labels,
                            label_texts=[class_names[label] for label in example.labels],
                            media_id=name, spans=spans, settings=settings,
                            start=example.start, end=example.end,
                            alive=functools.partial(reading, place)):
                        write(record)
                        lengths.append(length)
                except video.VideoError as error:
                    report['skipped'].append({'path': example.source, 'reason': str(error)})
                    continue
                report['records'].append(len(lengths))
                report['frames'] += lengths
    report['bytes'] = storage.getsize(task.path)
    files.write_json(task.report, report)


@contextlib.contextmanager
def _writer(path: str):
    """Yields a function that appends a record; TensorFlow's own errors become OSError."""
    try:
        with tf.io.TFRecordWriter(path) as writer:
            yield writer.write
    except tf.errors.OpError as error:
        raise OSError(error.message) from error
