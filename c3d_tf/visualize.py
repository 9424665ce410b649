# SPDX-License-Identifier: Apache-2.0
"""What a network looks at: deconvolutions of its strongest activations, Grad-CAM, its first filters.

Deconvolution: Zeiler & Fergus, ECCV 2014, as in Fig. 4 and appendix B of the paper. Grad-CAM: Selvaraju
et al., ICCV 2017, over time as well as space.
"""

import dataclasses
import os

import keras
import numpy as np
import tensorflow as tf

from c3d_tf import __version__
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.data import inputs
from c3d_tf.data import preprocess
from c3d_tf.data import record_videos
from c3d_tf.data import records
from c3d_tf.explain import gradcam
from c3d_tf.explain import scan
from c3d_tf.figures import strips
from c3d_tf.models import deconvolution
from c3d_tf.weights import artefact

KINDS = ('deconvolution', 'gradcam', 'filters')
FOLDER = 'figures'
RESULT = 'figures.json'


def visualize(
    weights: str,
    workdir: str,
    *,
    videos: str = '',
    records_dir: str = '',
    split: str = 'test',
    what: tuple[str, ...] = KINDS,
    layers: tuple[str, ...] = (),
    units: tuple[int, ...] = (),
    maps: int = 4,
    top: int = 4,
    label: str = '',
    step: int = 0,
    overwrite: bool = False,
) -> dict:
    """Draws what excites feature maps, what speaks for a class, and the first filters.

    Every clip of the videos is seen once. A map's pictures are of the clips that excite it most, each
    video's best before any video's second.

    Args:
      weights: an artefact; computed in float32 whatever its precision.
      workdir: gets figures/*.png, *.gif and figures.json.
      videos: a video file, a folder, a glob or a list; see `inputs.find`.
      records_dir: what prepare wrote; read where `videos` is ''.
      split: of the records.
      what: some of KINDS; 'filters' needs no videos.
      layers: of the deconvolution and of Grad-CAM, by their names; () takes the last convolution.
      units: feature maps, from 0; () takes those with the strongest activations.
      maps: how many are taken then.
      top: clips a picture.
      label: the class that Grad-CAM explains, in the clips where it is most probable; '' explains what
        each clip was taken for, the surest clip of every class first.
      step: frames from one clip's start to the next; 0 means a clip's extent.
      overwrite: does again what is done already.

    Returns:
      the content of figures.json: {'protocol', 'clips' (how many were seen), 'skipped': [{'path',
      'reason'}], 'figures': [{'file', 'animation', 'kind', 'layer', 'unit', 'clips': [{'video',
      'start_frame', 'time', 'taken_for', 'probability', …}]}], 'versions'}. `time` is in seconds. A
      deconvolution's clips add 'activation' and its place in the layer, 'frame', 'row' and 'column';
      those of Grad-CAM add 'label', the class that is explained, and 'label_probability'.

    Raises:
      errors.UsageError: a layer, unit or class that is not there, or nothing to look at.
      errors.RunError: no video could be read, or no map of a layer fires.
    """
    _check_kinds(what)
    net = artefact.load(weights, precision='float32')
    layers = _check_layers(net, what, layers, units, label)
    found, source = [], {}
    if set(what) != {'filters'}:
        found, source = _videos(net.preprocessing, videos, records_dir, split)
    protocol = {
        'weights_sha256': net.sha256, 'preprocessing': net.preprocessing.to_json(), **source,
        'what': list(what), 'layers': list(layers), 'units': list(units), 'maps': maps, 'top': top,
        'label': label, 'step': step, 'precision': 'float32',
    }
    folder = os.path.join(workdir, FOLDER)
    done = _existing(folder, protocol, overwrite)
    if done is not None:
        return done

    figures, skipped, clips = [], [], 0
    if 'filters' in what:
        figures.append(_filters(net.model, folder))
    if found:
        scanned, skipped = scan.scan(net, found, layers, step)
        clips = len(scanned.number)
        chosen = {}
        if 'deconvolution' in what:
            for layer in layers:
                strongest = scanned.strongest[layer]
                for unit in _units(strongest, layer, units, maps):
                    chosen[layer, unit] = scan.best(scanned, strongest[:, unit], top)
        explained = _explained(scanned, net, label, top) if 'gradcam' in what else {}
        wanted = {i for rows in chosen.values() for i in rows} | set(explained)
        clip = _Clips(net, found, scanned, scan.read(net.preprocessing, found, scanned, wanted, step))
        for (layer, unit), rows in chosen.items():
            figures.append(_deconvolution(net.model, layer, unit, rows, clip, folder))
        for layer in layers if explained else ():
            figures.append(_gradcam(net, layer, explained, clip, folder))
    versions = {'c3d_tf': __version__, 'tensorflow': tf.__version__, 'keras': keras.__version__}
    result = {'protocol': protocol, 'clips': clips, 'skipped': skipped, 'figures': figures,
              'versions': versions}
    files.write_json(os.path.join(folder, RESULT), result)
    _say(result, folder)
    return result


class _Clips:
    """The clips to draw, by their number in the scan."""

    def __init__(self, net, found: list[inputs.Video], scanned: scan.Scan, seen: dict[int, scan.Clip]):
        self._net, self._found, self._scanned, self._seen = net, found, scanned, seen

    def inputs(self, rows: list[int]) -> np.ndarray:
        """Returns float32 [N, T, S, S, 3], what the network gets."""
        return preprocess.for_inference(self._images(rows), self._net.preprocessing).numpy()

    def frames(self, rows: list[int]) -> np.ndarray:
        """Returns uint8 [N, T, S, S, 3], what `inputs` are made of."""
        seen = dataclasses.replace(self._net.preprocessing, mean=np.zeros((), np.float32), motion=False)
        return np.rint(preprocess.for_inference(self._images(rows), seen)).astype(np.uint8)

    def _images(self, rows: list[int]) -> tf.Tensor:
        return tf.constant(np.stack([self._seen[i].images for i in rows]))

    def entry(self, i: int) -> dict:
        """Returns what figures.json says of a clip."""
        seen = self._seen[i]
        best = int(self._scanned.probability[i].argmax())
        return {'video': self._found[seen.number].name, 'start_frame': seen.start,
                'time': round(seen.time, 3), 'taken_for': self._net.class_names[best],
                'probability': self.probability(i, best)}

    def probability(self, i: int, label: int) -> float:
        return float(self._scanned.probability[i, label])


def _check_kinds(what: tuple[str, ...]) -> None:
    unknown = [kind for kind in what if kind not in KINDS]
    if unknown or not what:
        raise errors.UsageError(f'--what={",".join(what)}: expected some of {", ".join(KINDS)}')


def _check_layers(net: artefact.Artefact, what, layers, units, label: str) -> tuple[str, ...]:
    """Returns the layers that have feature maps; checks all that the network must have."""
    maps = deconvolution.feature_maps(net.model)
    names = [*(layer.name for layer in net.model.layers), 'prob']  # as the features verb knows them
    unknown = [layer for layer in layers if layer not in names]
    if unknown:
        raise errors.UsageError(f'--layers={",".join(unknown)}: {net.model.name} has no such layer; its '
                                f'feature maps are {", ".join(maps)}')
    last = [name for name in maps if not name.startswith('pool')][-1]
    taken = tuple(layer for layer in layers if layer in maps) or (last,)
    if layers and set(taken) != set(layers):  # of a flagfile that takes fc6 for features
        console.say(f'visualize: takes {", ".join(taken)}; --layers={",".join(layers)} names layers '
                    'without feature maps')
    if 'deconvolution' in what:
        for layer in taken:
            try:
                deconvolution.path(net.model, layer)
            except ValueError as error:
                raise errors.UsageError(f'--what=deconvolution: {error}. --what=gradcam,filters '
                                        'works') from error
            count = net.model.get_layer(layer).output.shape[-1]
            beyond = [unit for unit in units if not 0 <= unit < count]
            if beyond:
                raise errors.UsageError(f'--units={",".join(map(str, beyond))}: {layer} has the maps '
                                        f'0 to {count - 1}')
    if label and label not in net.class_names:
        raise errors.UsageError(f'--label={label}: the weights know {", ".join(net.class_names[:10])}'
                                f'{", …" if len(net.class_names) > 10 else ""}')
    return taken


def _videos(spec, videos: str, records_dir: str, split: str) -> tuple[list[inputs.Video], dict]:
    """Returns the videos and what the protocol says of them."""
    if videos:
        _, found = inputs.find(videos, size=spec.frame_size)
        names = '\n'.join(one.name for one in found)
        return found, {'videos': videos, 'names_sha256': files.text_hash(names)}
    if not records_dir:
        raise errors.UsageError('neither --input nor --records is set: expected a video, a folder of '
                                'videos or the folder that prepare wrote; --what=filters needs none')
    index = records.read_index(records_dir)
    return record_videos.find(index, split), {'dataset': index.data['dataset'], 'split': split,
                                              'records': index.fingerprint}


def _existing(folder: str, protocol: dict, overwrite: bool) -> dict | None:
    """Returns a result that is there already; removes one that is done again."""
    path = os.path.join(folder, RESULT)
    before = files.read_json(path)
    if before is None:
        return None
    own = [os.path.join(folder, name) for figure in before['figures']
           for name in (figure['file'], figure.get('animation')) if name]
    if not overwrite:
        if before['protocol'] != protocol:
            raise errors.changed_settings(path, before['protocol'], protocol,
                                          'Give another --workdir, or --overwrite to do it again.')
        if all(map(storage.exists, own)):
            console.say(f'visualize: {path} is up to date')
            return before
    for old in own:
        if storage.exists(old):
            storage.remove(old)
    return None


def _units(strongest: np.ndarray, layer: str, units: tuple[int, ...], maps: int) -> list[int]:
    """Returns the maps to draw."""
    peak = strongest.max(axis=0)
    if not peak.any():
        raise errors.RunError(f'{layer}: no feature map fires on any clip')
    best = np.argsort(-peak, kind='stable')[:maps]
    return list(units) or [int(unit) for unit in best if peak[unit] > 0]


def _explained(scanned: scan.Scan, net: artefact.Artefact, label: str, top: int) -> dict[int, int]:
    """Returns clip → the class that Grad-CAM explains in it."""
    if label:
        own = net.class_names.index(label)
        return dict.fromkeys(scan.best(scanned, scanned.probability[:, own], top), own)
    taken_for, sure = scanned.probability.argmax(axis=1), scanned.probability.max(axis=1)
    order = np.argsort(-sure, kind='stable')
    first = [order[np.argmax(taken_for[order] == one)] for one in dict.fromkeys(taken_for[order])]
    return {int(i): int(taken_for[i]) for i in list(dict.fromkeys([*first, *order]))[:top]}


def _filters(model: keras.Model, folder: str) -> dict:
    layer, kernels = deconvolution.filters(model)
    path = os.path.join(folder, f'filters_{layer}.png')
    with files.replacing(path) as temporary:
        strips.kernels(temporary, kernels, title=f'{model.name} {layer}: {kernels.shape[-1]} filters, '
                       f'frames x height x width = {"x".join(map(str, kernels.shape[:3]))}')
    return {'file': os.path.basename(path), 'kind': 'filters', 'layer': layer}


def _deconvolution(model, layer: str, unit: int, rows: list[int], clip: _Clips, folder: str) -> dict:
    """Draws one feature map; a map that never fires has no picture."""
    figure = {'file': '', 'kind': 'deconvolution', 'layer': layer, 'unit': unit, 'clips': []}
    if not rows:
        console.say(f'  {layer} {unit} fires on no clip: no picture')
        return figure
    chain = deconvolution.path(model, layer)
    forward = deconvolution.forward(chain)
    frames, pixels = [], []
    for i in rows:  # one after another: what a pool of 112x112 maps needs is large
        batch = clip.inputs([i])
        values = forward(batch, training=False)
        kept, value, place = deconvolution.strongest(values['activation'], unit)
        pixels.append(keras.ops.convert_to_numpy(deconvolution.project(chain, kept, values))[0])
        frames.append(clip.frames([i])[0])
        cell = np.unravel_index(int(place[0]), kept.shape[1:4])
        figure['clips'].append({**clip.entry(i), 'activation': float(value[0]),
                                **{name: int(n) for name, n in zip(('frame', 'row', 'column'), cell)}})
    drawn = strips.beside(frames, pixels, [_caption(entry, f'activation {entry["activation"]:.3g}')
                                           for entry in figure['clips']])
    return _draw(figure, f'{layer}_{unit:03d}', drawn, ('input', 'deconvolution'), folder,
                 title=f'{model.name} {layer}, feature map {unit}: what excites it most',
                 note='grey is 0; a clip has one scale')


def _gradcam(net, layer: str, explained: dict[int, int], clip: _Clips, folder: str) -> dict:
    figure = {'file': '', 'kind': 'gradcam', 'layer': layer, 'clips': []}
    drawn = []
    for i, label in explained.items():
        batch = clip.inputs([i])
        share = gradcam.grad_cam(net.model, layer, batch, np.array([label]))[0]
        frames = clip.frames([i])[0]
        entry = {**clip.entry(i), 'label': net.class_names[label],
                 'label_probability': clip.probability(i, label)}
        figure['clips'].append(entry)
        text = f'{entry["label"]} {entry["label_probability"]:.1%}'
        if not share.any():
            text += f', but nothing in {layer} speaks for it'
        drawn.append(strips.Strip(_caption(entry, text), (frames, strips.heat(frames, share))))
    return _draw(figure, f'gradcam_{layer}', drawn, ('input', 'Grad-CAM'), folder,
                 title=f'{net.model.name} {layer}: where and when it speaks for the class (Grad-CAM)',
                 note='red: a clip\'s largest value')


def _draw(figure: dict, name: str, drawn: list[strips.Strip], row_names, folder: str, **texts) -> dict:
    figure |= {'file': f'{name}.png', 'animation': f'{name}.gif'}
    with files.replacing(os.path.join(folder, figure['file'])) as temporary:
        strips.sheet(temporary, drawn, row_names, **texts)
    with files.replacing(os.path.join(folder, figure['animation'])) as temporary:
        strips.animation(temporary, drawn)
    return figure


def _caption(entry: dict, text: str) -> str:
    name = entry['video'] if len(entry['video']) <= 70 else f'…{entry["video"][-69:]}'
    return f'{name} · {entry["time"]:.2f} s · {text}'


def _say(result: dict, folder: str) -> None:
    for figure in result['figures']:
        best = figure['clips'][0] if figure.get('clips') else {}
        which = f'{figure["layer"]} {figure["unit"]}' if 'unit' in figure else figure['layer']
        more = ''
        if 'activation' in best:
            more = f'{best["activation"]:.3g} in {best["video"]} at {best["time"]:.2f} s'
        console.say(f'  {figure["kind"]:14} {which:14} {figure["file"]:24} {more}'.rstrip())
    console.say(f'visualize: wrote {os.path.join(folder, RESULT)} and its pictures; clips seen: '
                f'{result["clips"]}')
