# SPDX-License-Identifier: Apache-2.0
"""The packages of requirements-runtimes.txt, which not everybody has."""

import importlib
import sys

from c3d_tf.common import errors


def load(package: str):
    """Returns the package.

    Raises:
      errors.UsageError: it is not installed, or does not load.
    """
    # OpenVINO and NNCF report each call to their makers, unasked, by this package, and do without it.
    sys.modules.setdefault('openvino_telemetry', None)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise errors.UsageError(f'this --runtime needs the package {package}, which does not load ({error}); '
                                'run: pip install -r requirements-runtimes.txt') from error
