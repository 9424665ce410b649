# SPDX-License-Identifier: Apache-2.0
"""From chosen uint8 frames to what the network sees: crop, mean, flip; one description for all verbs."""

import dataclasses
import os

import numpy as np
import tensorflow as tf

from c3d_tf.common import errors
from c3d_tf.common import storage
from c3d_tf.data import randaugment
from c3d_tf.data import records
from c3d_tf.data import resize

CONTRAST = 50.0  # about the standard deviation of a clip whose mean is subtracted


@dataclasses.dataclass(frozen=True, eq=False)
class Preprocessing:
    """What a network was trained on, so what it must be given.

    Attributes:
      frame_size: (height, width) every frame is resized to, aspect not kept; 128x171 in the paper.
      crop_size: side of the square cut from it; 112 in the paper.
      clip_length: frames of a clip; 16 in the paper.
      stride: frames of the video from one frame of a clip to the next.
      short: what becomes of a video shorter than a clip; see `clips.indices`.
      mean: float32, subtracted before the crop is mirrored: [clip_length, H, W, 3] (the paper's mean
        volume, cropped where the clip is), [3], or [] (one number). RGB.
      motion: the network sees what moves alone; see `moving`.
    """

    frame_size: tuple[int, int]
    crop_size: int
    clip_length: int
    stride: int
    mean: np.ndarray
    short: str = 'loop'
    motion: bool = False

    def __post_init__(self):
        if min(self.frame_size) < self.crop_size:
            raise errors.UsageError(f'crop {self.crop_size}x{self.crop_size} is larger than the '
                                    f'frames of {self.frame_size[0]}x{self.frame_size[1]}')
        volume = (self.clip_length, *self.frame_size, 3)
        if self.mean.shape not in ((), (3,), volume):
            raise errors.UsageError(f'mean of shape {self.mean.shape}: expected {volume}, (3,) or ()')

    def to_json(self) -> dict:
        """Returns all but the mean volume, which is an array file of its own."""
        values = dataclasses.asdict(self)
        del values['mean']
        return {**values, 'frame_size': list(self.frame_size), 'channel_order': 'rgb',
                'resize': 'bilinear as cv2.INTER_LINEAR, aspect not kept'}

    @classmethod
    def from_json(cls, values: dict, mean: np.ndarray) -> 'Preprocessing':
        return cls(tuple(values['frame_size']), values['crop_size'], values['clip_length'],
                   values['stride'], mean, values.get('short', 'loop'),  # early files had no 'short'
                   values.get('motion', False))  # nor 'motion'

    def shown(self, clips: np.ndarray) -> np.ndarray:
        """Returns uint8 […, 3] to look at, of float32 […, 3] that the network gets: one colour is added
        for the mean, so the trace of a mean volume stays; grey, where only motion is seen."""
        colour = 128 if self.motion else self.mean.mean(axis=(0, 1, 2)) if self.mean.ndim == 4 else self.mean
        return np.rint(np.clip(clips + colour, 0, 255)).astype(np.uint8)

    def __str__(self):
        mean = self.mean
        if mean.ndim == 4:
            shown = f'a volume around {_numbers(mean.mean(axis=(0, 1, 2)))}'
        else:
            shown = _numbers(mean.reshape(-1))
        return (f'frames {self.frame_size[0]}x{self.frame_size[1]}, crop {self.crop_size}, clips of '
                f'{self.clip_length} at stride {self.stride}, short {self.short}, mean {shown}'
                f'{", motion alone" if self.motion else ""}')

    def centre(self) -> tuple[int, int]:
        """Returns the test crop's (top, left), rounded down as the original's: (8, 29)."""
        return ((self.frame_size[0] - self.crop_size) // 2, (self.frame_size[1] - self.crop_size) // 2)


def _numbers(values: np.ndarray) -> str:
    return '/'.join(f'{value:.2f}' for value in values)


def load_mean(name: str, index: records.Index, clip_length: int) -> np.ndarray:
    """Returns the mean that `--mean=name` stands for, RGB float32.

    Args:
      name: 'volume' (mean.npy of the records), 'channel' (its three channel means), 'none', a number,
        or an .npy file of shape [clip_length, H, W, 3] or [3].
      index: the records that the network is trained on.
      clip_length: frames that the volume must have.
    """
    if name == 'volume':
        mean = index.mean()
        if mean.shape[0] != clip_length:
            raise errors.UsageError(f'{os.path.join(index.directory, records.MEAN)} has '
                                    f'{mean.shape[0]} frames, --clip_length={clip_length}; '
                                    'prepare with that length, or take --mean=channel')
        return mean
    if name == 'channel':
        return np.array(index.channel_means, np.float32)
    if name == 'none':
        return np.zeros((), np.float32)
    if storage.exists(name):
        try:
            return np.load(storage.readable(name), allow_pickle=False).astype(np.float32)
        except ValueError as error:
            raise errors.UsageError(f'--mean={name}: not an .npy array ({error})') from error
    try:
        return np.array(float(name), np.float32)
    except ValueError as error:
        raise errors.UsageError(f'--mean={name}: expected volume, channel, none, a number or an '
                                'existing .npy file') from error


def crop(
    clip: tf.Tensor, top, left, side, flip, colour, spec: Preprocessing, transforms=()
) -> tf.Tensor:
    """Cuts a square, changes its looks, subtracts the mean at its own place, resizes and mirrors, and leaves
    what moves where the spec says so.

    Args:
      clip: uint8 [T, H, W, 3] of the spec's frame size.
      top, left, side: the square, in pixels.
      flip: bool; True mirrors left and right, after the mean is gone, as the original did.
      colour: float32 [3], factors of brightness, contrast and saturation; 1 leaves them.
      spec: sizes and mean.
      transforms: (transform, strength) scalars, one pair for each change of RandAugment.

    Returns:
      float32 [T, crop_size, crop_size, 3], about -128 … 128.
    """
    size = spec.crop_size
    clip = tf.cast(clip[:, top:top + side, left:left + side], tf.float32)
    clip = tf.cond(tf.reduce_all(tf.equal(colour, 1)), lambda: clip, lambda: _recolour(clip, colour))
    for transform, strength in transforms:
        clip = randaugment.apply(clip, transform, strength)
    mean = tf.constant(spec.mean)
    if spec.mean.ndim == 4:
        mean = mean[:, top:top + side, left:left + side]
    clip = tf.cond(tf.equal(side, size), lambda: clip - mean,
                   lambda: tf.image.resize(clip - mean, (size, size)))
    clip = tf.ensure_shape(clip, [spec.clip_length, size, size, 3])
    clip = tf.cond(flip, lambda: tf.reverse(clip, axis=[2]), lambda: clip)
    return moving(clip) if spec.motion else clip


def moving(clips: tf.Tensor) -> tf.Tensor:
    """Takes from every pixel its mean over the clip's frames, and brings what is left to one strength.

    What stands still is gone, and a faint motion is as strong as a large one: on little data, a network
    that sees this alone cannot learn the rooms by heart (experiments/README.md has the numbers).

    Args:
      clips: float32 [..., T, S, S, 3].

    Returns:
      float32 [..., T, S, S, 3], with a standard deviation of nearly CONTRAST for each clip.
    """
    clips -= tf.reduce_mean(clips, axis=-4, keepdims=True)
    # One is added so that the noise of a still picture stays small.
    return clips * (CONTRAST / (1 + tf.math.reduce_std(clips, axis=(-4, -3, -2, -1), keepdims=True)))


def _recolour(clip: tf.Tensor, colour: tf.Tensor) -> tf.Tensor:
    """One change for all frames of the clip: a flicker would look like motion."""
    brightness, contrast, saturation = tf.unstack(colour)
    clip = clip * brightness
    average = tf.reduce_mean(clip)
    clip = average + (clip - average) * contrast
    grey = tf.reduce_mean(clip, axis=-1, keepdims=True)
    return tf.clip_by_value(grey + (clip - grey) * saturation, 0, 255)


def for_inference(clips: tf.Tensor, spec: Preprocessing) -> tf.Tensor:
    """Resizes, crops the centre and subtracts the mean, as `crop`.

    Args:
      clips: uint8 [N, T, H, W, 3], RGB, any H and W; T is the spec's clip length.
      spec: sizes and mean.

    Returns:
      float32 [N, T, crop_size, crop_size, 3].
    """
    top, left = spec.centre()
    size = spec.crop_size
    clips = resize.bilinear(clips, spec.frame_size)
    clips = tf.cast(clips[:, :, top:top + size, left:left + size], tf.float32)
    mean = spec.mean[:, top:top + size, left:left + size] if spec.mean.ndim == 4 else spec.mean
    clips = tf.ensure_shape(clips - mean, [None, spec.clip_length, size, size, 3])
    return moving(clips) if spec.motion else clips
