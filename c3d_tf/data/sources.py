# SPDX-License-Identifier: Apache-2.0
"""A video's frames wherever they come from: a video file, a folder of images, a TFDS example."""

import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterator

import cv2
import numpy as np

from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import storage
from c3d_tf.data import video

IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png')
GONE = 'no such file'
FRAME_RATE = 25  # assumed of images: they carry no time

_TFDS_PATH = re.compile(r'(?:(.*)/)?tfds:([^#]+)/([^/#]+)#(\d+)', re.DOTALL)
_TFDS_SPLITS = {'train': 'train', 'validation': 'val', 'val': 'val', 'test': 'test'}


def frames(path: str, *, size: tuple[int, int] | None = None) -> Iterator[video.Frame]:
    """Yields the frames of a video, in order of display.

    Images are taken to be 25 frames a second, since they carry no time. Those of a folder follow the
    number that their names end in. As a file does, a folder or example that breaks half-way yields
    what can be decoded before the break.

    Args:
      path: a video file, a folder of JPEG or PNG images, or `[DATA_DIR/]tfds:NAME/SPLIT#INDEX`.
      size: (height, width) to resize every frame to; None keeps each frame's own size.

    Raises:
      video.VideoError: not one frame could be decoded.
    """
    if match := _TFDS_PATH.fullmatch(path):
        images = _tfds_images(match[2], match[1] or '', match[3], int(match[4]))
    elif storage.isdir(path):
        images = _folder_images(path)
    elif not storage.lexists(path):
        raise video.VideoError(GONE)
    else:
        yield from video.decode(path, size=size)
        return
    count, reason = 0, 'no frames'
    try:
        for name, encoded in images:
            image = decode_image(encoded)
            if image is None:
                reason = f'{name} is no image that can be decoded'
                break
            if size is not None:
                image = video.resize(image, size)
            yield video.Frame(count * 1_000_000 // FRAME_RATE, image)
            count += 1
    except OSError as error:
        reason = str(error)
    if not count:
        raise video.VideoError(reason)


def changed(skip: dict, since: float) -> bool:
    """Returns whether a video that was given up is worth another try: it has come, or changed since.

    Args:
      skip: its {'path', 'reason'}.
      since: seconds, when it was given up.
    """
    path = skip['path']
    if not storage.lexists(path):
        return False
    return skip['reason'] == GONE or storage.getctime(path) > since  # a mount that is back has old files


def decode_image(encoded: bytes) -> np.ndarray | None:
    """Returns uint8 [H, W, 3] RGB, upright; None where it is no image."""
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # an empty buffer, or a header that promises a monster
        return None
    return None if image is None else np.ascontiguousarray(image[..., ::-1])


def is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_ENDINGS)


def tfds_examples(name: str, data_dir: str) -> tuple[tuple[str, ...], list[tuple[str, tuple, str]]]:
    """Returns the class names and the (path, labels, split) of every example of a prepared TFDS set.

    Nothing is downloaded. Labels lie in the examples: all files are read once, but no frame is decoded.

    Args:
      name: as TFDS spells it, e.g. 'ucf101/ucf101_1'.
      data_dir: TFDS's folder; '' for TFDS's own default.

    Raises:
      errors.UsageError: there is no such set, it is not prepared, or it is no labelled video.
    """
    with _quiet():
        tfds, builder = _tfds_builder(name, data_dir)
        features = dict(builder.info.features.items())
        label = features.get('label')
        if not isinstance(features.get('video'), tfds.features.Video) or not isinstance(
                getattr(label, 'feature', label), tfds.features.ClassLabel):
            raise errors.UsageError(f'--dataset=tfds:{name}: expected the features video (Video) and '
                                    f'label (ClassLabel), got {", ".join(sorted(features))}')
        found = []
        for split in builder.info.splits:
            if split in _TFDS_SPLITS:
                console.say(f'reading the labels of tfds:{name}, {split}: '
                            f'{builder.info.splits[split].num_examples} videos')
                rows = _tfds_read(tfds, builder, split, tfds.decode.PartialDecoding({'label': True}))
                found += [(os.path.join(data_dir, f'tfds:{name}/{split}#{index:06d}'),
                           tuple(np.atleast_1d(row['label']).tolist()), _TFDS_SPLITS[split])
                          for index, row in enumerate(rows)]
    return tuple(getattr(label, 'feature', label).names), found


def _folder_images(path: str) -> Iterator[tuple[str, bytes]]:
    """Yields (name, encoded image) in the order of the numbers that the names end in."""
    names = {}
    for name in sorted(storage.listdir(path)):
        if name.startswith('.') or name == 'Thumbs.db':  # what file managers leave
            continue
        number = re.search(r'(\d+)\D*$', os.path.splitext(name)[0])
        if not is_image(name):
            raise video.VideoError(f'the folder holds {name}, and not only images '
                                   f'({", ".join(IMAGE_ENDINGS)})')
        if number is None or int(number[1]) in names:
            other = names[int(number[1])] if number else 'no number'
            raise video.VideoError(f'the order of the images is not clear: {name} has '
                                   f'{f"the number of {other}" if number else other}')
        names[int(number[1])] = name
    if not names:
        raise video.VideoError('the folder is empty')
    for _, name in sorted(names.items()):
        with storage.open(os.path.join(path, name), 'rb') as file:
            yield name, file.read()


def _tfds_images(name: str, data_dir: str, split: str, index: int) -> Iterator[tuple[str, bytes]]:
    """Yields (name, encoded image) of one example; its images are not decoded by TFDS."""
    with _quiet():
        try:
            tfds, builder = _tfds_builder(name, data_dir)
            row = next(_tfds_read(tfds, builder, f'{split}[{index}:{index + 1}]',
                                  {'video': tfds.decode.SkipDecoding()}))
        except Exception as error:  # TFDS and TensorFlow raise a dozen kinds
            raise video.VideoError(f'{type(error).__name__}: {_first_line(error)}') from error
    return ((f'frame {i}', encoded) for i, encoded in enumerate(row['video']))


def _tfds_read(tfds, builder, split: str, decoders) -> Iterator[dict]:
    # One file after the other, so that positions mean the same in a whole split and in a part of it.
    # With a small buffer, what lies before a part in its file is jumped over and not read.
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False,
                             override_buffer_size=1 << 16)
    return iter(tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders, read_config=config)))


@functools.lru_cache(maxsize=2)
def _tfds_builder(name: str, data_dir: str):
    """Returns (TFDS, the builder): TFDS imports TensorFlow, so it is imported where it is needed."""
    import tensorflow_datasets as tfds

    # The command-line tool of TFDS 4.9.10 does not start without apache-beam.
    call = f'builder({name!r}{f", data_dir={data_dir!r}" if data_dir else ""})'
    command = (f'tfds build {name}{f" --data_dir={data_dir}" if data_dir else ""}, '
               f'or without apache-beam: python -c "import tensorflow_datasets as tfds; tfds.{call}.download_and_prepare()"')
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except ValueError as error:  # DatasetNotFoundError is one
        raise errors.UsageError(f'--dataset=tfds:{name}: {_first_line(error)} '
                                f'A set that TFDS knows is prepared by: {command}') from error
    if not builder.info.splits:
        raise errors.UsageError(f'--dataset=tfds:{name} is not prepared in {builder.data_dir}; '
                                f'nothing is downloaded here. Prepare it by: {command}')
    return tfds, builder


def _first_line(error: Exception) -> str:
    return str(error).split('\n')[0][:300]  # TFDS lists all sets it knows


@contextlib.contextmanager
def _quiet():
    """Keeps TFDS's warnings about its own code, and TensorFlow's chatter, off standard error."""
    logging.disable(logging.WARNING)
    try:
        with console.quiet():
            yield
    finally:
        logging.disable(logging.NOTSET)
