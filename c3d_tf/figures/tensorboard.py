# SPDX-License-Identifier: Apache-2.0
"""What TensorBoard shows beside scalars: moving clips, pictures, text, recipes to compare by.

All functions write to the default writer of `tf.summary`.
"""

import io
import json

import tensorflow as tf
from PIL import Image
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.histogram import summary_v2 as histograms
from tensorboard.plugins.image import metadata

from c3d_tf.common import files
from c3d_tf.figures import strips

FOLDER = 'tensorboard'
SIDE = 112  # of a frame in pixels, at least: TensorBoard enlarges, and larger GIFs take longer to make


def pictures(name: str, encoded: list[bytes], step: int, description: str = '') -> None:
    """Writes pictures of one size as they are: TensorBoard sends PNG and GIF on, and a GIF moves."""
    with Image.open(io.BytesIO(encoded[0])) as first:
        size = [str(side).encode() for side in first.size]
    tf.summary.write(name, tf.constant([*size, *encoded]), step,
                     metadata.create_summary_metadata(None, description))


def clips(
    name: str, shown: list[strips.Strip], step: int, description: str, *, side: int = SIDE
) -> None:
    """Writes clips as one moving picture, each below its caption; `side`: see `strips.animation`."""
    content = io.BytesIO()
    strips.animation(content, shown, side=side)
    pictures(name, [content.getvalue()], step, description)


def histogram(name: str, values, step: int) -> None:
    """Writes a histogram; `tf.summary.histogram` would take 240 bytes a value."""
    summary = histograms.histogram_pb(name, values)
    tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step)


def code(name: str, text: str) -> None:
    """Writes a text that keeps its lines."""
    tf.summary.text(name, ''.join(f'    {line}\n' for line in text.splitlines()), 0)


def recipe(settings: dict) -> None:
    """Writes what a run was made with, for the tab HParams; runs of one recipe are a line there.

    Without a list of columns: then TensorBoard puts those first in which the runs differ.

    Args:
      settings: of train.json or of an artefact's provenance.
    """
    values = {name: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
              for name, value in settings.items() if name != 'files'}
    # TensorBoard's own name of the line would differ between 1.0 and the 1 that JSON may give back.
    hparams.hparams(values, trial_id=files.text_hash(json.dumps(values, sort_keys=True))[:16])
