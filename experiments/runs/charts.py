"""The pictures of a finished run."""

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.runs.files import write_whole


def draw(history: list[dict[str, Any]], result: dict[str, Any], class_names, folder: Path) -> None:
    """Writes learning_curves.png, branch_accuracy.png and fusion_weights.png."""
    folder.mkdir(exist_ok=True)
    title = f"{result['method']} on {result['dataset']}, seed {result['seed']}"
    with plt.rc_context({"axes.grid": True, "grid.alpha": 0.3, "figure.dpi": 120}):
        for name, chart in (
            ("learning_curves", _learning_curves(history)),
            ("branch_accuracy", _branch_accuracy(history, result)),
            ("fusion_weights", _fusion_weights(history, result, class_names)),
        ):
            chart.suptitle(title)
            save(chart, folder / f"{name}.png")


def save(chart: Figure, file: Path) -> None:
    """Writes a chart as PNG, whole or not at all, and closes it."""
    drawn = io.BytesIO()
    chart.savefig(drawn, format="png")
    plt.close(chart)
    write_whole(file, drawn.getvalue())


def _learning_curves(history):
    chart, (losses, accuracies) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    epochs = [record["epoch"] for record in history]
    for axes, figure, unit in ((losses, "loss", "nats"), (accuracies, "accuracy", "%")):
        for split in ("train", "test"):
            values = [record[f"{split}_{figure}"] for record in history]
            axes.plot(epochs, values, marker=".", label=split)
        axes.set(xlabel="epoch", ylabel=f"{figure} ({unit})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    return chart


def _branch_accuracy(history, result):
    chart, (over_epochs, at_the_end) = plt.subplots(
        1, 2, figsize=(9, 3.6), layout="constrained", sharey=True
    )
    epochs = [record["epoch"] for record in history]
    taps = list(history[-1]["branch_accuracy"])
    for tap in taps:
        values = [record["branch_accuracy"][tap] for record in history]
        over_epochs.plot(epochs, values, marker=".", label=f"after {tap}")
    fused = [record["test_accuracy"] for record in history]
    over_epochs.plot(epochs, fused, "k--", label="fused")
    over_epochs.set(xlabel="epoch", ylabel="test accuracy (%)")
    over_epochs.xaxis.set_major_locator(MaxNLocator(integer=True))
    over_epochs.legend(fontsize="small")
    at_the_end.plot(taps, result["branch_accuracy"], "o-", label="branch alone")
    at_the_end.axhline(result["test_accuracy"], color="k", linestyle="--", label="fused")
    at_the_end.set(xlabel="branch after convolution")
    at_the_end.legend(fontsize="small")
    return chart


def _fusion_weights(history, result, class_names):
    weights = np.array(result["weights"])
    taps = [str(tap) for tap in result["branches"]]
    if weights.ndim == 1:
        chart, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
        epochs = [record["epoch"] for record in history]
        for tap in taps:
            values = [record["weights"][tap] for record in history]
            axes.plot(epochs, values, marker=".", label=f"after {tap}")
        axes.set(xlabel="epoch", ylabel="fusion weight")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize="small")
        return chart
    size = (min(2 + 0.6 * weights.shape[1], 24), 2 + 0.45 * len(taps))
    chart, axes = plt.subplots(figsize=size, layout="constrained")
    bound = np.abs(weights).max()
    shown = axes.imshow(weights, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
    axes.grid(False)
    axes.set_yticks(range(len(taps)), taps)
    axes.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right")
    axes.set(ylabel="branch after convolution")
    if weights.shape[1] <= 20:
        for (row, column), weight in np.ndenumerate(weights):
            shade = "white" if abs(weight) > 0.6 * bound else "black"
            place = {"ha": "center", "va": "center", "fontsize": 7}
            axes.text(column, row, f"{weight:.2f}", color=shade, **place)
    chart.colorbar(shown, label="fusion weight")
    return chart
