# SPDX-License-Identifier: Apache-2.0
import csv

import cv2
import numpy as np
import pytest

from c3d_tf.data import video
from tests import conftest


def test_frames_come_in_order_with_rising_times(tmp_path):
    path = conftest.counting_video(tmp_path / 'a.avi', 30, rate=25)
    frames = list(video.decode(path))
    assert [round(frame.image.mean() / 4) for frame in frames] == list(range(30))
    assert [frame.time for frame in frames] == [40_000 * t for t in range(30)]
    assert frames[0].image.shape == (48, 64, 3)


def test_resize_is_cv2s_bilinear(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)
    path = conftest.write_video(tmp_path / 'noise.mp4', noise, codec='libx264')
    for whole, small in zip(video.decode(path), video.decode(path, size=(20, 33))):
        np.testing.assert_array_equal(small.image, cv2.resize(whole.image, (33, 20)))


@pytest.mark.parametrize(('name', 'content', 'reason'), [
    ('empty.avi', b'', 'no frame could be decoded'),
    ('text.mp4', b'this is no video\n' * 100, 'no frame could be decoded'),
])
def test_what_is_no_video_is_refused(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(video.VideoError, match=reason):
        list(video.decode(str(path)))


def test_odd_names_are_only_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('-i.avi', 'http:x.avi', 'ünï codé%d.avi'):
        conftest.counting_video(tmp_path / name, 3)
        assert len(list(video.decode(name))) == 3


def test_every_odd_file_gives_the_frames_that_were_counted(shared):
    with open(shared / 'data/odd/EXPECT.tsv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file, delimiter='\t'))
    assert len(rows) > 80
    for row in rows:
        try:
            count = sum(1 for _ in video.decode(str(shared / 'data' / row['file'])))
        except video.VideoError as error:
            count = 0
            assert str(error)
        assert count == int(row['pyav_frames'] or 0), row['file']


@pytest.mark.parametrize('degrees', [90, 180, 270])
def test_rotated_phone_videos_come_out_upright(shared, degrees):
    path = str(shared / f'data/odd/real/rotate_{degrees}.mov')
    capture = cv2.VideoCapture(path)  # OpenCV turns frames by itself
    ok, expected = capture.read()
    assert ok
    np.testing.assert_array_equal(next(video.decode(path)).image, expected[..., ::-1])


def test_frames_equal_the_originals_input(shared):
    golden = np.load(shared / 'golden/apply_video.npz')
    path = str(shared / 'golden/input/v_ApplyEyeMakeup_g01_c01.avi')
    frames = np.stack([frame.image for frame in video.decode(path, size=(128, 171))])
    for start, expected in zip(golden['start'], golden['input_u8'], strict=True):
        clip = frames[start:start + 16, 8:120, 29:141, ::-1].transpose(3, 0, 1, 2)
        np.testing.assert_array_equal(clip, expected)
