"""The pictures of a finished run."""

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.runs.events import flat
from experiments.runs.files import write_whole

MOST_NUMBERED = 20  # the most classes for which a heat map's cells have room for figures


def draw(history: list[dict[str, Any]], result: dict[str, Any], class_names, folder: Path) -> None:
    """Writes learning_curves.png, branch_accuracy.png and fusion_weights.png."""
    folder.mkdir(exist_ok=True)
    epochs = pd.DataFrame([flat(record) for record in history]).set_index("epoch")
    with plt.rc_context({"axes.grid": True, "grid.alpha": 0.3, "figure.dpi": 120}):
        for name, chart in (
            ("learning_curves", _learning_curves(epochs)),
            ("branch_accuracy", _branch_accuracy(epochs, result)),
            ("fusion_weights", _fusion_weights(epochs, result, class_names)),
        ):
            chart.suptitle(f"{result['method']} on {result['dataset']}, seed {result['seed']}")
            save(chart, folder / f"{name}.png")


def save(chart: Figure, file: Path) -> None:
    """Writes a chart as PNG, whole or not at all, and closes it."""
    drawn = io.BytesIO()
    chart.savefig(drawn, format="png")
    plt.close(chart)
    write_whole(file, drawn.getvalue())


def _by_epoch(figures: pd.DataFrame, axes: Any, ylabel: str) -> None:
    figures.plot(ax=axes, marker=".", xlabel="epoch", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _of_branches(epochs: pd.DataFrame, figure: str) -> pd.DataFrame:
    return epochs.filter(like=figure).rename(columns=lambda name: name.replace(figure, "after "))


def _learning_curves(epochs: pd.DataFrame) -> Figure:
    chart, both = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axes, figure, unit in zip(both, ("loss", "accuracy"), ("nats", "%"), strict=True):
        columns = {f"{split}_{figure}": split for split in ("train", "test")}
        _by_epoch(epochs[[*columns]].rename(columns=columns), axes, f"{figure} ({unit})")
    return chart


def _branch_accuracy(epochs: pd.DataFrame, result: dict[str, Any]) -> Figure:
    chart, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    fused = epochs["test_accuracy"].rename("fused")
    _by_epoch(_of_branches(epochs, "branch_accuracy/").join(fused), left, "test accuracy (%)")
    labels = [str(label) for label in result["branches"]]
    right.plot(labels, result["branch_accuracy"], "o-", label="branch alone")
    right.axhline(result["test_accuracy"], color="k", ls="--", label="fused")
    right.set(xlabel="branch after")
    right.legend()
    return chart


def _fusion_weights(epochs: pd.DataFrame, result: dict[str, Any], class_names) -> Figure:
    weights = np.array(result["weights"])
    if weights.ndim == 1:
        chart, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
        _by_epoch(_of_branches(epochs, "weights/"), axes, "fusion weight")
        return chart
    rows, columns = weights.shape
    size = (min(2 + 0.6 * columns, 24), 2 + 0.45 * rows)
    chart, axes = plt.subplots(figsize=size, layout="constrained")
    sns.heatmap(
        pd.DataFrame(weights, [str(label) for label in result["branches"]], list(class_names)),
        ax=axes,
        center=0.0,
        cmap="RdBu_r",
        annot=columns <= MOST_NUMBERED,
        fmt=".2f",
        annot_kws={"fontsize": 7},
        cbar_kws={"label": "fusion weight"},
    )
    axes.set(ylabel="branch after")
    return chart
