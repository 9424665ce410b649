# SPDX-License-Identifier: Apache-2.0
"""The report of a run: complete, escaped, and usable in a real browser without a network."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from c3d_tf import main
from c3d_tf import report
from c3d_tf.common import errors
from tests import browser
from tests import conftest

HOSTILE = '<script>alert(1)</script>'
TINY = ['--frame_size=28x36', '--crop_size=24', '--width=0.03', '--batch_norm', '--batch_size=8', '--steps=4',
        '--mean=channel', '--eval_batch_size=8', '--clips=2', '--clip_choice=uniform', '--log_every=1']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run on three classes, one of which would be a script if it were not escaped; trained so little
    that it must be wrong."""
    root = tmp_path_factory.mktemp('report')
    videos = []
    for split in ('train', 'test'):
        for label in range(3):
            for i in range(3):
                path = root / 'videos' / f'{split}_{label}_{i}.avi'
                path.parent.mkdir(exist_ok=True)
                conftest.counting_video(str(path), 18 + i)
                videos.append(f'{path.name},{("plain", "b & c", HOSTILE)[label]},{split}')
    (root / 'all.csv').write_text('\n'.join(['path,label,split', *videos]) + '\n')
    flags = [f'--records={root}/records', f'--workdir={root}/run', '--dataset=csv', f'--videos={root}/videos',
             f'--train_list={root}/all.csv', *TINY]
    assert main.main(['c3d_tf', '--mode=prepare,train,evaluate', *flags]) == 0
    return root / 'run'


def test_evaluate_ends_with_it_and_all_is_escaped(run):
    page = (run / report.RESULT).read_text()
    assert HOSTILE not in page and '&lt;script&gt;alert(1)' in page
    assert 'http://' not in page and 'https://' not in page  # not even a link
    for heading in ('Results', 'Mistakes', 'Confusion', 'Classes', 'Training', 'Not here yet', 'How to repeat it'):
        assert f'>{heading}</h2>' in page
    assert '--mode=svm' in page and '--clip_choice=uniform' in page


def test_in_a_browser(run):
    wrong = json.loads((run / 'evaluate.json').read_text())
    with browser.open_page(run / report.RESULT) as page:
        table = page.locator('#classes table')
        button = table.get_by_role('button', name='videos')
        names = lambda: table.locator('tbody th').all_inner_texts()
        table.get_by_role('button', name='class').first.click()
        first = names()
        table.get_by_role('button', name='class').first.click()
        assert names() == first[::-1] and sorted(first) == sorted(wrong['class_names'])
        button.click()
        assert table.locator('th[aria-sort=ascending], th[aria-sort=descending]').count() == 1
        canvas = page.locator('#confusion-canvas')
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        page.mouse.move(box['x'] + box['width'] * 0.95, box['y'] + box['height'] * 0.95)
        said = page.locator('#confusion-readout').inner_text()
        canvas.focus()
        assert said.startswith(wrong['class_names'][2])  # the last row
        page.keyboard.press('ArrowUp')
        assert page.locator('#confusion-readout').inner_text().startswith(wrong['class_names'][1])
        cards = page.locator('.mistake')
        assert cards.count() == sum(row['videos'] - row['right'] for row in wrong['per_class']) > 0
        cards.first.click()
        dialog = page.locator('#mistake')
        assert dialog.is_visible() and 'taken for' in dialog.locator('.title').inner_text()
        assert dialog.locator('.top li').count() >= 3
        # The animation is a real one: the browser decodes it.
        assert page.evaluate('document.querySelector("#mistake .picture").decode().then(() => true)')
        page.keyboard.press('Escape')
        assert not dialog.is_visible()


@pytest.mark.parametrize('options', [{'viewport': {'width': 360, 'height': 800}}, {'color_scheme': 'dark'},
                                     {'java_script_enabled': False}])
def test_on_a_phone_in_the_dark_and_without_scripts(run, options):
    with browser.open_page(run / report.RESULT, **options) as page:
        assert page.locator('h1').inner_text() == 'Run run'
        if 'viewport' in options:  # only boxes scroll sideways, never the page
            assert page.evaluate('document.documentElement.scrollWidth') <= 360
        if 'color_scheme' in options:
            colour = page.evaluate('getComputedStyle(document.body).backgroundColor')
            assert max(int(part) for part in colour.strip('rgb()').split(',')) < 80


def test_of_what_is_there(run, tmp_path, capsys):
    for name in ('evaluate.json', 'train.json'):
        shutil.copy(run / name, tmp_path / name)
    path = report.report(str(tmp_path))
    page = pathlib.Path(path).read_text()
    assert '>Results</h2>' in page and '>Mistakes</h2>' not in page
    (tmp_path / 'evaluate.json').write_text('{"nothing": 1}')
    report.report(str(tmp_path))  # the other parts are still right
    assert 'left out Results' in capsys.readouterr().out and '>Training</h2>' in pathlib.Path(path).read_text()
    with pytest.raises(errors.UsageError, match='none of evaluate.json'):
        report.report(str(tmp_path / 'empty'))


def test_without_the_records_mistakes_are_named(run, tmp_path):
    for name in ('evaluate.json', 'scores.npz'):
        shutil.copy(run / name, tmp_path / name)
    page = pathlib.Path(report.report(str(tmp_path))).read_text()
    assert 'Without pictures' in page and 'data:image/webp' not in page


def test_the_same_again_touches_nothing(run):
    before = (run / report.RESULT).stat().st_mtime_ns
    report.report(str(run))
    assert (run / report.RESULT).stat().st_mtime_ns == before


def test_as_many_classes_as_sports_1m_stay_usable(run, tmp_path):
    result = json.loads((run / 'evaluate.json').read_text())
    names = [f'class {i}' for i in range(487)]
    table = np.eye(487, dtype=int) * 3
    table[5, 7] = 2
    result |= {'class_names': names, 'confusion': table.tolist(), 'per_class': [
        {'class': name, 'videos': 3, 'right': 3, 'accuracy': 1.0, 'mostly_taken_for': ''} for name in names]}
    (tmp_path / 'evaluate.json').write_text(json.dumps(result))
    path = report.report(str(tmp_path))
    assert pathlib.Path(path).stat().st_size < 1_000_000
    with browser.open_page(path, viewport={'width': 390, 'height': 800}) as page:
        assert page.evaluate('document.documentElement.scrollWidth') <= 390
