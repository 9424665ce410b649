# SPDX-License-Identifier: Apache-2.0
"""Answers requests as a server would, in a process that can load neither Keras nor this project.

    python tests/saved_model_probe.py SAVED_MODEL REQUESTS ANSWERS

REQUESTS is a pickle of (signature, {input: array}) pairs, ANSWERS one of ({output: array}, or the error's
type and message), made by the loader that TensorFlow Serving uses, one after another in one session.
"""

import importlib.machinery
import pickle
import re
import sys


class _Absent:
    """TensorFlow looks where Keras lies, which it may; nothing of it is executed."""

    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] not in ('keras', 'tf_keras', 'c3d_tf'):
            return None
        return importlib.machinery.ModuleSpec(name, self, origin='absent', is_package=True)

    def create_module(self, spec):
        raise ModuleNotFoundError(f'{spec.name} is not here')

    def exec_module(self, module):
        raise ModuleNotFoundError(module)


def main() -> None:
    sys.meta_path.insert(0, _Absent())
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2

    directory, requests, answers = sys.argv[1:]
    with open(requests, 'rb') as file:
        requests = pickle.load(file)
    found = []
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ['serve'], directory)
        for signature, inputs in requests:
            one = loaded.signature_def[signature]
            # session.run compares shapes and types in Python; the server, as this, leaves that to the runtime.
            options = config_pb2.CallableOptions(
                feed=[one.inputs[name].name for name in inputs],
                fetch=[info.name for info in one.outputs.values()])
            ask = session._make_callable_from_options(options)
            try:
                found.append(dict(zip(one.outputs, ask(*inputs.values()))))
            except tf.errors.OpError as error:
                found.append((type(error).__name__, error.message))
    assert not any(name.split('.')[0] in ('keras', 'c3d_tf') for name in sys.modules)
    # Not getrusage: its ru_maxrss starts at what the process that started this one had.
    with open('/proc/self/status') as file:
        peak = int(re.search(r'VmHWM:\s+(\d+) kB', file.read())[1]) << 10
    with open(answers, 'wb') as file:
        pickle.dump((found, peak), file)


if __name__ == '__main__':
    main()
