"""Table I: accuracy by depth without Interflow, for both readings of where stride 2 is."""

from collections.abc import Iterator
from dataclasses import replace

from experiments.cli.configuration import Configuration
from experiments.tables import paper, pictures, statistics
from experiments.tables.frame import Results
from experiments.tables.table import Detail, Picture, Table


def _paper(flags: Configuration) -> float | None:
    of_paper = (flags.dataset, flags.method) == ("cifar10", "Normal")
    return paper.value("1", str(flags.depth), "accuracy") if of_paper else None


def _readings(results: Results) -> Iterator[Detail]:
    """`first` minus `last`: the accuracy, and what each gains over the row above."""
    configurations = {cell.flags for cell in results.cells}

    def gain(flags: Configuration, above: Configuration):
        return results.of(flags)["test_accuracy"] - results.of(above)["test_accuracy"]

    rows: dict[str, list] = {}
    for cell in results.cells:
        first, above = cell.flags, cell.reference
        last = replace(first, downsample="last")
        accuracy = results.difference(first, last)
        if first != last and last in configurations and accuracy is not None:
            gains = above and statistics.difference(
                gain(first, above), gain(last, replace(above, downsample="last"))
            )
            row = {"row": cell.row, "accuracy": accuracy, "gain over the row above": gains}
            rows.setdefault(cell.section, []).append(row)
    for section, inside in rows.items():
        yield Detail("readings", f"{section}, less downsample last", inside)


def _pictures(results: Results) -> Iterator[Picture]:
    yield "table1", *pictures.by_depth(results, "section", "method")


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
    rows=("depth",),
    sections=("dataset", "downsample"),
    reference=None,
    paper=_paper,
    details=_readings,
    pictures=_pictures,
)
