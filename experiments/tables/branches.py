"""Not in the paper: every branch alone, and each with a fully connected layer of its own."""

from collections.abc import Iterator

import seaborn as sns

from experiments.tables import pictures, statistics
from experiments.tables.frame import Results
from experiments.tables.table import PAPER_DEPTH, Detail, Picture, Table


def _alone(results: Results) -> Iterator[Detail]:
    """How well every branch predicts by itself, beside the fusion of all in the same runs."""
    for section, inside in results.branches().groupby("section", sort=False):
        rows = [
            {
                "row": f"after {after}, {row}",
                "accuracy": statistics.spread(runs["alone"]),
                "difference to the fusion of all": statistics.difference(
                    runs["alone"], runs["test_accuracy"]
                ),
            }
            for (row, after), runs in inside.groupby(["row", "after"], sort=False)
        ]
        yield Detail("branches", f"Branches alone: {section}", rows)


def _pictures(results: Results) -> Iterator[Picture]:
    branches = results.branches()
    grid = pictures.lines(branches, "after", "alone", **pictures.OVER_SEEDS)
    fused = branches.groupby(["section", "row"], sort=False)["test_accuracy"].mean()
    colors = dict(zip(branches["row"].unique(), sns.color_palette("tab10"), strict=False))
    for section, row, accuracy in fused.reset_index().itertuples(index=False):
        grid.axes_dict[section].axhline(accuracy, color=colors[row], ls="--")
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
    rows="fc",
    sections=("dataset", "method"),
    reference="shared",
    details=_alone,
    pictures=_pictures,
)
