"""Early exits by the way of training: figures of invented runs, by hand."""

import json
import shutil
from dataclasses import replace

import pytest

from experiments.cli import configuration
from experiments.runs import policy
from experiments.sweep.planning import plan
from experiments.sweep.record import EXITS, Record
from experiments.tables import exits, report
from experiments.tables.frame import planned
from experiments.tables.table import Choice
from tests.experiments.conftest import folder_in, result_in
from tests.experiments.tables.test_rates import run_line

RATES = (1e-2, 3e-2)
WAYS = (
    ("Normal", None, 0.0, None, 13),
    ("Normal", None, 0.0, None, 7),
    ("S1", None, 0.0, None, 13),
    ("DSN", None, 0.0, None, 13),
)
TABLE = replace(
    exits.TABLE,
    axes={
        "dataset": ("cifar10",),
        "method fusion auxiliary_mean taps depth learning_rate": tuple(
            (*way, rate) for way in WAYS for rate in RATES
        ),
    },
)


def fusion(held_out, budgets):
    return {
        "held_out_accuracy": held_out,
        "cuts": [20.0, 74.0, 77.0, 80.0],
        "left_out": [0.0, 1.0, 2.0, 30.0],
        "budgets": [
            accuracy and {"accuracy": accuracy, "operations": 15.0} for accuracy in budgets
        ],
        "curve": [{"operations": 10.0, "accuracy": 60.0}, {"operations": 20.0, "accuracy": 80.0}],
    }


def measured(flags):
    """Networks of one depth have 70 and 80 % at 10 and 20 operations: 75 at 15."""
    if flags.method == "Normal":
        return {"operations": [20.0 if flags.depth == 13 else 10.0], "fusions": {}}
    fusions = {
        "own": fusion(50, [None, 60.0, 61.0, 62.0]),
        "softmax": fusion(70, [None, 76.0 + flags.seed, 78.0, 79.0]),
    }
    return {"operations": [5.0, 10.0, 15.0, 20.0], "fusions": fusions}


def write_runs(out, seeds):
    """At the rate 0.03 all do better on held-out examples and worse on the test split."""
    lines = []
    for run in planned(TABLE.cells(Choice(seeds=(0,))), seeds, out):
        flags = run.flags
        held_out, loss = (80, 1.0) if flags.learning_rate == 3e-2 else (70, 0.0)
        accuracy = 71.0 if flags.depth == 7 else 81.0
        line = run_line(run, held_out, accuracy - loss) | {EXITS: measured(flags)}
        if flags.method != "Normal":
            line |= {"branches": [7, 9, 11, 13], "weights": [0.1, -0.2, 0.3, 0.4]}
        lines.append(json.dumps(line) + "\n")
    (out / "runs.jsonl").write_text("".join(lines))


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(exits, "TABLE", TABLE)
    write_runs(tmp_path, (0, 1, 2))
    record = Record(tmp_path)
    choice = TABLE.narrow(Choice(), record, tmp_path)
    report.write(TABLE, choice, record, tmp_path, "the command")
    return json.loads((tmp_path / "exits.json").read_text())


def test_each_way_is_reported_at_the_rate_that_its_first_seed_chose(written):
    assert {cell["learning_rate"] for cell in written["cells"]} == {3e-2}
    assert [cell["mean"] for cell in written["cells"]] == [80, 70, 80, 80]
    assert {len(cell["runs"]) for cell in written["cells"]} == {3}


def test_the_report_says_how_the_rates_were_chosen(written):
    (rows,) = [detail["rows"] for detail in written["rates"]]
    assert [row["row"] for row in rows] == [
        "cifar10, Normal, taps 13",
        "cifar10, Normal, taps 7",
        "cifar10, S1, taps 7,9,11,13",
        "cifar10, DSN (not the paper's), taps 7,9,11,13",
    ]
    assert {row["learning rate"] for row in rows} == {"0.03 (the highest)"}


def test_ways_are_compared_with_the_deepest_network_whatever_its_rate():
    names = "method fusion auxiliary_mean taps depth learning_rate"
    rates = (3e-2, 1e-2, 1e-2, 1e-2)
    ways = tuple((*way, rate) for way, rate in zip(WAYS, rates, strict=True))
    cells = TABLE.cells(Choice(axes={names: ways}))
    assert [cell.reference and cell.reference.depth for cell in cells] == [None, 13, 13, 13]


def test_before_all_rates_are_tried_it_says_what_to_train_first(tmp_path):
    with pytest.raises(ValueError, match="first train --table=exits --seeds=0"):
        exits.TABLE.narrow(Choice(), Record(tmp_path), tmp_path)
    alone = Choice(seeds=(0,))
    assert exits.TABLE.narrow(alone, Record(tmp_path), tmp_path) == alone


def test_a_single_rate_needs_no_run_to_be_chosen(tmp_path):
    seven = Choice(axes={"learning_rate": (3e-2,), "method": ("S1",)})
    assert len(exits.TABLE.cells(exits.TABLE.narrow(seven, Record(tmp_path), tmp_path))) == 1


def test_exits_are_compared_with_networks_of_equal_operations(written):
    row, _ = written["less networks"][0]["rows"]
    assert row["fusion"] == "softmax fitted"  # the best on held-out examples, not on the test's
    assert row["25% of operations"] is None  # below the first exit
    half = row["50% of operations"]
    # 76, 77 and 78 by seed, less 75: between the networks' 70 and 80.
    assert (half["mean"], half["pairs"]) == (2.0, 3)
    assert row["75% of operations"]["mean"] == 3.0


def test_budgets_have_every_fusion(written):
    softmax, own, *_ = written["budgets"][0]["rows"]
    assert own["100% of operations"]["mean"] == 62.0
    assert softmax["50% of operations"] == {"mean": 77.0, "deviation": 1.0}


def test_whether_weights_tell_the_redundant_depth(written, tmp_path):
    (row,) = written["weights"][0]["rows"]  # none of DSN, whose weights are given
    assert row["rank correlation"]["mean"] == pytest.approx(1.0)  # whatever the weights' signs
    deepest = written["branches"][0]["rows"][-1]
    assert deepest["share of weights"] == "40%"
    assert deepest["leaving it out costs"]["mean"] == 30.0
    assert deepest["cutting there costs"]["mean"] == 0.0
    assert (tmp_path / "exits.png").stat().st_size > 10_000
    assert "its own fusion" in (tmp_path / "exits.md").read_text()


def test_a_finished_run_is_measured_once_and_its_line_has_the_figures(
    tmp_path, finished, monkeypatch
):
    monkeypatch.setattr(policy, "HELD_OUT", 400)
    run = plan(configuration.of_result(result_in(finished)), tmp_path / "runs")
    shutil.copytree(folder_in(finished), run.folder.path)
    TABLE.measure(run)
    line = Record(tmp_path).result(run)
    figures = line[EXITS]
    assert len(figures["operations"]) == len(line["branches"])
    assert figures["operations"] == sorted(figures["operations"])
    own = figures["fusions"]["own"]
    assert own["cuts"][-1] == pytest.approx(line["test_accuracy"], abs=0.11)
    whole = own["budgets"][policy.SHARES.index(1.0)]
    assert figures["operations"][0] < whole["operations"] <= figures["operations"][-1]
    file = run.folder.path / f"{EXITS}.json"
    before = file.stat().st_mtime_ns
    TABLE.measure(run)
    assert file.stat().st_mtime_ns == before
