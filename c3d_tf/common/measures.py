# SPDX-License-Identifier: Apache-2.0
"""The twelve measures of how much alike two non-negative vectors are: table 3 of Kliper-Gross et al.

"The Action Similarity Labeling Challenge", TPAMI 34(3), 2012. Some grow with likeness, some with
distance; a classifier learns which. The paper leaves three things open, so these are our reading: a
quotient with a divisor of 0 counts 0, a logarithm's arguments are raised by EPSILON, and "the last
four", for which it normalises the vectors first, are rows 9 to 12 and the norm is L1.
"""

import numpy as np

NAMES = (
    'Σ xy',
    '√Σ xy',
    '√Σ √x√y',
    '√Σ xy/(x+y)',
    'Σ xy / (√Σx² √Σy²)',
    '√Σ (x−y)²/(x+y)',
    'Σ |x−y|',
    '√Σ (√x−√y)²',
    '√Σ (x−y)²',
    '(Σ x log(x/y) + Σ y log(y/x)) / 2',
    'Σ √max(x,y) / √(x+y)',
    'Σ min(x,y) / (Σx Σy)',
)
L1_NORMALISED = (9, 10, 11, 12)  # the rows, counted from 1, that see vectors of sum 1
EPSILON = 1e-10
_AT_ONCE = 1 << 20  # coordinates that are in memory as float64 at once


def twelve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns float64 [P, 12], the measures of each pair of rows in the order of NAMES.

    Args:
      x, y: float [P, K], finite, no coordinate below 0; rows 1 to 8 take them as they are. A vector of
        zeros is one like any other: all measures are finite.
    """
    step = max(1, _AT_ONCE // max(1, x.shape[1]))
    parts = [_twelve(x[i:i + step].astype(np.float64), y[i:i + step].astype(np.float64))
             for i in range(0, len(x), step)]
    return np.concatenate(parts) if parts else np.zeros((0, len(NAMES)))


def _twelve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    product, total = x * y, x + y
    dot = product.sum(axis=1)
    root_x, root_y = np.sqrt(x), np.sqrt(y)
    norms = np.sqrt(np.square(x).sum(axis=1)) * np.sqrt(np.square(y).sum(axis=1))
    columns = [
        dot,
        np.sqrt(dot),
        np.sqrt((root_x * root_y).sum(axis=1)),
        np.sqrt(_ratio(product, total).sum(axis=1)),
        _ratio(dot, norms),
        np.sqrt(_ratio(np.square(x - y), total).sum(axis=1)),
        np.abs(x - y).sum(axis=1),
        np.sqrt(np.square(root_x - root_y).sum(axis=1)),
    ]
    x, y = (_ratio(v, v.sum(axis=1, keepdims=True)) for v in (x, y))
    logs = np.log((x + EPSILON) / (y + EPSILON))
    columns += [
        np.sqrt(np.square(x - y).sum(axis=1)),
        ((x - y) * logs).sum(axis=1) / 2,
        _ratio(np.sqrt(np.maximum(x, y)), np.sqrt(x + y)).sum(axis=1),
        _ratio(np.minimum(x, y).sum(axis=1), x.sum(axis=1) * y.sum(axis=1)),
    ]
    return np.stack(columns, axis=1)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b != 0)
