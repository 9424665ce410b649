# SPDX-License-Identifier: Apache-2.0
"""The front door: flags in, one function a verb, an exit code out. Kept short on purpose."""

import os
import signal
import sys

from absl import flags as absl_flags

from c3d_tf import __version__
from c3d_tf import flags
from c3d_tf import paths
from c3d_tf import usage
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import storage

# The verbs import TensorFlow, so they are imported when they run: help and wrong use answer at once.


def _dataset(f, fold: int):
    from c3d_tf.data import datasets

    return datasets.load(
        f.dataset, videos=f.videos, lists=f.lists, train_list=f.train_list, val_list=f.val_list,
        test_list=f.test_list, fold=fold, groups=f.groups, group_regex=f.group_regex,
        val_fraction=f.val_fraction, test_fraction=f.test_fraction, seed=f.seed)


def _prepare(f) -> str:
    _needed(f, 'records')
    dataset = _dataset(f, f.fold)
    _start_tensorflow()
    from c3d_tf import prepare

    prepare.prepare(
        dataset, f.records, frame_size=f.frame_size, frame_format=f.frame_format,
        clip_length=f.clip_length, clips_per_video=f.clips_per_video,
        test_clips_per_video=f.test_clips_per_video, clip_seconds=f.clip_seconds, seed=f.seed,
        max_failures=f.max_failures, num_workers=f.num_workers, video_timeout=f.video_timeout,
        runner=f.runner, beam_options=tuple(f.beam_options), overwrite=f.overwrite)
    return f.records


def _train(f) -> str:
    _needed(f, 'workdir')
    _start_tensorflow()
    from c3d_tf import train

    result = train.fit(f.records, f.workdir, _recipe(f), checkpoint_every=f.checkpoint_every,
                       log_every=f.log_every, watch=f.watch, histograms=f.histograms, profile=f.profile,
                       worker_timeout=f.worker_timeout, overwrite=f.overwrite)
    return f.workdir if result else None


def _study(f) -> str:
    _needed(f, 'workdir')
    _needed(f, 'models')
    seeds = _integers(f, 'seeds')
    _start_tensorflow()
    from c3d_tf import study

    study.study(f.records, f.workdir, _recipe(f), networks=f.models, seeds=seeds, checkpoint_every=f.checkpoint_every,
                log_every=f.log_every, histograms=f.histograms, profile=f.profile, overwrite=f.overwrite)
    return f.workdir


def _recipe(f):
    from c3d_tf.training import recipe

    values = {name: f[name].value for name in recipe.Recipe.__dataclass_fields__}
    return recipe.Recipe(**{**values, 'reinit': tuple(f.reinit), 'freeze': tuple(f.freeze)})


def _evaluate(f) -> str:
    _needed(f, 'workdir')
    _start_tensorflow()
    from c3d_tf import evaluate

    if f.scores:
        evaluate.fuse(f.scores, f.workdir, overwrite=f.overwrite)
    else:
        evaluate.evaluate(
            f.records, _weights(f), f.workdir, split=f.split, num_clips=f.clips,
            clip_choice=f.clip_choice, step=f.step, crops=f.crops, batch_size=f.eval_batch_size, seed=f.seed,
            embed=f.embed, overwrite=f.overwrite)
    return f.workdir


def _predict(f) -> str | None:
    _start_tensorflow()
    from c3d_tf import predict
    from c3d_tf.data import streams

    network = {'precision': f.precision, 'runtime': f.runtime, 'export_dir': f.export_dir}
    if streams.is_live(f.input):
        if f.render or f.heatmap:
            raise errors.UsageError('--render and --heatmap draw on a file; --input is live')
        predict.live(f.input, _weights(f), step=f.step, top_k=f.top_k, duration=f.duration, as_json=f.json,
                     **network)
        return None
    if f.duration:
        raise errors.UsageError(f'--duration={f.duration:g} ends live input; --input={f.input} is not live')
    result = predict.predict(f.input, _weights(f), step=f.step, top_k=f.top_k, render=f.render,
                             heatmap=f.heatmap, overwrite=f.overwrite, quiet=f.json, **network)
    predict.show(result, as_json=f.json)
    return os.path.dirname(storage.abspath(f.render)) if f.render else None


def _features(f) -> str:
    _needed(f, 'output')
    _start_tensorflow()
    from c3d_tf import features

    features.extract(
        f.output, _weights(f), videos=f.input, records_dir=f.records, split=f.split,
        layers=tuple(f.layers) or ('fc6',), step=f.step, pool=f.pool, file_format=f.format,
        precision=f.precision, runtime=f.runtime, export_dir=f.export_dir, batch_size=f.eval_batch_size,
        num_workers=f.num_workers, video_timeout=f.video_timeout, lock_timeout=f.lock_timeout,
        max_failures=f.max_failures, runner=f.runner, beam_options=tuple(f.beam_options), overwrite=f.overwrite)
    return f.output


def _svm(f) -> str:
    _needed(f, 'workdir')
    _needed(f, 'features')
    # The flagfile of a whole way has --videos and --records: the lists know groups and the videos.
    folds = [_dataset(f, fold) for fold in _integers(f, 'folds') or [f.fold]] if f.videos else []
    dimensions = _integers(f, 'pca')
    _start_tensorflow()
    from c3d_tf import svm

    svm.svm(
        f.features, f.workdir, folds=folds, records_dir=f.records, layers=tuple(f.layer), C=f.C,
        leave_one_out=f.leave_one_out, frames_labels=f.frames_labels, pca=dimensions, embed=f.embed,
        max_failures=f.max_failures, seed=f.seed, overwrite=f.overwrite)
    return f.workdir


def _similarity(f) -> str:
    _needed(f, 'workdir')
    _needed(f, 'features')
    _start_tensorflow()
    from c3d_tf import similarity

    layers = tuple(f.similarity_layers)
    pairs = f.pairs or os.path.join(f.workdir, similarity.PAIRS)
    if not f.pairs:  # drawn anew by each run: the same labels and seed give the same file
        labels, groups = ((similarity.labels_of_records(f.records, f.split), None) if f.records else
                          similarity.labels_of_dataset(_dataset(f, f.fold)))
        similarity.make_pairs(labels, pairs, features=f.features, layers=layers, groups=groups,
                              folds=f.pair_folds, pairs_per_fold=f.pairs_per_fold, seed=f.seed)
    similarity.similarity(f.features, pairs, f.workdir, layers=layers, C=f.C, max_failures=f.max_failures,
                          overwrite=f.overwrite)
    return f.workdir


def _visualize(f) -> str:
    _needed(f, 'workdir')
    units = _integers(f, 'units')
    _start_tensorflow()
    from c3d_tf import visualize

    visualize.visualize(
        _weights(f), f.workdir, videos=f.input, records_dir=f.records, split=f.split, what=tuple(f.what),
        layers=tuple(f.layers), units=tuple(units), maps=f.maps, top=f.top, label=f.label, step=f.step,
        overwrite=f.overwrite)
    return os.path.join(f.workdir, visualize.FOLDER)


def _report(f) -> None:
    _needed(f, 'workdir')
    _start_tensorflow()
    from c3d_tf import report

    report.report(f.workdir, records_dir=f.records)


def _import_weights(f) -> str | None:
    _needed(f, 'source')
    _start_tensorflow()
    from c3d_tf import import_weights

    import_weights.import_weights(
        f.source, '' if f.dry_run else _needed(f, 'weights'), mean='' if f.mean == 'volume' else f.mean,
        labels=f.labels, channel_order=f.channel_order, pool5=f.pool5, flip_time=f.flip_time,
        fc6_order=f.fc6_order, frame_size=f.frame_size, reinit=tuple(f.reinit), overwrite=f.overwrite)
    return None if f.dry_run else os.path.dirname(storage.abspath(f.weights))


def _export(f) -> str | None:
    _start_tensorflow()
    from c3d_tf import export
    from c3d_tf.serving import check

    if f.check:
        check.check(f.check)
        return None
    export.export(_weights(f), f.export_dir, top_k=f.top_k, max_clips=f.max_clips, layers=tuple(f.layers),
                  precision=f.precision, runtime=f.runtime, records_dir=f.records, num_clips=f.clips,
                  overwrite=f.overwrite)
    return f.export_dir


def _benchmark(f) -> str:
    _needed(f, 'workdir')
    _start_tensorflow()
    from c3d_tf import benchmark

    if f.table:
        benchmark.runtime_table(f.workdir, videos_given=f.input, weights=f.weights, batch_size=f.eval_batch_size)
        return f.workdir
    benchmark.benchmark(f.workdir, only=tuple(f.stages), batch_size=f.eval_batch_size,
                        torch_python=f.torch_python)
    return f.workdir


MODES = {
    'prepare': _prepare,
    'train': _train,
    'study': _study,
    'evaluate': _evaluate,
    'predict': _predict,
    'features': _features,
    'svm': _svm,
    'similarity': _similarity,
    'visualize': _visualize,
    'report': _report,
    'import_weights': _import_weights,
    'export': _export,
    'benchmark': _benchmark,
}


def main(argv: list[str] | None = None) -> int:
    """Runs the verbs of --mode in order; returns the exit code."""
    try:
        return _run(sys.argv if argv is None else argv)
    except errors.UsageError as error:
        return _complain(error, errors.EXIT_USAGE)
    except errors.Interrupted as error:
        return _complain(error, errors.EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        return _complain('interrupted; the same command goes on', errors.EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has left, e.g. `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.EXIT_FAILED
    except (errors.RunError, OSError) as error:
        return _complain(error, errors.EXIT_FAILED)
    except Exception as error:
        # TensorFlow's errors (a damaged record, a full disk, no memory) without importing it here.
        if type(error).__module__.startswith('tensorflow'):
            return _complain(f'{type(error).__name__}: {error}', errors.EXIT_FAILED)
        raise


def _run(argv: list[str]) -> int:
    known = flags.Flags()
    f = known.values
    try:
        words = known.values(paths.with_flagfiles(argv))[1:]
    except absl_flags.Error as error:
        raise errors.UsageError(f'{error}\nSee --help.') from error
    if words:
        raise errors.UsageError(f'stray words: {" ".join(words)}. Flags are --name=value; a boolean is '
                                '--name or --noname.')
    unknown = [verb for verb in f.mode if verb not in MODES]
    if unknown:
        raise errors.UsageError(f'--mode={",".join(unknown)}: expected {", ".join(MODES)}')
    if f.version:
        console.say(f'c3d_tf {__version__}')
        return errors.EXIT_OK
    if f.completion:
        console.say(usage.completion(known, f.completion))
        return errors.EXIT_OK
    if f.help or not f.mode:
        console.say(usage.help_text(known, f.mode))
        return errors.EXIT_OK if f.help else errors.EXIT_USAGE
    if f.strategy == 'multi_worker' and {'train', 'study'} & {*f.mode} and f.mode != ['train']:
        raise errors.UsageError(f'--strategy=multi_worker with --mode={",".join(f.mode)}: expected '
                                '--mode=train, since every worker does all that it is told; run the other '
                                'verbs before and after it, on one machine')
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    paths.check(known)
    for verb in f.mode:
        where = MODES[verb](f)
        if where:
            known.write(os.path.join(where, f'{verb}.flags'), verb)
        if verb == 'evaluate':
            _report(f)  # after the flagfile, which it shows
    if where and f.mode[-1] in ('prepare', 'train', 'evaluate', 'export'):
        console.say('\n'.join(['next:', *_next(f)]))
    return errors.EXIT_OK


def _start_tensorflow() -> None:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '1')
    with console.quiet():
        import tensorflow as tf

        tf.config.list_physical_devices()  # starts what would start, and complain, later
    tf.get_logger().setLevel('ERROR')  # its warnings are for who writes the calls, not for who runs them


def _next(f) -> list[str]:
    """Returns the commands that use what the last verb left."""
    door = usage.DOOR
    if f.mode[-1] == 'prepare':
        return [f'  {door} --mode=train --records={f.records} --workdir=runs/NAME']
    if f.mode[-1] == 'export' and f.runtime != 'tensorflow':
        return ['  docs/runtimes.md says how to use it']
    if f.mode[-1] == 'export':
        return [f'  {door} --mode=export --check={f.export_dir}', '  export/README.md has the server and a client']
    lines = [f'  {door} --mode=predict --workdir={f.workdir} --input=VIDEO']
    if f.mode[-1] == 'train':
        lines.insert(0, f'  {door} --mode=evaluate --records={f.records} --workdir={f.workdir}')
    return [*lines, f'  tensorboard --logdir={os.path.join(f.workdir, "tensorboard")}']


def _needed(f, name: str) -> str:
    if not f[name].value:
        raise errors.UsageError(f'--{name} is not set: {f[name].help}')
    return f[name].value


def _integers(f, name: str) -> list[int]:
    if not all(text.isdecimal() for text in f[name].value):
        raise errors.UsageError(f'--{name}={",".join(f[name].value)}: expected whole numbers, e.g. 1,2,3')
    return [int(text) for text in f[name].value]


def _weights(f) -> str:
    return f.weights or (os.path.join(f.workdir, 'model.keras') if f.workdir else '')


def _complain(message, code: int) -> int:
    sys.stdout.flush()
    print(f'c3d_tf: {message}', file=sys.stderr, flush=True)
    return code


def command() -> None:
    """The program. With tensorflow-io it leaves at once, since that aborts while Python is taken down."""
    code = main()
    sys.stdout.flush()
    (os._exit if 'tensorflow_io' in sys.modules else sys.exit)(code)


if __name__ == '__main__':
    command()
