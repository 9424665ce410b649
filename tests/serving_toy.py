# SPDX-License-Identifier: Apache-2.0
"""A network whose answer can be seen, exported with our signatures, and the test server that serves it.

It says how light a clip is: a clip of mean grey m is `light` by m / 255 and `dark` by the rest; the two
other classes are never seen.
"""

import contextlib
import pathlib
import re
import subprocess
import sys

import numpy as np
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXPORT = ROOT / 'export'
NAMES = ['never', 'light', 'dark', 'nor']
TOP_K = 3


class Lightness(tf.Module):
    """Signatures `serving_default` and `frames` of c3d_tf.export, for a network without weights."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, None, 3], tf.uint8, 'clips')])
    def clips(self, clips):
        return self._answer(tf.reduce_mean(tf.cast(clips, tf.float32), axis=[1, 2, 3, 4]))

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.string, 'frames')])
    def frames(self, frames):
        def grey(encoded):
            image = tf.io.decode_image(encoded, 3, expand_animations=False)
            return tf.reduce_mean(tf.cast(image, tf.float32))

        greys = tf.map_fn(grey, tf.reshape(frames, [-1]), fn_output_signature=tf.float32)
        return self._answer(tf.reduce_mean(tf.reshape(greys, tf.shape(frames)), axis=1))

    def _answer(self, grey):
        light = grey / 255
        probabilities = tf.stack([0 * light, light, 1 - light, 0 * light], axis=1)
        scores, best = tf.math.top_k(probabilities, TOP_K)
        return {'probabilities': probabilities, 'top_k_scores': scores,
                'top_k_labels': tf.gather(NAMES, best)}


def save(directory: pathlib.Path) -> None:
    """Writes the network as version 1 of the model in `directory`."""
    module = Lightness()
    tf.saved_model.save(module, str(directory / '1'),
                        {'serving_default': module.clips, 'frames': module.frames})


def models_folder(root: pathlib.Path) -> pathlib.Path:
    """Makes what is mounted at /models: the config files, and the network as `quickstart`."""
    root.mkdir(parents=True, exist_ok=True)
    for path in EXPORT.glob('*.config'):
        text = path.read_text().replace('"/models/', f'"{root}/')  # where the container has it
        (root / path.name).write_text(text)
    save(root / 'quickstart')
    return root


def server_flags() -> list[str]:
    """Returns the command of compose.yaml's server."""
    text = (EXPORT / 'compose.yaml').read_text()
    command = re.search(r'^    command:\n((?:      - .*\n)+)', text, re.M)[1]
    return [line.strip().removeprefix('- ') for line in command.splitlines()]


@contextlib.contextmanager
def serving(models: pathlib.Path, *more: str):
    """Runs the test server with the flags of compose.yaml on free ports.

    Yields:
      (gRPC's HOST:PORT, REST's HOST:PORT, its process).
    """
    flags = [flag.replace('/models/', f'{models}/') for flag in server_flags()]
    flags = [re.sub(r'(port=)\d+', r'\g<1>0', flag) for flag in flags]
    with open(models / 'server.log', 'w', encoding='utf-8') as log, subprocess.Popen(
            [sys.executable, '-m', 'tests.serving_server', *flags, *more], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=log) as process:
        try:
            words = process.stdout.readline().split()
            assert words[:1] == ['ready'], (models / 'server.log').read_text()
            yield f'127.0.0.1:{words[1]}', f'127.0.0.1:{words[2]}', process
        finally:
            process.terminate()


def light(grey: float) -> np.ndarray:
    """Returns the probabilities of a clip of this grey."""
    return np.array([0, grey / 255, 1 - grey / 255, 0], np.float32)
