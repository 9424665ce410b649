# SPDX-License-Identifier: Apache-2.0
"""Class names in any script: on video, in figures, in animations."""

import io

import numpy as np
import pytest
from matplotlib import figure
from matplotlib import font_manager
from matplotlib import ft2font
from PIL import Image

from c3d_tf.figures import fonts
from c3d_tf.figures import plots
from c3d_tf.figures import strips
from c3d_tf.rendering import panel


@pytest.fixture(params=[True, False])
def installed(request, monkeypatch):
    """Whether the machine has a font with Chinese letters; fonts are looked for anew."""
    fonts._installed.cache_clear()
    if not request.param:
        monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: [fonts._MAIN])
    elif not any('球' in fonts._letters(path) for path in font_manager.findSystemFonts()):
        pytest.skip('no font here has Chinese letters')
    yield request.param
    fonts._installed.cache_clear()


def _panel(name):
    track = panel.Track(np.array([[0.9, 0.1]]), np.array([[0.0, 1.0]]), (name, 'walk'), 1.0)
    return panel.Panel(track, 320, 12).draw(0.5)


def _figure(name):
    picture, out = figure.Figure(), io.BytesIO()
    picture.add_subplot().set_yticks([0.5], [name])
    fonts.save(picture, out, dpi=50)
    return np.asarray(Image.open(out))


def _animation(name):
    out = io.BytesIO()
    strips.animation(out, [strips.Strip(f'{name}\n3.2 s', (np.zeros((2, 40, 60, 3), np.uint8),))])
    return np.asarray(Image.open(out).convert('RGB'))


@pytest.mark.parametrize('draw', [_panel, _figure, _animation])
def test_letters_come_from_the_fonts_of_the_machine(draw, installed, capfd):
    """Boxes are all alike; letters are not."""
    one, other = draw('打球 play'), draw('足球 play')
    assert one.shape == other.shape and np.array_equal(one, other) is not installed
    said = capfd.readouterr().err
    assert ('no font here has 打 球: drawn as boxes' in said) is not installed and 'Glyph' not in said
    assert not np.array_equal(draw('ходьба'), draw('écrire'))


@pytest.mark.parametrize('draw', [_panel, _figure, _animation])
def test_a_font_of_one_size_is_none(draw, monkeypatch, tmp_path, capfd):
    """A font of pixels alone, as those of emoji in colours are."""
    fonts._installed.cache_clear()
    (tmp_path / 'emoji.bdf').write_text(
        'STARTFONT 2.1\nFONT -a-emoji-medium-r-normal--8-80-75-75-c-80-iso10646-1\nSIZE 8 75 75\n'
        'FONTBOUNDINGBOX 8 8 0 0\nSTARTPROPERTIES 4\nFONT_ASCENT 8\nFONT_DESCENT 0\nCHARSET_REGISTRY "ISO10646"\n'
        'CHARSET_ENCODING "1"\nENDPROPERTIES\nCHARS 1\nSTARTCHAR ball\nENCODING 127936\nSWIDTH 1000 0\n'
        'DWIDTH 8 0\nBBX 8 8 0 0\nBITMAP\n' + '7E\n' * 8 + 'ENDCHAR\nENDFONT\n')
    (tmp_path / 'broken.ttf').write_bytes(b'no font')
    found = [str(tmp_path / 'broken.ttf'), str(tmp_path / 'emoji.bdf')]
    assert '\U0001f3c0' in map(chr, ft2font.FT2Font(found[1]).get_charmap())
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: found)
    draw('\U0001f3c0 ball')
    assert 'no font here has \U0001f3c0: drawn as boxes' in capfd.readouterr().err
    fonts._installed.cache_clear()


def test_a_name_with_two_dollars_is_no_formula():
    assert not np.array_equal(_figure('$x{$'), _figure('x{'))


def test_a_legend_has_names_that_begin_with_a_line():
    def drawn(name):
        out = io.BytesIO()
        plots.embedding([('', np.eye(2), np.arange(2))], (name, 'walk'), out, title='')
        return np.asarray(Image.open(out))

    assert not np.array_equal(drawn('_run'), drawn('_ran'))


@pytest.mark.parametrize('label', ['Ελληνικά', 'Бег на месте', 'tập thể dục', 'naïve – 3×4 → ∞'])
def test_letters_that_need_no_other_font(label):
    assert fonts._having(frozenset(label)) == (fonts._MAIN,)


@pytest.mark.parametrize('installed', [True], indirect=True)
def test_a_line_of_two_scripts(installed):
    font = fonts.Font('打球 walk', 20)
    assert font.width('打球 walk') == pytest.approx(font.width('打球') + font.width(' walk'))
    assert font.width('打球') == pytest.approx(40, rel=0.1)  # an em each
