# SPDX-License-Identifier: Apache-2.0
"""Descriptors as points: t-SNE as a figure, and TensorBoard's projector with thumbnails."""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from sklearn import decomposition
from sklearn import manifold
from sklearn import metrics
from tensorboard.plugins import projector

from c3d_tf.common import console
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.data import preprocess
from c3d_tf.data import samples as sampling
from c3d_tf.data import sources
from c3d_tf.data import video
from c3d_tf.figures import plots

FIGURE = 'tsne.png'
FOLDER = 'tensorboard'
THUMBNAIL = 48        # pixels; the projector wants one square sprite of at most 8192
MIDDLE = 8            # the frame of a clip that is shown
DIMENSIONS = 50       # kept of the features before t-SNE, and in the projector
PERPLEXITY = 30


class Seen:
    """Some of the videos that an evaluation goes through: a descriptor and a thumbnail of each.

    Attributes:
      layer: what the descriptor is.
      chosen: int64 [N], the videos' numbers.
      thumbnails: uint8 [N, 48, 48, 3], the middle frame of a video's first clip.
    """

    def __init__(self, layer: str, videos: int, most: int, spec: preprocess.Preprocessing):
        """Chooses up to `most` of them, evenly.

        Args:
          layer: what the descriptor is.
          videos: how many there are.
          most: how many are kept.
          spec: what was done to the clips.
        """
        self.layer = layer
        self.chosen = np.linspace(0, videos - 1, min(most, videos)).round().astype(int)
        self.thumbnails = np.full((len(self.chosen), THUMBNAIL, THUMBNAIL, 3), 128, np.uint8)
        self._spec, self._sums = spec, None

    def add(self, videos: np.ndarray, features: np.ndarray, clips: np.ndarray) -> None:
        """Takes a batch: video int64 [B], descriptors float32 [B, K], clips float32 [B, T, S, S, 3]."""
        if self._sums is None:
            self._sums = np.zeros((len(self.chosen), features.shape[1]), np.float32)
        places = np.searchsorted(self.chosen, videos)
        for row in np.flatnonzero(np.isin(videos, self.chosen)):
            place = places[row]
            if not self._sums[place].any():
                self.thumbnails[place] = _thumbnail(self._spec.shown(clips[row, clips.shape[1] // 2]))
            self._sums[place] += features[row]

    def features(self) -> np.ndarray:
        """Returns float32 [N, K], the mean over a video's clips, L2-normalised."""
        return self._sums / np.maximum(np.linalg.norm(self._sums, axis=1, keepdims=True), 1e-12)


class Points(NamedTuple):
    """What is embedded.

    Attributes:
      features: float32 [N, K], L2-normalised.
      unit: 'clips' or 'videos'.
      names: N names of videos.
      start_frame: int64 [N], the first frame of each clip; None where it is not known.
      labels: int64 [N], class indices.
    """

    features: np.ndarray
    unit: str
    names: Sequence[str]
    start_frame: np.ndarray | None
    labels: np.ndarray


def write(workdir: str, sets: dict[str, Points], samples: sampling.Samples, *,
          seed: int = 0) -> list[dict]:
    """Writes tsne.png, a panel a set, and tensorboard/ with a projector of each set.

    Args:
      workdir: where to write.
      sets: title → points.
      samples: class names, and the video files that thumbnails are made from.
      seed: of t-SNE.

    Returns:
      title, points, unit, silhouette of each set: how much nearer a point is to its own class than to
      the next (-1 … 1, cosine distance in all dimensions); None where a class stands alone.
    """
    folder = os.path.join(workdir, FOLDER)
    config, panels, said, made = projector.ProjectorConfig(), [], [], {}
    for number, (title, points) in enumerate(sets.items()):
        console.say(f'svm: t-SNE of {len(points.features)} {points.unit}, {title}')
        compact, flat = tsne(points.features, seed)
        score = _silhouette(points)
        said.append({'features': title, 'points': len(flat), 'unit': points.unit, 'silhouette': score})
        panels.append((f'{title}: {len(flat)} {points.unit}'
                       + ('' if score is None else f', silhouette {score:.2f}'), flat, points.labels))
        # Sets of the same clips share their texts and thumbnails.
        own = (*points.names, *([] if points.start_frame is None else points.start_frame.tolist()))
        if own not in made:
            _write_table(folder, f'{number}_metadata.tsv', _metadata(points, samples.class_names))
            made[own] = number, _write_sprite(folder, f'{number}_sprite.png', points, samples.paths)
        about, sprite = made[own]
        # The projector wants three coordinates.
        flat = np.concatenate([flat, np.zeros((len(flat), 1))], axis=1)
        for what, values in (('tsne', flat), ('features', compact)):
            _write_table(folder, f'{number}_{what}.tsv', [[f'{x:.5g}' for x in row] for row in values])
            _add(config, f'{title}: {what}', f'{number}_{what}.tsv', f'{about}_metadata.tsv',
                 f'{about}_sprite.png' if sprite else '')
    with files.replacing(os.path.join(workdir, FIGURE)) as temporary:
        plots.embedding(panels, samples.class_names, temporary,
                        title='t-SNE of descriptors, coloured by class')
    files.write_text(os.path.join(folder, 'projector_config.pbtxt'), str(config))
    return said


def project(folder: str, title: str, seen: Seen, table: list[list[str]]) -> None:
    """Writes a projector of an evaluation's videos; it computes t-SNE and UMAP itself, in the browser.

    Args:
      folder: of a run of TensorBoard.
      title: of the points.
      seen: the videos.
      table: a header, and a row of texts for each video, which the projector colours and searches by.
    """
    _write_table(folder, 'metadata.tsv', table)
    _write_table(folder, 'features.tsv', [[f'{x:.5g}' for x in row] for row in compact(seen.features())])
    side = int(np.ceil(np.sqrt(len(table) - 1)))
    sheet = np.full((side * side, *seen.thumbnails.shape[1:]), 128, np.uint8)
    sheet[:len(seen.thumbnails)] = seen.thumbnails
    _save_sheet(folder, 'sprite.png', sheet.reshape(side, side, THUMBNAIL, THUMBNAIL, 3).swapaxes(1, 2))
    config = projector.ProjectorConfig()
    _add(config, title, 'features.tsv', 'metadata.tsv', 'sprite.png')
    files.write_text(os.path.join(folder, 'projector_config.pbtxt'), str(config))


def compact(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns float32 [N, 3 … 50], the first principal components of float32 [N, K]; zeros for those that
    there are not."""
    size = min(DIMENSIONS, *features.shape)
    found = decomposition.PCA(size, random_state=seed).fit_transform(features)
    return np.pad(found, [(0, 0), (0, max(0, 3 - size))])  # the projector wants three


def tsne(features: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns (`compact`, float32 [N, 2], its t-SNE).

    Args:
      features: float32 [N, K]; N of three or more.
      seed: of both.
    """
    found = compact(features, seed)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    model = manifold.TSNE(perplexity=perplexity, random_state=seed, init='pca')
    return found, model.fit_transform(found)


def _silhouette(points: Points) -> float | None:
    classes = len(set(points.labels.tolist()))
    if not 1 < classes < len(points.labels):
        return None
    return float(metrics.silhouette_score(points.features, points.labels, metric='cosine'))


def _metadata(points: Points, class_names) -> list[list[str]]:
    starts = [''] * len(points.names) if points.start_frame is None else map(str, points.start_frame)
    return [['class', 'video', 'first_frame'],
            *([class_names[label], name, start]
              for label, name, start in zip(points.labels, points.names, starts))]


def _write_table(folder: str, name: str, rows: list[list[str]]) -> None:
    # Names of files may hold tabs and line ends; the projector's format cannot.
    clean = ('\t'.join(re.sub(r'[\t\r\n]', ' ', cell) for cell in row) for row in rows)
    files.write_text(os.path.join(folder, name), '\n'.join(clean) + '\n')


def _write_sprite(folder: str, name: str, points: Points, paths: dict[str, str]) -> bool:
    """Writes a square of thumbnails, row by row; returns False where no video is there."""
    if not any(storage.exists(paths.get(one, '')) for one in set(points.names)):
        return False
    side = int(np.ceil(np.sqrt(len(points.names))))
    sheet = np.full((side, THUMBNAIL, side, THUMBNAIL, 3), 128, np.uint8)
    wanted = {}
    for number, one in enumerate(points.names):
        frame = MIDDLE + (0 if points.start_frame is None else int(points.start_frame[number]))
        wanted.setdefault(one, {}).setdefault(frame, []).append(number)
    progress = console.Progress('svm, thumbnails', len(wanted), 'videos')
    for done, (one, frames) in enumerate(wanted.items()):
        for frame, image in _frames(paths.get(one, ''), sorted(frames)):
            for number in frames[frame]:
                sheet[number // side, :, number % side] = _thumbnail(image)
        progress.update(done + 1)
    progress.close()
    _save_sheet(folder, name, sheet)
    return True


def _add(config, title: str, values: str, table: str, sprite: str) -> None:
    entry = config.embeddings.add(tensor_name=title, tensor_path=values, metadata_path=table)
    if sprite:
        entry.sprite.image_path = sprite
        entry.sprite.single_image_dim.extend([THUMBNAIL, THUMBNAIL])


def _thumbnail(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)


def _save_sheet(folder: str, name: str, sheet: np.ndarray) -> None:
    """Writes uint8 [lines, THUMBNAIL, columns, THUMBNAIL, 3] as a picture."""
    lines, _, columns, _, _ = sheet.shape
    _, png = cv2.imencode('.png', sheet.reshape(lines * THUMBNAIL, columns * THUMBNAIL, 3)[..., ::-1])
    with files.replacing(os.path.join(folder, name)) as temporary, open(temporary, 'wb') as file:
        file.write(png.tobytes())


def _frames(path: str, wanted: list[int]):
    """Yields (number, uint8 [H, W, 3]) of the wanted frames; the last stands in for those after it."""
    left, image = list(wanted), None
    try:
        for number, frame in enumerate(sources.frames(path)):
            image = frame.image
            while left and left[0] == number:
                yield left.pop(0), image
            if not left:
                return
    except video.VideoError:
        return  # its thumbnails stay grey
    for number in left:
        yield number, image
