# SPDX-License-Identifier: Apache-2.0
"""Descriptors + pairs of videos → same action or not, on actions not seen in training: ASLAN's protocol.

Of each pair and layer the twelve measures of `common.measures`; 4 layers give 48 numbers, which are
z-normalised and go to a linear SVM (section 5 of the paper; Kliper-Gross et al., TPAMI 34(3), 2012).
"""

import hashlib
import os
import re
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import sklearn
from sklearn import exceptions
from sklearn import metrics as sk_metrics
from sklearn import svm

from c3d_tf import __version__
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import measures
from c3d_tf.data import feature_sets
from c3d_tf.data import pairs as pairs_room
from c3d_tf.figures import plots

RESULT = 'similarity.json'
FIGURE = 'roc.png'
PAIRS = 'pairs.csv'
LAYERS = ('prob', 'fc7', 'fc6', 'pool5')
_CS = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)  # what C is chosen from where it is 0


def similarity(
    features: Sequence[str],
    pairs: str,
    workdir: str,
    *,
    layers: Sequence[str] = LAYERS,
    C: float = 1.0,
    max_failures: int = 0,
    overwrite: bool = False,
) -> dict:
    """Learns whether pairs of videos show the same action on all folds but one, and tests on that one.

    Args:
      features: what --mode=features wrote, one a network, or other sets that `feature_sets.read` takes;
        the numbers of several are concatenated.
      pairs: a CSV with the header a,b,same,fold, or ASLAN's View2.mat; see `data.pairs.read`.
      workdir: gets similarity.json and roc.png.
      layers: whose `video_<layer>` vectors are compared; no coordinate may be below 0, so a layer after
        its ReLU, a pool of such, or prob.
      C: of the SVM; 0 chooses it anew for each fold, by cross-validation over the folds of its training.
      max_failures: videos without features that are tolerated, their pairs left out; -1: any number.
      overwrite: does again what is there, even with other settings.

    Returns:
      the content of similarity.json: accuracy (the mean of the folds, a share), standard_error (of that
      mean), auc (of all folds' scores in one ROC), per_fold; per_layer and per_measure: the same numbers
      from that layer's or that one measure's numbers alone; protocol; versions.

    Raises:
      errors.UsageError: a layer, or the features of a video, are missing, NaN or negative; or pairs that
        `data.pairs.read` refuses.
    """
    given = pairs_room.read(pairs)
    kept, tables, sources = _similarities(features, given, layers, pairs, max_failures)
    protocol = {
        'pairs': pairs, 'pairs_sha256': files.sha256(pairs), 'pairs_used': len(kept.a),
        'pairs_without_features': len(given.a) - len(kept.a), 'folds': len(set(kept.folds)),
        'features': sources, 'features_made': {one: feature_sets.protocol(one) for one in features},
        'measures': 'the twelve of TPAMI 34(3) table 3; L1-normalised for rows '
                    f'{", ".join(map(str, measures.L1_NORMALISED))} (our reading)',
        'epsilon': measures.EPSILON, 'z_normalised': 'with mean and deviation of the training folds',
        'classifier': 'linear SVM (liblinear, squared hinge)',
        'C': C or f'one of {_CS} a fold, by cross-validation over its training folds',
        'accuracy': 'mean of the folds ± standard error of that mean', 'auc': 'of all folds in one ROC',
    }
    path = os.path.join(workdir, RESULT)
    before = files.read_json(path)
    if before is not None and not overwrite:
        if before['protocol'] != protocol:
            raise errors.changed_settings(path, before['protocol'], protocol,
                                          'Use another --workdir, or --overwrite to do it again.')
        console.say(f'similarity: {path} is up to date')
        _say(before)
        return before

    folds = np.array(kept.folds)
    names = list(tables)
    everything = np.concatenate(list(tables.values()), axis=1)
    scores, chosen = cross_validate(everything, kept.same, folds, C=C)
    result = summary(scores, kept.same, folds)
    for row in result['per_fold']:
        row['C'] = chosen[row['fold']]
    curves = {f'all {everything.shape[1]} numbers': _curve(scores, kept.same)}
    result |= {'per_layer': [], 'per_measure': []}
    progress = console.Progress('similarity', len(names) * len(measures.NAMES), 'measures')
    for name, table in tables.items():
        own, _ = cross_validate(table, kept.same, folds, C=C)
        curves[f'{name} alone'] = _curve(own, kept.same)
        result['per_layer'].append({'layer': name, **_short(own, kept.same, folds)})
        for row, formula in enumerate(measures.NAMES):
            # One number needs no choice of C: it only shifts the threshold.
            own, _ = cross_validate(table[:, [row]], kept.same, folds, C=C or 1.0)
            result['per_measure'].append({'layer': name, 'row': row + 1, 'measure': formula,
                                          **_short(own, kept.same, folds)})
            progress.update(len(result['per_measure']))
    progress.close()
    result |= {'protocol': protocol, 'versions': {
        'c3d_tf': __version__, 'scikit-learn': sklearn.__version__, 'numpy': np.__version__}}
    shares = np.array([row['accuracy'] for row in result['per_measure']]).reshape(len(names), -1)
    with files.replacing(os.path.join(workdir, FIGURE)) as temporary:
        plots.similarity(curves, shares.T, measures.NAMES, names, temporary, title=_headline(result))
    files.write_json(path, result)
    _say(result)
    console.say(f'similarity: wrote {path} and {FIGURE}')
    return result


def make_pairs(
    labels: Mapping[str, str],
    path: str,
    *,
    features: Sequence[str] = (),
    layers: Sequence[str] = LAYERS,
    groups: Mapping[str, str] | None = None,
    folds: int = 10,
    pairs_per_fold: int = 600,
    seed: int = 0,
) -> pairs_room.Pairs:
    """Draws pairs from labelled videos, classes disjoint between folds, and writes their CSV.

    Args:
      labels: media id → class, e.g. of `labels_of_records` or `labels_of_dataset`.
      path: the CSV to write.
      features, layers: feature sets; where given, only videos that the first layer has there.
      groups, folds, pairs_per_fold, seed: see `data.pairs.draw`.

    Raises:
      errors.UsageError: too few classes or videos; or no labelled video has features.
    """
    found = dict(labels)
    for folder in features:
        vectors = feature_sets.read(folder, layers[0])
        names = _found(found, vectors)
        found = {name: label for name, label in found.items() if name in names}
        if not found:
            raise errors.UsageError(f'--features={folder}: none of the {len(labels)} labelled videos is '
                                    f'there, e.g. {min(labels)!r}; it has e.g. {min(vectors)!r}')
    drawn = pairs_room.draw(found, groups=groups, folds=folds, pairs_per_fold=pairs_per_fold, seed=seed)
    pairs_room.write(path, drawn)
    console.say(f'similarity: wrote {path}: {len(drawn.a)} pairs in {folds} folds, of '
                f'{len({*drawn.a, *drawn.b})} videos out of {len(found)}')
    return drawn


def labels_of_records(records_dir: str, split: str) -> dict[str, str]:
    """Returns media id → class of a split's videos with exactly one label."""
    from c3d_tf.data import pipeline  # TensorFlow, which nothing else here needs
    from c3d_tf.data import records

    index = records.read_index(records_dir)
    names, labels = records.names_damage(lambda _: pipeline.read_labels(index.split(split)))(records_dir)
    return {name: index.class_names[own[0]] for name, own in zip(names, labels) if len(own) == 1}


def labels_of_dataset(dataset) -> tuple[dict[str, str], dict[str, str]]:
    """Returns (media id → class, media id → group) of a `datasets.Dataset`'s videos with one label."""
    single = {dataset.media_id(one): one for one in dataset.examples if len(one.labels) == 1}
    return ({name: dataset.class_names[one.labels[0]] for name, one in single.items()},
            {name: one.group for name, one in single.items()})


def cross_validate(values: np.ndarray, same: np.ndarray, folds: np.ndarray, *,
                   C: float) -> tuple[np.ndarray, dict[str, float]]:
    """Returns each pair's score from an SVM that was trained on the other folds, and each fold's C.

    Args:
      values: float [P, D]; each column is brought to mean 0 and deviation 1 over the training folds.
      same: bool [P].
      folds: [P], names.
      C: of the SVM; 0: see `similarity`.

    Returns:
      (float64 [P], above 0 where the pair is taken for the same action; fold → C).
    """
    scores, chosen = np.zeros(len(same)), {}
    for fold in _in_order(folds):
        train = folds != fold
        best = C
        if not C:
            inner = values[train], same[train], folds[train]
            right = [summary(cross_validate(*inner, C=one)[0], *inner[1:])['accuracy'] for one in _CS]
            best = _CS[int(np.argmax(right))]  # the smallest of equals
        mean, deviation = values[train].mean(axis=0), values[train].std(axis=0)
        deviation[deviation == 0] = 1  # a measure that never varies tells nothing
        machine = svm.LinearSVC(C=best, dual=False, max_iter=10_000)
        with warnings.catch_warnings():
            warnings.simplefilter('error', exceptions.ConvergenceWarning)
            machine.fit((values[train] - mean) / deviation, same[train])
        scores[~train] = machine.decision_function((values[~train] - mean) / deviation)
        chosen[str(fold)] = best
    return scores, chosen


def summary(scores: np.ndarray, same: np.ndarray, folds: np.ndarray) -> dict:
    """Returns accuracy, standard_error, auc and per_fold.

    Args:
      scores: float [P], above 0 for the same action.
      same: bool [P].
      folds: [P], names of two folds or more.
    """
    right = (scores > 0) == same
    rows = [{'fold': str(fold), 'pairs': int((folds == fold).sum()),
             'accuracy': float(right[folds == fold].mean())} for fold in _in_order(folds)]
    each = np.array([row['accuracy'] for row in rows])
    return {'accuracy': float(each.mean()),
            'standard_error': float(each.std(ddof=1) / np.sqrt(len(each))),
            'auc': float(sk_metrics.roc_auc_score(same, scores)), 'per_fold': rows}


def _short(scores, same, folds) -> dict:
    return {key: value for key, value in summary(scores, same, folds).items() if key != 'per_fold'}


def _curve(scores, same) -> tuple[np.ndarray, np.ndarray, float]:
    wrong, right, _ = sk_metrics.roc_curve(same, scores)
    return wrong, right, float(sk_metrics.roc_auc_score(same, scores))


def _in_order(folds: np.ndarray) -> list:
    """Returns the folds' names in the order of their first pair."""
    return list(dict.fromkeys(folds.tolist()))


def _found(wanted, vectors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns wanted media id → the features' own name of it, for all that are there.

    ASLAN's pairs give a sample's number, its files have that number at the end of their names.
    """
    names = feature_sets.match(wanted, vectors)
    numbered = {}
    for name in vectors:
        number = re.search(r'\d+$', os.path.splitext(name)[0])
        if number:
            numbered.setdefault(int(number[0]), []).append(name)
    for name in wanted:
        alike = numbered.get(int(name), []) if name.isdecimal() else []
        if name not in names and len(alike) == 1:
            names[name] = alike[0]
    return names


def _similarities(features, given, layers, path: str, max_failures: int):
    """Returns (pairs whose videos all folders have, column name → float64 [P, 12], what was read).

    One layer's vectors are in memory at a time: pool5 of ASLAN alone is 120 MB.
    """
    if not features or not layers:
        raise errors.UsageError('--features, --similarity_layers: expected a folder that '
                                '--mode=features wrote, and a layer')
    wanted = sorted({*given.a, *given.b})
    names = [_found(wanted, feature_sets.read(folder, layers[0])) for folder in features]
    missing = [name for name in wanted if not all(name in own for own in names)]
    if missing and 0 <= max_failures < len(missing):
        raise errors.UsageError(
            f'{path}: {len(missing)} of {len(wanted)} videos have no features in {", ".join(features)}, '
            f'e.g. {missing[0]!r}; extract them, take their pairs out, or allow it by --max_failures')
    gone = set(missing)
    kept = given.take(np.array([not gone & {a, b} for a, b in zip(given.a, given.b)], bool))
    for fold in dict.fromkeys(given.folds):
        own = {bool(same) for same, one in zip(kept.same, kept.folds) if one == fold}
        if len(own) < 2:
            raise errors.UsageError(f'{path}: without the {len(missing)} videos that have no features, '
                                    f'fold {fold} lacks pairs of one kind; extract their features')
    tables, sources = {}, []
    for folder, own in zip(features, names):
        for layer in layers:
            vectors = feature_sets.read(folder, layer)
            used = sorted({own[name] for name in (*kept.a, *kept.b)})
            matrix, row = _matrix(vectors, used, folder, layer)
            stem = os.path.basename(os.path.normpath(folder))
            name = layer if len(features) == 1 else f'{stem} {layer}'
            if name in tables:
                raise errors.UsageError(f'--features, --similarity_layers: {folder} {layer} is there '
                                        'twice, or two folders have one name')
            tables[name] = measures.twelve(matrix[[row[own[a]] for a in kept.a]],
                                           matrix[[row[own[b]] for b in kept.b]])
            sources.append({'folder': folder, 'layer': layer, 'dimensions': matrix.shape[1],
                            'sha256': hashlib.sha256(matrix).hexdigest()})
    return kept, tables, sources


def _matrix(vectors, names: list[str], folder: str, layer: str) -> tuple[np.ndarray, dict[str, int]]:
    """Returns the vectors as float32 [V, K], and each video's row."""
    for name in names:
        if name not in vectors:
            raise errors.UsageError(f'{folder}: {name!r} has no {layer}; extract the features again')
        if (vectors[name] < 0).any():
            raise errors.UsageError(f'{folder}: {layer} of {name!r} has values below 0, of which the '
                                    'measures take roots; choose layers after their ReLU by '
                                    '--similarity_layers')
    return np.stack([vectors[name] for name in names]), {name: i for i, name in enumerate(names)}


def _headline(result: dict) -> str:
    return (f'accuracy {result["accuracy"]:.3f} ± {result["standard_error"]:.3f} · '
            f'AUC {result["auc"]:.3f}')


def _say(result: dict) -> None:
    protocol = result['protocol']
    console.say(f'  {_headline(result)}')
    console.say(f'  {protocol["pairs_used"]} pairs in {protocol["folds"]} folds that share no class')
    for row in result['per_layer']:
        console.say(f'    {row["layer"]:12} alone  {_headline(row)}')
    best = max(result['per_measure'], key=lambda row: row['accuracy'])
    console.say(f'    best single measure: row {best["row"]} of {best["layer"]}  {_headline(best)}')
