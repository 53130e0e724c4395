"""How right predictions are, by class: a table, the confusion, and the surest mistakes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from interflow_jax.cli import charts, markdown
from interflow_jax.cli.files import write_whole

COLUMNS = ("class", "precision", "recall", "f1", "count")
_NAMED = 60  # classes at most whose names a chart has room for
_MISTAKES = (4, 6)  # rows and columns of pictures


class Answers:
    """Predicted classes beside the true ones.

    Attributes:
      confusion: how many pictures, [true classes, predicted classes], int.
      rows: per class, `COLUMNS`: figures in percent, None where there is nothing to count.
    """

    def __init__(self, class_names: Sequence[str], labels: np.ndarray, predicted: np.ndarray):
        self.class_names, count = list(class_names), len(class_names)
        cells = np.bincount(labels * count + predicted, minlength=count**2)
        self.confusion = cells.reshape(count, count)
        right, true, said = np.diag(self.confusion), *(self.confusion.sum(axis) for axis in (1, 0))
        self.rows = []
        for name, *counts in zip(class_names, right, said, true, strict=True):
            hits, guesses, examples = map(int, counts)
            wholes = (guesses, examples, (guesses + examples) / 2)
            figures = [100 * hits / whole if whole else None for whole in wholes]
            self.rows.append(dict(zip(COLUMNS, (name, *figures, examples), strict=True)))

    def table(self) -> str:
        """The rows, in percent, as text."""
        rows = [list(row.values()) for row in self.rows]
        return "\n".join(markdown.table(list(COLUMNS), rows))

    def write(self, pictures: Path, table: Path) -> None:
        """Writes confusion.png into a folder, and the rows, with the accuracy, as JSON."""
        total = int(self.confusion.sum())
        accuracy = 100 * float(np.trace(self.confusion)) / total
        content = {"accuracy": accuracy, "count": total, "classes": self.rows}
        write_whole(table, json.dumps(content, indent=1) + "\n")
        count = len(self.class_names)
        side = 3 + 0.45 * count if count <= _NAMED else 12
        with plt.rc_context(charts.STYLE):
            chart, axes = plt.subplots(figsize=(side + 1, side), layout="constrained")
            shares = self.confusion / np.maximum(self.confusion.sum(1, keepdims=True), 1)
            image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            chart.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
            axes.set(xlabel="predicted", ylabel="true", title=f"{accuracy:.2f} % of {total:,}")
            axes.grid(visible=False)
            if count <= _NAMED:
                names = [charts.short(name) for name in self.class_names]
                axes.set_xticks(range(count), names, rotation=90)
                axes.set_yticks(range(count), names)
            if count <= charts.MOST_NUMBERED:
                for row, column in np.argwhere(self.confusion):
                    color = "white" if shares[row, column] > 0.6 else "black"
                    cell = str(self.confusion[row, column])
                    axes.text(column, row, cell, color=color, ha="center", va="center")
            charts.save(chart, pictures / "confusion.png")


def draw_mistakes(
    file: Path,
    class_names: Sequence[str],
    names: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    read: Callable[[np.ndarray], Any],
) -> None:
    """Draws the surest wrong pictures, with their file's name, the truth and the guess.

    Args:
      names: of the pictures: their files, or indices in a split.
      labels: [pictures], int.
      probabilities: [pictures, classes].
      read: gives the pictures at [n] indices, [n, height, width, channels], uint8.
    """
    predicted, most, columns = probabilities.argmax(1), *_MISTAKES
    (wrong,) = np.nonzero(predicted != labels)
    surest = wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][: most * columns]
    rows = max(1, -(-len(surest) // columns))
    with plt.rc_context(charts.STYLE):
        size = (12, 0.6 + 2.4 * rows)
        chart, grid = plt.subplots(rows, columns, figsize=size, layout="constrained")
        said = f"the surest {len(surest)} of {len(wrong):,}" if len(wrong) else "none"
        chart.suptitle(f"mistakes in {len(labels):,} pictures: {said}")
        for axes in np.ravel(grid):
            axes.axis("off")
        images = read(surest) if len(surest) else ()
        for axes, index, image in zip(np.ravel(grid), surest, images, strict=False):
            shown = image[..., 0] if image.shape[-1] == 1 else image
            axes.imshow(shown, cmap="gray", vmin=0, vmax=255)
            told = (class_names[int(label)] for label in (labels[index], predicted[index]))
            name, true, guess = map(charts.short, (Path(names[int(index)]).name, *told))
            sure = f"{probabilities[index].max():.1%}"
            axes.set_title(f"{name}\ntrue: {true}\n{guess}, {sure}", fontsize=8)
        charts.save(chart, file)
