"""Not in the paper: every branch alone, and each with a fully connected layer of its own."""

from collections.abc import Iterator

from experiments.tables import pictures, statistics
from experiments.tables.frame import Results
from experiments.tables.table import PAPER_DEPTH, Detail, Picture, Table


def _alone(results: Results) -> Iterator[Detail]:
    """How well every branch predicts by itself, beside the fusion of all in the same runs."""
    for section, inside in results.branches().groupby("section", sort=False):
        rows = []
        for (row, after), runs in inside.groupby(["row", "after"], sort=False):
            fused = statistics.difference(runs["alone"], runs["test_accuracy"])
            rows.append(
                {
                    "row": f"after {after}, {row}",
                    "accuracy": statistics.spread(runs["alone"]),
                    "difference to the fusion of all": fused,
                }
            )
        yield Detail("branches", f"Branches alone: {section}", rows)


def _pictures(results: Results) -> Iterator[Picture]:
    branches = results.branches()
    grid = pictures.lines(branches, "after", "alone", **pictures.OVER_SEEDS)
    colors = pictures.colors(branches["row"])
    for (section, row), runs in branches.groupby(["section", "row"]):
        axes = grid.axes_dict[section]
        axes.axhline(runs["test_accuracy"].mean(), color=colors[row], ls="--")
    sections = ", ".join(branches["section"].unique())
    shows = f"Test accuracy of every branch alone, a panel each for {sections}; dashed, that of "
    yield "branches", f"{shows}all branches fused; bars are standard deviations", grid.figure


TABLE = Table(
    name="branches",
    title="Not in the paper: branches alone, and each with a fully connected layer of its own",
    seeds=5,
    axes={
        "dataset": ("cifar10", "fashion_mnist"),
        "depth": (PAPER_DEPTH,),
        "method": ("S1", "S3"),
        "fc": ("shared", "separate"),
    },
    rows=("fc",),
    sections=("dataset", "method"),
    reference=("shared",),
    details=_alone,
    pictures=_pictures,
)
