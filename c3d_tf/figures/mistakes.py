# SPDX-License-Identifier: Apache-2.0
"""The videos that an evaluation got wrong most confidently, and the very frames that misled it."""

import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from c3d_tf.common import errors
from c3d_tf.common import metrics
from c3d_tf.data import clips
from c3d_tf.data import record_videos
from c3d_tf.data import records
from c3d_tf.data import video

HEIGHT = 112          # pixels of a frame; smaller ones stay as they are
MILLISECONDS = 125    # that a frame stays
TOP = 5


class Mistake(NamedTuple):
    """One video.

    Attributes:
      number: in the split.
      name: its media id.
      labels: its true classes.
      top: the classes with the best scores, best first.
      score: float [K], the mean over its clips.
      clip: the clip with the highest score for the class it was taken for, among all of the evaluation.
    """

    number: int
    name: str
    labels: list[int]
    top: list[int]
    score: np.ndarray
    clip: int


class Moving(NamedTuple):
    """A clip as pictures.

    Attributes:
      pictures: its frames, in order.
      frames: (first, last) frame within its record.
      seconds: (first, last), where they are in the video.
    """

    pictures: list[Image.Image]
    frames: tuple[int, int]
    seconds: tuple[float, float]

    @property
    def still(self) -> bytes:
        """WebP of the middle frame."""
        return _webp(self.pictures[len(self.pictures) // 2:][:1])

    @property
    def animation(self) -> bytes:
        """WebP that repeats."""
        return _webp(self.pictures)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of both."""
        return self.pictures[0].size


def find(arrays: Mapping[str, np.ndarray]) -> list[Mistake]:
    """Returns all videos whose best class is none of theirs, the most confident first.

    Args:
      arrays: of an evaluation's scores.npz: scores [C, K], videos [C], labels bool [V, K], names [V].
    """
    labels, videos = arrays['labels'], arrays['videos']
    scores = metrics.video_scores(arrays['scores'], videos, len(labels))
    best = scores.argmax(axis=1)
    wrong = np.flatnonzero(~labels[np.arange(len(labels)), best])
    found = []
    for i in wrong[np.argsort(-scores[wrong, best[wrong]], kind='stable')]:
        own = np.flatnonzero(videos == i)
        found.append(Mistake(
            int(i), str(arrays['names'][i]), np.flatnonzero(labels[i]).tolist(),
            np.argsort(-scores[i], kind='stable')[:TOP].tolist(), scores[i],
            int(own[arrays['scores'][own, best[i]].argmax()])))
    return found


class Clips:
    """The clips of an evaluation, found again in its records.

    Args:
      index: of the records.
      protocol: of evaluate.json.
      count: how many clips the evaluation had.

    Raises:
      errors.UsageError: these are not the records of that evaluation.
    """

    def __init__(self, index: records.Index, protocol: dict, count: int):
        if 'fused' in protocol:
            raise errors.UsageError('fused scores do not keep which clips they are of; see the reports of the parts')
        if protocol['records'] != index.fingerprint:
            raise errors.UsageError(f'{index.directory} has other records than those that were evaluated')
        spec = protocol['preprocessing']
        self._index, self._name = index, protocol['split']
        self._split = index.split(protocol['split'])
        self._sizes = {'clip_length': spec['clip_length'], 'stride': spec['stride']}
        short = spec.get('short', 'loop')
        self._short = 'loop' if short == 'drop' else short  # as pipeline.for_evaluation has it
        every = protocol['clip_choice'] == 'all'
        # What clips.plan draws first for this seed; it is the same for any crops.
        self._record, self._start = clips.choose(
            self._split.frames, self._split.videos, choice=protocol['clip_choice'],
            count=1 if every else protocol['clips'], step=protocol['step'] or 0, **self._sizes, short=self._short,
            rng=np.random.default_rng([protocol['seed'], 0]))
        if len(self._record) != count:
            raise errors.UsageError(f'{index.directory} gives {len(self._record)} clips, the evaluation had {count}')

    def read(self, mistakes: list[Mistake]):
        """Yields the mistake and its clip as a `Moving`, or as the error that its frames gave."""
        spans = self._spans([one.number for one in mistakes])
        for one in mistakes:
            try:
                yield one, self._moving(one, spans)
            except (video.VideoError, OSError) as error:
                yield one, error

    def _spans(self, wanted: list[int]) -> dict[int, tuple]:
        """Returns video → (shard, offset, length) of its records; other shards are not opened."""
        part = self._index.data['splits'][self._name]
        owner = np.repeat(np.arange(len(part['shards'])), [len(one['records']) for one in part['shards']])
        chosen = sorted({int(owner[i]) for i in wanted})
        some = {**part, 'shards': [part['shards'][i] for i in chosen]}
        found = record_videos.find(
            records.Index(self._index.directory, {**self._index.data, 'splits': {self._name: some}}), self._name)
        # The frames of a found video are record_videos.frames of its spans.
        return dict(zip(np.flatnonzero(np.isin(owner, chosen)).tolist(), (one.frames.args[0] for one in found),
                        strict=True))

    def _moving(self, one: Mistake, spans: dict[int, tuple]) -> Moving:
        record, start = int(self._record[one.clip]), int(self._start[one.clip])
        first = int(np.searchsorted(self._split.videos, one.number))
        span = spans[one.number][record - first]
        indices = clips.indices(start, int(self._split.frames[record]), **self._sizes, short=self._short)
        kept = {}
        for number, frame in enumerate(record_videos.frames((span,))):
            if number in indices:
                kept[number] = frame
            if number >= max(indices):
                break
        shown = [kept[i] for i in indices]
        pictures = [_small(frame.image) for frame in shown]
        times = [kept[i].time / 1e6 for i in (min(kept), max(kept))]
        return Moving(pictures, (min(kept), max(kept)), tuple(times))


def _small(image: np.ndarray) -> Image.Image:
    picture = Image.fromarray(image)
    if picture.height <= HEIGHT:
        return picture
    size = round(picture.width * HEIGHT / picture.height), HEIGHT
    return picture.resize(size, Image.Resampling.LANCZOS)


def _webp(pictures: list[Image.Image]) -> bytes:
    content = io.BytesIO()
    pictures[0].save(content, 'WEBP', quality=70, method=2, save_all=True, append_images=pictures[1:],
                     duration=MILLISECONDS, loop=0)
    return content.getvalue()
