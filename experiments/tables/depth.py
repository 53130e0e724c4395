"""Table I: accuracy by depth without Interflow, for both readings of where stride 2 is."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from experiments.cli.configuration import Configuration
from experiments.tables import paper, pictures, statistics
from experiments.tables.frame import Results
from experiments.tables.table import Detail, Picture, Table


def _paper(flags: Configuration) -> float | None:
    if (flags.dataset, flags.method) != ("cifar10", "Normal"):
        return None
    return paper.value("1", str(flags.depth), "accuracy")


def readings(results: Results) -> Iterator[Detail]:
    """`first` less `last`: of accuracy, and of what each gains over the depth above."""
    configurations = {cell.flags for cell in results.cells}
    rows: dict[str, list[dict[str, Any]]] = {}
    for cell in results.cells:
        first, last = cell.flags, replace(cell.flags, downsample="last")
        accuracy = results.difference(first, last)
        if first == last or last not in configurations or accuracy is None:
            continue
        gain = None
        if above := cell.reference:
            gain = statistics.difference(
                results.accuracy(first) - results.accuracy(above),
                results.accuracy(last) - results.accuracy(replace(above, downsample="last")),
            )
        row = {"row": cell.row, "accuracy": accuracy, "gain over the row above": gain}
        rows.setdefault(cell.section, []).append(row)
    for section, inside in rows.items():
        yield Detail("readings", f"{section} less downsample=last", inside)


def _pictures(results: Results) -> Iterator[Picture]:
    grid = pictures.lines(
        results.runs, "depth", "test_accuracy", "section", col="method", **pictures.OVER_SEEDS
    )
    printed = {cell.flags.depth: cell.paper for cell in results.cells if cell.paper is not None}
    for axes in grid.axes.flat:
        axes.plot(list(printed), list(printed.values()), "k--")
    sections = ", ".join(results.runs["section"].unique())
    shows = f"Test accuracy by number of convolutions, a line each for {sections}; dashed, the "
    yield "table1", f"{shows}paper's; bars are standard deviations over seeds", grid.figure


TABLE = Table(
    name="table1",
    title="Table I: accuracy by depth, without Interflow",
    seeds=3,
    axes={
        "dataset": ("cifar10",),
        "downsample": ("first", "last"),
        "method": ("Normal",),
        "depth": tuple(range(4, 14)),
    },
    rows="depth",
    sections=("dataset", "downsample"),
    reference=None,
    paper=_paper,
    details=readings,
    pictures=_pictures,
)
