# SPDX-License-Identifier: Apache-2.0
"""What is in an exported folder, would the stock server take it, and how quick is it."""

import collections
import os
import time

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.data import preprocess
from c3d_tf.serving import warmup

SIZE = (240, 320)    # of the frames in timed requests, as UCF101's
BATCH_SIZES = (1, 8)
DESCRIPTION = os.path.join('assets.extra', 'export.json')
# What TensorFlow's Python package has but TensorFlow Serving has not: they call back into Python.
_PYTHON_OPS = {'PyFunc', 'PyFuncStateless', 'EagerPyFunc'}


def check(directory: str, *, rounds: int = 20, seconds: float = 60.0) -> dict:
    """Inspects a SavedModel, of this program or any other, and prints what it finds.

    It is loaded as the server does, by `tf.compat.v1.saved_model.loader`; its warm-up requests are
    replayed, and each signature answers and is timed. All signatures are timed in turn, so that a slow
    moment of the machine meets all of them alike. The folder is left as it is.

    Args:
      directory: a version's folder; or a model's, whose newest version is taken.
      rounds: requests of each signature and batch size that are timed.
      seconds: after which no further round begins; three are always made.

    Returns:
      signatures ({name: {inputs, outputs}}), operations ({name: count}, with those of all functions),
      foreign (operations that the stock server lacks), bytes ({part: size}), warm_up ({signature: batch
      sizes}), latency ({signature: {batch size: {p50, p99, requests a second, of_float_clips}}}, seconds).

    Raises:
      errors.UsageError: there is no SavedModel.
      errors.RunError: the server would not take it, or a request failed; all else is printed before.
    """
    directory = _find(directory)
    with storage.open(os.path.join(directory, 'saved_model.pb'), 'rb') as file:
        try:
            graphs = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs
        except Exception as error:  # protobuf's own
            raise errors.RunError(f'{file.name} is damaged ({error}); export again.') from error
    (graph,) = [one for one in graphs if 'serve' in one.meta_info_def.tags][:1] or [None]
    if graph is None:
        raise errors.RunError(f'{directory} has no graph with the tag "serve"; the server loads no other.')
    result = {
        'signatures': {name: {'inputs': _shapes(one.inputs), 'outputs': _shapes(one.outputs)}
                       for name, one in sorted(graph.signature_def.items()) if not name.startswith('__')},
        'operations': dict(sorted(operations(graph.graph_def).items())),
        'foreign': foreign(graph.graph_def), 'bytes': _bytes(directory)}
    _show(directory, result)
    if result['foreign']:
        raise errors.RunError(f'{directory}: the stock server has no {", ".join(result["foreign"])}; '
                              'export a network of core operations, without XLA.')
    result.update(_run(directory, result['signatures'], rounds, seconds))
    return result


def operations(graph_def) -> collections.Counter:
    """Returns how often each operation stands in a graph and in its functions."""
    called = {function.signature.name for function in graph_def.library.function}
    nodes = [*graph_def.node, *(node for function in graph_def.library.function
                                for node in function.node_def)]
    return collections.Counter(node.op for node in nodes if node.op not in called)


def foreign(graph_def) -> list[str]:
    """Returns the operations that the stock server lacks, and functions that only XLA runs."""
    registered = tf.raw_ops.__dict__
    found = {name for name in operations(graph_def)
             if name in _PYTHON_OPS or name.startswith('Xla') or name not in registered}
    return sorted(found | {f'XLA (function {function.signature.name})'
                           for function in graph_def.library.function
                           if function.attr['_XlaMustCompile'].b})


def _find(directory: str) -> str:
    if storage.exists(os.path.join(directory, 'saved_model.pb')):
        return directory
    versions = [int(name) for name in storage.listdir(directory) if name.isdigit()] if (
        storage.isdir(directory)) else []
    if not versions:
        raise errors.UsageError(f'--check={directory}: no SavedModel; expected a folder that --mode=export '
                                'wrote, with saved_model.pb in it')
    return _find(os.path.join(directory, str(max(versions))))


def _shapes(tensors) -> dict:
    """Returns {name: 'type [shape]'}."""
    return {name: f'{tf.as_dtype(info.dtype).name} {_sides(info)}' for name, info in sorted(tensors.items())}


def _sides(info) -> str:
    if info.tensor_shape.unknown_rank:
        return '[…]'
    return f'[{", ".join("N" if side.size < 0 else str(side.size) for side in info.tensor_shape.dim)}]'


def _bytes(directory: str) -> dict[str, int]:
    """Returns the size of the graph, and of all files in each folder beside it."""
    found = collections.Counter()
    for folder, _, names in storage.walk(directory):
        part = storage.relpath(folder, directory).split(os.sep)[0]
        for name in names:
            found['graph' if part == '.' else part] += storage.getsize(os.path.join(folder, name))
    return dict(found)


def _show(directory: str, result: dict) -> None:
    console.say(f'check: {directory}')
    for name, one in result['signatures'].items():
        console.say(f'  {name}')
        for arrow, tensors in (('←', one['inputs']), ('→', one['outputs'])):
            for tensor, shape in tensors.items():
                console.say(f'    {arrow} {tensor} {shape}')
    sizes = ', '.join(f'{part} {size / 1e6:.1f} MB' for part, size in sorted(result['bytes'].items()))
    console.say(f'  {sizes}')
    console.say(f'  {len(result["operations"])} kinds of operations; not in the stock server: '
                f'{", ".join(result["foreign"]) or "none"}')


def _run(directory: str, named: dict, rounds: int, seconds: float) -> dict:
    """Loads the folder as the server does; replays, asks and times."""
    warm_up, failed = warmup.read(directory), []
    replayed, latency = collections.defaultdict(list), {}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = _load(session, directory)

        def ask(signature, inputs):
            one = loaded.signature_def[signature]
            return session.run({name: info.name for name, info in one.outputs.items()},
                               {one.inputs[name].name: value for name, value in inputs.items()})

        def tried(what, signature, inputs):
            try:
                return ask(signature, inputs) is not None
            except (tf.errors.OpError, KeyError, ValueError) as error:
                failed.append(f'{what} of {signature}: {error}')
                return False

        for signature, inputs in warm_up:
            if tried('the warm-up request', signature, inputs):
                replayed[signature].append(len(next(iter(inputs.values()))))
        for name in named:
            sizes = ', '.join(map(str, replayed[name])) or 'none: its first client waits'
            console.say(f'  warm-up of {name}: batches of {sizes}')
        requests = {key: inputs for key, inputs in _requests(directory, loaded, warm_up).items()
                    if tried('a request', key[0], inputs)}
        times = _time(ask, requests, rounds, seconds)
    for (signature, count), taken in times.items():
        plain = times.get(('float_clips', count))
        latency.setdefault(signature, {})[count] = {
            'p50': float(np.percentile(taken, 50)), 'p99': float(np.percentile(taken, 99)),
            'requests_per_second': len(taken) / sum(taken), 'requests': len(taken),
            'of_float_clips': float(np.median(taken) / np.median(plain)) if plain else None}
    _show_latency(latency)
    if failed:
        raise errors.RunError('\n'.join([f'{directory}: requests failed:', *failed]))
    silent = named.keys() - latency.keys()
    if silent:
        console.say(f'  not asked, as their input cannot be made up and no warm-up shows it: {sorted(silent)}')
    return {'warm_up': dict(replayed), 'latency': latency}


def _load(session, directory: str):
    """Returns the MetaGraphDef. Python is told that this loader is old; the server's C++ is the same."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel('ERROR')
    try:
        return tf.compat.v1.saved_model.loader.load(session, ['serve'], directory)
    finally:
        logger.setLevel(level)


def _requests(directory: str, loaded, warm_up) -> dict:
    """Returns {(signature, batch size): inputs}."""
    described = files.read_json(os.path.join(directory, DESCRIPTION))
    if described:
        spec = preprocess.Preprocessing.from_json(described['preprocessing'], np.zeros((), np.float32))
        return {(signature, count): dict([warmup.sample(signature, count, spec, SIZE)])
                for count in BATCH_SIZES for signature in sorted(loaded.signature_def)
                if not signature.startswith('__')}
    # Another program's: what it warms up with; else zeros, as far as its inputs are numbers.
    found = {(signature, len(next(iter(inputs.values())))): inputs for signature, inputs in warm_up}
    for signature, one in loaded.signature_def.items():
        known = all(info.dtype != tf.string.as_datatype_enum and not info.tensor_shape.unknown_rank
                    for info in one.inputs.values())
        if not signature.startswith('__') and known and not any(key[0] == signature for key in found):
            found[signature, 1] = {
                name: np.zeros([max(side.size, 1) for side in info.tensor_shape.dim],
                               tf.as_dtype(info.dtype).as_numpy_dtype) for name, info in one.inputs.items()}
    return found


def _time(ask, requests: dict, rounds: int, seconds: float) -> dict:
    """Returns {key of requests: the seconds that each took}."""
    taken, start = collections.defaultdict(list), time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - start > seconds:
            break
        for key, inputs in requests.items():
            before = time.perf_counter()
            ask(key[0], inputs)
            taken[key].append(time.perf_counter() - before)
    return taken


def _show_latency(latency: dict) -> None:
    console.say('  signature          batch  requests       p50       p99  requests/s  × float_clips')
    for signature, batches in sorted(latency.items()):
        for count, row in sorted(batches.items()):
            ratio = f'{row["of_float_clips"]:.2f}' if row['of_float_clips'] else '-'
            console.say(f'  {signature:17} {count:6} {row["requests"]:9} {1000 * row["p50"]:6.1f} ms '
                        f'{1000 * row["p99"]:6.1f} ms {row["requests_per_second"]:11.2f} {ratio:>14}')
