# SPDX-License-Identifier: Apache-2.0
"""What is shown below a video: a bar with what happens now, and a strip for each class over time."""

from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL import ImageDraw

from c3d_tf.figures import fonts

ROWS = 5
# Okabe & Ito's, which colour-blind people can tell apart; those of them that stand out on a dark ground.
COLOURS = ('#e69f00', '#56b4e9', '#009e73', '#f0e442', '#cc79a7')
GROUND, TRACK, TEXT, QUIET = '#14171b', '#262b31', '#f2f4f7', '#9ba5b0'
AHEAD = 0.4  # how opaque is what lies behind the playhead's right


class Track(NamedTuple):
    """What a network said of a video.

    Attributes:
      scores: float [N, K], a row a clip; its classes' probabilities.
      spans: float [N, 2], seconds of each clip's first and last frame; rising.
      class_names: K.
      duration: of the video, in seconds.
    """

    scores: np.ndarray
    spans: np.ndarray
    class_names: tuple[str, ...]
    duration: float

    def clip_at(self, seconds) -> np.ndarray:
        """Returns the number of the clip whose middle is nearest."""
        middles = self.spans.mean(axis=1)
        return np.searchsorted((middles[1:] + middles[:-1]) / 2, seconds)


class Panel:
    """Draws the panel of one video.

    Args:
      track: what is shown.
      width: in pixels.
      text: height of the letters, in pixels.

    Attributes:
      height: in pixels; even.
    """

    def __init__(self, track: Track, width: int, text: int):
        letters = ''.join(track.class_names)
        self._fonts = [fonts.Font(letters, size, bold)
                       for size, bold in ((text, False), (text, True), (round(1.3 * text), True))]
        self._track, self._width, self._pad = track, width, round(0.7 * text)
        self._bar, self._row, self._thick = round(2.6 * text), round(1.5 * text), max(2, text // 8)
        self._classes = np.argsort(-track.scores.mean(axis=0), kind='stable')[:ROWS]
        self._names = {i: _fitting(track.class_names[i], self._fonts[1], 0.36 * width)
                       for i in self._classes}
        self._left = 2 * self._pad + round(max(map(self._fonts[1].width, self._names.values())))
        self._right = width - 2 * self._pad - round(self._fonts[1].width('100 %'))
        self._strip_height = len(self._classes) * self._row
        self.height = (self._bar + self._strip_height + self._pad + 1) // 2 * 2
        self._behind, self._ahead = self._strips()

    def draw(self, seconds: float) -> np.ndarray:
        """Returns uint8 [height, width, 3], RGB: the panel at that time."""
        clip = int(self._track.clip_at(seconds))
        now = self._track.scores[clip]
        best = int(now.argmax())
        image = Image.new('RGB', (self._width, self.height), GROUND)
        pen = ImageDraw.Draw(image)
        self._caption(pen, best, now[best], seconds)
        for number, label in enumerate(self._classes):
            middle = self._bar + (number + 0.5) * self._row
            font, colour = (self._fonts[1], TEXT) if label == best else (self._fonts[0], QUIET)
            font.write(pen, self._pad, middle, self._names[label], colour)
            font.write(pen, self._width - self._pad, middle, _percent(now[label]), colour, right=True)
        share = min(1.0, seconds / self._track.duration)
        head = round(share * (self._right - self._left - self._thick))
        image.paste(self._ahead, (self._left, self._bar))
        image.paste(self._behind.crop((0, 0, head, self._strip_height)), (self._left, self._bar))
        pen.rectangle((self._left + head, self._bar - self._thick, self._left + head + self._thick - 1,
                       self._bar + self._strip_height), TEXT)
        return np.asarray(image)

    def _caption(self, pen, best: int, probability: float, seconds: float) -> None:
        middle, side = self._bar / 2, self._fonts[2].size * 0.8
        known = list(self._classes)
        pen.rectangle((self._pad, middle - side / 2, self._pad + side, middle + side / 2),
                      COLOURS[known.index(best)] if best in known else QUIET)
        clock = f'{_clock(seconds)} / {_clock(self._track.duration)}'
        self._fonts[0].write(pen, self._width - self._pad, middle, clock, QUIET, right=True)
        share = f'  {_percent(probability)}'
        left = self._pad + 1.6 * side
        room = (self._width - 2 * self._pad - left - self._fonts[0].width(clock)
                - self._fonts[2].width(share))
        name = _fitting(self._track.class_names[best], self._fonts[2], room)
        self._fonts[2].write(pen, left, middle, name + share, TEXT)

    def _strips(self) -> tuple[Image.Image, Image.Image]:
        """Returns the strips as they are where the playhead has been, and where it has not."""
        columns = self._right - self._left
        size = (self._strip_height, columns, 3)
        ground, strips = np.empty(size), np.empty(size)
        ground[:] = strips[:] = rgb(GROUND)
        clips = self._track.clip_at((np.arange(columns) + 0.5) / columns * self._track.duration)
        tall = self._row - max(2, self._row // 6)
        rise = np.arange(tall)[::-1, None] + 0.5  # above a strip's foot
        for number, label in enumerate(self._classes):
            filled = np.clip(self._track.scores[clips, label] * tall - rise + 0.5, 0, 1)[..., None]
            top = number * self._row + (self._row - tall) // 2
            ground[top:top + tall] = rgb(TRACK)
            strips[top:top + tall] = filled * rgb(COLOURS[number]) + (1 - filled) * rgb(TRACK)
        return tuple(Image.fromarray(np.rint(ground + share * (strips - ground)).astype(np.uint8))
                     for share in (1, AHEAD))


def rgb(colour: str) -> np.ndarray:
    """Returns float [3], 0 … 255, of #rrggbb."""
    return np.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)], float)


def _fitting(text: str, font: fonts.Font, width: float) -> str:
    if font.width(text) <= width:
        return text
    while text and font.width(text + '…') > width:
        text = text[:-1]
    return text.rstrip() + '…'


def _percent(share: float) -> str:
    return f'{100 * share:.0f} %'


def _clock(seconds: float) -> str:
    return f'{int(seconds) // 60:d}:{seconds % 60:04.1f}'
