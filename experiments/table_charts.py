"""The pictures of the paper's tables and of its Figure 4."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

Histories = dict[tuple[str, str], list[list[dict[str, float]]]]


def draw(number: str, report: dict[str, Any], histories: Histories, out: Path) -> list[Path]:
    """Writes a table's pictures as PNG; returns their paths. Nothing finished, nothing drawn."""
    makers = {
        "1": _accuracy_by_depth,
        "3": _differences,
        "4": _figure_4,
        "5": _heatmaps,
        "6": _extremely_deep,
        "7": _accuracy_by_run,
    }
    written = []
    with plt.rc_context({"axes.grid": True, "grid.alpha": 0.3, "figure.dpi": 120}):
        if any(record["runs"] for record in report["cells"]):
            for name, chart in makers[number](report, histories):
                written.append(out / f"{name}.png")
                chart.savefig(written[-1])
                plt.close(chart)
    return written


def _sections(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    by_section: dict[str, list[dict[str, Any]]] = {}
    for record in report["cells"]:
        by_section.setdefault(record["section"], []).append(record)
    return by_section


def _accuracy_by_depth(report, histories) -> Iterator[tuple[str, Any]]:
    del histories
    chart, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for section, records in _sections(report).items():
        there = [record for record in records if record["runs"]]
        depths = [record["runs"][0]["depth"] for record in there]
        means = [record["mean"] for record in there]
        axes.errorbar(
            depths,
            means,
            [record["deviation"] or 0 for record in there],
            marker="o",
            capsize=3,
            label=section,
        )
    printed = {
        int(record["row"].split()[1]): record["paper"]
        for record in report["cells"]
        if record["paper"] is not None
    }
    if printed:
        axes.plot(list(printed), list(printed.values()), "k--", marker=".", label="paper")
    axes.set(xlabel="convolutions", ylabel="test accuracy (%)")
    axes.legend()
    yield "table1", chart


def _differences(report, histories) -> Iterator[tuple[str, Any]]:
    del histories
    by_section = {
        section: [record for record in records if record["difference"]]
        for section, records in _sections(report).items()
    }
    by_section = {section: records for section, records in by_section.items() if records}
    if not by_section:
        return
    chart, all_axes = plt.subplots(
        1,
        len(by_section),
        figsize=(1.5 + 3 * len(by_section), 4.6),
        layout="constrained",
        squeeze=False,
    )
    for axes, (section, records) in zip(all_axes[0], by_section.items(), strict=True):
        for place, record in enumerate(reversed(records)):
            found = record["difference"]
            if found["low"] is not None:
                axes.plot([found["low"], found["high"]], [place, place], "C0", lw=2)
            axes.plot(found["mean"], place, "C0o")
        axes.set_yticks(range(len(records)), [record["row"] for record in reversed(records)])
        axes.axvline(0, color="k", lw=1)
        axes.set(title=section, xlabel="points of accuracy above Normal")
    yield "table3", chart


def _figure_4(report, histories) -> Iterator[tuple[str, Any]]:
    del histories
    for record in _weighted(report):
        yield _named("figure4", record, report), _over_runs(record)


def _weighted(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [record for record in report["cells"] if record["weights_over_runs"]]


def _named(name: str, record: dict[str, Any], report: dict[str, Any]) -> str:
    alone = len(report["cells"]) == 1
    return name if alone else f"{name}-{record['section']}-{record['row']}"


def _over_runs(record: dict[str, Any]):
    found, ran = record["weights_over_runs"], record["runs"]
    chart, all_axes = plt.subplots(3, 1, figsize=(8, 8), layout="constrained", sharex=True)
    all_axes[0].plot(found["seeds"], [run["test_accuracy"] for run in ran], "k.-")
    all_axes[0].set(ylabel="test accuracy (%)")
    for axes, kind in zip(all_axes[1:], ("as_learned", "comparable"), strict=True):
        for branch, values in zip(ran[0]["branches"], np.array(found[kind]).T, strict=True):
            axes.plot(found["seeds"], values, marker=".", label=f"after {branch}")
        axes.set(ylabel=f"weight, {kind.replace('_', ' ')}")
        axes.legend(fontsize="small", ncols=4)
    for axes in all_axes:
        for seed in found["outlying"]:
            axes.axvline(seed, color="C3", alpha=0.4, lw=4)
    all_axes[-1].set(xlabel="seed (a red bar marks an outlying run)")
    return chart


def _heatmaps(report, histories) -> Iterator[tuple[str, Any]]:
    del histories
    for record in _weighted(report):
        branches = [f"after {tap}" for tap in record["runs"][0]["branches"]]
        chart, all_axes = plt.subplots(2, 1, figsize=(7.5, 5.4), layout="constrained")
        for axes, kind in zip(all_axes, ("as_learned", "comparable"), strict=True):
            mean = np.array(record["weights_over_runs"][kind]).mean(axis=0)
            _heatmap(axes, np.atleast_2d(mean.T).T, branches)
            axes.set(title=f"mean weights, {kind.replace('_', ' ')}", xlabel="class")
        yield _named("table5", record, report), chart


def _heatmap(axes, values: np.ndarray, rows: list[str]) -> None:
    bound = np.nanmax(np.abs(values))
    axes.imshow(values, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
    axes.grid(False)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(values.shape[1]), range(1, values.shape[1] + 1))
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            shade = "white" if abs(value) > 0.6 * bound else "black"
            place = {"ha": "center", "va": "center", "fontsize": 7}
            axes.text(column, row, f"{value:.2f}", color=shade, **place)


def _extremely_deep(report, histories) -> Iterator[tuple[str, Any]]:
    by_row: dict[str, list[dict[str, Any]]] = {}
    for record in report["cells"]:
        if record["runs"]:
            by_row.setdefault(record["row"], []).append(record)
    chart, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for row, records in by_row.items():
        depths = [record["runs"][0]["depth"] for record in records]
        means = [record["mean"] for record in records]
        deviations = [record["deviation"] or 0 for record in records]
        axes.errorbar(depths, means, deviations, marker="o", capsize=3, label=row)
    axes.set(xlabel="convolutions", ylabel="test accuracy (%)")
    axes.legend()
    yield "table6", chart

    learned = by_row.get("Interflow (S1)", [])
    if learned:
        most = max(len(record["runs"][0]["branches"]) for record in learned)
        weights = np.full((len(learned), most), np.nan)
        alone = np.full((len(learned), most), np.nan)
        for place, record in enumerate(learned):
            for into, key in ((weights, "weights"), (alone, "branch_accuracy")):
                values = np.abs([run[key] for run in record["runs"]]).mean(axis=0)
                into[place, : len(values)] = values
        chart, all_axes = plt.subplots(2, 1, figsize=(9, 7), layout="constrained")
        names = [f"depth {record['runs'][0]['depth']}" for record in learned]
        for axes, values, title in (
            (all_axes[0], weights, "absolute weight, mean over seeds"),
            (all_axes[1], alone, "accuracy of the branch alone (%), mean over seeds"),
        ):
            _heatmap(axes, values, names)
            axes.set(title=title, xlabel="branch, shallow to deep")
        yield "table6-branches", chart
    yield from _learning_curves(histories)


def _learning_curves(histories: Histories) -> Iterator[tuple[str, Any]]:
    by_section: dict[str, dict[str, Any]] = {}
    for (section, row), runs in histories.items():
        if runs and section.endswith(("depth 60", "depth 100")):
            by_section.setdefault(section, {})[row] = runs
    if not by_section:
        return
    chart, all_axes = plt.subplots(
        1, len(by_section), figsize=(5 * len(by_section), 3.8), layout="constrained", squeeze=False
    )
    for axes, (section, rows) in zip(all_axes[0], by_section.items(), strict=True):
        for place, (row, runs) in enumerate(rows.items()):
            for order, epochs in enumerate(runs):
                axes.plot(
                    [epoch["epoch"] for epoch in epochs],
                    [epoch["test_accuracy"] for epoch in epochs],
                    f"C{place}.-",
                    alpha=0.7,
                    label=row if order == 0 else None,
                )
        axes.set(title=section, xlabel="epoch", ylabel="test accuracy (%)")
        axes.legend(fontsize="small")
    yield "table6-learning", chart


def _accuracy_by_run(report, histories) -> Iterator[tuple[str, Any]]:
    del histories
    chart, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for place, record in enumerate(report["cells"]):
        if record["runs"]:
            seeds = [run["seed"] for run in record["runs"]]
            accuracies = [run["test_accuracy"] for run in record["runs"]]
            named = f"{record['row']}, {record['section']}"
            axes.plot(seeds, accuracies, f"C{place}o-", label=named)
            axes.axhline(record["mean"], color=f"C{place}", linestyle="--")
    axes.set(xlabel="seed", ylabel="test accuracy (%)")
    axes.legend()
    yield "table7", chart
