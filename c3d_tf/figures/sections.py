# SPDX-License-Identifier: Apache-2.0
"""The parts of a run's report: each from the files of one verb."""

import dataclasses
import functools
import math
import os
from collections.abc import Iterator

import numpy as np

from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.data import records
from c3d_tf.figures import html
from c3d_tf.figures import mistakes
from c3d_tf.training import history

MISTAKES = 24             # shown as animations
PAIRS = 20                # of classes, the most confused
MOST_BYTES = 4_800_000    # of the page, without its frame of text: what goes through any mail


@dataclasses.dataclass
class Run:
    """A folder that is being read.

    Attributes:
      workdir: the folder.
      records_dir: of the evaluated records, or ''.
      data: what the page's script gets.
      room: bytes that pictures may still take.
    """

    workdir: str
    records_dir: str
    data: dict = dataclasses.field(default_factory=dict)
    room: int = MOST_BYTES

    def path(self, name: str) -> str:
        return os.path.join(self.workdir, name)

    @functools.cached_property
    def evaluation(self) -> dict | None:
        return files.read_json(self.path('evaluate.json'))

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(storage.readable(self.path('scores.npz')), allow_pickle=False) as archive:
            return dict(archive)

    @property
    def title(self) -> str:
        return f'Run {os.path.basename(storage.abspath(self.workdir))}'

    def embed(self, kind: str, content: bytes) -> str | None:
        """Returns a data: URI, or None where the page would grow too large."""
        size = len(content) * 4 // 3
        if size > self.room:
            return None
        self.room -= size
        return html.data_uri(kind, content)

    def picture(self, name: str, alt: str, caption: str = '', *, lossless: bool = True, wide: bool = False) -> html.Html:
        """Returns a picture of the folder; `wide` ones keep a readable size and scroll."""
        if not storage.exists(self.path(name)):
            return html.paragraph(f'{name} is gone.', class_='quiet')
        content, (width, height) = html.webp(self.path(name), lossless=lossless)
        source = self.embed('image/webp', content)
        if source is None:
            return html.paragraph(f'{name} is in the folder; it would make this page too large.', class_='quiet')
        image = html.element('img', src=source, alt=alt, width=width, height=height, loading='lazy')
        if wide:
            image = html.element('div', image, class_='scroll', tabindex=0, role='region', aria_label=alt)
        return html.element('figure', image, html.element('figcaption', caption) if caption else None)


def results(run: Run) -> html.Html:
    result, protocol = run.evaluation, run.evaluation['protocol']
    videos, clips = result['videos'], result['clips']

    def share(name, of):
        return f'{round(result[name] * of):,} of {of:,}'

    def error(name):  # of a share over videos; clips of one video are too much alike for this
        return f'± {math.sqrt(result[name] * (1 - result[name]) / videos):.3f} (standard error)'

    counts = [row['videos'] for row in result['per_class']]
    present = sum(count > 0 for count in counts)
    numbers = [('video hit@1', 'video_hit@1', f'{share("video_hit@1", videos)} videos', error('video_hit@1')),
               ('video hit@5', 'video_hit@5', f'{share("video_hit@5", videos)} videos', error('video_hit@5')),
               ('mean class accuracy', 'mean_class_accuracy', f'over {present} classes', ''),
               ('clip hit@1', 'clip_hit@1', f'{share("clip_hit@1", clips)} clips', ''),
               ('clip hit@5', 'clip_hit@5', f'{share("clip_hit@5", clips)} clips', '')]
    tiles = [html.element('li', html.element('b', f'{result[key]:.3f}'), html.element('span', name),
                          html.element('span', below, class_='quiet'),
                          html.element('span', more, class_='quiet') if more else None)
             for name, key, below, more in numbers]
    every = protocol['clips'] == 'all'
    sentence = (f'Chance is {1 / present:.3f}, and naming always the largest class {max(counts) / sum(counts):.3f}. '
                f'{"All" if every else protocol["clips"]} clips a video ({protocol["clip_choice"]}), '
                f'crops: {protocol["crops"]}; a video\'s score is the {protocol["score"]}.')
    whole = {**dict(_flat(protocol)), **{f'version of {name}': version for name, version in result['versions'].items()}}
    return html.join(html.element('ul', *tiles, class_='numbers'), html.paragraph(sentence),
                     html.details('The whole protocol', html.terms(whole)))


def _flat(value, name: str = '') -> Iterator[tuple[str, object]]:
    """Yields (name, value) of all that is nested, e.g. ('preprocessing, crop_size', 112)."""
    nested = value.items() if isinstance(value, dict) else enumerate(value, 1) if (
        isinstance(value, list) and value and isinstance(value[0], dict)) else None
    if nested is None:
        yield name, ', '.join(map(str, value)) if isinstance(value, list) else 'none' if value in (None, '') else value
        return
    for key, inner in nested:
        yield from _flat(inner, f'{name}, {key}' if name else str(key))


def confusion(run: Run) -> html.Html:
    names, table = run.evaluation['class_names'], np.array(run.evaluation['confusion'])
    run.data |= {'class_names': names, 'videos_per_class': table.sum(axis=1).tolist(),
                 'confusion': [[int(row), int(column), int(table[row, column])]
                               for row, column in zip(*np.nonzero(table))]}
    canvas = html.element('canvas', id='confusion-canvas', tabindex=0, role='img', aria_describedby='confusion-readout',
                          aria_label=f'Confusion matrix of {len(names)} classes: rows are true, columns what was taken '
                          'for it. Arrow keys move from cell to cell; the table below has the most confused pairs.')
    key = html.element('ul', html.element('li', html.element('i'), 'named rightly'),
                       html.element('li', html.element('i', class_='wrong'), 'taken for another; stronger: a larger '
                                    'share of the row'), class_='key')
    matrix = html.element(
        'div', html.paragraph('A row is a true class, a column what its videos were taken for.'), key,
        html.element('div', canvas, class_='scroll'),
        html.element('output', 'Point at a cell, touch it, or move by the arrow keys.', id='confusion-readout',
                     aria_live='polite'), class_='matrix')
    totals = table.sum(axis=1)
    wrong = table - np.diag(np.diag(table))
    order = np.argsort(-wrong, axis=None, kind='stable')[:PAIRS]
    pairs = [(row, column) for row, column in zip(*np.unravel_index(order, wrong.shape)) if wrong[row, column]]
    if not pairs:
        return html.join(matrix, html.paragraph('No video was taken for another class.'))
    rows = [[names[row], names[column], int(wrong[row, column]), int(totals[row]),
             _share(wrong[row, column], totals[row])] for row, column in pairs]
    columns = [('true class', False), ('taken for', False), ('videos', True), ('of', True), ('share', True)]
    return html.join(matrix, html.element('h3', 'Most confused pairs'),
                     html.table('The most confused pairs of classes', columns, rows, sortable=True))


def _share(part: int, whole: int) -> html.Cell:
    share = float(part) / max(float(whole), 1)
    return html.Cell(html.share_bar(share, f'{share:.3f}' if whole else '–'), round(share, 6) if whole else -1)


def classes(run: Run) -> html.Html:
    rows = [[row['class'], row['videos'], row['right'], _share(row['right'], row['videos']), row['mostly_taken_for']]
            for row in run.evaluation['per_class']]
    columns = [('class', False), ('videos', True), ('right', True), ('share right', True),
               ('mostly taken for', False)]
    return html.table('Every class', columns, rows, sortable=True)


def wrong_videos(run: Run) -> html.Html:
    names, arrays = run.evaluation['class_names'], run.arrays
    found = mistakes.find(arrays)
    if not found:
        return html.paragraph('Not one video was taken for a class that is none of its own.')
    shown, note, moving = found[:MISTAKES], None, None
    try:
        moving = mistakes.Clips(records.read_index(run.records_dir), run.evaluation['protocol'], len(arrays['scores']))
        pairs = list(moving.read(shown))
    except (errors.RunError, KeyError) as error:  # without their frames they are still worth naming
        note = html.paragraph(f'Without pictures: {error}. --records=DIR names the records that were evaluated.',
                              class_='note')
        pairs = [(one, None) for one in shown]
    cards, run.data['mistakes'] = [], []
    for one, clip in pairs:
        card, entry = _mistake(run, names, one, clip)
        cards.append(html.element('li', html.element('button', *card, class_='mistake', type='button')))
        run.data['mistakes'].append(entry)
    which = ('The only wrong video. ' if len(found) == 1 else
             f'The {len(shown)} of {len(found):,} wrong videos, the most confident first. ' if len(shown) < len(found) else
             f'All {len(found)} wrong videos, the most confident first. ')
    how = ('Each plays the clip, among those that were scored, that was surest of the wrong class. Point at one to '
           'play it, open it for its five best classes.') if moving else 'Open one for its five best classes.'
    return html.join(html.paragraph(which, how), note, html.element('ul', *cards, class_='mistakes'), _DIALOG)


def _mistake(run: Run, names: list[str], one: mistakes.Mistake, clip) -> tuple[list, dict]:
    """Returns the card's content, and what the dialog shows."""
    own, taken = ', '.join(names[i] for i in one.labels) or 'no class', names[one.top[0]]
    entry = {'title': f'{own}, taken for {taken}', 'name': one.name, 'where': '', 'animation': '',
             'alt': f'a clip of {own} that was taken for {taken}'}
    picture = html.element('span', class_='none')
    if isinstance(clip, mistakes.Moving):
        still, entry['animation'] = (run.embed('image/webp', content) or '' for content in (clip.still, clip.animation))
        entry['where'] = (f'frames {clip.frames[0]} to {clip.frames[1]}, {clip.seconds[0]:.2f} to '
                          f'{clip.seconds[1]:.2f} s; shown at 8 frames a second')
        if still and entry['animation']:
            picture = html.element('img', src=still, alt=entry['alt'], width=clip.size[0], height=clip.size[1])
    elif clip is not None:
        entry['where'] = f'no picture: {clip}'
    order = np.argsort(-one.score, kind='stable').tolist()
    entry['top'] = [{'label': names[i], 'score': round(float(one.score[i]), 4), 'is_true': i in one.labels,
                     'rank': order.index(i) + 1} for i in dict.fromkeys([*one.top, *one.labels])]
    return [picture, html.element('span', own),
            html.element('span', f'taken for {taken} {one.score[one.top[0]]:.2f}')], entry


_DIALOG = html.element(
    'dialog',
    html.element('div', html.element('h2', class_='title', id='mistake-title'),
                 html.element('form', html.element('button', 'Close'), method='dialog'), class_='head'),
    html.element('div', html.element('div', html.element('img', class_='picture', alt='')),
                 html.element('div', html.element('h3', 'Best classes'), html.element('ol', class_='top')),
                 class_='both'),
    html.paragraph(html.element('span', class_='name'), class_='quiet'),
    html.paragraph(html.element('span', class_='where'), class_='quiet'),
    html.element('div', html.element('span', class_='place'),
                 *(html.element('button', label, type='button', class_=name)
                   for name, label in (('play', 'Stop'), ('back', 'Previous'), ('next', 'Next'))), class_='turn'),
    id='mistake', aria_labelledby='mistake-title')


def training(run: Run) -> html.Html:
    result = files.read_json(run.path('train.json'))
    settings = result['settings']
    named = {name: curve for name, curve in ((name, history.read(run.workdir, name)) for name in (
        'loss', 'accuracy', 'val_accuracy', 'test_accuracy', 'learning_rate')) if curve[0]}
    groups = [('Loss', {'training': 'loss'}, None),
              ('Clip accuracy', {'training': 'accuracy', 'validation': 'val_accuracy', 'test, watched': 'test_accuracy'},
               1.0), ('Learning rate', {'rate': 'learning_rate'}, None)]
    charts = [html.curves(title, 'step', own, top=top) for title, wanted, top in groups
              if (own := {label: named[name] for label, name in wanted.items() if name in named})]
    if result['status'] == 'done':
        said = (f'{result["steps"]:,} steps of {settings["batch_size"]} clips in '
                f'{console.duration(result["seconds"])}'
                + (f', {result["clips_per_second"]:.0f} clips a second at the end' if 'clips_per_second' in result
                   else '') + (f'; best validation {result["best_val_accuracy"]:.3f} at step {result["best_step"]:,}'
                               if 'best_step' in result else '') + '.')
    else:
        said = 'The training is not finished; the same command goes on.'
    return html.join(html.paragraph(said), html.element('div', *charts, class_='charts') if charts else html.paragraph(
        'There are no curves in tensorboard/train.', class_='quiet'),
                     html.details('The whole recipe', html.terms(dict(_flat(settings)))))


def study(run: Run) -> html.Html:
    result = files.read_json(run.path('study.json'))
    rows = [[name, f'{own["mean"][-1]:.3f}', f'{own["standard_error"][-1]:.3f}' if own['standard_error'] else '–']
            for name, own in result['networks'].items()]
    return html.join(
        html.paragraph(result['protocol']),
        html.table('Networks', [('network', False), ('accuracy', True), ('standard error', True)], rows, sortable=True),
        run.picture('study.png', 'Accuracy by epoch, a line for each network'))


def svm(run: Run) -> html.Html:
    result = files.read_json(run.path('svm.json'))
    protocol = result['protocol']
    said = (f'Accuracy {result["accuracy"]:.3f}, mean class accuracy {result["mean_class_accuracy"]:.3f}: '
            f'{protocol["samples"]:,} {protocol["unit"]} of {protocol["classes"]} classes, '
            f'mean of {len(result["splits"])} split(s).')
    pictures = [run.picture(name, alt, wide=True) for name, alt in (
        ('compactness.png', 'Accuracy by PCA dimension'), ('tsne.png', 't-SNE of the descriptors, coloured by class'),
        ('confusion_svm.png', 'Confusion matrix of the SVM')) if storage.exists(run.path(name))]
    return html.join(html.paragraph(said), *pictures, html.details('The whole protocol', html.terms(dict(_flat(protocol)))))


def similarity(run: Run) -> html.Html:
    result = files.read_json(run.path('similarity.json'))
    said = (f'Accuracy {result["accuracy"]:.3f} ± {result["standard_error"]:.3f} (standard error over '
            f'{len(result["per_fold"])} folds), area under the ROC {result["auc"]:.3f}; chance is 0.5.')
    return html.join(html.paragraph(said), run.picture('roc.png', 'ROC curves, and what each measure alone reaches', wide=True),
                     html.details('The whole protocol', html.terms(dict(_flat(result['protocol'])))))


def looks(run: Run) -> html.Html:
    """Strips and filters of visualize."""
    shown = []
    for one in files.read_json(run.path('figures/figures.json'))['figures']:
        what = {'filters': f'Filters of {one["layer"]}', 'gradcam': f'Grad-CAM at {one["layer"]}'}.get(
            one['kind'], f'What excites feature map {one.get("unit")} of {one["layer"]}')
        shown.append(run.picture(os.path.join('figures', one['file']), what, what, lossless=False, wide=True))
    return html.join(*shown)
