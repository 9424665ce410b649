# SPDX-License-Identifier: Apache-2.0
"""Clips as pictures: a strip of frames with what belongs to each below it, as PNG and as GIF."""

import math
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from matplotlib import figure
from PIL import Image
from PIL import ImageDraw

from c3d_tf.figures import fonts

COLUMNS = 16   # frames side by side: a whole clip of the paper
SIDE = 160     # pixels of a frame in an animation, at least
CONTEXT = 2    # pixels around what a unit sees, where pictures are cut to that
WHITE = 255


class Strip(NamedTuple):
    """One clip.

    Attributes:
      caption: above it; may have several lines.
      rows: uint8 [T, h, w, 3] each, what is shown below one another.
      first: the clip's frame that the rows begin with, from 0.
      whole: uint8 [L, S, S, 3], all of the clip, where the rows are cut out of it; or None.
      box: (top, left, height, width) of the rows in `whole`, in pixels.
      at: the frame of `whole` that a still picture shows.
      moving: the rows over all L frames, for animations; empty: `rows`.
    """

    caption: str
    rows: tuple[np.ndarray, ...]
    first: int = 0
    whole: np.ndarray | None = None
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    at: int = 0
    moving: tuple[np.ndarray, ...] = ()


def contrast(signal: np.ndarray) -> np.ndarray:
    """Returns uint8 [T, H, W, 3] of a signal of any sign: grey is 0, one scale for the whole clip."""
    # The largest thousandth may be cut off, or one pixel would leave the rest grey.
    present = np.abs(signal[signal != 0])
    scale = np.quantile(present, 0.999) if len(present) else 1.0
    return np.rint(127.5 + 127.5 * np.clip(signal / scale, -1, 1)).astype(np.uint8)


def heat(frames: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Lays a map over frames.

    Args:
      frames: uint8 [T, H, W, 3].
      share: float [T, H, W], 0 … 1.

    Returns:
      uint8 [T, H, W, 3]: grey frames, coloured where the map is high.
    """
    grey = frames.mean(axis=-1, keepdims=True) * 0.8
    colours = matplotlib.colormaps['turbo'](share)[..., :3] * 255
    weight = 0.65 * np.clip(share, 0, 1)[..., None] ** 0.75
    return np.rint(grey * (1 - weight) + colours * weight).astype(np.uint8)


def beside(frames: list[np.ndarray], signals: list[np.ndarray], captions: list[str]) -> list[Strip]:
    """Lays clips beside what a unit saw in each: whole frames, or only the part, where that is small.

    Args:
      frames: uint8 [T, S, S, 3] of each clip.
      signals: float [T, S, S, 3] of each clip, 0 where the unit sees nothing.
      captions: of each clip.
    """
    boxes = np.array([[(axis.min(), axis.max() + 1) for axis in one.any(axis=-1).nonzero()]
                      if one.any() else [(0, 1)] * 3 for one in signals])  # [N, (T, H, W), (from, to)]
    extents = (boxes[..., 1] - boxes[..., 0]).max(axis=0)  # all strips of a picture have one size
    length, side = int(extents[0]), int(extents[1:].max()) + 2 * CONTEXT
    size = frames[0].shape[1]
    drawn = []
    for whole, signal, box, caption in zip(frames, signals, boxes, captions, strict=True):
        rows = (whole, contrast(signal))
        if side > size // 2:
            drawn.append(Strip(caption, rows))
            continue
        first = min(int(box[0, 0]), len(whole) - length)
        top, left = (int(np.clip((low + high - side) // 2, 0, size - side)) for low, high in box[1:])
        moving = tuple(row[:, top:top + side, left:left + side] for row in rows)
        drawn.append(Strip(
            caption, tuple(row[first:first + length] for row in moving), first, whole,
            (top, left, side, side), int(np.abs(signal).sum(axis=(1, 2, 3)).argmax()), moving))
    return drawn


def sheet(
    path: str, strips: list[Strip], row_names: tuple[str, ...], *, title: str, note: str = ''
) -> None:
    """Draws clips below one another, frame by frame from left to right.

    Args:
      path: the PNG to write.
      strips: the clips; rows of one size.
      row_names: what each row of a strip is.
      title, note: above and below all.
    """
    length = max(len(strip.rows[0]) for strip in strips)
    step = math.ceil(length / COLUMNS)
    columns = math.ceil(length / step)
    cut = strips[0].whole is not None
    # Few frames get more room each, so that titles find theirs.
    side = min(1.0, 14 / columns) if columns >= 8 else 1.6
    height, width = strips[0].rows[0].shape[1:3]
    tall = side * height / width * len(row_names)
    wide = max(columns * side, 7.0) + (tall if cut else 0)
    size = wide + 1.2, (tall + 0.55) * len(strips) + 0.9
    picture = figure.Figure(figsize=size, layout='constrained')
    grid = picture.add_gridspec(len(strips), 1 + cut, width_ratios=[tall, columns * side][-1 - cut:])
    for number, strip in enumerate(strips):
        if cut:
            axes = picture.add_subplot(grid[number, 0])
            axes.imshow(_boxed(strip, strip.at))
            axes.set(xticks=[], yticks=[], ylabel='where')
            axes.set_xlabel(f'frame {strip.at}', fontsize=8)
        axes = picture.add_subplot(grid[number, -1])
        axes.imshow(_mosaic([row[::step] for row in strip.rows]), interpolation='nearest')
        axes.set_xticks([(i + 0.5) * (width + 1) - 1 for i in range(len(strip.rows[0][::step]))],
                        range(strip.first, strip.first + len(strip.rows[0]), step), fontsize=8)
        axes.set_yticks([(i + 0.5) * (height + 1) - 1 for i in range(len(row_names))], row_names,
                        fontsize=9)
        axes.tick_params(length=0)
        for edge in axes.spines.values():
            edge.set_visible(False)
        axes.set_title(strip.caption, loc='left', fontsize=10)
    picture.suptitle(title, fontsize=12)
    picture.supxlabel(f'frame of the clip{note and " · " + note}', fontsize=9)
    fonts.save(picture, path, dpi=110)


def animation(path, strips: list[Strip], *, milliseconds: int = 120, side: int = SIDE) -> None:
    """Writes a GIF that repeats: the clips in a grid, the rows of each side by side, captions above.

    Args:
      path: the GIF to write, or a binary file.
      strips: the clips, of one length.
      milliseconds: how long a frame stays.
      side: height of a frame in pixels, at least.
    """
    moving = [_side_by_side(strip, side) for strip in strips]
    length, height, width, _ = moving[0].shape
    columns = min(math.ceil(math.sqrt(len(strips))), max(1, 1200 // width))
    lines = math.ceil(len(strips) / columns)
    font = fonts.Font(''.join(strip.caption for strip in strips), 11)
    top = 2 + 16 * max(strip.caption.count('\n') + 1 for strip in strips)
    pages = []
    for t in range(length):
        page = Image.new('RGB', (columns * (width + 8) - 8, lines * (height + top + 6)), (WHITE,) * 3)
        pen = ImageDraw.Draw(page)
        for number, (strip, frames) in enumerate(zip(strips, moving, strict=True)):
            left, down = number % columns * (width + 8), number // columns * (height + top + 6)
            for line, text in enumerate(strip.caption.split('\n')):
                font.write(pen, left + 2, down + 16 * line + 10, _fitting(text, font, width - 4), 0)
            page.paste(Image.fromarray(frames[t]), (left, down + top))
        pages.append(page)
    # One palette for all frames: one each is slow to find, and flickers.
    every = Image.fromarray(np.concatenate([np.asarray(page)[::2, ::2] for page in pages]))
    palette = every.quantize(256, Image.Quantize.MEDIANCUT)
    dither = Image.Dither.FLOYDSTEINBERG
    first, *others = (page.quantize(palette=palette, dither=dither) for page in pages)
    first.save(path, format='GIF', save_all=True, append_images=others, duration=milliseconds, loop=0)


def kernels(path: str, weights: np.ndarray, *, title: str) -> None:
    """Draws kernels over RGB in one picture, the time of each from left to right.

    Args:
      path: the PNG to write.
      weights: float [T, H, W, 3, K], any sign; grey is 0, and each kernel has a scale of its own.
      title: above the picture.
    """
    count = weights.shape[-1]
    columns = min(count, 8)
    lines = math.ceil(count / columns)
    wide = 0.42 * weights.shape[0] + 0.25
    picture = figure.Figure(figsize=(max(columns * wide, 6), lines * 0.72 + 0.9), layout='constrained')
    picture.get_layout_engine().set(wspace=0.12)  # more than between the frames of a kernel
    grid = picture.add_gridspec(lines, columns)
    for number in range(count):
        axes = picture.add_subplot(grid[number // columns, number % columns])
        scale = max(np.abs(weights[..., number]).max(), 1e-9)
        cells = np.rint(127.5 + 127.5 * weights[..., number] / scale).astype(np.uint8)
        large = cells.repeat(12, axis=1).repeat(12, axis=2)  # so that the line between frames is thin
        axes.imshow(_mosaic([large]), interpolation='nearest')
        axes.set_title(str(number), fontsize=7, pad=2)
        axes.axis('off')
    picture.suptitle(title, fontsize=11)
    picture.supxlabel('time runs to the right within each kernel · grey is 0', fontsize=9)
    fonts.save(picture, path, dpi=130)


def _mosaic(rows) -> np.ndarray:
    """Returns uint8 [H, W, 3]: rows of frames with a white line of one pixel between them."""
    frames = [[np.pad(image, [(0, 1), (0, 1), (0, 0)], constant_values=WHITE) for image in row]
              for row in rows]
    return np.concatenate([np.concatenate(row, axis=1) for row in frames])[:-1, :-1]


def _boxed(strip: Strip, t: int) -> np.ndarray:
    top, left, height, width = strip.box
    image = strip.whole[t].copy()
    corner = max(left - 1, 0), max(top - 1, 0)
    return cv2.rectangle(image, corner, (left + width, top + height), (255, 220, 0))


def _side_by_side(strip: Strip, side: int) -> np.ndarray:
    """Returns uint8 [T, H, W, 3], enlarged to the size of an animation."""
    rows = strip.moving or strip.rows
    parts = list(rows)
    if strip.whole is not None:
        parts.insert(0, np.stack([_boxed(strip, t) for t in range(len(strip.whole))]))
    height = max(side, *(part.shape[1] for part in parts))
    large = []
    for part in parts:
        width = round(part.shape[2] * height / part.shape[1])
        how = cv2.INTER_NEAREST if part.shape[1] * 3 < height else cv2.INTER_CUBIC
        large += [np.stack([cv2.resize(image, (width, height), interpolation=how) for image in part]),
                  np.full((len(part), height, 2, 3), WHITE, np.uint8)]
    return np.concatenate(large[:-1], axis=2)


def _fitting(text: str, font: fonts.Font, width: int) -> str:
    while len(text) > 1 and font.width(text) > width:
        text = '…' + text[2:]  # the end has the numbers
    return text
