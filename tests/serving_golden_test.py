# SPDX-License-Identifier: Apache-2.0
"""The original's numbers out of a served graph: its own JPEGs and its own video, full-size weights."""

import pathlib

import numpy as np
import tensorflow as tf

from c3d_tf import export
from c3d_tf.data import sources
from tests import golden_test
from tests.golden_test import frames  # noqa: F401 (fixtures)
from tests.golden_test import weights  # noqa: F401


def test_served_fc6_is_the_originals(weights, frames, shared, tmp_path):  # noqa: F811
    version = export.export(str(weights / 'golden.keras'), str(tmp_path / 'golden'), layers=('fc6',))
    served = tf.saved_model.load(version).signatures
    images = [path.read_bytes() for path in sorted(pathlib.Path(frames).glob('*.jpg'))]
    # Their file list starts at the JPEG of number 1, and the clips at 1, 17, …: see golden/README.md.
    encoded = [images[start:start + 16] for start in golden_test.STARTS]
    found = served['frames'](frames=tf.constant(encoded))
    golden = np.load(shared / 'golden/apply_frm.npz')
    assert golden_test._error(found['fc6'].numpy(), golden['fc6-1']).max() < 1e-5
    assert golden_test._error(found['probabilities'].numpy(), golden['prob']).max() < 1e-4

    video = sources.frames(str(shared / f'golden/input/{golden_test.VIDEO}.avi'))
    decoded = np.stack([frame.image for frame in video])
    golden = np.load(shared / 'golden/apply_video.npz')['fc6-1']
    clips = np.stack([decoded[start:start + 16] for start in golden_test.STARTS])
    fc6 = served['serving_default'](clips=tf.constant(clips))['fc6'].numpy()
    assert golden_test._error(fc6, golden).max() < 1e-5
    # One example of all clips: the mean, which `features` divides by its norm.
    (feature,) = served['features'](clips=tf.constant(decoded[None, :160]))['fc6'].numpy()
    mean = golden.mean(axis=0)
    assert golden_test._error(feature[None], (mean / np.linalg.norm(mean))[None]).max() < 1e-5
