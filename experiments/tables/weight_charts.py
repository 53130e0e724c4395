"""The pictures of the fusion's weights: over runs (the paper's Figure 4), by class, by depth."""

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

Histories = dict[tuple[str, str], list[list[dict[str, float]]]]
"""The metrics of every run by section and row: a dict an epoch."""

MOST_NUMBERED = 20  # columns of a heat map whose cells have room for their figure


def figures(report: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Of every cell with runs, what its weights are: a name, what is shown, and the figure."""
    for record in report["cells"]:
        if record["weights_over_runs"]:
            per_class = np.ndim(record["weights_over_runs"]["as_learned"]) == 3
            name = "figure4" if report["table"] == "4" else "table5"
            if len(report["cells"]) > 1:
                name = f"{name}-{record['section'].replace('/', '-')}-{record['row']}"
            yield name, *(_by_class if per_class else _over_runs)(record)


def _over_runs(record: dict[str, Any]) -> tuple[str, Any]:
    found, ran = record["weights_over_runs"], record["runs"]
    chart, all_axes = plt.subplots(3, 1, figsize=(7.5, 7.5), layout="constrained", sharex=True)
    for axes in all_axes:
        for seed in found["outlying"]:
            axes.axvspan(seed - 0.4, seed + 0.4, color="0.8", label="outlying run")
    all_axes[0].plot(found["seeds"], [run["test_accuracy"] for run in ran], "k.-")
    all_axes[0].set(ylabel="test accuracy (%)")
    for axes, kind in zip(all_axes[1:], ("as_learned", "comparable"), strict=True):
        for branch, values in zip(ran[0]["branches"], np.array(found[kind]).T, strict=True):
            axes.plot(found["seeds"], values, marker=".", label=f"after {branch}")
        axes.set(ylabel=f"weight, {kind.replace('_', ' ')}")
    all_axes[-1].set(xlabel="seed")
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = all_axes[-1].get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    chart.legend(named.values(), named, loc="outside upper center", ncols=5, frameon=False)
    of = f"{record['row']} on {record['section']}, by seed"
    return (
        f"Three panels of {of}: test accuracy; every branch's weight as learned; the same with "
        "comparable signs. Grey bands mark outlying runs",
        chart,
    )


def _by_class(record: dict[str, Any]) -> tuple[str, Any]:
    found = record["weights_over_runs"]
    branches = [f"after {tap}" for tap in record["runs"][0]["branches"]]
    means = {kind: np.mean(found[kind], axis=0) for kind in ("as_learned", "comparable")}
    bound = max(np.abs(mean).max() for mean in means.values())
    chart, all_axes = plt.subplots(2, 1, figsize=(8, 5.6), layout="constrained")
    for axes, kind in zip(all_axes, means, strict=True):
        image = _heatmap(axes, means[kind], branches, (-bound, bound))
        axes.set(title=kind.replace("_", " "), xlabel="class")
    chart.colorbar(image, ax=all_axes, label="mean weight")
    of = f"{record['row']} on {record['section']}"
    return f"Two heat maps of the mean weights of {of}, by branch and class", chart


def of_depths(records: list[dict[str, Any]]) -> tuple[str, Any]:
    """What the branches of Table VI weigh and predict alone, a row a depth.

    Args:
      records: cells with runs, of one method and dataset.
    """
    most = max(len(record["runs"][0]["branches"]) for record in records)
    weights, alone = (np.full((len(records), most), np.nan) for _ in range(2))
    for place, record in enumerate(records):
        for into, key in ((weights, "weights"), (alone, "branch_accuracy")):
            values = np.abs([run[key] for run in record["runs"]]).mean(axis=0)
            into[place, : len(values)] = values
    chart, all_axes = plt.subplots(2, 1, figsize=(8.5, 7), layout="constrained")
    names = [f"depth {record['runs'][0]['depth']}" for record in records]
    for axes, values, title in (
        (all_axes[0], weights, "absolute weight, mean over seeds"),
        (all_axes[1], alone, "accuracy of the branch alone (%), mean over seeds"),
    ):
        _heatmap(axes, values, names)
        axes.set(title=title, xlabel="branch, shallow to deep")
    shows = "Two heat maps by depth and branch, shallow to deep: the absolute weight, and the "
    return shows + "test accuracy of the branch alone", chart


def over_epochs(histories: Histories, number: str) -> Iterator[tuple[str, str, Any]]:
    """The learned weights of the first run of every section of a table, a line a branch."""
    panels = {
        section: runs[0]
        for (section, row), runs in histories.items()
        if runs and row.startswith("Interflow")
    }
    if not panels:
        return
    chart, all_axes = plt.subplots(
        1,
        len(panels),
        figsize=(1.6 + 4 * len(panels), 3.8),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for axes, (section, epochs) in zip(all_axes.flat, panels.items(), strict=True):
        branches = [name for name in epochs[0] if name.startswith("weights/")]
        for place, branch in enumerate(branches):
            axes.plot(
                [epoch["epoch"] for epoch in epochs],
                [epoch[branch] for epoch in epochs],
                color=plt.get_cmap("viridis")(place / len(branches)),
                marker=".",
                label=f"after {branch.partition('/')[2]}",
            )
        axes.set(title=section, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    all_axes.flat[0].set(ylabel="weight, as learned")
    chart.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    shows = "The fusion's weights by epoch in the first run, a line a branch, light the deepest; a "
    yield f"{number}-by-epoch", f"{shows}panel each for {' and '.join(panels)}", chart


def _heatmap(axes, values: np.ndarray, rows: list[str], bounds: tuple | None = None) -> Any:
    """Colours and, where there is room, figures.

    Args:
      axes: of matplotlib.
      values: [rows, columns], NaN where there is none.
      rows: their names.
      bounds: of a scale around zero; without, all values are positive.
    """
    low, high = bounds or (0.0, np.nanmax(values))
    image = axes.imshow(
        values, cmap="RdBu_r" if bounds else "Blues", vmin=low, vmax=high, aspect="auto"
    )
    axes.grid(False)
    axes.set_yticks(range(len(rows)), rows)
    columns = values.shape[1]
    if columns > MOST_NUMBERED:
        axes.set_xticks(range(9, columns, 10), range(10, columns + 1, 10))
        return image
    axes.set_xticks(range(columns), range(1, columns + 1))
    digits = 1 if high >= 10 else 2
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            shade = "white" if abs(value) > 0.6 * high else "black"
            place = {"ha": "center", "va": "center", "fontsize": 8}
            axes.text(column, row, f"{value:z.{digits}f}", color=shade, **place)
    return image
