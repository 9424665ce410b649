# SPDX-License-Identifier: Apache-2.0
"""The linear SVM of the paper's experiments: liblinear on descriptors, over splits and dimensions."""

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn import decomposition
from sklearn import exceptions
from sklearn import model_selection
from sklearn import svm

from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import metrics
from c3d_tf.data import samples as sampling

CHOICES_OF_C = (0.01, 0.1, 1.0, 10.0, 100.0)
MAX_ITERATIONS = 10_000  # scikit-learn's own 1,000 end too early for a large C
OFFICIAL = 3             # no data set of the paper has more splits; leave-one-out has hundreds


def classify(train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, classes: int, cost: float,
             seed: int = 0) -> tuple[np.ndarray, bool]:
    """Trains a linear SVM (L2-regularised squared hinge, one class against the rest) and scores.

    Args:
      train, test: float32 [N, D] and [T, D].
      labels: int [N].
      classes: K.
      cost: C.
      seed: of the order in which liblinear visits samples.

    Returns:
      (float64 [T, K], distances from each class's plane, -inf for classes that `labels` lack;
      whether liblinear converged).
    """
    model = svm.LinearSVC(C=cost, random_state=seed, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always', exceptions.ConvergenceWarning)
        model.fit(train, labels)
    values = model.decision_function(test)
    if values.ndim == 1:  # two classes share one plane
        values = np.stack([-values, values], axis=1)
    scores = np.full((len(test), classes), -np.inf)
    scores[:, model.classes_] = values
    return scores, not any(issubclass(one.category, exceptions.ConvergenceWarning) for one in caught)


def choose_cost(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> float:
    """Returns the C of CHOICES_OF_C with the best cross-validated accuracy, the smallest of equals.

    Args:
      values: float32 [N, D], the training part alone.
      labels: int [N].
      groups: N names; a group is never on both sides.

    Raises:
      errors.UsageError: a class has one group alone.
    """
    fewest, label = min((len(set(groups[labels == label])), label) for label in np.unique(labels))
    if fewest < 2:
        raise errors.UsageError(f'--C=0: class number {label} has one group to learn from, which cannot '
                                'be split for cross-validation; give --C=1')
    folds = list(model_selection.StratifiedGroupKFold(min(5, fewest)).split(values, labels, groups))
    means = []
    for cost in CHOICES_OF_C:
        right = 0
        for train, test in folds:
            scores, _ = classify(values[train], labels[train], values[test], classes=labels.max() + 1,
                                 cost=cost, seed=seed)
            right += (scores.argmax(axis=1) == labels[test]).sum()
        means.append(right / len(labels))
    return CHOICES_OF_C[int(np.argmax(means))]


def over_splits(values: np.ndarray, samples: sampling.Samples, *, cost: float, seed: int = 0,
                what: str = 'svm') -> dict:
    """Trains and tests on every split.

    Args:
      values: float32 [N, D], descriptors of the samples.
      samples: their labels and splits.
      cost: C; 0 chooses it in each training part.
      seed: see `classify`.
      what: the first words of the progress line.

    Returns:
      accuracy: the mean of the splits, or with leave-one-out the share of all samples;
      mean_class_accuracy; splits; per_class; confusion as lists. Counts of classes are sums over splits.
    """
    labels, groups = samples.first_labels, np.array(samples.groups)
    truth = np.zeros((len(samples.names), len(samples.class_names)), bool)
    for row, own in zip(truth, samples.labels):
        row[list(own)] = True
    progress = console.Progress(what, len(samples.splits), 'splits')
    splits, table = [], np.zeros((len(samples.class_names),) * 2, int)
    for title, train, test in samples.splits:
        own = cost or choose_cost(values[train], labels[train], groups[train], seed)
        scores, converged = classify(values[train], labels[train], values[test], cost=own, seed=seed,
                                     classes=len(samples.class_names))
        hit = metrics.hits(scores, truth[test], 1)
        error = float(np.sqrt(hit * (1 - hit) / len(test)))
        splits.append({'split': title, 'train': len(train), 'test': len(test), 'C': own, 'accuracy': hit,
                       'standard_error': error, 'converged': converged})
        table += metrics.confusion(scores, truth[test])
        progress.update(len(splits))
    progress.close()
    counts = table.sum(axis=1)
    weights = [split['test'] for split in splits] if len(splits) > OFFICIAL else None
    return {
        'accuracy': float(np.average([split['accuracy'] for split in splits], weights=weights)),
        'mean_class_accuracy': float((np.diag(table)[counts > 0] / counts[counts > 0]).mean()),
        'splits': splits,
        'per_class': [{'class': name, 'tested': int(count), 'right': int(row[i]),
                       'accuracy': float(row[i] / count) if count else None,
                       'mostly_taken_for': _mistake(row, i, samples.class_names)}
                      for i, (name, row, count) in enumerate(zip(samples.class_names, table, counts))],
        'confusion': table.tolist(),
    }


def compactness(values: np.ndarray, samples: sampling.Samples, dims: Sequence[int],
                costs: Sequence[float], seed: int = 0) -> dict:
    """Returns accuracy by PCA dimension (Fig. 5 of the paper).

    The PCA is fitted on the training part of each split: centred, not whitened; the SVM learns on its
    coordinates as they are.

    Args:
      values: float32 [N, D].
      samples: labels and splits.
      dims: numbers of dimensions; those above D, or above the videos of a training part, are left out.
      costs: C of each split.
      seed: see `classify`.

    Returns:
      dimensions, accuracy (mean of the splits), variance_kept, too_many: lists.
    """
    labels = samples.first_labels
    most = min(values.shape[1], *(len(train) for _, train, _ in samples.splits))
    own = [dim for dim in sorted(dims) if dim <= most]
    hits = np.zeros((len(samples.splits), len(own)))
    kept = np.zeros_like(hits)
    for row, (_, train, test) in enumerate(samples.splits if own else ()):
        # One for all dimensions: the first d axes are those of a PCA of d dimensions.
        axes = decomposition.PCA(own[-1], svd_solver='full').fit(values[train])
        near, far = axes.transform(values[train]), axes.transform(values[test])
        for column, dim in enumerate(own):
            scores, _ = classify(near[:, :dim], labels[train], far[:, :dim], cost=costs[row], seed=seed,
                                 classes=len(samples.class_names))
            hits[row, column] = (scores.argmax(axis=1) == labels[test]).mean()
            kept[row, column] = axes.explained_variance_ratio_[:dim].sum()
    return {'dimensions': own, 'accuracy': hits.mean(axis=0).tolist(),
            'variance_kept': kept.mean(axis=0).tolist(),
            'too_many': [dim for dim in sorted(dims) if dim > most]}


def _mistake(row: np.ndarray, own: int, class_names) -> str:
    others = row.copy()
    others[own] = 0
    return class_names[int(others.argmax())] if others.any() else ''
