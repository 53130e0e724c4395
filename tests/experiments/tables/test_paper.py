"""The paper's numbers are those that were read from its print, and agree with its text."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean, pvariance

import pytest

from experiments.tables import paper
from experiments.tables.paper import CELLS, value

DOUBTFUL = json.loads(Path(paper.__file__).with_suffix(".json").read_text())["doubtful"]


def test_the_numbers_are_those_that_were_checked_against_the_print():
    """Twice, by hand, and by all that the text says of them; whoever corrects one does so again."""
    digest = hashlib.sha256(Path(paper.__file__).with_name("paper.json").read_bytes()).hexdigest()
    assert digest == "763853f0d1431b9a938b5b7700f6bb270c1d4b6f166e446cf816252c8b5c3ecb"


def test_a_cell_is_read_by_its_row_and_column():
    """Table I's full depth is Table III's Normal; Table VII's best run is Table III's S3."""
    assert value("1", "13", "accuracy") == value("3", "Normal", "cifar10") == 91.12
    runs = [CELLS["7"][str(run)]["accuracy"] for run in range(10)]
    assert max(runs) == runs[9] == value("3", "S3", "cifar10") == 92.12
    assert round(fmean(runs), 2) == value("7", "mean", "accuracy") == 91.89
    assert round(pvariance(runs), 2) == value("7", "variance", "accuracy") == 0.01


def test_what_is_doubtful_or_not_there_has_no_value():
    places = [(doubt["table"], doubt["row"], doubt["column"]) for doubt in DOUBTFUL]
    assert places == [("4", "variance", "2"), ("4", "variance_without_13", "2")]
    assert [value(*place) for place in places] == [None, None]
    assert value("3", "S3", "fashion_mini") is None
    assert value("3", "S10", "cifar10") is None


def test_the_doubtful_variances_contradict_the_means():
    """By its means and the variance without the 13th of 30 runs, branch 2 varies by half of it."""
    assert [doubt["reads"] for doubt in DOUBTFUL] == [0.0462, 0.0143]
    mean, without = CELLS["4"]["mean"]["2"], CELLS["4"]["mean_without_13"]["2"]
    distance = 30 * mean - 29 * without - without
    by_means = 29 / 30 * 0.0143 + 29 / 30**2 * distance**2
    assert by_means == pytest.approx(0.0220, abs=5e-5)


def test_reading_it_needs_no_jax():
    program = "import sys, experiments.tables.paper; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
