"""The pictures of a finished run."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

if "MPLBACKEND" not in os.environ:  # a notebook's own would no longer show what its cells draw
    matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from interflow_jax.cli.files import write_whole

MOST_NUMBERED = 20  # the most columns for which a heat map's cells have room for figures
# Class names are no mathematics: one with two dollar signs would fail to be drawn.
STYLE: Any = {"axes.grid": True, "grid.alpha": 0.3, "figure.dpi": 120, "text.parse_math": False}


def draw(
    history: list[dict[str, Any]], result: dict[str, Any], class_names: Sequence[str], folder: Path
) -> None:
    """Writes learning_curves.png, branch_accuracy.png and fusion_weights.png."""
    folder.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        for name, chart in (
            ("learning_curves", _learning_curves(history)),
            ("branch_accuracy", _branch_accuracy(history, result)),
            ("fusion_weights", _fusion_weights(history, result, class_names)),
        ):
            chart.suptitle(f"{result['method']} on {result['dataset']}, seed {result['seed']}")
            save(chart, folder / f"{name}.png")


def save(chart: Figure, file: Path) -> None:
    """Writes a chart as PNG, whole or not at all, and closes it."""
    drawn = io.BytesIO()
    chart.savefig(drawn, format="png")
    plt.close(chart)
    write_whole(file, drawn.getvalue())


def short(name: str) -> str:
    """A name of at most 20 characters, as there is room for."""
    return name if len(name) <= 20 else f"{name[:19]}…"


def heatmap(
    axes: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], label: str = ""
) -> None:
    """Colours of [rows, columns], blue to red around zero, and figures where there is room."""
    bound = float(np.nanmax(np.abs(values))) or 1.0
    image = axes.imshow(values, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=0 if len(columns) < 11 else 90)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(visible=False)  # it would cross out the figures
    axes.figure.colorbar(image, ax=axes, label=label)
    if len(columns) <= MOST_NUMBERED:
        for (row, column), value in np.ndenumerate(values):
            color = "white" if abs(value) > 0.6 * bound else "black"
            options: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7}
            if np.isfinite(value):
                axes.text(column, row, f"{value:z.2f}", color=color, **options)


def _by_epoch(
    axes: Axes, history: list[dict[str, Any]], series: dict[str, list[float]], ylabel: str
) -> None:
    for label, values in series.items():
        axes.plot([record["epoch"] for record in history], values, marker=".", label=label)
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


def _of_branches(history: list[dict[str, Any]], figure: str) -> dict[str, list[float]]:
    return {f"after {tap}": [epoch[figure][tap] for epoch in history] for tap in history[0][figure]}


def _learning_curves(history: list[dict[str, Any]]) -> Figure:
    chart, both = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axes, figure, unit in zip(both, ("loss", "accuracy"), ("nats", "%"), strict=True):
        series = {
            split: [epoch[f"{split}_{figure}"] for epoch in history] for split in ("train", "test")
        }
        _by_epoch(axes, history, series, f"{figure} ({unit})")
    return chart


def _branch_accuracy(history: list[dict[str, Any]], result: dict[str, Any]) -> Figure:
    chart, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    fused = {"fused": [epoch["test_accuracy"] for epoch in history]}
    _by_epoch(left, history, _of_branches(history, "branch_accuracy") | fused, "test accuracy (%)")
    labels = [str(label) for label in result["branches"]]
    right.plot(labels, result["branch_accuracy"], "o-", label="branch alone")
    right.axhline(result["test_accuracy"], color="k", ls="--", label="fused")
    right.set(xlabel="branch after")
    right.legend()
    return chart


def _fusion_weights(
    history: list[dict[str, Any]], result: dict[str, Any], class_names: Sequence[str]
) -> Figure:
    weights = np.array(result.get("weights_by_class", result["weights"]))
    if weights.ndim == 1:
        chart, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
        _by_epoch(axes, history, _of_branches(history, "weights"), "fusion weight")
        return chart
    rows, columns = weights.shape
    size = (min(2 + 0.6 * columns, 24), 2 + 0.45 * rows)
    chart, axes = plt.subplots(figsize=size, layout="constrained")
    labels = [str(label) for label in result["branches"]]
    heatmap(axes, weights, labels, list(class_names), "fusion weight")
    axes.set(ylabel="branch after")
    return chart
