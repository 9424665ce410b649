# SPDX-License-Identifier: Apache-2.0
"""DejaVu Sans, and for the letters it lacks, Chinese, Japanese and Korean ones say, the fonts of the machine."""

import functools
import itertools
import logging
import os
import sys
import warnings

import matplotlib
from matplotlib import figure
from matplotlib import font_manager
from matplotlib import ft2font
from matplotlib import text as texts
from PIL import ImageDraw
from PIL import ImageFont

_FOLDER = os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf')
_MAIN, _BOLD = (os.path.join(_FOLDER, f'DejaVuSans{style}.ttf') for style in ('', '-Bold'))


class Font:
    """Letters for Pillow, each from the first font that has it.

    Args:
      text: all letters that will be written.
      size: in pixels.
      bold: where DejaVu Sans has the letter bold.

    Attributes:
      size: in pixels.
    """

    def __init__(self, text: str, size: int, bold: bool = False):
        paths = _having(frozenset(text))
        if bold:
            paths = _BOLD, *paths
        self.size = size
        self._letters = [_letters(path) for path in paths]
        self._fonts = [ImageFont.truetype(path, size) for path in paths]

    def width(self, text: str) -> float:
        """Returns the pixels that the text takes."""
        return sum(font.getlength(run) for font, run in self._runs(text))

    def write(
        self, pen: ImageDraw.ImageDraw, x: float, middle: float, text: str, colour, *, right: bool = False,
    ) -> None:
        """Writes a line with its middle at that height; it starts at `x`, or with `right` ends there."""
        ascent, descent = self._fonts[0].getmetrics()
        anchor, onwards = ('rs', -1) if right else ('ls', 1)
        runs = self._runs(text)[::onwards]
        for font, run in runs:
            pen.text((x, middle + (ascent - descent) / 2), run, colour, font, anchor=anchor)
            if len(runs) > 1:
                x += onwards * font.getlength(run)

    def _runs(self, text: str):
        if self._letters[0].issuperset(text):  # nearly all, and there is a line to write in every frame of a video
            return [(self._fonts[0], text)]

        def number(letter):
            return next((i for i, letters in enumerate(self._letters) if letter in letters), 0)

        return [(self._fonts[i], ''.join(run)) for i, run in itertools.groupby(text, number)]


def save(picture: figure.Figure, path, *, dpi: int) -> None:
    """Writes a figure as PNG, its text letter by letter as it is, each in a font that has it.

    Args:
      path: or a binary file.
    """
    written = picture.findobj(texts.Text)
    files = _having(frozenset(letter for each in written for letter in each.get_text()))
    if len(files) > 1:
        # matplotlib keeps its list of fonts from its first use on, without those that were installed since.
        for file in set(files) - {entry.fname for entry in font_manager.fontManager.ttflist}:
            font_manager.fontManager.addfont(file)
        logging.getLogger('matplotlib.font_manager').setLevel(logging.ERROR)  # of weights that they do not come in
    for each in written:
        each.set_parse_math(False)  # a name with two $ is no formula
        if len(files) > 1:
            each.set_fontfamily([ft2font.FT2Font(file).family_name for file in files])
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing')  # said above, once
        picture.savefig(path, dpi=dpi, format='png')


def _having(letters: frozenset[str]) -> tuple[str, ...]:
    """Returns DejaVu Sans, and as few of the installed fonts as have the letters that it lacks."""
    return _MAIN, *_installed(frozenset(filter(str.isprintable, letters)) - _letters(_MAIN))


@functools.cache
def _installed(missing: frozenset[str]) -> tuple[str, ...]:
    found = []
    gains = {path: missing & _letters(path) for path in sorted(font_manager.findSystemFonts())} if missing else {}

    def merit(path):
        face = ft2font.FT2Font(path)
        return len(gains[path] & missing), face.style_name == 'Regular', 'Sans' in face.family_name

    while missing:
        best = max(filter(gains.get, gains), key=merit, default=None)
        if not best or not gains[best] & missing:
            print(f'no font here has {" ".join(sorted(missing))}: drawn as boxes; install one that has them '
                  '(Debian: fonts-noto-cjk for Chinese, Japanese and Korean)', file=sys.stderr, flush=True)
            break
        found.append(best)
        missing -= gains[best]
    return tuple(found)


@functools.cache
def _letters(path: str) -> frozenset[str]:
    try:
        face = ft2font.FT2Font(path)
    except (OSError, RuntimeError):  # not one that FreeType reads
        return frozenset()
    return frozenset(map(chr, face.get_charmap()) if face.scalable else ())  # emoji in colours come in one size
