# SPDX-License-Identifier: Apache-2.0
"""What is drawn on a video and below it, and that browsers play the file: times, sound, size, colours."""

import contextlib
import fractions
import functools
import http.server
import json
import pathlib
import struct
import threading

import av
import keras
import numpy as np
import pytest

from c3d_tf import main
from c3d_tf import models
from c3d_tf import predict
from c3d_tf.common import errors
from c3d_tf.data import preprocess
from c3d_tf.data import video
from c3d_tf.rendering import heatmap
from c3d_tf.rendering import panel
from c3d_tf.rendering import render
from c3d_tf.rendering import writer
from c3d_tf.weights import artefact
from tests import browser
from tests import conftest

NAMES = ('ball', 'water', 'écriture 1')
SPEC = preprocess.Preprocessing((32, 40), 32, 8, 1, np.array([128], np.float32)[0])
RED, GREEN, BLUE, GREY = (200, 40, 30), (30, 180, 40), (40, 50, 200), (128, 128, 128)


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp('net') / 'model.keras')
    keras.utils.set_random_seed(5)
    model = models.build('c3d', num_classes=3, clip_length=8, crop_size=32, width=0.03, initializer='he')
    artefact.save(path, artefact.Artefact(model, SPEC, NAMES, {}))
    return path


def _quarters(height: int, width: int, frames: int) -> list[np.ndarray]:
    """Frames of four colours; in the lower right it gets lighter."""
    images = []
    for t in range(frames):
        image = np.empty((height, width, 3), np.uint8)
        image[:height // 2, :width // 2], image[:height // 2, width // 2:] = RED, GREEN
        image[height // 2:, :width // 2], image[height // 2:, width // 2:] = BLUE, min(255, 40 + 5 * t)
        images.append(image)
    return images


def _with_sound(path, codec: str) -> str:
    """Adds a tone of one second to a new video of one second, which begins at 0.2 s."""
    with av.open(str(path), 'w') as out:
        pictures = out.add_stream('mpeg4', rate=25)
        pictures.height, pictures.width, pictures.pix_fmt = 48, 64, 'yuv420p'
        sound = out.add_stream(codec, rate=44100, layout='mono')
        for t in range(25):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * t, np.uint8), 'rgb24')
            frame.pts, frame.time_base = t + 5, fractions.Fraction(1, 25)
            out.mux(pictures.encode(frame))
        wave = (8000 * np.sin(np.arange(44100) / 20)).astype(np.int16)
        for begin in range(0, 44100, 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, begin:begin + 1024], 's16', 'mono')
            frame.sample_rate, frame.pts, frame.time_base = 44100, begin, fractions.Fraction(1, 44100)
            out.mux(sound.encode(frame))
        out.mux(pictures.encode())
        out.mux(sound.encode())
    return str(path)


def test_frames_keep_their_times_and_colours(tmp_path):
    times = [0, 33_367, 66_733, 200_000, 200_001, 1_000_000]
    path = str(tmp_path / 'a.mp4')
    frames = [video.Frame(time, image) for time, image in zip(times, _quarters(96, 128, 6))]
    assert writer.write(path, frames, comment='said') == ''
    back = list(video.decode(path))
    assert [frame.time for frame in back] == pytest.approx(times, abs=12)
    for before, after in zip(frames, back):
        assert np.abs(before.image[12::24, 16::32].astype(int) - after.image[12::24, 16::32]).max() <= 12
    with av.open(path) as file:
        stream = file.streams.video[0]
        assert file.metadata['comment'] == 'said' and stream.codec_context.pix_fmt == 'yuv420p'
        assert float(stream.duration * stream.time_base) == pytest.approx(1.8, abs=1e-3)  # the last as the one before
    data = pathlib.Path(path).read_bytes()
    assert data.index(b'moov') < data.index(b'mdat')


def test_one_frame_stays_for_a_while(tmp_path):
    path = str(tmp_path / 'a.mp4')
    writer.write(path, [video.Frame(0, np.zeros((64, 64, 3), np.uint8))])
    with av.open(path) as file:
        assert file.duration == 40_000 and len(list(file.decode(video=0))) == 1


def test_a_sound_that_fits_is_copied(tmp_path):
    source, path = _with_sound(tmp_path / 'a.mkv', 'aac'), str(tmp_path / 'b.mp4')
    assert writer.write(path, list(video.decode(source)), sound=source) == ''

    def packets(name):
        with av.open(name) as file:
            return {round(float(p.pts * p.time_base), 2): bytes(p) for p in file.demux(audio=0) if p.size}

    before, after = packets(source), packets(path)
    assert len(after) > 30
    assert list(after.values()) == [data for time, data in before.items() if time >= 0.2]
    assert min(after) < 0.03 and max(after) == pytest.approx(max(before) - 0.2, abs=0.02)


def test_a_sound_that_does_not_fit_is_named(tmp_path):
    source, path = _with_sound(tmp_path / 'a.mkv', 'pcm_s16le'), str(tmp_path / 'b.mp4')
    assert writer.write(path, list(video.decode(source)), sound=source) == 'pcm_s16le'
    with av.open(path) as file:
        assert len(file.streams) == 1


def test_a_full_disk_is_said(tmp_path):
    with pytest.raises(errors.RunError, match='cannot be written'):
        writer.write('/dev/full', [video.Frame(0, np.zeros((64, 64, 3), np.uint8))])


def test_frames_of_one_time_move_apart():
    image = np.zeros((1, 1, 3), np.uint8)
    times = [0, 40_000, 120_000, 120_001, 160_000, 240_000, 240_001, 280_000]
    moved = [frame.time for frame in render._apart(video.Frame(time, image) for time in times)]
    assert moved == pytest.approx([0, 40_000, 80_000, 120_000, 160_000, 200_000, 240_000, 280_000], abs=1)


def _track(scores, duration=10.0) -> panel.Track:
    scores = np.array(scores, float)
    starts = np.arange(len(scores)) * 5.0
    return panel.Track(scores, np.stack([starts, starts + 4.9], axis=1), NAMES, duration)


def _is(pixel, colour) -> bool:
    return np.abs(pixel.astype(int) - panel.rgb(colour)).max() <= 3


def test_the_strips_show_what_happened_when():
    drawn = panel.Panel(_track([[0.9, 0.1, 0], [0.2, 0.8, 0]]), 640, 16)
    image = drawn.draw(5.0)
    assert image.shape == (drawn.height, 640, 3) and drawn.height % 2 == 0
    left, right = drawn._left, drawn._right
    feet = [drawn._bar + (row + 1) * drawn._row - 4 for row in range(3)]
    x = [round(left + share * (right - left)) for share in (0.25, 0.75)]
    assert _is(image[feet[0], x[0]], panel.COLOURS[0])  # 0.9, and it has been played
    assert not _is(image[feet[0], x[1]], panel.COLOURS[0])
    assert _is(image[feet[2], x[0]], panel.TRACK)  # the third never happens
    heights = [(np.abs(drawn.draw(10.0)[drawn._bar:feet[1], x[i]] - panel.rgb(panel.COLOURS[row])).max(axis=-1) < 4).sum()
               for row, i in ((0, 0), (1, 1), (0, 1))]
    assert heights[0] > heights[1] > heights[2] > 0
    middle = (left + right) // 2
    assert any(_is(image[feet[0], middle + d], panel.TEXT) for d in range(-3, 4))  # the playhead
    assert not any(_is(drawn.draw(1.0)[feet[0], middle + d], panel.TEXT) for d in range(-3, 4))


def test_the_bar_has_what_happens_now():
    drawn = panel.Panel(_track([[0.9, 0.1, 0], [0.2, 0.8, 0]]), 640, 16)
    swatch = drawn._bar // 2, drawn._pad + 4
    assert _is(drawn.draw(1.0)[swatch], panel.COLOURS[0]) and _is(drawn.draw(9.0)[swatch], panel.COLOURS[1])
    assert (drawn.draw(1.0) != drawn.draw(1.3)).any()  # the clock goes on


def test_a_long_label_is_cut_and_stays_off_the_strips():
    long = panel.Track(np.array([[1.0]]), np.array([[0, 1.0]]), ('an action with a name that goes on ' * 9,), 1.0)
    drawn = panel.Panel(long, 320, 13)
    assert drawn._names[0].endswith('…') and drawn._right - drawn._left > 320 * 0.4
    assert 'action' in drawn._names[0]


def test_heat_lies_where_the_cells_are():
    cells = np.zeros((2, 1, 4, 4), np.float32)
    cells[0, 0, 0, 0], cells[1, 0, 3, 3] = 5, 2  # above left, then below right
    heat = heatmap.Heatmap(cells, np.array([[0, 1.0], [2.0, 3.0]]), SPEC)
    grey = np.full((320, 400, 3), 128, np.uint8)
    assert heat.box(320, 400) == (0, 40, 320, 360)  # the crop is all of the height
    first, last, between = heat.over(grey, 0.0), heat.over(grey, 3.0), heat.over(grey, 1.5)
    assert np.abs(first[20, 60].astype(int) - 128).max() > 60 and (first[300, 340] == 128).all()
    assert np.abs(last[300, 340].astype(int) - 128).max() > 60 and (last[20, 60] == 128).all()
    assert heat.at(1.5)[0, 0] == heat.at(1.5)[3, 3] == 0.5 and (between[20, 60] != 128).any()
    assert (first[:, :38] == 128).all() and (first[100, 40] == 255).all()  # not seen, and its edge
    assert (grey == 128).all()


def test_no_heat_where_nothing_speaks_for_the_class():
    heat = heatmap.Heatmap(np.zeros((1, 2, 4, 4), np.float32), np.array([[0, 1.0]]), SPEC)
    assert (heat.over(np.full((32, 40, 3), 77, np.uint8), 0.5)[5:20, 10:20] == 77).all()


@pytest.mark.parametrize(('shape', 'aspect', 'expected'), [
    ((240, 320, 3), 1, (480, 640)), ((1080, 1920, 3), 1, (1080, 1920)), ((480, 720, 3), 8 / 9, (480, 640)),
    ((1, 1, 3), 1, (480, 480)), ((241, 481, 3), 1, (241, 481))])
def test_small_videos_are_enlarged_and_pixels_square(shape, aspect, expected):
    assert render._shown(shape, aspect) == expected


def test_odd_and_changing_sizes(tmp_path, monkeypatch):
    images = [np.full((481, 301, 3), 90, np.uint8)] * 3 + [np.full((240, 320, 3), 90, np.uint8)] * 3
    monkeypatch.setattr(render.sources, 'frames', lambda _: (
        video.Frame(40_000 * t, image) for t, image in enumerate(images)))
    path = str(tmp_path / 'a.mp4')
    render.render('nowhere', path, _track([[1, 0, 0]]), total=6, quiet=True)
    found = list(video.decode(path))
    assert len(found) == 6 and {frame.image.shape[1] for frame in found} == {320}
    for frame in (found[0], found[-1]):
        assert abs(int(frame.image[200, 160, 0]) - 90) < 4 and frame.image[200, 3, 0] < 40  # in the middle


@contextlib.contextmanager
def _served(folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


PLAY = """async ([name, at, places]) => {
  const film = document.createElement('video');
  film.src = URL.createObjectURL(await (await fetch(name)).blob());
  const once = what => new Promise((resolve, reject) => {
    film.addEventListener(what, resolve, {once: true});
    film.addEventListener('error', () => reject(new Error(film.error.message)), {once: true});
  });
  document.body.append(film);
  await once('loadeddata');
  const shown = new Promise(resolve => {
    const look = (_, frame) => Math.abs(frame.mediaTime - at) < 0.04 ? resolve() : film.requestVideoFrameCallback(look);
    film.requestVideoFrameCallback(look);
  });
  film.currentTime = at;
  await once('seeked');
  await shown;  // only then is there something to draw
  const canvas = document.createElement('canvas');
  canvas.width = film.videoWidth; canvas.height = film.videoHeight;
  const pen = canvas.getContext('2d');
  pen.drawImage(film, 0, 0);
  const pixels = places.map(([x, y]) => Array.from(pen.getImageData(x, y, 1, 1).data).slice(0, 3));
  film.muted = true;
  await film.play();
  await once('ended');
  return {duration: film.duration, width: film.videoWidth, height: film.videoHeight, at: film.currentTime, pixels};
}"""


def _rotate(path: str) -> None:
    """Makes the file say that its pictures are to be turned by 90 degrees, clockwise, as phones do."""
    data = bytearray(pathlib.Path(path).read_bytes())
    at = data.index(b'tkhd') + 44
    one = 1 << 16
    data[at:at + 36] = struct.pack('>9i', 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    pathlib.Path(path).write_bytes(data)


def test_a_browser_plays_it(weights, tmp_path):
    """Landscape, portrait and turned by a phone: duration, size, and a frame in the middle."""
    (tmp_path / 'page.html').write_text('<!doctype html><link rel="icon" href="data:,"><title>films</title>')
    sizes = {'landscape': (120, 160), 'portrait': (160, 120), 'turned': (120, 160)}
    for name, size in sizes.items():
        source = conftest.write_video(tmp_path / f'{name}.mp4', _quarters(*size, 30), codec='libx264')
        if name == 'turned':
            _rotate(source)
        result = predict.predict(source, weights, render=str(tmp_path / f'{name}_out.mp4'))
        assert result['frames'] == 30
    with _served(tmp_path) as url, browser.open_page(f'{url}/page.html') as page:
        for name in sizes:
            height, width = (360, 480) if name == 'landscape' else (480, 360)  # enlarged
            places = [(width // 4, height // 4), (3 * width // 4, height // 4), (width // 4, 3 * height // 4),
                      (3 * width // 4, 3 * height // 4), (width // 2, height + 3)]
            seen = page.evaluate(PLAY, [f'{name}_out.mp4', 0.82, places])
            assert seen['duration'] == seen['at'] == pytest.approx(1.2, abs=0.01)
            assert seen['width'] == width and height + 60 < seen['height'] < height * 1.5
            lightest = (140,) * 3  # 40 + 5 · 20: the frame from 0.80 to 0.84 s
            expected = [RED, GREEN, BLUE, lightest] if name != 'turned' else [BLUE, RED, lightest, GREEN]
            np.testing.assert_allclose(seen['pixels'], [*expected, (20, 23, 27)], atol=9, err_msg=name)


def test_through_the_front_door(weights, tmp_path, capsys):
    source = conftest.write_video(tmp_path / 'a.mp4', _quarters(48, 64, 20))
    out = tmp_path / 'out/film.mp4'
    command = ['c3d_tf', '--mode=predict', f'--weights={weights}', f'--input={source}', f'--render={out}', '--heatmap']
    assert main.main([*command, '--json']) == 0
    result = json.loads(capsys.readouterr().out)
    assert result['frames'] == 20 and len(list(video.decode(str(out)))) == 20
    assert f'--render={out}' in (out.parent / 'predict.flags').read_text()
    assert sorted(path.name for path in out.parent.iterdir()) == ['film.mp4', 'predict.flags']
    with av.open(str(out)) as file:
        said = json.loads(file.metadata['comment'])
    assert said['heatmap'] == 'conv5b' and len(said['weights_sha256']) == 64
    assert main.main(command) == 2
    assert '--overwrite' in capsys.readouterr().err
    assert main.main([*command, '--overwrite']) == 0
    assert f'wrote {out}' in capsys.readouterr().out
    assert main.main([*command[:-2], f'--render={source}', '--overwrite']) == 2
    assert 'is --input itself' in capsys.readouterr().err
    assert main.main([*command[:-2], '--heatmap']) == 2
    assert '--render=FILE.mp4' in capsys.readouterr().err
    assert main.main([*command[:-2], '--render=film.avi']) == 2
    assert 'ends in .mp4' in capsys.readouterr().err


def test_a_folder_of_images_is_drawn(weights, tmp_path):
    from PIL import Image

    (tmp_path / 'images').mkdir()
    for t in range(9):
        Image.new('RGB', (64, 48), (20 * t, 100, 100)).save(tmp_path / f'images/{t}.png')
    predict.predict(str(tmp_path / 'images'), weights, render=str(tmp_path / 'a.mp4'))
    assert [frame.time for frame in video.decode(str(tmp_path / 'a.mp4'))] == [40_000 * t for t in range(9)]


def test_real_videos_with_odd_times(shared, tmp_path):
    for name in ('odd/real/ucf101_xvid.avi', 'odd/derived/vfr_irregular_pts.mkv', 'odd/real/rotate_270.mov'):
        source, path = str(shared / 'data' / name), str(tmp_path / f'{pathlib.Path(name).stem}.mp4')
        before = [frame.time for frame in video.decode(source)]
        render.render(source, path, _track([[1, 0, 0]]), total=len(before), quiet=True)
        after = np.array([frame.time for frame in video.decode(path)])
        assert len(after) == len(before)
        if 'xvid' in name:
            np.testing.assert_allclose(np.diff(after), 40_000, atol=30)
        else:
            np.testing.assert_allclose(after, before, atol=12)
