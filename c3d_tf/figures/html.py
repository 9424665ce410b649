# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page: elements whose text is always escaped, tables, curves, pictures.

Style and script are the files report.css and report.js beside this one; the page carries them, and its
content security policy lets it load nothing and run nothing but that script.
"""

import base64
import hashlib
import html
import io
import json
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np
from matplotlib import ticker
from PIL import Image

from c3d_tf.common import storage

_VOID = ('img', 'input', 'link', 'meta')
_POINTS = 400                        # of a curve: more cannot be told apart at its size
_CHART = (420, 240)                  # width and height of a chart, in its own units
_MARGIN = (54, 12, 14, 36)           # left, right, top, bottom


class Html(str):
    """Markup. Every other string is text, and is escaped where it becomes part of an element."""


class Cell(NamedTuple):
    """A cell of a table that shows something other than what it is sorted by."""

    shown: Html | str
    value: float


def text(value) -> Html:
    """Returns the value as markup: escaped, unless it is Html. Names of files that are no UTF-8 get a ?."""
    return value if isinstance(value, Html) else Html(
        html.escape(str(value).encode(errors='replace').decode()))


def join(*parts) -> Html:
    return Html(''.join(text(part) for part in parts if part is not None))


def element(tag: str, /, *children, **attributes) -> Html:
    """Returns an element.

    Args:
      tag: its name.
      children: Html, or anything else as text; None is left out.
      attributes: `class_` is class and `data_x` is data-x; True stands for the name alone, None and False
        for no such attribute.
    """
    given = ''.join(
        f' {key.rstrip("_").replace("_", "-")}' + ('' if value is True else f'="{text(value)}"')
        for key, value in attributes.items() if value is not None and value is not False)
    return Html(f'<{tag}{given}>' if tag in _VOID else f'<{tag}{given}>{join(*children)}</{tag}>')


def paragraph(*children, class_: str | None = None) -> Html:
    return element('p', *children, class_=class_)


def details(summary: str, *children) -> Html:
    """Returns what is shown when one asks for it, and on paper."""
    return element('details', element('summary', summary), *children)


def terms(pairs: dict) -> Html:
    """Returns a list of names and values."""
    return element('dl', *(element('div', element('dt', name), element('dd', value))
                           for name, value in pairs.items()))


def table(caption: str, columns: Sequence[tuple[str, bool]], rows, *, sortable: bool = False) -> Html:
    """Returns a table that scrolls inside its box.

    Args:
      caption: what it is, for those who do not see what surrounds it.
      columns: (name, whether it holds numbers) of each.
      rows: lists of a cell a column: text, Html or a `Cell`; the first names the row.
      sortable: puts a button into every head.
    """
    heads = [element('th', element('button', name, type='button') if sortable else name, scope='col',
                     class_='number' if numeric else None, data_numeric=numeric, aria_sort='none' if sortable else None)
             for name, numeric in columns]
    lines = []
    for row in rows:
        cells = []
        for place, (cell, (_, numeric)) in enumerate(zip(row, columns, strict=True)):
            shown, value = cell if isinstance(cell, Cell) else (cell, None)
            cells.append(element('td' if place else 'th', shown, scope=None if place else 'row',
                                 class_='number' if numeric else None, data_value=value))
        lines.append(element('tr', *cells))
    whole = element('table', element('caption', caption), element('thead', element('tr', *heads)),
                    element('tbody', *lines), class_='sortable' if sortable else None)
    # What scrolls must be reached by the keyboard.
    return element('div', whole, class_='scroll', tabindex=0, role='region', aria_label=caption)


def share_bar(share: float, shown: str) -> Html:
    """Returns a number over a bar of that length, 0 … 1."""
    return element('span', shown, class_='share', style=f'--share:{share:.4f}')


def curves(title: str, x_name: str, series: dict[str, tuple[Sequence[float], Sequence[float]]], *,
           top: float | None = None) -> Html:
    """Returns a chart of lines from 0 upwards, as SVG that takes the page's colours.

    Args:
      title: above it.
      x_name: below it.
      series: name → (x, y); NaN and infinity are left out.
      top: the end of the y axis; None: the largest value.
    """
    thin = {name: _thinned(np.asarray(xs, float), np.asarray(ys, float)) for name, (xs, ys) in series.items()}
    x_ticks = ticker.MaxNLocator(5, integer=True).tick_values(0, max(xs.max() for xs, _ in thin.values()))
    y_ticks = ticker.MaxNLocator(5).tick_values(0, top or max(max(ys.max() for _, ys in thin.values()), 1e-9))
    (width, height), (left, right, above, below) = _CHART, _MARGIN

    def x_of(x):
        return left + x / x_ticks[-1] * (width - left - right)

    def y_of(y):
        return height - below - y / y_ticks[-1] * (height - above - below)

    parts = []
    for y in y_ticks:
        parts += [element('line', x1=left, x2=width - right, y1=f'{y_of(y):.1f}', y2=f'{y_of(y):.1f}',
                          class_='grid'),
                  element('text', f'{y:g}', x=left - 6, y=f'{y_of(y) + 4:.1f}', class_='y')]
    parts += [element('text', f'{x:,.10g}', x=f'{x_of(x):.1f}', y=height - below + 16, class_='x')
              for x in x_ticks]
    parts.append(element('text', x_name, x=(left + width - right) / 2, y=height - 3, class_='x'))
    for number, (xs, ys) in enumerate(thin.values(), 1):
        points = ' '.join(f'{x_of(x):.1f},{y_of(y):.1f}' for x, y in zip(xs, ys))
        parts.append(element('polyline', points=points, class_=f'line c{number}'))
        parts.append(element('circle', cx=f'{x_of(xs[-1]):.1f}', cy=f'{y_of(ys[-1]):.1f}', r=3, class_=f'c{number}'))
    said = {name: f'{ys[-1]:.3g}' for name, (_, ys) in thin.items()}
    drawing = element('svg', *parts, viewBox=f'0 0 {width} {height}', role='img', aria_label=(
        f'{title}, at the end: ' + ', '.join(f'{name} {value}' for name, value in said.items())))
    legend = element('ul', *(element('li', element('i', class_=f'c{number}'), name, ' ', element('b', value))
                             for number, (name, value) in enumerate(said.items(), 1)), class_='legend')
    return element('figure', element('h3', title), drawing, legend, class_='chart')


def _thinned(xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most _POINTS points: means of neighbours."""
    finite = np.isfinite(ys)
    xs, ys = xs[finite], ys[finite]
    if len(xs) <= _POINTS:
        return xs, ys
    return tuple(np.array([part.mean() for part in np.array_split(one, _POINTS)]) for one in (xs, ys))


def data_uri(kind: str, content: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'


def webp(path: str, *, widest: int = 1600, lossless: bool = False) -> tuple[bytes, tuple[int, int]]:
    """Returns a picture of a file as WebP, and its (width, height).

    Args:
      path: the file.
      widest: a wider one is made this wide.
      lossless: for drawings, which have edges.
    """
    with Image.open(storage.readable(path)) as opened:
        image = opened.convert('RGB')
    if image.width > widest:
        image = image.resize((widest, round(image.height * widest / image.width)), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, 'WEBP', quality=50 if lossless else 80, lossless=lossless, method=2)
    return content.getvalue(), image.size


def page(title: str, lead: Html, sections: Sequence[tuple[str, str, Html]], data: dict) -> str:
    """Returns the document.

    Args:
      title: its title and first heading.
      lead: what stands below that.
      sections: (name for links, heading, content) of each.
      data: for report.js, which says what it takes.
    """
    style, script = (resources.files(__package__).joinpath(f'report.{end}').read_text(encoding='utf-8')
                     for end in ('css', 'js'))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    # Within a script element nothing is escaped but the one character that could end it.
    content = json.dumps(data, separators=(',', ':')).replace('<', '\\u003c')
    head = element(
        'head', element('meta', charset='utf-8'),
        element('meta', http_equiv='Content-Security-Policy', content=policy),
        element('meta', name='viewport', content='width=device-width, initial-scale=1'),
        element('meta', name='color-scheme', content='light dark'),
        element('link', rel='icon', href='data:,'), element('title', title), element('style', Html(style)))
    links = element('nav', *(element('a', heading, href=f'#{name}') for name, heading, _ in sections),
                    aria_label='sections')
    body = element(
        'body', element('header', element('h1', title), lead, links),
        element('main', *(element('section', element('h2', heading), content, id=name)
                          for name, heading, content in sections)),
        element('script', Html(content), id='data', type='application/json'),
        element('script', Html(script)))
    return f'<!doctype html>\n{element("html", head, body, lang="en")}\n'
