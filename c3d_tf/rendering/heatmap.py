# SPDX-License-Identifier: Apache-2.0
"""Lays Grad-CAM over a video's own frames: where and when a network saw what speaks for its answer."""

import cv2
import matplotlib
import numpy as np

from c3d_tf.data import preprocess
from c3d_tf.explain import gradcam

OPACITY = 0.65  # where a map is highest
_COLOURS = np.rint(matplotlib.colormaps['inferno'](np.arange(256))[:, None, :3] * 255).astype(np.uint8)


class Heatmap:
    """The maps of one video.

    Args:
      cells: float [N, t, h, w] of the N clips, see `gradcam.cells`. Each clip's largest is full heat.
      spans: float [N, 2], seconds of each clip's first and last frame; rising.
      spec: how the clips were cut from the frames.
    """

    def __init__(self, cells: np.ndarray, spans: np.ndarray, spec: preprocess.Preprocessing):
        self._spec = spec
        shares = cells / np.maximum(cells.max(axis=(1, 2, 3), keepdims=True), 1e-12)
        # Between the middles of cells heat moves on evenly, from one clip to the next too.
        middles = gradcam.middles(cells.shape[1], spec.clip_length)
        times = spans[:, :1] + middles / max(1, spec.clip_length - 1) * (spans[:, 1:] - spans[:, :1])
        order = np.argsort(times, axis=None, kind='stable')
        self._times = times.ravel()[order]
        self._maps = shares.reshape(-1, *cells.shape[2:])[order].astype(np.float32)

    def at(self, seconds: float) -> np.ndarray:
        """Returns float32 [h, w], 0 … 1: the heat at that time."""
        place = float(np.interp(seconds, self._times, np.arange(len(self._times))))
        before = int(place)
        after = min(before + 1, len(self._maps) - 1)
        return self._maps[before] + (place - before) * (self._maps[after] - self._maps[before])

    def over(self, image: np.ndarray, seconds: float) -> np.ndarray:
        """Lays the heat over a frame. The network sees a part of it alone, which a thin line bounds.

        Args:
          image: uint8 [H, W, 3], RGB, of any size.
          seconds: its time.

        Returns:
          uint8 [H, W, 3].
        """
        top, left, bottom, right = self.box(*image.shape[:2])
        heat = self.at(seconds)
        for axis in (0, 1):
            heat = gradcam.stretch(heat, axis, self._spec.crop_size)
        heat = cv2.resize(heat, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
        coloured = cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8), _COLOURS)
        out = image.copy()
        part = out[top:bottom, left:right]
        part[:] = cv2.blendLinear(part, coloured, 1 - OPACITY * heat, OPACITY * heat)
        if (bottom - top, right - left) != image.shape[:2]:
            thick = max(1, min(image.shape[:2]) // 360)
            cv2.rectangle(out, (left, top), (right - 1, bottom - 1), (255, 255, 255), thick)
        return out

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns (top, left, bottom, right) of what the network sees, in pixels of such a frame."""
        top, left = self._spec.centre()
        down, across = height / self._spec.frame_size[0], width / self._spec.frame_size[1]
        return (round(top * down), round(left * across), round((top + self._spec.crop_size) * down),
                round((left + self._spec.crop_size) * across))
