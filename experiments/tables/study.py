"""Not in the paper: which small training tells methods apart; `quick` was chosen by it."""

from argparse import ArgumentTypeError
from collections.abc import Iterator
from statistics import median

from scipy import stats

from experiments.cli.configuration import names
from experiments.tables.frame import Results
from experiments.tables.methods import paper_accuracy
from experiments.tables.statistics import CONFIDENCE
from experiments.tables.table import PAPER_DEPTH, Detail, Table

CANDIDATE = "width train_size epochs"  # an axis of three fields
SEEDS_LATER = 5  # of Table III's runs, for which the preset was chosen


def candidates(text: str) -> tuple[tuple[float, int, int], ...]:
    """Reads "0.125x20000x3,0.25x12000x3" from the command line."""
    values = []
    for part in names(text):
        try:
            width, examples, epochs = part.split("x")
            values.append((float(width), int(examples), int(epochs)))
        except ValueError as error:
            raise ArgumentTypeError(f"{part!r} is not as 0.125x20000x3") from error
    return tuple(values)


def _smallest_differences(results: Results) -> Iterator[Detail]:
    """What differences each small training would show, and at what cost."""
    rows = []
    for cell, runs in results.with_runs():
        if cell.reference is None:
            continue
        normal = results.of(cell.reference)
        differences = (runs["test_accuracy"] - normal["test_accuracy"]).dropna()
        smallest = None
        if len(differences) > 1:
            quantile = stats.t.ppf((1 + CONFIDENCE) / 2, SEEDS_LATER - 1)
            smallest = float(quantile * differences.std() / SEEDS_LATER**0.5)
        printed, normal_printed = paper_accuracy(cell.flags), paper_accuracy(cell.reference)
        rows.append(
            {
                "row": f"{cell.section}, {cell.row} less Normal",
                "seconds per run": median([*runs["train_seconds"], *normal["train_seconds"]]),
                "ours": results.difference(cell.flags, cell.reference),
                "paper": printed and normal_printed and printed - normal_printed,
                "smallest visible": smallest,
            }
        )
    note = "The smallest visible difference is the half width of the 95 % interval that\n"
    note += f"{SEEDS_LATER} paired seeds would have, if differences go on to deviate as these."
    yield Detail("candidates", "What each training would show", rows, note)


TABLE = Table(
    name="study",
    title="Not in the paper: which small training tells methods apart",
    seeds=4,
    axes={
        "dataset": ("cifar10",),
        "depth": (PAPER_DEPTH,),
        CANDIDATE: ((0.125, 20_000, 3), (0.125, 10_000, 3), (0.125, 10_000, 6), (0.25, 12_000, 3)),
        "method": ("Normal", "S1"),
    },
    sections=("dataset", *CANDIDATE.split()),
    paper=paper_accuracy,
    details=_smallest_differences,
)
