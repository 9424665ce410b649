# SPDX-License-Identifier: Apache-2.0
"""The videos that stages work on: 320x240 as UCF101's, of moving shapes."""

import os

import av
import numpy as np

from c3d_tf.data import moving_shapes

FRAMES = 100


def folder(scratch: str, videos: int, copies: int = 1) -> str:
    """Writes H.264 videos of FRAMES frames in a class folder a motion; returns the folder.

    Each is there `copies` times under names of its own.
    """
    root = os.path.join(scratch, f'videos{videos}x{copies}')
    for i in range(videos):
        label = moving_shapes.CLASSES[i % 8]
        path = os.path.join(root, 'train', label, f'{i}.mp4')
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write(path, _shapes(i, FRAMES), 'libx264', preset='superfast')
        for copy in range(1, copies):
            os.link(path, f'{path[:-4]}_{copy}.mp4')
    return root


def avi_files(scratch: str, videos: int, frames: int) -> list[str]:
    """Writes MPEG-4 in AVI, as UCF101's files are; returns their paths."""
    root = os.path.join(scratch, f'avi{videos}')
    os.makedirs(root, exist_ok=True)
    paths = [os.path.join(root, f'{i:02d}.avi') for i in range(videos)]
    for i, path in enumerate(paths):
        write(path, _shapes(i, frames), 'mpeg4')
    return paths


def write(path: str, images, codec: str, **options) -> None:
    """Writes uint8 [T, 240, 320, 3] RGB frames."""
    with av.open(path, 'w') as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 320, 240, 'yuv420p'
        stream.bit_rate = 1_000_000
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
        container.mux(stream.encode())


def rolling_noise(frames: int):
    """Yields frames that no codec makes small, without holding them."""
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    for t in range(frames):
        yield np.roll(noise, t, axis=1)


def _shapes(i: int, frames: int) -> np.ndarray:
    return moving_shapes.render(moving_shapes.CLASSES[i % 8], np.random.default_rng(i), height=240, width=320,
                                num_frames=frames)
