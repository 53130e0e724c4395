"""The paper's numbers agree with what its text says of them, section by section.

The expectations are worked out by hand from the text and from the printed tables.
"""

import hashlib
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pvariance

import pytest

from experiments.tables import paper
from experiments.tables.paper import table, value

DATASETS = ["cifar10", "cifar100", "svhn", "mnist", "kmnist", "fashion_mnist"]  # IV-A
METHODS = ["Normal", *(f"S{number}" for number in range(10))]  # IV-C


def numbered(first: int, last: int, step: int = 1) -> list[str]:
    return [str(number) for number in range(first, last + 1, step)]


def cell(number: str, row: str, column: str) -> float:
    found = value(number, row, column)
    assert found is not None, (number, row, column)
    return found


def column(number: str, name: str, rows: list[str]) -> list[float]:
    return [cell(number, row, name) for row in rows]


def dimensions() -> dict[str, dict[str, list[str]]]:
    """The columns of every row as printed, but for the doubtful cells."""
    four, without_2 = ["accuracy", "1", "2", "3", "4"], ["accuracy", "1", "3", "4"]
    branches = {"40": 5, "50": 7, "60": 9, "70": 11, "80": 13, "90": 15, "100": 15}
    return {
        "1": {depth: ["accuracy"] for depth in numbered(4, 13)},
        "3": dict.fromkeys(METHODS, DATASETS),
        "4": {
            **dict.fromkeys(["mean", "mean_without_13"], four),
            **dict.fromkeys(["variance", "variance_without_13"], without_2),
        },
        "5": dict.fromkeys(numbered(1, 4), numbered(1, 10)),  # IV-C: 40 weights
        "6": {
            depth: ["Normal", "Interflow", "branches", *numbered(1, count)]
            for depth, count in branches.items()
        },
        "7": {run: ["accuracy"] for run in [*numbered(0, 9), "mean", "variance"]},
        "figure 4": {"runs": ["count", "outlier"]},
    }


@pytest.mark.parametrize("number", dimensions())
def test_no_cell_is_missing(number):
    cells = table(number)["cells"]
    assert {row: list(columns) for row, columns in cells.items()} == dimensions()[number]


def test_the_numbers_are_those_that_were_checked_against_the_print():
    """Twice, by hand; whoever corrects one checks the whole table again, and changes this."""
    digest = hashlib.sha256(Path(paper.__file__).with_name("paper.json").read_bytes()).hexdigest()
    assert digest == "763853f0d1431b9a938b5b7700f6bb270c1d4b6f166e446cf816252c8b5c3ecb"


def test_doubtful_cells_have_no_value():
    places = [(doubt["table"], doubt["row"], doubt["column"]) for doubt in paper.DOUBTFUL]
    assert places == [("4", "variance", "2"), ("4", "variance_without_13", "2")]
    assert [value(*place) for place in places] == [None, None]


def test_what_is_not_there():
    assert value("3", "S3", "fashion_mini") is None
    assert value("3", "S10", "cifar10") is None
    with pytest.raises(
        ValueError, match=r"no table '2'; choose one of 1, 3, 4, 5, 6, 7, figure 4$"
    ):
        value("2", "S3", "cifar10")


def test_reading_it_needs_no_jax():
    program = "import sys, experiments.tables.paper; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_one_result_in_two_tables():
    """Table I's full depth is Table III's Normal; Table VII's best run is Table III's S3."""
    assert cell("1", "13", "accuracy") == cell("3", "Normal", "cifar10") == 91.12
    runs = column("7", "accuracy", numbered(0, 9))
    assert max(runs) == runs[9] == cell("3", "S3", "cifar10") == 92.12


def test_depth():
    """III-D: the channels double before the 8th layer (and the 5th); IV-E: 11 is close to 13."""
    accuracy = column("1", "accuracy", numbered(4, 13))
    steps = [after - before for before, after in pairwise(accuracy)]
    expected = [2.64, 0.56, 0.61, 3.37, 0.14, 0.17, 0.31, -0.61, 0.72]
    assert steps == pytest.approx(expected, abs=1e-9)
    assert accuracy[9] - accuracy[7] == pytest.approx(0.11)


def test_interflow_beats_normal_everywhere_and_most_on_cifar():
    """IV-D: every method on every dataset, above all on the two that are hardest."""
    normal = table("3")["cells"]["Normal"]
    gains = {
        dataset: [cell("3", method, dataset) - normal[dataset] for method in METHODS[1:]]
        for dataset in DATASETS
    }
    smallest = [0.52, 0.33, 0.26, 0.11, 0.47, 0.14]
    greatest = [1.00, 1.27, 0.43, 0.19, 0.56, 0.46]
    assert [min(gains[dataset]) for dataset in DATASETS] == pytest.approx(smallest)
    assert [max(gains[dataset]) for dataset in DATASETS] == pytest.approx(greatest)
    for ranked in (sorted(DATASETS, key=lambda d: -max(gains[d])), sorted(normal, key=normal.get)):
        assert ranked[:2] == ["cifar100", "cifar10"]


RUNS = 30  # IV-E, of S1 on CIFAR-10


def outlier(name: str) -> float:
    """The 13th run by Table IV: the sum of all runs without the sum of the others."""
    return RUNS * cell("4", "mean", name) - (RUNS - 1) * cell("4", "mean_without_13", name)


def variance_with(name: str, without: float) -> float:
    """The variance (over n) of all runs by that of the others and the 13th run's distance."""
    distance = outlier(name) - cell("4", "mean_without_13", name)
    return (RUNS - 1) / RUNS * without + (RUNS - 1) / RUNS**2 * distance**2


@pytest.mark.parametrize(
    ("name", "rounding"), [("accuracy", 1e-2), ("1", 4e-4), ("3", 7e-4), ("4", 9e-4)]
)
def test_variances_with_and_without_the_thirteenth_run(name, rounding):
    """IV-E: both rows of variances describe the same runs but one, as far as digits allow."""
    together = variance_with(name, cell("4", "variance_without_13", name))
    assert cell("4", "variance", name) == pytest.approx(together, abs=rounding)


def test_the_doubtful_variances_contradict_the_means():
    """By its means and the variance without the 13th run, branch 2 varies by half of what is read.

    Rounding moves that by less than 0.0003.
    """
    with_13, without_13 = (doubt["reads"] for doubt in paper.DOUBTFUL)
    assert (with_13, without_13) == (0.0462, 0.0143)
    assert variance_with("2", without_13) == pytest.approx(0.0220, abs=5e-5)


def test_runs_of_s3():
    """Table VII: the mean and the variance (over n) of the ten runs above them."""
    runs = column("7", "accuracy", numbered(0, 9))
    assert round(fmean(runs), 2) == cell("7", "mean", "accuracy") == 91.89
    assert round(pvariance(runs), 2) == cell("7", "variance", "accuracy") == 0.01
