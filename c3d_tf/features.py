# SPDX-License-Identifier: Apache-2.0
"""Videos or records → descriptors: any layer of the network, clip by clip and video by video.

A video is the unit of work, of rename and of resume. Processes that are started on the same list share
it: a lock file a video says who is at it.
"""

import contextlib
import functools
import json
import os
import time

import av
import cv2
import keras
import tensorflow as tf

from c3d_tf import __version__
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import locks
from c3d_tf.common import storage
from c3d_tf.data import clips
from c3d_tf.data import descriptors
from c3d_tf.data import inputs
from c3d_tf.data import record_videos
from c3d_tf.data import records
from c3d_tf.data import work_list
from c3d_tf.runtimes import exported
from c3d_tf.runtimes import networks
from c3d_tf.weights import artefact
from c3d_tf.weights import imagenet

RESULT = 'features.json'
SKIPPED = 'skipped.jsonl'
PROB = networks.PROB


def extract(
    output: str,
    weights: str,
    *,
    videos: str = '',
    records_dir: str = '',
    split: str = 'test',
    layers: tuple[str, ...] = ('fc6',),
    step: int = 0,
    pool: str = 'mean',
    file_format: str = 'npz',
    precision: str = 'float32',
    runtime: str = 'tensorflow',
    export_dir: str = '',
    batch_size: int = 16,
    num_workers: int = 0,
    video_timeout: float = 60.0,
    lock_timeout: float = 600.0,
    max_failures: int = 0,
    runner: str = 'local',
    beam_options: tuple[str, ...] = (),
    overwrite: bool = False,
) -> dict:
    """Writes the descriptors of every video; what is there already is not done again.

    A clip's value is float32: (K,) for fully connected layers, (C, T, H, W) for convolutions and pools,
    the original's order. A video's is pooled over its clips, flattened, and divided by its L2 norm. A
    tail shorter than a clip is dropped, as the original does (section 4 of the paper: fc6 of clips that
    overlap by 8 frames, their mean, L2-normalised).

    Args:
      output: the folder of the descriptors; see docs/features.md for what lies in it.
      weights: an artefact; or 'imagenet:NAME[:FILE]', see `imagenet.load`.
      videos: what `inputs.find` takes: a file, a folder, a glob or a .txt list.
      records_dir: records instead, where `videos` is ''.
      split: of the records.
      layers: by name, ours or that of the file the weights were imported from; also 'prob'.
      step: frames from one clip's start to the next; 0 means half a clip.
      pool: 'mean', 'max', or 'conv_pooling': the maximum over clips and a layer's own frames, which
        keeps (C, H, W) (Ng et al., CVPR 2015).
      file_format: 'npz', 'hdf5' or 'caffe'; see `descriptors`.
      precision: of activations; see `models.build`.
      runtime: what runs the network: 'tensorflow', 'openvino', or 'int8'; see `exported.load`.
      export_dir: where export put the int8 network.
      batch_size: clips at once; batches are full across videos.
      num_workers: processes that decode; 0 means one a core.
      video_timeout: seconds without a frame after which a file is given up.
      lock_timeout: seconds without a sign of life after which another process's video is taken over.
      max_failures: broken videos that are tolerated; -1 for any number.
      runner: 'local', or 'beam': an engine of Apache Beam does the videos, to the same files.
      beam_options: of Beam and its engine, e.g. '--runner=DaskRunner'.
      overwrite: deletes descriptors made with other settings, and does again what is complete.

    Returns:
      the content of features.json: settings, versions, found, videos, clips, skipped.

    Raises:
      errors.UsageError: there is no such video or layer, or the folder holds descriptors made with other
        settings.
      errors.RunError: more videos failed than `max_failures`; all others are done.
    """
    for what, value, known in (('format', file_format, descriptors.FORMATS),
                               ('pool', pool, descriptors.POOLS), ('runner', runner, ('local', 'beam'))):
        if value not in known:
            raise errors.UsageError(f'--{what}={value}: expected one of {", ".join(known)}')
    if not videos and not records_dir:
        raise errors.UsageError('--input is not set: expected a video file, a folder, a glob, or a .txt '
                                'list; or --records')
    if runner == 'beam':
        from c3d_tf.data import beam_runner  # Beam is an extra

        empty = beam_runner.pipeline(beam_options)
    net = _load(weights, runtime, precision)
    if weights.startswith(imagenet.PREFIX):
        console.say(f'features: {net.provenance["network"]}, weights: {net.provenance["weights"]}')
    spec = net.preprocessing
    chosen = _choose(net, layers)
    source, found = _find(videos, records_dir, split, spec, output)
    network = exported.load(net, chosen, runtime, precision=precision, export_dir=export_dir)
    step = step or (clips.extent(spec.clip_length, spec.stride) + 1) // 2
    # Compared with what an earlier run wrote as JSON, hence the round trip.
    settings = json.loads(json.dumps({
        'weights_sha256': net.sha256, 'layers': sorted(chosen), 'step': step, 'pool': pool,
        'format': file_format, 'precision': precision, 'preprocessing': spec.to_json(), **source,
        **({'runtime': runtime} if runtime != networks.RUNTIMES[0] else {})}))
    _claim(output, settings, overwrite)
    store = descriptors.store(output, chosen, settings)
    cutting = {'clip_length': spec.clip_length, 'stride': spec.stride, 'step': step, 'short': spec.short}
    with (files.naming(output), locks.Locks(os.path.join(output, work_list.LOCKS), lock_timeout) as held,
          contextlib.closing(store)):
        run = work_list.WorkList(output, found, store, held, settings)
        decoding = {'cutting': cutting, 'batch_size': batch_size, 'video_timeout': video_timeout,
                    'clip_shape': (spec.clip_length, *spec.frame_size, 3)}
        if runner == 'beam':
            decoding['num_workers'] = num_workers or 1  # the engine's processes are many already
            load = functools.partial(_load_network, weights, list(chosen), runtime, precision, export_dir)
            beam_runner.extract(empty, found, run.settled, beam_runner.Extraction(
                load, output, chosen, settings, lock_timeout, decoding))
        else:
            decoding['num_workers'] = num_workers or os.cpu_count()
            decoding['in_process'] = any(map(storage.private, [records_dir, *(one.path for one in found)]))
            run.work(networks.of_frames(network, spec), **decoding)
        while not held.take('finish'):  # the last process that comes here finds nothing left to do
            time.sleep(0.2)
        store.finish([one.name for one in found])
        run.sweep()
        files.remove_leftovers(output)
        result = _report(output, settings, run)
        held.release('finish')
    return _check(output, run, result, max_failures)


def _load(weights: str, runtime: str, precision: str) -> artefact.Artefact:
    if weights.startswith(imagenet.PREFIX):
        return imagenet.load(weights)
    return artefact.load(weights, precision=exported.keras_precision(runtime, precision))


def _load_network(weights: str, layers: list[str], runtime: str, precision: str, export_dir: str):
    net = _load(weights, runtime, precision)
    network = exported.load(net, layers, runtime, precision=precision, export_dir=export_dir)
    return networks.of_frames(network, net.preprocessing)


def _choose(net: artefact.Artefact, layers: tuple[str, ...]) -> dict[str, str]:
    """Returns the layers' names → their names in the original's files, each once."""
    source_names = net.provenance.get('source_names', {})
    ours = {theirs: name for name, theirs in source_names.items()}
    known = [layer.name for layer in net.model.layers
             if not isinstance(layer, (keras.layers.InputLayer, keras.layers.Dropout))]
    known += [PROB] if net.class_names else []
    chosen = {}
    for given in layers:
        name = ours.get(given, given)
        if name not in known:
            raise errors.UsageError(f'--layers={given}: no such layer; the network has '
                                    f'{", ".join(known)}')
        chosen[name] = source_names.get(name, name)
    if not chosen:
        raise errors.UsageError('--layers is empty: expected names of layers, e.g. fc6,prob')
    return chosen


def _find(videos: str, records_dir: str, split: str, spec, output: str
          ) -> tuple[dict, list[inputs.Video]]:
    """Returns (the part of the settings that says what is read, the videos)."""
    if videos:
        root, found = inputs.find(videos, size=spec.frame_size, without=output)
        return {'videos': root}, found
    index = records.read_index(records_dir)
    if index.frame_size != spec.frame_size:
        raise errors.UsageError(
            f'the weights want frames of {spec.frame_size}, the records in {records_dir} hold '
            f'{index.frame_size}; prepare them with that --frame_size')
    return {'records': index.fingerprint, 'split': split}, record_videos.find(index, split)


def _claim(output: str, settings: dict, overwrite: bool) -> None:
    """Says whose the folder is; stops where that is another run, or clears it on `overwrite`."""
    path = os.path.join(output, RESULT)
    before = files.read_json(path)
    if before and before['settings'] != settings and not overwrite:
        raise errors.changed_settings(
            output, before['settings'], settings,
            'Give another --output folder, or --overwrite to make the descriptors anew.')
    # An unfinished run of the same settings goes on, with --overwrite as well.
    if before and (before['settings'] != settings or overwrite and before['complete']):
        descriptors.clear(output)
        for folder in (work_list.REASONS, work_list.WORK):
            storage.rmtree(os.path.join(output, folder), ignore_errors=True)
        before = None
    if before is None:
        files.write_json(path, {'settings': settings, 'complete': False})


def _report(output: str, settings: dict, run: work_list.WorkList) -> dict:
    """Writes skipped.jsonl and features.json; returns the content of the latter."""
    skipped = sorted(run.skipped.values(), key=lambda skip: skip['path'])
    files.write_text(os.path.join(output, SKIPPED),
                     ''.join(json.dumps(skip, ensure_ascii=False) + '\n' for skip in skipped))
    result = {
        'settings': settings, 'complete': True, 'found': len(run.done) + len(skipped),
        'videos': len(run.done), 'clips': sum(run.done.values()), 'skipped': len(skipped),
        'versions': {'c3d_tf': __version__, 'tensorflow': tf.__version__, 'keras': keras.__version__,
                     'av': av.__version__, 'opencv': cv2.__version__},
    }
    files.write_json(os.path.join(output, RESULT), result)
    return result


def _check(output: str, run: work_list.WorkList, result: dict, max_failures: int) -> dict:
    failed = result['skipped']
    if 0 <= max_failures < failed:
        first = min(run.skipped.values(), key=lambda skip: skip['path'])
        raise errors.RunError(
            f'{failed} videos could not be read, {max_failures} are tolerated; see '
            f'{os.path.join(output, SKIPPED)}.\nThe first: {first["path"]}: {first["reason"]}\n'
            f'All others are in {output}. --max_failures={failed} goes on without them (nothing is done '
            'twice).')
    see = f' (see {SKIPPED})' if failed else ''
    console.say(f'features: wrote {output}: {result["videos"]} of {result["found"]} videos, '
                f'{result["clips"]} clips, {failed} skipped{see}')
    return result
