# SPDX-License-Identifier: Apache-2.0
"""A file of Caffe, PyTorch, Keras or TensorFlow 1 → our artefact, with the preprocessing it needs.

The file is read, never executed, and what it cannot tell is asked: nothing is guessed silently.
"""

import os

import keras
import numpy as np

from c3d_tf import __version__
from c3d_tf import models
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.data import preprocess
from c3d_tf.weights import artefact
from c3d_tf.weights import formats
from c3d_tf.weights import layouts

CROP = 112
CLIPS = {'c3d': (16, 1), 'res3d_18': (8, 2)}  # frames and stride; the prototxts of v1.0 and v1.1


def import_weights(
    source: str,
    weights: str,
    *,
    mean: str = '',
    labels: str = '',
    channel_order: str = '',
    pool5: str = '',
    flip_time: bool | None = None,
    fc6_order: str = '',
    frame_size: tuple[int, int] = (128, 171),
    reinit: tuple[str, ...] = (),
    overwrite: bool = False,
) -> artefact.Artefact:
    """Reads a weight file, shows every array of it, and writes the artefact.

    Args:
      source: the file; see `formats.read`.
      weights: the artefact to write; '' writes nothing.
      mean: a .binaryproto, .npy or .npy.bz2 of a volume (channels, frames, height, width); three numbers
        joined by commas; one number; or 'none'. In the order of channels that the weights expect.
      labels: text file, a class name a line; '' numbers the classes.
      channel_order: 'bgr' or 'rgb', what the weights expect. Our network takes RGB: the first kernels
        and the mean are turned round where it is 'bgr'.
      pool5: 'aligned' or 'shifted'; see `models.build`.
      flip_time: whether the kernels are turned round in time.
      fc6_order: 'chw' or 'hwc', how the file's network flattens pool5; '' takes chw where kernels have
        their outputs first (Caffe, PyTorch, Theano), else hwc.
      frame_size: (height, width) that frames are resized to; a mean volume decides it by its own size.
      reinit: layers that start at random: what the file lacks of them is no error. fc8 gets a class for
        each of `labels`.
      overwrite: replaces an artefact that came from something else.

    Returns:
      the artefact, as written.

    Raises:
      errors.UsageError: an option is missing, arrays are missing or left over, a shape is wrong, a value
        is no number.
    """
    found = formats.read(source)
    try:
        layout = layouts.recognise(found)
    except errors.UsageError as error:
        raise errors.UsageError(f'--source={source}: {error}') from error
    known = layout.known
    answers = _answers(source, known, mean, channel_order, pool5, flip_time)
    conv_first, dense_first = layouts.kernel_axes(layout, found.arrays)
    fc6_order = fc6_order or ('chw' if conv_first else 'hwc')
    settings = {**answers, 'mean': mean, 'fc6_order': fc6_order, 'labels': labels, 'reinit': list(reinit),
                'frame_size': list(frame_size), 'source_sha256': _hash(source),
                'files': {path: files.sha256(path) for path in (mean, labels) if storage.isfile(path)}}
    if weights:
        files.remove_leftovers(os.path.dirname(weights), os.path.basename(weights))
    if weights and (done := _existing(weights, settings, overwrite)):
        return done
    names = _labels(labels)
    model = _network(source, layout, found.arrays, names, reinit, answers['pool5'], conv_first, dense_first)
    spec = _preprocessing(layout.model, mean, frame_size, answers['channel_order'])
    console.say(f'import_weights: {source} is {known.kind} ({found.format}), {len(found.arrays)} arrays')
    _fill(source, model, layout, found.arrays, reinit, dict(
        conv_out_first=conv_first, dense_out_first=dense_first, fc6_order=fc6_order,
        bgr=answers['channel_order'] == 'bgr', flip_time=answers['flip_time']))
    _say(layout, spec, settings)
    classes = model.output.shape[-1]
    provenance = {'imported_by': f'c3d_tf {__version__}', 'source': os.path.basename(source),
                  'format': found.format, 'kind': known.kind, 'settings': settings,
                  'source_names': _source_names(layout)}
    names = names or tuple(f'class_{i:03d}' for i in range(classes))
    net = artefact.Artefact(model, spec, names, provenance)
    if weights:
        artefact.save(weights, net)
        console.say(f'import_weights: wrote {weights}: {layout.model}, {model.count_params():,} parameters, '
                    f'{classes} classes')
    return net


def _answers(source, known, mean, channel_order, pool5, flip_time) -> dict:
    """Returns what the flags or the file say; stops where neither does."""
    given = {'channel_order': channel_order or None, 'pool5': pool5 or None, 'flip_time': flip_time}
    answers, missing = {}, []
    for name, value in given.items():
        told = getattr(known, name)
        answers[name] = told if value is None else value
        if None not in (told, value) and told != value:
            console.say(f'import_weights: --{name}={value} as you say; {known.kind} has {told}')
    words = {'channel_order': '--channel_order=bgr or rgb (of the images the weights expect)',
             'pool5': '--pool5=aligned (Caffe) or shifted (ports that pad both sides)',
             'flip_time': '--flip_time or --noflip_time (kernels turned round in time, by Theano)'}
    missing = [words[name] for name, value in answers.items() if value is None]
    if not mean:
        missing.append('--mean=FILE, three numbers, one number, or none (what the network had subtracted)')
    if missing:
        raise errors.UsageError('\n  '.join([f'{source} is {known.kind}; it does not tell, so say:', *missing,
                                             known.advice]).rstrip())
    return answers


def _labels(path: str) -> tuple[str, ...]:
    if not path:
        return ()
    try:
        with storage.open(path, encoding='utf-8') as file:
            names = tuple(line.strip() for line in file.read().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise errors.UsageError(f'--labels={path}: {error}') from error
    if len(set(names)) < len(names) or not names:
        twice = [repr(name) for name in names if names.count(name) > 1]
        raise errors.UsageError(f'--labels={path}: {f"{twice[0]} is there twice" if twice else "no class in it"}')
    return names


def _network(source, layout, arrays, labels, reinit, pool5, conv_first, dense_first) -> keras.Model:
    """Builds the network whose width and classes the file has."""
    first = layout.names.get('conv1a.kernel') or layout.names.get('conv1_conv.kernel')
    if first is None:
        raise errors.UsageError(f'--source={source}: no first convolution (conv1a, conv1, wc1, features.0) '
                                f'among its {len(arrays)} arrays ({", ".join(list(arrays)[:5])}, …)')
    shape = arrays[first].shape
    if 'fc8' in reinit:
        if not labels:
            raise errors.UsageError('--reinit=fc8 needs --labels: how many classes should it have?')
        classes = len(labels)
    elif 'fc8.kernel' in layout.names:
        classes = arrays[layout.names['fc8.kernel']].shape[-2 if dense_first else -1]
        if labels and len(labels) != classes:
            raise errors.UsageError(f'--labels has {len(labels)} classes, fc8 of {source} has {classes}')
    else:
        raise errors.UsageError(f'--source={source}: no fc8 in it. For its features alone: --reinit=fc8 '
                                '--labels=FILE starts that layer at random')
    filters = shape[-5 if conv_first else -1] if len(shape) >= 5 else 64
    clip_length, _ = CLIPS[layout.model]
    keras.utils.set_random_seed(0)  # of what --reinit names
    return models.build(layout.model, num_classes=int(classes), clip_length=clip_length, crop_size=CROP,
                        width=filters / 64, pool5=pool5)


def _preprocessing(model: str, mean: str, frame_size, channel_order: str) -> preprocess.Preprocessing:
    clip_length, stride = CLIPS[model]
    values = _mean(mean)
    if values.ndim == 5 and values.shape[0] == 1:
        values = values[0]
    if values.ndim == 3 and values.shape[0] == 3:  # one frame, as v1.1's tools write it
        values = np.repeat(values[:, None], clip_length, axis=1)
    if values.ndim == 4:
        if values.shape[:2] != (3, clip_length):
            cut = values.shape[1:3] == (CROP, CROP)
            raise errors.UsageError(
                f'--mean={mean}: an array of {values.shape}, expected (3, {clip_length}, height, width): '
                'channels, frames, rows, columns'
                + ('; it is cut to the crop already: give the volume it was cut from' if cut else ''))
        frame_size = values.shape[2:]
        values = np.ascontiguousarray(values.transpose(1, 2, 3, 0))
    elif values.shape not in ((), (3,)):
        raise errors.UsageError(f'--mean={mean}: an array of {values.shape}, expected (3, {clip_length}, '
                                'height, width), (3,) or ()')
    if channel_order == 'bgr' and values.ndim:
        values = np.ascontiguousarray(values[..., ::-1])
    frame_size = (int(frame_size[0]), int(frame_size[1]))
    return preprocess.Preprocessing(frame_size, CROP, clip_length, stride, values)


def _mean(mean: str) -> np.ndarray:
    """Returns float32 of one of the shapes that --mean may have."""
    if mean == 'none':
        return np.zeros((), np.float32)
    try:
        numbers = np.array([float(number) for number in mean.split(',')], np.float32)
        values = numbers if len(numbers) > 1 else numbers[0]
    except ValueError:
        values = formats.read_mean(mean).astype(np.float32)
    if not np.isfinite(values).all():
        raise errors.UsageError(f'--mean={mean}: holds NaN or infinity')
    return np.asarray(values)


def _fill(source, model, layout, arrays, reinit, axes) -> None:
    """Sets the model's weights and prints the table; stops on anything missing, left over, or wrong."""
    rows, wrong, missing, taken = [], [], [], set()
    for layer in model.layers:
        for variable in layer.weights:
            target = f'{layer.name}.{variable.name}'
            name = layout.names.get(target)
            if layer.name in reinit:
                taken.add(target)
                continue
            if name is None:
                missing.append(f'{target} {tuple(variable.shape)}')
                continue
            taken.add(target)
            shape = arrays[name].shape
            if layer.name.startswith('bn') and variable.name.startswith('moving'):
                taken.add(f'{layer.name}.factor')
            try:
                values, done = layouts.convert(target, _unscaled(target, layout, arrays), **axes)
            except ValueError:  # not even the number of axes fits
                values, done = arrays[name], 'none'
            if values.shape != tuple(variable.shape):
                wrong.append(f'{name} {shape}: {target} should be {tuple(variable.shape)}, this gives '
                             f'{values.shape}')
                continue
            numbers = _range(arrays[name].reshape(-1))
            if not np.isfinite(numbers).all():
                wrong.append(f'{name} {shape}: holds NaN or infinity')
                continue
            variable.assign(values)
            rows.append((name, str(shape), done, target, *(f'{number:.4g}' for number in numbers)))
    surplus = [f'{name} {arrays[name].shape}' for name in
               layout.surplus + [name for target, name in layout.names.items() if target not in taken]]
    _table(('in the file', 'shape', 'axes', 'in the network', 'min', 'max', 'std'), rows)
    if wrong or missing or surplus:
        raise errors.UsageError('\n  '.join([
            f'--source={source} does not fit {layout.model}; nothing was written.',
            *(f'wrong: {line}' for line in wrong), *(f'missing in the file: {line}' for line in missing),
            *(f'left over in the file: {line}' for line in surplus)]))


def _range(values: np.ndarray) -> tuple[float, float, float]:
    """Returns (smallest, largest, standard deviation), a million at a time: no copy of the whole."""
    low, high, sums = float(values.min()), float(values.max()), np.zeros(2)
    if not np.isfinite([low, high]).all():
        return low, high, np.nan
    for start in range(0, values.size, 1 << 20):
        part = values[start:start + (1 << 20)].astype(np.float64)
        sums += part.sum(), np.dot(part, part)
    mean, square = sums / values.size
    return low, high, float(np.sqrt(max(square - mean * mean, 0)))


def _unscaled(target: str, layout, arrays) -> np.ndarray:
    """Returns the array; Caffe's moving averages are sums, to be divided by their weight."""
    layer, part = target.rsplit('.', 1)
    array = arrays[layout.names[target]]
    factor = layout.names.get(f'{layer}.factor')
    if factor is None or part not in ('moving_mean', 'moving_variance'):
        return array
    weight = float(arrays[factor].reshape(-1)[0])
    return array / np.float32(weight) if weight else np.zeros_like(array)  # batch_norm_layer.cpp does so too


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        console.say('  ' + '  '.join(f'{cell:>{width}}' if i > 3 else f'{cell:{width}}'
                                     for i, (cell, width) in enumerate(zip(row, widths))).rstrip())


def _say(layout, spec, settings) -> None:
    if layout.left_out:
        console.say(f'  left out, state of an optimiser: {len(layout.left_out)} arrays '
                    f'({layout.left_out[0]}, …)')
    if settings['reinit']:
        console.say(f'  at random: {", ".join(settings["reinit"])}')
    mean = spec.mean.reshape(-1, spec.mean.shape[-1] if spec.mean.ndim else 1).mean(axis=0)
    words = 'volume, on average ' if spec.mean.ndim == 4 else ''
    console.say(f'  images {settings["channel_order"]}, pool5 {settings["pool5"]}, fc6 over '
                f'{settings["fc6_order"]}, time {"turned round" if settings["flip_time"] else "as it is"}')
    console.say(f'  clips of {spec.clip_length} frames at stride {spec.stride}, frames of '
                f'{spec.frame_size[0]}x{spec.frame_size[1]}, the {CROP}x{CROP} at {spec.centre()}; mean '
                f'{words}{", ".join(f"{x:g}" for x in mean)} (RGB)')


def _source_names(layout) -> dict[str, str]:
    """Returns the file's own names of layers where they differ from ours: fc6 → fc6-1."""
    found = {}
    for target, name in layout.names.items():
        layer, own = target.rsplit('.', 1)[0], name.rsplit('/', 1)[0]
        if layer in layouts.C3D_LAYERS and own != layer and '/' in name and '/' not in own:
            found[layer] = own
    return found


def _existing(weights: str, settings: dict, overwrite: bool) -> artefact.Artefact | None:
    if overwrite or not storage.exists(weights):
        return None
    before = artefact.load(weights)
    if before.provenance.get('settings') == settings:
        console.say(f'import_weights: {weights} is imported already')
        return before
    raise errors.changed_settings(weights, before.provenance.get('settings', {}), settings,
                                  'Give another --weights, or --overwrite to replace it.')


def _hash(source: str) -> str:
    """Returns the SHA-256 of the file, or of the TensorFlow 1 checkpoint's index."""
    for path in (source, f'{source}.index'):
        if storage.isfile(path):
            return files.sha256(path)
    return ''
