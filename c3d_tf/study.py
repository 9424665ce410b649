# SPDX-License-Identifier: Apache-2.0
"""Several networks trained alike, from several seeds, and compared epoch by epoch (Figure 2 of the paper)."""

import dataclasses
import os
from collections.abc import Sequence

import keras
import numpy as np

from c3d_tf import models
from c3d_tf import train
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.data import records
from c3d_tf.figures import plots
from c3d_tf.training import history

RESULT = 'study.json'
FIGURE = 'study.png'
SPLIT = 'test'


def study(
    records_dir: str,
    workdir: str,
    recipe: train.Recipe,
    *,
    networks: Sequence[str],
    seeds: Sequence[int],
    **choices,
) -> dict:
    """Trains each network from each seed and draws the clip accuracy on the test split by epoch.

    As in the paper the test split is watched in every epoch and chooses nothing: a network's number is
    the mean of its last epoch over the seeds. The same call continues a stopped study.

    Args:
      records_dir: what prepare wrote, with a test split: one clip a video, from its middle, is scored.
      workdir: gets a run NETWORK/seed_N for each, study.json and study.png.
      recipe: of all runs; its model and seed are replaced.
      networks: names of `models.MODELS`.
      seeds: at least one; standard errors need two.
      **choices: of every run, see `train.fit`: checkpoint_every, log_every, histograms, profile, overwrite.

    Returns:
      the content of study.json: for each network its accuracy by epoch (mean and standard error over the
      seeds), and for each pair the difference of the last epoch, paired by seed.

    Raises:
      errors.UsageError: no seed, no network, or one that there is not.
    """
    unknown = [name for name in networks if name not in models.MODELS]
    if unknown or not networks:
        raise errors.UsageError(f'--models={",".join(networks)}: expected some of {", ".join(models.MODELS)}')
    if not seeds:
        raise errors.UsageError('--seeds is empty: expected whole numbers, e.g. 0,1,2')
    steps_by_epoch, scores = None, {name: [] for name in networks}
    runs = [(seed, name) for seed in seeds for name in networks]  # each seed's comparison is soon complete
    for number, (seed, name) in enumerate(runs, 1):
        console.say(f'study: {number} of {len(runs)}: {name}, seed {seed}')
        run = os.path.join(workdir, name, f'seed_{seed}')
        train.fit(records_dir, run, dataclasses.replace(recipe, model=name, seed=seed), watch=SPLIT,
                  **choices)
        keras.backend.clear_session()  # or the graphs of all runs stay in memory
        steps, values = history.read(run, f'{SPLIT}_accuracy')
        if steps_by_epoch not in (None, steps):
            raise errors.RunError(f'{run}: its curve has points at other steps than the runs before; '
                                  '--overwrite trains all anew')
        steps_by_epoch = steps
        scores[name].append(values)

    index = records.read_index(records_dir)
    result = {
        'protocol': f'clip accuracy on {SPLIT}: {index.data["splits"][SPLIT]["videos"]} videos, one clip each '
                    'from the middle, 1 centre crop; last epoch, chosen by nothing',
        'seeds': list(seeds), 'steps': steps_by_epoch,
        'networks': {name: _summary(np.array(rows)) for name, rows in scores.items()},
        'differences': _differences({name: np.array(rows)[:, -1] for name, rows in scores.items()}),
        'recipe': dataclasses.asdict(recipe), 'records': index.fingerprint,
    }
    files.write_json(os.path.join(workdir, RESULT), result)
    chance = 1 / len(index.class_names)
    with files.replacing(os.path.join(workdir, FIGURE)) as temporary:
        plots.study({name: (np.array(own['mean']), own['standard_error'] and np.array(own['standard_error']))
                     for name, own in result['networks'].items()}, temporary, chance=chance,
                    title=f'Clip accuracy on {SPLIT} by epoch, {_number(len(seeds), "seed")}')
    _show(result)
    console.say(f'study: wrote {os.path.join(workdir, RESULT)} and {FIGURE}')
    return result


def _summary(rows: np.ndarray) -> dict:
    """Returns mean and standard error over the seeds of float [S, E]; None where one seed tells none."""
    error = rows.std(axis=0, ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else None
    return {'by_seed': rows.round(6).tolist(), 'mean': rows.mean(axis=0).round(6).tolist(),
            'standard_error': None if error is None else error.round(6).tolist()}


def _differences(last: dict[str, np.ndarray]) -> list[dict]:
    """Returns each pair's difference, paired by seed, the better network first."""
    ranked = sorted(last, key=lambda name: -last[name].mean())
    pairs = []
    for i, better in enumerate(ranked):
        for worse in ranked[i + 1:]:
            gap = last[better] - last[worse]
            error = float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else None
            pairs.append({'better': better, 'worse': worse, 'mean': round(float(gap.mean()), 6),
                          'standard_error': error and round(error, 6),
                          'told_apart': error is not None and bool(gap.mean() > 2 * error)})
    return pairs


def _show(result: dict) -> None:
    width = max(map(len, result['networks']))
    ranked = sorted(result['networks'].items(), key=lambda item: -item[1]['mean'][-1])
    for name, own in ranked:
        error = f' ± {own["standard_error"][-1]:.3f}' if own['standard_error'] else ''
        console.say(f'  {name:{width}}  {own["mean"][-1]:.3f}{error}')
    apart = [pair for pair in result['differences'] if pair['told_apart']]
    console.say(f'  told apart by more than two standard errors, paired by seed: {len(apart)} of '
                f'{_number(len(result["differences"]), "pair")}')
    for pair in apart:
        console.say(f'    {pair["better"]} over {pair["worse"]}: {pair["mean"]:.3f} ± {pair["standard_error"]:.3f}')


def _number(count: int, noun: str) -> str:
    return f'{count} {noun}' if count == 1 else f'{count} {noun}s'
