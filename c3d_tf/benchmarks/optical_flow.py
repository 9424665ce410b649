# SPDX-License-Identifier: Apache-2.0
"""Dense optical flow by OpenCV, video files in and files out: what C3D is compared with in Table 6."""

import concurrent.futures
import multiprocessing
import os
import time
from collections.abc import Sequence

import cv2
import numpy as np

SECONDS = 60.0  # a method that is slower is measured on what it has done by then
BOUND = 20  # pixels of motion that a JPEG's 0 … 255 stands for, as two-stream networks store flow
METHODS = {
    'Farnebäck flow': lambda: cv2.FarnebackOpticalFlow.create(),
    'DIS flow': lambda: cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM),
    'TV-L1 flow': lambda: cv2.optflow.DualTVL1OpticalFlow_create(),
}


def missing(method: str) -> str:
    """Returns why a method cannot run here, or ''."""
    if method == 'TV-L1 flow' and not hasattr(cv2, 'optflow'):
        return 'needs opencv-contrib-python-headless in place of opencv-python-headless'
    return ''


def measure(paths: Sequence[str], method: str, output: str) -> tuple[int, float]:
    """Computes the flow of the videos, one process a core, for at most SECONDS, and writes it as JPEGs.

    Args:
      paths: video files, which OpenCV reads at their own size.
      method: one of METHODS.
      output: a folder for a JPEG of each pair's horizontal flow and one of its vertical.

    Returns:
      how many frames were read, and the seconds that took, start of the processes not included.
    """
    os.makedirs(output, exist_ok=True)
    # Spawned: a fork would copy threads of TensorFlow's that nobody runs any more.
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(mp_context=context, initializer=_start) as pool:
        list(pool.map(_start, range(2 * (os.cpu_count() or 1))))
        before = time.monotonic()
        frames = sum(pool.map(_video, paths, [method] * len(paths), [before + SECONDS] * len(paths),
                              [os.path.join(output, str(i)) for i in range(len(paths))]))
        return frames, time.monotonic() - before


def _start(*_) -> None:
    cv2.setNumThreads(1)  # the processes fill the cores


def _video(path: str, method: str, deadline: float, stem: str) -> int:
    flow, before, count = METHODS[method](), None, 0
    capture = cv2.VideoCapture(path)
    while time.monotonic() < deadline:  # the same clock in all processes
        there, frame = capture.read()
        if not there:
            break
        count += 1
        grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        if before is not None:
            motion = flow.calc(before, grey, None)
            scaled = np.clip(motion * (127.5 / BOUND) + 127.5, 0, 255).astype(np.uint8)
            for axis, name in enumerate('xy'):
                cv2.imwrite(f'{stem}_{count:06d}_{name}.jpg', scaled[..., axis])
        before = grey
    return count
