"""Not in the paper: accuracy by learning rate, and each method at the rate that is best for it.

Where the rate is far below the best, a method can win by larger steps alone: four losses in place
of one, or a larger output, make them larger. So a method is also judged at its own best rate,
chosen on held-out training examples.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd

from experiments.cli.configuration import VGG, Configuration
from experiments.tables import pictures, statistics
from experiments.tables.frame import VALIDATION, Cell, Results
from experiments.tables.table import Choice, Detail, Picture, Table, words


class Best(NamedTuple):
    """The learning rate that is best for a configuration on held-out training examples."""

    cell: Cell  # at that rate
    validation_accuracy: float  # percent, mean over seeds
    tried: tuple[float, ...]  # rates that have a run
    rates: int  # of the table

    @property
    def is_settled(self) -> bool:
        return len(self.tried) == self.rates

    @property
    def rate(self) -> str:
        """The rate in words; where it is at an end of those tried, a better one may lie beyond."""
        rate = self.cell.flags.learning_rate
        ends = {max(self.tried): " (the highest)", min(self.tried): " (the lowest)"}
        return f"{rate:g}{ends.get(rate, '') if len(self.tried) > 1 else ''}"

    @property
    def figures(self) -> dict[str, Any]:
        """How it was chosen, by column."""
        return {
            "rates tried": f"{len(self.tried)} of {self.rates}",
            "learning rate": self.rate,
            "validation accuracy": self.validation_accuracy,
        }


def but_for_rate(flags: Configuration) -> Configuration:
    """What runs that differ only by seed and learning rate have in common."""
    return replace(flags, learning_rate=0.0)


def best_rates(results: Results) -> dict[Configuration, Best]:
    """The best rate of every configuration that has runs, by `but_for_rate`."""
    alike: dict[Configuration, list[Cell]] = {}
    for cell in results.cells:
        alike.setdefault(but_for_rate(cell.flags), []).append(cell)
    best = {}
    for flags, cells in alike.items():
        means = [results.of(cell.flags)[VALIDATION].astype(float).mean() for cell in cells]
        tried = [(mean, cell) for mean, cell in zip(means, cells, strict=True) if pd.notna(mean)]
        if tried:
            mean, cell = max(tried, key=lambda pair: pair[0])
            rates = tuple(each.flags.learning_rate for _, each in tried)
            best[flags] = Best(cell, float(mean), rates, len(cells))
    return best


def how_chosen(
    results: Results,
    rates_of: Callable[[Configuration], tuple[float, ...]],
    seeds: tuple[int, ...],
    names: tuple[str, ...],
) -> Iterator[Detail]:
    """How the rates of a table's cells were chosen, where each has one rate of several tried.

    Args:
      results: the results of the table.
      rates_of: the rates that a configuration was tried at; none if its rate was not chosen.
      seeds: the seeds of the runs that chose.
      names: the fields that tell the cells of a section apart, without the learning rate.
    """
    cells = {
        flags: cell._replace(flags=flags)
        for cell in results.cells
        for rate in rates_of(cell.flags)
        for flags in [replace(cell.flags, learning_rate=rate)]
    }
    if not cells:
        return
    chosen_by = results.others(list(cells.values()), seeds)
    rows = [
        {"row": f"{best.cell.section}, {words(best.cell.flags, names)}", **best.figures}
        for best in best_rates(chosen_by).values()
    ]
    if rows:
        numbers = ", ".join(map(str, seeds))
        yield Detail("rates", f"The learning rates, chosen with seed {numbers}", rows)


def at_best_rates(choice: Choice, results: Results, names: tuple[str, ...], advice: str) -> Choice:
    """The choice with every configuration of a sweep at the rate that is best for it.

    Args:
      choice: the choice of the table that takes the rates.
      results: the results of the sweep that chooses them.
      names: the fields of `Configuration` that tell the cells apart, including the learning rate.
      advice: what to do where a rate has no runs yet.

    Raises:
      ValueError: for a configuration without held-out accuracies at every rate.
    """
    best = best_rates(results)
    alike: dict[Configuration, list[Configuration]] = {}
    for cell in results.cells:
        alike.setdefault(but_for_rate(cell.flags), []).append(cell.flags)
    chosen = []
    for flags, at_rates in alike.items():
        if len(at_rates) > 1 and (flags not in best or not best[flags].is_settled):
            tried = len(best[flags].tried) if flags in best else 0
            of = "" if flags.backbone == VGG else f" of {flags.backbone}"
            raise ValueError(
                f"{flags.method}{of} on {flags.dataset} has held-out accuracies at {tried} of "
                f"{len(at_rates)} learning rates; {advice}"
            )
        chosen.append(best[flags].cell.flags if len(at_rates) > 1 else at_rates[0])
    values = tuple(tuple(getattr(flags, name) for name in names) for flags in chosen)
    return replace(choice, axes={" ".join(names): values})


def _panel(cell: Cell) -> str:
    """A cell's section, without its learning rate."""
    return words(cell.flags, [name for name in cell.heading if name != "learning_rate"])


def _best(results: Results) -> Iterator[Detail]:
    """Every row at its own best rate, a list per panel."""
    best = best_rates(results)
    panels: dict[str, list] = {}
    for each in best.values():
        reference = each.cell.reference and best.get(but_for_rate(each.cell.reference))
        difference = None
        if reference and each.is_settled and reference.is_settled:
            difference = results.difference(each.cell.flags, reference.cell.flags)
        runs = results.of(each.cell.flags)
        row = {
            "row": each.cell.row,
            **each.figures,
            "test accuracy": statistics.spread(runs["test_accuracy"]),
            "seeds": len(runs),
            "less Normal at its own best": difference,
            "Welch's": difference and difference.welch,
        }
        panels.setdefault(_panel(each.cell), []).append(row)
    note = "The rate is chosen on held-out training examples; its test accuracy is reported. There "
    note += "is no difference before every rate has runs."
    for panel, rows in panels.items():
        yield Detail("best", f"{panel}, each method at its own best learning rate", rows, note)


def _pictures(results: Results) -> Iterator[Picture]:
    panels = {cell.section: _panel(cell) for cell in results.cells}
    runs = results.runs.assign(panel=results.runs["section"].map(panels))
    apart = {"sharex": False, "sharey": False}  # datasets are not equally hard
    options = {"col": "panel", "facet_kws": apart, **pictures.OVER_SEEDS}
    grid = pictures.lines(runs, "learning_rate", "test_accuracy", **options)
    rates = sorted(runs["learning_rate"].unique())
    grid.set(xscale="log")
    for axes in grid.axes.flat:
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
    shows = "Test accuracy by learning rate, a line per method; bars are standard deviations"
    yield "rates", f"{shows} over seeds", grid.figure


NOTE = """\
The rates are compared on training examples that no run trains on, at most a tenth as many as are
trained on; of a split that would train whole, nine tenths are trained on."""

TABLE = Table(
    name="rates",
    title="Not in the paper: the methods by learning rate",
    seeds=3,
    axes={
        "dataset": ("cifar10",),
        "learning_rate": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        "depth": (13,),
        "method auxiliary_mean": (
            *((method, 0.0) for method in ("Normal", "Scaled", "S0", "S1")),
            ("S1", 1.0),
            *(("Aux", 0.0), ("Aux", 0.3), ("DSN", 0.0), ("DSN", 1.0)),
        ),
    },
    rows=("method", "auxiliary_mean"),
    sections=("dataset", "learning_rate"),
    reference=("Normal", 0.0),
    note=NOTE,
    holds_out=True,
    details=_best,
    pictures=_pictures,
)
