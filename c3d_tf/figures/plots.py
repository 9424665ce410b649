# SPDX-License-Identifier: Apache-2.0
"""Figures as PNG files."""

import matplotlib
import numpy as np
from matplotlib import figure

from c3d_tf.figures import fonts


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
    fonts.save(picture, path, dpi=110)


def classes(rows, path, *, title: str, most: int = 60) -> None:
    """Draws a bar for the accuracy of each class, the worst on top.

    Args:
      rows: dicts of class, videos, right; of more than `most` classes with videos, the worst are drawn.
      path: the PNG to write, or a binary file.
      title: above the picture.
      most: bars.
    """
    rows = sorted((row for row in rows if row['videos']), key=lambda row: row['right'] / row['videos'])
    shown = rows[:most]
    share = [row['right'] / row['videos'] for row in shown]
    picture = figure.Figure(figsize=(7.2, 1.2 + 0.26 * len(shown)), layout='constrained')
    axes = picture.add_subplot()
    bars = axes.barh(range(len(shown)), share, color='#4878a8')
    axes.bar_label(bars, [f'{row["right"]} of {row["videos"]}' for row in shown], padding=4, fontsize=8)
    axes.set_yticks(range(len(shown)), [row['class'] for row in shown], fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.16), xticks=np.linspace(0, 1, 6), xlabel='share of its videos that is right',
             title=title + (f', the worst {most} of {len(rows)}' if len(rows) > most else ''))
    axes.margins(y=0.02)
    axes.spines[['top', 'right']].set_visible(False)
    fonts.save(picture, path, dpi=100)


def taken_for(
    matrix: np.ndarray, class_names, path, *, title: str, most: int = 24, bars: int = 4
) -> None:
    """Draws for each class what its videos were taken for, the class with the most mistakes first.

    Args:
      matrix: int [K, K], counts: rows are the true class, columns the predicted one.
      class_names: K names.
      path: the PNG to write, or a binary file.
      title: above the picture.
      most: classes that are drawn.
      bars: of a class.
    """
    present = np.flatnonzero(matrix.sum(axis=1))
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shown = present[np.argsort(share[present, present], kind='stable')][:most]
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    size = 3.6 * columns, 0.7 + (0.45 + 0.22 * bars) * lines
    picture = figure.Figure(figsize=size, layout='constrained')
    for number, true in enumerate(shown):
        axes = picture.add_subplot(lines, columns, number + 1)
        best = np.argsort(-matrix[true], kind='stable')[:bars]
        best = best[matrix[true, best] > 0]
        drawn = axes.barh(range(len(best)), share[true, best],
                          color=['#5a9367' if guess == true else '#c0504d' for guess in best])
        axes.bar_label(drawn, matrix[true, best], padding=3, fontsize=8)
        axes.set_yticks(range(len(best)), [class_names[guess] for guess in best], fontsize=8)
        axes.tick_params(left=False)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1.12), xticks=[], ylim=(bars - 0.5, -0.5))
        axes.set_title(class_names[true], fontsize=10, loc='left', fontweight='bold')
        axes.spines[['top', 'right', 'bottom']].set_visible(False)
    picture.suptitle(title + (f', the worst {most} of {len(present)}' if len(present) > most else ''))
    fonts.save(picture, path, dpi=100)


def similarity(curves, accuracies: np.ndarray, measures, layers, path: str, *, title: str) -> None:
    """Draws ROC curves beside a table of what each measure alone reaches.

    Args:
      curves: name → (false positive rates, true positive rates, area under the curve); the first is the
        one that counts.
      accuracies: float [R, L], shares.
      measures: R formulas.
      layers: L names.
      path: the PNG to write.
      title: above the picture.
    """
    picture = figure.Figure(figsize=(6.4 + 2.6 + 0.8 * len(layers), 5.8), layout='constrained')
    roc, table = picture.subplots(1, 2, width_ratios=[6.0, 2.2 + 0.8 * len(layers)])
    for number, (name, (wrong, right, area)) in enumerate(curves.items()):
        first = number == 0
        roc.plot(wrong, right, color='black' if first else f'C{number - 1}', zorder=3 if first else 2,
                 linewidth=2.4 if first else 1.3, label=f'{name}: AUC {area:.3f}')
    roc.plot([0, 1], [0, 1], color='grey', linestyle=':', linewidth=1, label='chance: AUC 0.500')
    roc.set(xlim=(0, 1), ylim=(0, 1), aspect='equal', xlabel='pairs of two actions taken for the same',
            ylabel='pairs of one action taken for the same')
    roc.grid(alpha=0.3)
    roc.legend(loc='lower right', fontsize=9, framealpha=1)
    image = table.imshow(accuracies, cmap='Blues', vmin=0.5, vmax=1, aspect='auto')
    for (row, column), share in np.ndenumerate(accuracies):
        table.text(column, row, f'{share:.3f}', ha='center', va='center', fontsize=9,
                   color='white' if share > 0.75 else 'black')
    table.set_xticks(range(len(layers)), layers, rotation=90 if max(map(len, layers)) > 6 else 0)
    table.set_yticks(range(len(measures)), [f'{text}  {row}' for row, text in enumerate(measures, 1)],
                     fontsize=9)
    table.tick_params(length=0)
    table.set_title('accuracy of one measure alone', fontsize=10)
    picture.colorbar(image, ax=table, shrink=0.8)
    picture.suptitle(title)
    fonts.save(picture, path, dpi=110)


def compactness(curves, path: str, *, title: str) -> None:
    """Draws accuracy by PCA dimension, a line for each set of features.

    Args:
      curves: dicts of features (a name), dimensions, accuracy, all_dimensions, accuracy_of_all.
      path: the PNG to write.
      title: above the picture.
    """
    picture = figure.Figure(figsize=(7.2, 5.4), layout='constrained')
    axes = picture.add_subplot()
    best = {}
    for curve in curves:
        for x, y in zip(curve['dimensions'], curve['accuracy']):
            best[x] = max(best.get(x, 0), y)
    for number, curve in enumerate(curves):
        colour = f'C{number % 10}'
        axes.plot(curve['dimensions'], curve['accuracy'], marker='o', color=colour,
                  label=curve['features'])
        full = curve['accuracy_of_all']
        axes.axhline(full, color=colour, linestyle='--', linewidth=1,
                     label=f'all its {curve["all_dimensions"]:,} dimensions: {full:.3f}')
        for x, y in zip(curve['dimensions'], curve['accuracy']):
            if y == best[x]:  # the JSON has them all
                axes.annotate(f'{y:.3f}', (x, y), textcoords='offset points', xytext=(0, 6), ha='center',
                              fontsize=8)
    axes.set_xscale('log')
    axes.set_xticks(sorted(best), [str(dim) for dim in sorted(best)])
    axes.minorticks_off()
    highest = max([*best.values(), *(curve['accuracy_of_all'] for curve in curves)])
    axes.set_ylim(0, min(1.05, 1.2 * highest))
    axes.set(xlabel='dimensions after PCA', ylabel='accuracy', title=title)
    axes.grid(alpha=0.3)
    picture.legend(fontsize=9, loc='outside lower center', ncols=2)
    fonts.save(picture, path, dpi=110)


def embedding(panels, class_names, path: str, *, title: str) -> None:
    """Draws points in the plane, coloured by class.

    Args:
      panels: (title, float [N, 2], class index int [N]) of each panel.
      class_names: by index; only classes with points are shown.
      path: the PNG to write.
      title: above the picture.
    """
    shown = sorted({label for _, _, labels in panels for label in labels.tolist()})
    colours = matplotlib.colormaps[
        'tab10' if len(shown) <= 10 else 'tab20' if len(shown) <= 20 else 'gist_rainbow']
    colour = {label: colours(i if len(shown) <= 20 else i / len(shown)) for i, label in enumerate(shown)}
    columns = -(-len(shown) // 30)  # of the legend
    picture = figure.Figure(figsize=(6.4 * len(panels) + 1.7 * columns, 6.4), layout='constrained')
    for number, (name, points, labels) in enumerate(panels):
        axes = picture.add_subplot(1, len(panels), number + 1)
        size = float(np.clip(8000 / len(points), 4, 40))
        for label in shown:
            own = points[labels == label]
            axes.scatter(own[:, 0], own[:, 1], s=size, color=colour[label], label=str(label), linewidths=0)
            # Past twenty colours a legend alone cannot tell.
            if len(own) and len(shown) > 20:
                axes.annotate(class_names[label], np.median(own, axis=0), ha='center', fontsize=6)
        axes.set(xticks=[], yticks=[], title=name)
    legend = picture.legend(loc='outside right center', handles=axes.collections, fontsize=8, ncols=columns,
                            markerscale=1.5)
    for text in legend.get_texts():  # a name that begins with _ would have been left out
        text.set_text(class_names[int(text.get_text())])
    picture.suptitle(title)
    fonts.save(picture, path, dpi=110)


def study(curves, path: str, *, chance: float, title: str) -> None:
    """Draws accuracy by epoch, a line for each network, as Figure 2 of the paper.

    Args:
      curves: name → (mean float [E], standard error float [E] or None).
      path: the PNG to write.
      chance: accuracy of guessing.
      title: above the picture.
    """
    picture = figure.Figure(figsize=(8.2, 5.4), layout='constrained')
    axes = picture.add_subplot()
    ranked = sorted(curves, key=lambda name: -curves[name][0][-1])
    for number, name in enumerate(curves):
        mean, error = curves[name]
        epochs = np.arange(1, len(mean) + 1)
        last = f'{mean[-1]:.3f}' + ('' if error is None else f' ± {error[-1]:.3f}')
        axes.plot(epochs, mean, color=f'C{number}', linewidth=1.8, label=f'{name}: {last}',
                  zorder=3 + len(curves) - ranked.index(name))
        if error is not None:
            axes.fill_between(epochs, mean - error, mean + error, color=f'C{number}', alpha=0.15,
                              linewidth=0)
    axes.axhline(chance, color='grey', linestyle=':', linewidth=1, label=f'chance: {chance:.3f}')
    handles, names = axes.get_legend_handles_labels()
    order = [names.index(text) for name in ranked for text in names if text.startswith(f'{name}: ')]
    order.append(len(names) - 1)
    axes.legend([handles[i] for i in order], [names[i] for i in order], fontsize=9, loc='lower right',
                title='last epoch')
    axes.set(xlabel='epoch', ylabel='clip accuracy', xlim=(1, max(2, len(epochs))), title=title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    fonts.save(picture, path, dpi=110)
