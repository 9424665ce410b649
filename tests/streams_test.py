# SPDX-License-Identifier: Apache-2.0
"""Live input over loopback: the newest clip, latency, drops, streams that break, that end, that never come."""

import contextlib
import http.server
import json
import pathlib
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time

import av
import keras
import numpy as np
import pytest

from c3d_tf import main
from c3d_tf import models
from c3d_tf import predict
from c3d_tf.common import errors
from c3d_tf.data import preprocess
from c3d_tf.data import streams
from c3d_tf.weights import artefact
from tests import conftest

SIZE, LENGTH, RATE = (24, 32), 8, 50


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp('net') / 'model.keras')
    keras.utils.set_random_seed(5)
    model = models.build('c3d', num_classes=3, clip_length=LENGTH, crop_size=20, width=0.03, initializer='he')
    spec = preprocess.Preprocessing(SIZE, 20, LENGTH, 1, np.array(128, np.float32))
    artefact.save(path, artefact.Artefact(model, spec, ('ball', 'water', 'écriture'), {}))
    return path


def _film(file, seconds: float) -> None:
    """Writes MPEG-2 video as a transport stream at its pace; a frame is grey, each by 2 lighter than the last."""
    with contextlib.suppress(OSError), av.open(file, 'w', format='mpegts') as out:
        stream = out.add_stream('mpeg2video', rate=RATE, options={'g': '1', 'bf': '0'})
        stream.height, stream.width, stream.pix_fmt = 96, 128, 'yuv420p'
        begin = time.monotonic()
        for t in range(round(seconds * RATE)):
            image = np.full((96, 128, 3), min(250, 2 * t), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, 'rgb24')))
            time.sleep(max(0, begin + t / RATE - time.monotonic()))


class _Camera(http.server.BaseHTTPRequestHandler):
    """Films for as long as its server says, is silent for a while, then hangs up."""

    def do_GET(self):
        self.server.visits += 1
        self.send_response(200)
        self.end_headers()
        _film(self.wfile, self.server.seconds[min(self.server.visits, len(self.server.seconds)) - 1])
        time.sleep(self.server.silence)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def _camera(*seconds: float, silence: float = 0.0):
    """Yields the URL of a stream that lasts so long at the first visit, at the second …"""
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Camera) as server:
        server.daemon_threads, server.visits = True, 0
        server.seconds, server.silence = seconds, silence
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/live.ts'
        server.shutdown()


class _Rtsp(socketserver.StreamRequestHandler):
    """A camera that speaks RTSP (RFC 2326), and RTP within it: a transport stream, payload type 33."""

    def handle(self):
        while request := self.rfile.readline().decode():
            headers = dict(line.split(': ', 1) for line in iter(lambda: self.rfile.readline().decode().strip(), ''))
            verb = request.split()[0]
            more, body = {
                'DESCRIBE': ('Content-Type: application/sdp\r\n',
                             'v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:one\r\n'),
                'SETUP': ('Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n', ''),
            }.get(verb, ('Session: 1\r\n', ''))
            self.wfile.write(f'RTSP/1.0 200 OK\r\nCSeq: {headers["CSeq"]}\r\n{more}Content-Length: {len(body)}\r\n\r\n'
                             f'{body}'.encode())
            self.server.verbs.append(verb)
            if verb == 'PLAY':
                self.number = 0
                _film(self, 30)
                return

    def write(self, data: bytes) -> int:
        for at in range(0, len(data), 7 * 188):
            part = data[at:at + 7 * 188]
            rtp = struct.pack('>BBHII', 0x80, 33, self.number & 0xffff, round(time.monotonic() * 9e4) & 0xffffffff, 7)
            self.wfile.write(b'$\0' + struct.pack('>H', len(rtp + part)) + rtp + part)
            self.number += 1
        return len(data)


def test_rtsp(weights):
    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), _Rtsp) as server:
        server.daemon_threads, server.verbs = True, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = predict.live(f'rtsp://127.0.0.1:{server.server_address[1]}/one', weights, duration=1.5)
        server.shutdown()
    assert server.verbs[-3:] == ['DESCRIBE', 'SETUP', 'PLAY'] and result['breaks'] == 0
    assert result['frames'] > RATE and result['clips'] >= 2


@pytest.mark.parametrize(('given', 'live'), [
    ('camera:0', True), ('rtsp://host/one', True), ('RTSPS://host', True), ('http://host/a.mp4', True),
    ('https://host', True), ('a.mp4', False), ('folder', False), ('camera', False), ('http', False), ('', False)])
def test_what_is_live(given, live):
    assert streams.is_live(given) == live


def test_passwords_are_not_shown():
    assert streams.shown('rtsp://me:secret@host:554/one') == 'rtsp://host:554/one'
    assert streams.shown('http://host/a@b') == 'http://host/a@b'


def test_the_newest_frames_in_their_order():
    with _camera(30) as url, streams.Stream(url, size=SIZE, length=LENGTH) as stream:
        first = stream.newest(LENGTH, 20)
        assert first.images.shape == (LENGTH, *SIZE, 3) and first.last >= LENGTH
        time.sleep(0.5)
        second = stream.newest(first.last + 1, 20)
        assert second.last > first.last + 0.3 * RATE  # what came meanwhile is not waited for
        for shot in (first, second):
            levels = shot.images.mean(axis=(1, 2, 3))
            np.testing.assert_allclose(np.diff(levels), 2, atol=1.1)
            assert levels[-1] == pytest.approx(min(250, 2 * (shot.last - 1)), abs=4)
            assert time.monotonic() - shot.arrived < 1.0
        assert stream.newest(10**6, 0.2) is None
        assert stream.newest(0, -1.0) is None  # no time left, though there are frames


def test_what_is_classified_and_what_is_dropped(weights, capsys, monkeypatch):
    """A network that takes 0.4 s sees a clip of 8 frames out of 20 or more."""
    slow = predict._forward

    def forward(*given):
        classify = slow(*given)
        return lambda clip: (time.sleep(0.4), classify(clip))[1]

    monkeypatch.setattr(predict, '_forward', forward)
    with _camera(30) as url:
        result = predict.live(url, weights, duration=3.0, as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines.pop() == result and len(lines) == result['clips'] >= 3
    assert result['frames'] - result['dropped'] == LENGTH * result['clips']  # clips do not overlap
    assert result['dropped'] > result['frames'] * 0.3
    assert result['latency_ms']['p90'] >= result['latency_ms']['p50'] >= 400
    assert all(line['latency_ms']['now'] >= 400 for line in lines)
    assert [line['dropped'] for line in lines] == sorted(line['dropped'] for line in lines)
    assert 3.0 <= result['seconds'] < 5.0


def test_a_step_makes_clips_overlap_and_drops_nothing(weights):
    with _camera(30) as url:
        result = predict.live(url, weights, step=2, duration=1.5)
    assert result['dropped'] == 0 and result['clips'] > result['frames'] / LENGTH


def test_a_broken_stream_is_opened_again(weights, capsys, monkeypatch):
    monkeypatch.setattr(streams, 'RETRIES', (0.1, 0.1))
    with _camera(0.6, 0.6, 0) as url, pytest.raises(errors.RunError, match='did not come back'):
        predict.live(url, weights)
    out, err = capsys.readouterr()
    assert f'{url}: ' in err and '; trying again in 0.1 s' in err
    assert 'frames dropped' in out and 'broke and came back' in out
    # The clips of both visits, none of which spans the break.
    assert 2 <= sum('latency' in line and 'p50' in line for line in out.splitlines()) - 1 <= 2 * 0.6 * RATE / LENGTH


def test_a_stream_that_falls_silent_is_opened_again(monkeypatch, capsys):
    monkeypatch.setattr(streams, 'RETRIES', (0.1,))
    monkeypatch.setattr(streams, 'TIMEOUT', 0.5)
    with _camera(0.6, silence=5.0) as url, streams.Stream(url, size=SIZE, length=LENGTH) as stream:
        last = 0
        while last < 0.9 * RATE:  # into the second visit
            shot = stream.newest(last + 1, 20)
            last = shot.last
            np.testing.assert_allclose(np.diff(shot.images.mean(axis=(1, 2, 3))), 2, atol=1.1)  # no clip spans both
    assert 'nothing came for 0.5 s; trying again' in capsys.readouterr().err and stream.breaks == 1


def test_a_file_over_http_has_its_own_pace_and_an_end(weights, tmp_path):
    conftest.counting_video(tmp_path / 'a.mp4', 62, codec='libx264', rate=25)

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given):
            super().__init__(*given, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = predict.live(f'http://127.0.0.1:{server.server_port}/a.mp4', weights)
        server.shutdown()
    assert result['frames'] + LENGTH > 62 >= result['frames'] and result['clips'] >= 2
    assert 2.4 < result['seconds'] < 6.0 and result['breaks'] == 0


def test_nothing_there(weights, capsys):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
    begin = time.monotonic()
    for url in (f'http://me:secret@127.0.0.1:{port}/live', f'rtsp://127.0.0.1:{port}/live', 'camera:97'):
        assert main.main(['c3d_tf', '--mode=predict', f'--weights={weights}', f'--input={url}']) == 2
        said = capsys.readouterr().err
        assert streams.shown(url) in said and 'cannot be opened' in said and 'secret' not in said
    assert time.monotonic() - begin < 30


def test_a_server_that_stays_silent(monkeypatch):
    monkeypatch.setattr(streams, 'TIMEOUT', 0.5)
    with socket.create_server(('127.0.0.1', 0)) as silent:
        with pytest.raises(errors.UsageError, match='nothing came for 0.5 s'):
            streams.Stream(f'http://127.0.0.1:{silent.getsockname()[1]}/live', size=SIZE, length=LENGTH)


def test_flags_that_do_not_fit(weights, capsys):
    base = ['c3d_tf', '--mode=predict', f'--weights={weights}', '--input=camera:97']
    assert main.main([*base, '--render=a.mp4']) == 2
    assert 'draw on a file' in capsys.readouterr().err
    assert main.main([*base, '--duration=-1']) == 2
    assert main.main([*base[:-1], '--input=a.mp4', '--duration=3']) == 2
    assert '--duration=3 ends live input' in capsys.readouterr().err


def _looped(path) -> tuple[subprocess.Popen, str]:
    """Starts FFmpeg, which serves a clip over and over by HTTP to one viewer; returns when it listens."""
    if shutil.which('ffmpeg') is None:
        pytest.skip('needs the program ffmpeg')
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    url = f'http://127.0.0.1:{port}/live.ts'
    server = subprocess.Popen(
        ['ffmpeg', '-nostdin', '-v', 'quiet', '-re', '-stream_loop', '-1', '-i', path, '-c:v', 'libx264', '-tune',
         'zerolatency', '-g', '10', '-f', 'mpegts', '-listen', '1', url])
    # Not asked by a call: that would be the one viewer. 0A is the state of a socket that listens.
    while f'0100007F:{port:04X} 00000000:0000 0A' not in pathlib.Path('/proc/net/tcp').read_text():
        assert server.poll() is None
        time.sleep(0.01)
    return server, url


@pytest.mark.parametrize('seconds', [4, pytest.param(20, marks=pytest.mark.soak)])
def test_ffmpeg_serves_a_looped_clip(weights, tmp_path, capsys, seconds):
    server, url = _looped(conftest.counting_video(tmp_path / 'a.mp4', 50, codec='libx264', rate=25))
    try:
        assert main.main(['c3d_tf', '--mode=predict', f'--weights={weights}', f'--input={url}', '--json',
                          f'--duration={seconds}']) == 0
    finally:
        server.kill()
        server.wait()
    *clips, result = map(json.loads, capsys.readouterr().out.splitlines())
    assert result['video'] == url and result['seconds'] == pytest.approx(seconds, abs=1.0)
    assert len(clips) == result['clips'] and result['frames'] > 25 * seconds * 0.6
    assert result['frames'] == result['dropped'] + LENGTH * len(clips)
    for clip in clips:
        assert clip['latency_ms']['now'] > 0 and clip['dropped'] <= clip['frames']
        assert sum(entry['probability'] for entry in clip['top']) == pytest.approx(1, abs=1e-5)
    assert 0 < result['latency_ms']['p50'] <= result['latency_ms']['p90']


def test_ctrl_c_ends_it_well(weights):
    """In a pipe: plain lines, then what was seen in all, and exit code 0."""
    with _camera(120) as url:
        child = subprocess.Popen(
            [sys.executable, '-m', 'c3d_tf.main', '--mode=predict', f'--weights={weights}', f'--input={url}'],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        first = child.stdout.readline()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert 'latency' in first and '\x1b' not in first + out
    assert f'{url}: ' in out and 'frames dropped' in out and '█' in out and not err
