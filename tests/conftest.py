# SPDX-License-Identifier: Apache-2.0
"""What several tests need: small real videos, and the research data where it is there."""

import fractions
import pathlib

import av
import numpy as np
import pytest

SHARED = pathlib.Path(__file__).resolve().parents[2] / 'shared'


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
    """The folder of real clips and of the original code's outputs; it is not part of the project."""
    if not SHARED.is_dir():
        pytest.skip('the folder of research data is not beside this checkout')
    return SHARED


def write_video(path, images, *, codec='mpeg4', rate=25, rotation=0) -> str:
    """Writes uint8 [T, H, W, 3] RGB frames to a video file; returns its path as a string."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = 'yuv420p'
        stream.bit_rate = 4_000_000
        stream.codec_context.time_base = fractions.Fraction(1, rate)
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), 'rgb24')))
        container.mux(stream.encode())
    return str(path)


def counting_video(path, frames: int, *, size=(48, 64), **options) -> str:
    """Writes a video whose frame t is grey of value 4·t: a clip's content is its index."""
    images = [np.full((*size, 3), 4 * t, np.uint8) for t in range(frames)]
    return write_video(path, images, **options)


@pytest.fixture(scope='session')
def folder(tmp_path_factory) -> pathlib.Path:
    """Six counting videos in train and test folders of the classes `ball` and `water`."""
    root = tmp_path_factory.mktemp('videos')
    lengths = {'train/ball/a.avi': 20, 'train/ball/b.mp4': 31, 'train/water/c.avi': 16,
               'train/water/d.avi': 7, 'test/ball/e.avi': 40, 'test/water/f.mp4': 18}
    for name, frames in lengths.items():
        counting_video(root / name, frames, codec='libx264' if name.endswith('mp4') else 'mpeg4')
    return root
