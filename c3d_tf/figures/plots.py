# SPDX-License-Identifier: Apache-2.0
"""Figures as PNG files."""

import numpy as np
from matplotlib import figure


def confusion(matrix: np.ndarray, class_names, path: str, *, title: str) -> None:
    """Draws a confusion matrix: rows are the true class, columns the predicted one.

    Args:
      matrix: int [K, K], counts.
      class_names: K names.
      path: the PNG to write.
      title: above the picture.
    """
    classes = len(class_names)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.5 + 0.45 * classes, 5, 24))
    picture = figure.Figure(figsize=(side, side * 0.9), layout='constrained')
    axes = picture.add_subplot()
    image = axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
    size = float(np.clip(200 / classes, 4, 10))
    if classes <= 120:  # more names would be a grey smear
        axes.set_xticks(range(classes), class_names, rotation=90, fontsize=size)
        axes.set_yticks(range(classes), class_names, fontsize=size)
    if classes <= 30:
        for row, column in zip(*np.nonzero(matrix)):
            axes.text(column, row, str(matrix[row, column]), ha='center', va='center', fontsize=size,
                      color='white' if share[row, column] > 0.5 else 'black')
    axes.set_xlabel('predicted class')
    axes.set_ylabel('true class')
    axes.set_title(title)
    picture.colorbar(image, ax=axes, shrink=0.8, label='share of the true class')
    picture.savefig(path, dpi=110, format='png')
