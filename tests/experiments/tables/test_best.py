"""The methods at their own best rates, from invented runs of other seeds."""

import json

import pytest

from experiments.sweep.record import Record
from experiments.tables import best, rates, report
from experiments.tables.table import Choice
from tests.experiments.tables.test_rates import by_row_and_rate, write_runs

CHOICE = Choice("end", {"learning_rate": (1e-3, 1e-2), "method": ("S1",)})


@pytest.fixture
def sweep(tmp_path):
    choice = Choice("end", CHOICE.axes | {"method": ("Normal", "S1")})
    write_runs(choice, rates.TABLE, tmp_path, by_row_and_rate)
    return tmp_path


def test_every_method_is_tested_at_its_own_rate_by_seeds_that_did_not_choose_it(sweep):
    choice = best.TABLE.narrow(CHOICE, Record(sweep), sweep)
    normal, s1 = best.TABLE.cells(choice)
    assert (normal.flags.method, normal.flags.learning_rate) == ("Normal", 1e-3)
    assert (s1.flags.method, s1.flags.learning_rate) == ("S1", 1e-2)
    assert (normal.reference, s1.reference) == (None, normal.flags)
    assert not set(best.TABLE.run_seeds(choice)) & set(rates.TABLE.run_seeds(choice))
    write_runs(choice, best.TABLE, sweep, by_row_and_rate)
    report.write(best.TABLE, choice, Record(sweep), sweep, "the command")
    cells = json.loads((sweep / "best.json").read_text())["cells"]
    assert [cell["mean"] for cell in cells] == [60.5, 63.5]
    assert cells[1]["difference"]["mean"] == 3.0
    assert cells[1]["difference"]["verdict"] == "ahead"
    assert (sweep / "best.png").exists()


def test_the_seeds_that_chose_a_rate_do_not_test_it(sweep):
    with pytest.raises(ValueError, match="seed 2 chose the learning rates"):
        best.TABLE.narrow(Choice("end", CHOICE.axes, seeds=(2, 3)), Record(sweep), sweep)


def test_a_method_without_runs_at_every_rate_is_named(sweep):
    choice = Choice("end", CHOICE.axes | {"method": ("S1", "S3")})
    with pytest.raises(ValueError, match=r"^S3 on cifar10 .* --methods=Normal,S1,S3"):
        best.TABLE.narrow(choice, Record(sweep), sweep)
