# SPDX-License-Identifier: Apache-2.0
"""A run's folder → one self-contained HTML page: numbers, mistakes, curves, figures, how to repeat it.

It shows what is there, names what is not, and the command that makes it.
"""

import os
import re
from collections.abc import Callable
from typing import NamedTuple

from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.figures import html
from c3d_tf.figures import sections as parts

RESULT = 'report.html'
_FLAGFILES = ('prepare', 'train', 'evaluate', 'study', 'svm', 'similarity', 'figures/visualize')


class Part(NamedTuple):
    """A part of the page.

    Attributes:
      heading: above it.
      needs: the file of the run's folder that it is made from.
      verb: what leaves that file.
      build: gives its content.
    """

    heading: str
    needs: str
    verb: str
    build: Callable[[parts.Run], html.Html]


PARTS = (
    Part('Results', 'evaluate.json', 'evaluate', parts.results),
    Part('Mistakes', 'scores.npz', 'evaluate', parts.wrong_videos),
    Part('Confusion', 'evaluate.json', 'evaluate', parts.confusion),
    Part('Classes', 'evaluate.json', 'evaluate', parts.classes),
    Part('Training', 'train.json', 'train', parts.training),
    Part('Networks compared', 'study.json', 'study', parts.study),
    Part('Linear SVM', 'svm.json', 'svm', parts.svm),
    Part('Same action or not', 'similarity.json', 'similarity', parts.similarity),
    Part('What units see', 'figures/figures.json', 'visualize', parts.looks),
)


def report(workdir: str, *, records_dir: str = '') -> str:
    """Writes what a run's folder holds as one page that needs no network and no other file.

    Args:
      workdir: of a run; gets report.html, which is only touched when it changes.
      records_dir: where the evaluated records are, for the frames of mistakes; '' takes what the flagfiles
        of the run name.

    Returns:
      the path of report.html.

    Raises:
      errors.UsageError: the folder has no result of any verb.
    """
    run = parts.Run(workdir, records_dir or _named_records(workdir))
    present = [part for part in PARTS if storage.exists(os.path.join(workdir, part.needs))]
    if not present:
        raise errors.UsageError(f'--workdir={workdir}: none of {", ".join(dict.fromkeys(p.needs for p in PARTS))} '
                                'is there; run --mode=train or --mode=evaluate with it first')
    sections, failed = [], []
    for part in present:
        try:
            content = part.build(run)
        except Exception as error:  # pylint: disable=broad-exception-caught
            # Whatever it is (a damaged file, a picture that cannot be read), the other parts are still right.
            failed.append(f'{part.heading}: {type(error).__name__}: {error}')
            console.say(f'report: left out {failed[-1]}')
            content = html.paragraph(f'Left out: {type(error).__name__}: {error}', class_='note')
        if content is not None:
            sections.append((part.heading.lower().replace(' ', '-'), part.heading, content))
    missing = _missing(run, present)
    if missing:
        sections.append(('missing', 'Not here yet', missing))
    sections.append(('repeat', 'How to repeat it', _repeat(run)))
    text = html.page(run.title, _lead(run), sections, run.data)
    path = os.path.join(workdir, RESULT)
    if not failed and _read(path) == text:
        console.say(f'report: {path} is up to date')
        return path
    files.write_text(path, text)
    console.say(f'report: wrote {path} ({len(text) / 1e3:,.0f} kB)')
    return path


def _lead(run: parts.Run) -> html.Html:
    own = []
    try:
        if run.evaluation:
            protocol = run.evaluation['protocol']
            own.append(f'{protocol["dataset"]} {protocol["split"]}'.strip())
            own.append(f'{run.evaluation["videos"]:,} videos of {len(run.evaluation["class_names"])} classes')
        trained = files.read_json(run.path('train.json')) or {}
        if 'settings' in trained:
            settings = trained['settings']
            own.append(f'{settings["model"]}, width {settings["width"]:g}, seed {settings["seed"]}')
    except (errors.RunError, KeyError):  # their own parts say what is wrong with them
        pass
    return html.paragraph(' · '.join(own))


def _missing(run: parts.Run, present: list[Part]) -> html.Html | None:
    absent = {part.verb: part for part in PARTS if part not in present and part.verb != 'study'}
    if not absent:
        return None
    return html.element('ul', *(html.element('li', f'{part.heading}: ', html.element(
        'code', f'python -m c3d_tf.main --mode={verb} --workdir={run.workdir} …')) for verb, part in absent.items()))


def _repeat(run: parts.Run) -> html.Html:
    shown = []
    for name in _FLAGFILES:
        text = _read(run.path(f'{name}.flags'))
        if text:
            shown.append(html.details(f'{os.path.basename(name)}.flags', html.element('pre', text, tabindex=0)))
    if not shown:
        return html.paragraph('The folder has no flagfile: these results were made from Python.', class_='quiet')
    return html.join(html.paragraph('Each of these, as a file, repeats a step: python -m c3d_tf.main --flagfile=FILE.'),
                     *shown)


def _named_records(workdir: str) -> str:
    """Returns the records that a flagfile of the run names, or ''."""
    for name in ('evaluate', 'train'):
        found = re.search(r'^--records=(.+)$', _read(os.path.join(workdir, f'{name}.flags')), re.M)
        if found:
            return found[1]
    return ''


def _read(path: str) -> str:
    try:
        with storage.open(path, encoding='utf-8', errors='surrogateescape') as file:
            return file.read()
    except FileNotFoundError:
        return ''
