# SPDX-License-Identifier: Apache-2.0
"""Runs prepare's shards, and features' videos, on any engine that Apache Beam knows.

The engine decides which process does what, and tries again what fails; the work is the local runner's
own, and so are its files, which all machines see in one folder. Beam is imported with this module, and
only `--runner=beam` imports it.
"""

import contextlib
import dataclasses
import io
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import locks
from c3d_tf.data import descriptors
from c3d_tf.data import inputs
from c3d_tf.data import local_runner
from c3d_tf.data import work_list

try:
    import apache_beam as beam
    from apache_beam.ml.inference import base
    from apache_beam.options import pipeline_options
except ImportError as error:
    raise errors.UsageError(f'--runner=beam: Apache Beam is not installed ({error}). See docs/beam.md, '
                            'or take --runner=local') from error

# An element of features is so many videos: once an element, decoders start, and a batch is not full.
VIDEOS_AT_ONCE = 16
SHARES = 16  # but few videos are split into this many elements, so that all processes have some


def pipeline(options: Sequence[str]) -> beam.Pipeline:
    """Returns an empty pipeline.

    Args:
      options: of Beam and its engine, e.g. ['--runner=DaskRunner', '--dask_npartitions=8'].

    Raises:
      errors.UsageError: Beam does not take them.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            taken = pipeline_options.PipelineOptions(list(options))
            made = beam.Pipeline(options=taken)  # imports the engine, which has options of its own
            known = taken.get_all_options(drop_default=True)
            given = taken.get_all_options(drop_default=True, retain_unknown_options=True)
    except SystemExit as error:  # of argparse; all that Beam knows comes before the reason
        raise errors.UsageError(f'--beam_options: {said.getvalue().splitlines()[-1]}') from error
    except (ValueError, ImportError) as error:
        raise errors.UsageError(f'--beam_options={",".join(options)}: {error}') from error
    if unknown := sorted(given.keys() - known.keys()):
        raise errors.UsageError(f'--beam_options: the engine knows no --{", --".join(unknown)}')
    return made


def write_shards(empty: beam.Pipeline, tasks: list[local_runner.Task], work, *, video_timeout: float
                 ) -> None:
    """Works through the shards that are not finished: `local_runner.run` for an engine of Beam.

    Args:
      empty: of `pipeline`.
      tasks, work, video_timeout: see `local_runner.run`; they are sent to other processes.

    Raises:
      errors.RunError: a shard cannot be written, or the engine failed.
    """
    todo = [task for task in tasks if not task.finished()]
    progress = console.Progress('prepare', len(tasks), 'shards', done=len(tasks) - len(todo))
    _run(empty, todo, beam.ParDo(_WriteShards(work, video_timeout)),
         _Left(todo, local_runner.Task.finished, len(tasks), progress))


class _WriteShards(beam.DoFn):
    """Writes a shard in a process beside the engine's own: a video may hang or crash it."""

    def __init__(self, work, video_timeout: float):
        self._work, self._timeout = work, video_timeout
        self._writer = None

    def setup(self):
        _allow_children()

    def process(self, task: local_runner.Task):
        if task.finished():  # an engine may do again what it has done
            return
        self._writer = self._writer or local_runner.Writer(self._work, self._timeout)
        self._writer.give(task)
        try:
            while not self._writer.advance(
                    multiprocessing.connection.wait([self._writer.connection], timeout=0.5)):
                pass
        except BaseException:
            self.teardown()  # the engine may come back with the next shard
            raise

    def teardown(self):
        if self._writer:
            self._writer.stop()
            self._writer = None


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What every process needs for its share of features' list.

    Attributes:
      load: gives the network, called once a process: see `work_list.WorkList.work`.
      output: the folder of the descriptors.
      layers, settings: see `descriptors.store`.
      lock_timeout: see `locks.Locks`.
      decoding: the arguments of `decoders.batches` but the first.
    """

    load: Callable[[], Callable]
    output: str
    layers: dict[str, str]
    settings: dict
    lock_timeout: float
    decoding: dict


def extract(empty: beam.Pipeline, found: list[inputs.Video], settled: Callable[[inputs.Video], bool],
            extraction: Extraction) -> None:
    """Works through the videos that are not settled, by Beam's RunInference.

    Args:
      empty: of `pipeline`.
      found: all videos.
      settled: whether a video is there, or was given up.
      extraction: sent to the engine's processes.

    Raises:
      errors.RunError: the engine failed.
    """
    todo = [one for one in found if not settled(one)]
    size = min(VIDEOS_AT_ONCE, -(-len(todo) // SHARES))
    shares = [tuple(todo[i:i + size]) for i in range(0, len(todo), size or 1)]
    progress = console.Progress('features', len(found), 'videos', done=len(found) - len(todo))
    _run(empty, shares, base.RunInference(_Network(extraction)),
         _Left(todo, settled, len(found), progress))


class _Network(base.ModelHandler):
    """The network, once a process, and what it makes of some videos: their files.

    An element is several videos and not a clip: clips would be sorted by video again, which engines do
    when the last one is there. So a video is on disk when it is finished, and memory is flat.
    """

    def __init__(self, extraction: Extraction):
        self._extraction = extraction

    def load_model(self):
        _allow_children()
        return self._extraction.load()

    def should_skip_batching(self):
        return True  # an element is a batch already; and Dask loses batches that end with a partition

    def run_inference(self, batch, model, inference_args=None):
        its = self._extraction
        store = descriptors.store(its.output, its.layers, its.settings)
        with (locks.Locks(os.path.join(its.output, work_list.LOCKS), its.lock_timeout) as held,
              contextlib.closing(store)):
            work_list.WorkList(its.output, batch, store, held, its.settings).work(
                model, show=False, **its.decoding)
        return [len(batch)]


class _Left:
    """What is not done yet, told by the files: engines tell of it each in its own way or not at all."""

    def __init__(self, todo: list, finished: Callable[[Any], bool], total: int,
                 progress: console.Progress):
        self._todo, self._finished, self._total, self._progress = todo, finished, total, progress
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def count(self) -> int:
        self._todo = [one for one in self._todo if not self._finished(one)]
        self._progress.update(self._total - len(self._todo))
        return len(self._todo)

    def close(self) -> None:
        self._progress.close()

    def _watch(self) -> None:
        while not self._end.wait(2):
            self.count()


def _run(empty: beam.Pipeline, elements: list, transform: beam.PTransform, left: _Left) -> None:
    if elements:
        # Reshuffle: otherwise an engine may hand all of them to one process.
        empty | beam.Create(elements).with_output_types(Any) | beam.Reshuffle() | transform
        with left, _children_end_first():
            try:
                result = empty.run()
                result.wait_until_finish()
            except Exception as error:  # each engine has its own
                raise errors.RunError(f'--runner=beam: {_essence(error)}') from error
            if client := getattr(result, 'client', None):
                client.close()  # Dask's: a cluster that it has started would stay, and hold its memory
    if missing := left.count():
        raise errors.RunError(f'--runner=beam: the engine has ended, and {missing} are not done; do all '
                              'its machines see the same folder at the same path?')
    left.close()


@contextlib.contextmanager
def _children_end_first():
    """Within the block, SIGTERM and Ctrl-C end this process' children before they stop the run: Beam waits for
    its workers without end, also for one that it has not told to end."""

    def stop(number, frame):
        said = subprocess.run(['ps', '-A', '-o', 'ppid=,pid='], capture_output=True, text=True, check=False).stdout
        for parent, child in (map(int, line.split()) for line in said.splitlines()):
            if parent == os.getpid():
                with contextlib.suppress(ProcessLookupError):  # ps itself
                    os.kill(child, signal.SIGTERM)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _essence(error: Exception) -> str:
    """Returns the message of our own error, where that is what the engine wraps; else all it says."""
    lines = str(error).splitlines() or [repr(error)]
    ours = [line for line in lines if 'RunError: ' in line]
    return ours[-1].split('RunError: ', 1)[1] if ours else '\n'.join(lines[-20:])


def _allow_children() -> None:
    # Dask's workers are daemons, which may not have children; ours end with their parent.
    multiprocessing.current_process().daemon = False
