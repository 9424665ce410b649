# SPDX-License-Identifier: Apache-2.0
"""The runtime table measures what it says; the flow it is compared with is one."""

import glob
import json

import av
import cv2
import numpy as np

from c3d_tf import benchmark
from c3d_tf import main
from c3d_tf import models
from c3d_tf.benchmarks import optical_flow
from c3d_tf.benchmarks import videos
from c3d_tf.data import preprocess
from c3d_tf.weights import artefact

FRAMES = 20


def _moving_right(path, pixels):
    """Smooth noise that moves by whole pixels a frame."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).uniform(0, 255, (240, 320)), (0, 0), 4)
    noise = (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)
    videos.write(str(path), (np.repeat(np.roll(noise, t * pixels, axis=1)[..., None], 3, axis=2)
                             for t in range(FRAMES)), 'mpeg4')


def test_flow_is_measured_and_written(tmp_path):
    _moving_right(tmp_path / 'x.avi', 3)
    for method in ('Farnebäck flow', 'DIS flow'):
        frames, seconds = optical_flow.measure([str(tmp_path / 'x.avi')], method, str(tmp_path / method))
        assert frames == FRAMES and seconds > 0
        written = sorted(glob.glob(f'{tmp_path}/{method}/*_x.jpg'))
        assert len(written) == FRAMES - 1
        flow = cv2.imdecode(np.fromfile(written[5], np.uint8), cv2.IMREAD_GRAYSCALE)[60:180, 80:240]
        assert abs(flow.mean() - (127.5 + 3 * 127.5 / optical_flow.BOUND)) < 3, method


def test_slow_flow_is_measured_on_a_part(tmp_path, monkeypatch):
    _moving_right(tmp_path / 'x.avi', 3)
    monkeypatch.setattr(optical_flow, 'SECONDS', -1.0)
    assert optical_flow.measure([str(tmp_path / 'x.avi')], 'DIS flow', str(tmp_path / 'out'))[0] == 0


def test_runtime_table(tmp_path, monkeypatch):
    net = models.build('c3d', num_classes=5, crop_size=24, width=0.03)
    spec = preprocess.Preprocessing((32, 40), 24, 16, 1, np.zeros((), np.float32))
    artefact.save(str(tmp_path / 'net.keras'), artefact.Artefact(net, spec, tuple('abcde'), {}))
    (tmp_path / 'videos').mkdir()
    for name in 'ab':
        _moving_right(tmp_path / 'videos' / f'{name}.avi', 2)
    monkeypatch.setattr(optical_flow, 'METHODS', {'DIS flow': optical_flow.METHODS['DIS flow']})
    assert main.main(['c3d_tf', '--mode=benchmark', '--table=runtime', f'--input={tmp_path}/videos',
                      f'--weights={tmp_path}/net.keras', f'--workdir={tmp_path}/run']) == 0
    result = json.loads((tmp_path / 'run' / benchmark.RUNTIME).read_text())
    assert (result['videos'], result['frames']) == (2, 2 * FRAMES)
    rows = {row['method']: row for row in result['rows']}
    assert rows.keys() == {*(f'C3D fc6, {precision}, step {step}' for precision in ('float32', 'bfloat16')
                             for step in (8, 16)), 'DIS flow'}
    first, flow = result['rows'][0], rows['DIS flow']
    assert first['times_slower'] == 1
    ratio = first['frames_per_second'] / flow['frames_per_second']
    assert abs(flow['times_slower'] - ratio) <= 0.01 + 0.02 * ratio
    assert not list((tmp_path / 'run').glob('tmp*'))


def test_videos_made_for_stages_are_as_said(tmp_path):
    [path] = videos.avi_files(str(tmp_path), 1, 12)
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 12 and (frames[0].width, frames[0].height) == (320, 240)
