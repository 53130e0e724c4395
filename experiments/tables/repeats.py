"""Tables IV, V and VII, and Figure 4: one model, trained repeatedly."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns

from experiments.cli.configuration import Configuration
from experiments.tables import paper, pictures, weights
from experiments.tables.frame import Results
from experiments.tables.table import PAPER_DEPTH, Detail, Picture, Table


def _every_run(results: Results) -> Iterator[Detail]:
    """Table VII: every run, and the variance."""
    for cell, runs in results.with_runs():
        printed = paper.table("7")["cells"] if cell.paper is not None else {}
        ours = {str(seed): value for seed, value in runs["test_accuracy"].items()}
        if len(runs) > 1:
            ours["variance"] = float(runs["test_accuracy"].var())
        rows = [
            {"run": name, "paper": printed.get(name, {}).get("accuracy"), "ours": value}
            for name, value in ours.items()
        ]
        yield Detail("every_run", f"Every run of {cell.row} on {cell.section}", rows)


def _weight_pictures(name: str, results: Results) -> Iterator[Picture]:
    """Figure 4 or Table V for every cell with runs."""
    for cell, runs in results.with_runs():
        of_runs = weights.of_runs(cell.flags, runs)
        of = f"{cell.row} on {cell.section}"
        stem = name if len(results.cells) == 1 else pictures.stem(name, cell.section, cell.row)
        if of_runs.learned.ndim == 2:
            shows = (
                f"Three panels of {of}, by seed: test accuracy; every branch's weight as learned; "
            )
            shows += "the same with comparable signs. Grey bands mark outlying runs"
            yield stem, shows, weights.figure_4(runs, of_runs)
        else:
            shows = f"Two heat maps of the mean weights of {of}, by branch and class"
            yield stem, shows, weights.heatmaps(of_runs)


def _accuracy_by_run(results: Results) -> Iterator[Picture]:
    runs = results.runs.assign(line=results.runs["row"] + " on " + results.runs["section"])
    chart, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    sns.scatterplot(runs, x="seed", y="test_accuracy", hue="line", style="line", ax=axes)
    for place, (_, accuracy) in enumerate(runs.groupby("line", sort=False)["test_accuracy"]):
        axes.axhline(accuracy.mean(), color=f"C{place}", ls="--")
    axes.set(ylabel="test accuracy (%)")
    axes.legend(title=None)
    pictures.whole_numbers(axes)
    names = " and ".join(runs["line"].unique())
    yield "table7", f"Test accuracy of every run of {names}, by seed; dashed, their mean", chart


def _table(name: str, title: str, seeds: int, method: str, **options: Any) -> Table:
    """One network trained repeatedly, beside the paper's mean over its runs (Tables IV and VII)."""

    def accuracy(flags: Configuration) -> float | None:
        if (flags.dataset, flags.method, flags.depth) != ("cifar10", method, PAPER_DEPTH):
            return None
        return paper.value("4" if method == "S1" else "7", "mean", "accuracy")

    axes = {"dataset": ("cifar10",), "depth": (PAPER_DEPTH,), "method": (method,)}
    return Table(name, title, seeds, axes, paper=accuracy, **options)


TABLES = (
    _table(
        *("table4", "Table IV and Figure 4: S1 time and again", 30, "S1"),
        details=weights.details,
        pictures=partial(_weight_pictures, "figure4"),
    ),
    _table(
        *("table5", "Table V: S3's mean weights", 10, "S3"),
        details=weights.details,
        pictures=partial(_weight_pictures, "table5"),
    ),
    _table(
        *("table7", "Table VII: S3 ten times", 10, "S3"),
        details=_every_run,
        pictures=_accuracy_by_run,
    ),
)
