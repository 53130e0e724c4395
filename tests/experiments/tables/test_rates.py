"""The methods by learning rate, from invented runs."""

import json

import pytest

from experiments.sweep.record import Record
from experiments.tables import rates, report
from experiments.tables.frame import planned
from experiments.tables.table import Choice

METHODS = (("Normal", 0.0), ("S1", 0.0), ("S1", 1.0))
SWEEP = {"learning_rate": (1e-3, 1e-2), "method auxiliary_mean": METHODS}
ACCURACIES = {  # on held-out training examples and on the test split, by row and rate
    ("Normal", 0.0, 1e-3): (70, 60),
    ("Normal", 0.0, 1e-2): (60, 90),
    ("S1", 0.0, 1e-3): (50, 95),
    ("S1", 0.0, 1e-2): (80, 63),
    ("S1", 1.0, 1e-2): (75, 65),
}


def write_runs(choice, table, out, accuracies):
    """Records runs with the accuracies that a function of a run's flags gives; None: no run."""
    lines = []
    for run in planned(table.cells(choice), table.run_seeds(choice), out):
        if (figures := accuracies(run.flags)) is not None:
            held_out, test = figures
            lines.append(json.dumps(run_line(run, held_out, test + run.flags.seed % 2)) + "\n")
    with (out / "runs.jsonl").open("a") as file:
        file.writelines(lines)


def run_line(run, held_out, test):
    """The record's line of a planned run of these accuracies, of one branch."""
    return {
        **{"run": run.name, **run.flags.identity(run.flags.seed)},
        **{"validation_accuracy": held_out, "test_accuracy": test, "history": []},
        **{"branch_accuracy": [1.0], "branches": [13], "weights": [1.0], "train_seconds": 1.0},
        **{"device": "CPU", "versions": {"jax": "0"}},
        **{"class_names": ["class"] * 10, "image_shape": [32, 32, 3]},
    }


def by_row_and_rate(flags):
    return ACCURACIES.get((flags.method, flags.auxiliary_mean, flags.learning_rate))


def written(choice, out):
    """The report of the table: JSON and Markdown."""
    report.write(rates.TABLE, choice, Record(out), out, "the command")
    return json.loads((out / "rates.json").read_text()), (out / "rates.md").read_text()


@pytest.fixture
def sweep(tmp_path):
    choice = Choice("end", SWEEP, seeds=(0, 1))
    write_runs(choice, rates.TABLE, tmp_path, by_row_and_rate)
    return written(choice, tmp_path)


def test_the_rate_is_chosen_on_held_out_examples_and_the_test_split_reported(sweep, tmp_path):
    (best,) = sweep[0]["best"]
    normal, s1, _ = best["rows"]
    assert (normal["row"], normal["learning rate"]) == ("Normal", "0.001 (the lowest)")
    assert normal["test accuracy"]["mean"] == 60.5
    assert (s1["row"], s1["learning rate"]) == ("S1", "0.01 (the highest)")
    assert s1["test accuracy"]["mean"] == 63.5
    assert s1["less Normal at its own best"]["mean"] == 3.0
    assert (tmp_path / "rates.png").exists()


def test_a_row_whose_rates_are_not_all_tried_has_no_best_to_compare(sweep):
    (best,) = sweep[0]["best"]
    *tried, with_losses = best["rows"]
    assert [row["rates tried"] for row in tried] == ["2 of 2", "2 of 2"]
    assert with_losses["row"] == "S1, auxiliary_mean 1.0"
    assert with_losses["rates tried"] == "1 of 2"
    assert "highest" not in with_losses["learning rate"]  # of those tried it is the only one
    assert with_losses["less Normal at its own best"] is None


def test_branch_losses_are_compared_with_normal_without_them(sweep):
    """Normal has one branch: a loss of its own would only be a larger step."""
    (cell,) = [each for each in sweep[0]["cells"] if each["auxiliary_mean"] and each["runs"]]
    assert cell["to"] == "Normal"
    assert cell["difference"]["mean"] == 65 - 90


def test_methods_of_the_command_line_replace_the_table_s_pairs():
    choice = Choice("end", {"method": ("Normal", "S1")}, seeds=(0,))
    cells = rates.TABLE.cells(choice)
    assert len(cells) == 2 * len(rates.TABLE.axes["learning_rate"])
    assert {cell.flags.auxiliary_mean for cell in cells} == {0.0}
    assert {cell.row for cell in cells} == {"Normal", "S1"}


def test_networks_of_another_depth_are_another_s_best(tmp_path):
    choice = Choice("end", SWEEP | {"depth": (13, 20)}, seeds=(0, 1))

    def otherwise_deep(flags):
        held_out, test = by_row_and_rate(flags) or (10, 10)
        return (held_out + 9, test - 9) if flags.depth == 20 else (held_out, test)

    write_runs(choice, rates.TABLE, tmp_path, otherwise_deep)
    shallow, deep = written(choice, tmp_path)[0]["best"]
    assert shallow["title"].startswith("cifar10, depth 13,")
    assert deep["title"].startswith("cifar10, depth 20,")
    for best, test in ((shallow, 60.5), (deep, 51.5)):
        normal, s1, _ = best["rows"]
        assert normal["test accuracy"]["mean"] == test
        assert s1["less Normal at its own best"]["mean"] == 3.0


@pytest.mark.parametrize(
    ("dataset", "given", "trained"),
    [
        ("cifar10", {}, 45_000),
        ("fashion_mini", {}, 5_400),
        ("cifar10", {"train_size": 50_000}, 45_000),
        ("cifar10", {"train_size": 20_000}, 20_000),
        ("eurosat/rgb", {"train_size": 20_000}, 20_000),
    ],
)
def test_there_are_always_examples_held_out(dataset, given, trained):
    cells = rates.TABLE.cells(Choice("paper", {"dataset": (dataset,)}, overrides=given))
    assert {cell.flags.train_size for cell in cells} == {trained}


def test_of_an_unknown_size_the_command_line_must_say_how_many_train():
    with pytest.raises(ValueError, match=r"eurosat/rgb: .* give a --train_size"):
        rates.TABLE.cells(Choice("paper", {"dataset": ("eurosat/rgb",)}))
