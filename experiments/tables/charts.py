"""The pictures of the paper's tables: accuracies, and the differences to Normal."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments.runs import charts
from experiments.tables import weight_charts
from experiments.tables.markdown import by_section
from experiments.tables.weight_charts import Histories

Charts = Iterator[tuple[str, str, Any]]
"""Of every picture: its file's name without ending, what it shows in words, and the figure."""

MARKERS = "osD^vP"
COLUMNS = 3  # panels beside each other: more would be unreadable at the width of a page


def draw(number: str, report: dict[str, Any], histories: Histories, out: Path) -> list[dict]:
    """Writes a table's pictures as PNG; nothing finished, nothing drawn.

    Returns:
      A dict a picture: file, its name in OUT, and shows, what there is to see in words.
    """
    makers = {
        "1": _accuracy_by_depth,
        "3": _differences,
        "4": weight_charts.figures,
        "5": weight_charts.figures,
        "6": lambda report: chain(
            _extremely_deep(report), _learning_curves(_two_depths(histories), "table6-learning")
        ),
        "7": _accuracy_by_run,
        "branches": _branches_alone,
        **dict.fromkeys(
            ("longer", "weights"),
            lambda _: chain(
                _learning_curves(histories, number), weight_charts.over_epochs(histories, number)
            ),
        ),
    }
    if not any(record["runs"] for record in report["cells"]):
        return []
    pictures = []
    with plt.rc_context({"axes.grid": True, "grid.alpha": 0.3, "figure.dpi": 120}):
        for name, shows, chart in makers[number](report):
            charts.save(chart, out / f"{name}.png")
            pictures.append({"file": f"{name}.png", "shows": shows})
    return pictures


def _by_depth(axes, place: int, records: list[dict[str, Any]], label: str) -> None:
    """Accuracy by depth as a line with deviations, broken where a depth has no run."""
    axes.errorbar(
        [record["depth"] for record in records],
        *_means_and_deviations(records),
        color=f"C{place}",
        marker=MARKERS[place % len(MARKERS)],
        markersize=5,
        markerfacecolor="none",  # one that lies on another hides nothing
        capsize=3,
        label=label,
    )


def _means_and_deviations(found: list[dict[str, Any]]) -> np.ndarray:
    """For a line with bars, [2, places]; NaN, which is not drawn, where there is none."""
    return np.array([[each[key] for each in found] for key in ("mean", "deviation")], dtype=float)


def _printed_by_depth(axes, records: list[dict[str, Any]], color: str, label: str) -> bool:
    """The paper's accuracies by depth, dashed; whether it has any."""
    printed = {
        record["depth"]: record["paper"] for record in records if record["paper"] is not None
    }
    if printed:
        axes.plot(*zip(*sorted(printed.items()), strict=True), color, ls="--", label=label)
    return bool(printed)


def _accuracy_by_depth(report: dict[str, Any]) -> Charts:
    chart, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for place, (section, records) in enumerate(by_section(report).items()):
        _by_depth(axes, place, records, section)
    dashed = _printed_by_depth(axes, report["cells"], "k", "paper (its own protocol)")
    axes.set(xlabel="convolutions", ylabel="test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize="small")
    shows = "Test accuracy by number of convolutions, a line each for "
    shows += f"{' and '.join(by_section(report))}{_in_words(dashed)}"
    yield "table1", shows, chart


def _legend_above(chart, all_axes) -> None:
    """One legend of all that is drawn in several panels."""
    handles = {}
    for axes in all_axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    chart.legend(handles.values(), handles, loc="outside upper center", ncols=2, frameon=False)


def _in_words(dashed: bool) -> str:
    """The end of the words for a picture of accuracies by depth."""
    paper = "dashed, the paper's; " if dashed else ""
    return f"; {paper}bars are standard deviations over seeds"


def _differences(report: dict[str, Any]) -> Charts:
    sections = by_section(report)
    panels = [name for name in sections if any(record["difference"] for record in sections[name])]
    if not panels:
        return
    # A row for every method in every panel: where one is missing, its row stays empty.
    rows = dict.fromkeys(
        record["row"] for name in panels for record in sections[name] if record["difference"]
    )
    places = {row: len(rows) - place for place, row in enumerate(rows)}
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    chart, all_axes = plt.subplots(
        lines,
        columns,
        figsize=(1.5 + 2.5 * columns, 0.6 + lines * (0.8 + 0.22 * len(rows))),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for axes in all_axes.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, name in zip(all_axes.flat, panels, strict=False):
        normal = {record["row"]: record["paper"] for record in sections[name]}.get("Normal")
        for record in sections[name]:
            found = record["difference"]
            if found is None:
                continue
            place = places[record["row"]]
            if found["low"] is not None:
                axes.plot([found["low"], found["high"]], [place, place], "C0", lw=2)
            axes.plot(found["mean"], place, "C0o", label="ours, 95 % interval")
            if record["paper"] is not None and normal is not None:
                axes.plot(record["paper"] - normal, place, "kD", mfc="none", label="paper")
        axes.set_yticks(list(places.values()), list(places))
        axes.axvline(0, color="k", lw=1)
        axes.set(title=name)
    chart.supxlabel("points of accuracy above Normal", fontsize="medium")
    _legend_above(chart, all_axes.flat[: len(panels)])
    shows = f"Accuracy above Normal's in points, by method, a panel each for {', '.join(panels)}; "
    yield "table3", shows + "lines are 95 % confidence intervals, diamonds the paper's", chart


def _extremely_deep(report: dict[str, Any]) -> Charts:
    by_row: dict[str, list[dict[str, Any]]] = {}
    datasets = {record["dataset"] for record in report["cells"]}
    for record in report["cells"]:
        of = f", {record['dataset']}" if len(datasets) > 1 else ""
        by_row.setdefault(record["row"] + of, []).append(record)
    by_row = {row: cells for row, cells in by_row.items() if any(cell["runs"] for cell in cells)}
    chart, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    dashed = False
    for place, (row, records) in enumerate(by_row.items()):
        _by_depth(axes, place, records, row)
        label = f"{row}, paper ({records[0]['paper_dataset']})"
        dashed |= _printed_by_depth(axes, records, f"C{place}", label)
    axes.set(xlabel="convolutions", ylabel="test accuracy (%)")
    axes.set_xticks(sorted({cell["depth"] for cell in report["cells"]}))
    chart.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    shows = f"Test accuracy by number of convolutions, a line each for {', '.join(by_row)}"
    yield "table6", shows + _in_words(dashed), chart
    for row, records in by_row.items():
        if row.startswith("Interflow"):
            of = row.partition(", ")[2]
            name = f"table6-branches-{of.replace('/', '-')}" if of else "table6-branches"
            there = [record for record in records if record["runs"]]
            yield (name, *weight_charts.of_depths(there))


def _two_depths(histories: Histories) -> Histories:
    """Of Table VI: where the paper's plain network has failed, and the deepest."""
    ends = ("depth 60", "depth 100")
    return {place: runs for place, runs in histories.items() if place[0].endswith(ends)}


def _learning_curves(histories: Histories, name: str) -> Charts:
    panels: dict[str, dict[str, Any]] = {}
    for (section, row), runs in histories.items():
        if runs:
            panels.setdefault(section, {})[row] = runs
    if not panels:
        return
    chart, all_axes = plt.subplots(
        1,
        len(panels),
        figsize=(1 + 4 * len(panels), 3.8),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    colors: dict[str, int] = {}
    for axes, (section, rows) in zip(all_axes.flat, panels.items(), strict=True):
        for row, runs in rows.items():
            first = row not in colors
            place = colors.setdefault(row, len(colors))
            for order, epochs in enumerate(runs):
                axes.plot(
                    [epoch["epoch"] for epoch in epochs],
                    [epoch["test_accuracy"] for epoch in epochs],
                    f"C{place}-",
                    marker=MARKERS[place % len(MARKERS)],
                    markersize=4,
                    alpha=0.7,
                    label=row if first and order == 0 else None,
                )
        axes.set(title=section, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    all_axes.flat[0].set(ylabel="test accuracy (%)")
    chart.legend(loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    shows = f"Test accuracy by epoch, a line a run of {', '.join(colors)}; a panel each for "
    yield name, shows + " and ".join(panels), chart


def _accuracy_by_run(report: dict[str, Any]) -> Charts:
    chart, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    shown = [record for record in report["cells"] if record["runs"]]
    for place, record in enumerate(shown):
        axes.plot(
            [run["seed"] for run in record["runs"]],
            [run["test_accuracy"] for run in record["runs"]],
            f"C{place}",
            ls="none",
            marker=MARKERS[place % len(MARKERS)],
            label=f"{record['row']}, {record['section']}; dashed, its mean",
        )
        axes.axhline(record["mean"], color=f"C{place}", ls="--")
    axes.set(xlabel="seed", ylabel="test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    chart.legend(loc="outside upper center", fontsize="small", frameon=False)
    named = " and ".join(f"{record['row']} on {record['section']}" for record in shown)
    yield "table7", f"Test accuracy of every run of {named}, by seed, with their mean", chart


def _branches_alone(report: dict[str, Any]) -> Charts:
    sections = {
        name: there
        for name, records in by_section(report).items()
        if (there := [record for record in records if record["runs"]])
    }
    columns = min(2, len(sections))
    lines = -(-len(sections) // columns)
    chart, all_axes = plt.subplots(
        lines, columns, figsize=(1 + 3.6 * columns, 0.6 + 3 * lines), layout="constrained"
    )
    all_axes = np.ravel(all_axes)
    for axes in all_axes[len(sections) :]:
        axes.set_visible(False)
    places: dict[str, int] = {}
    for axes, (name, records) in zip(all_axes, sections.items(), strict=False):
        for record in records:
            alone, place = record["branches_alone"], places.setdefault(record["row"], len(places))
            axes.errorbar(
                [branch["after"] for branch in alone],
                *_means_and_deviations(alone),
                color=f"C{place}",
                marker=MARKERS[place % len(MARKERS)],
                markerfacecolor="none",
                capsize=3,
                label=f"branch alone, {record['row']}",
            )
            axes.axhline(
                record["mean"], color=f"C{place}", ls="--", label=f"all fused, {record['row']}"
            )
        axes.set(title=name, xlabel="branch after convolution", ylabel="test accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_above(chart, all_axes)
    shows = f"Test accuracy of every branch alone, a panel each for {', '.join(sections)}; dashed, "
    yield "branches", shows + "that of all branches fused; bars are standard deviations", chart
