"""Other networks, each method at the rate that one seed chose, from invented runs."""

import json

import pytest

from experiments.cli.configuration import Configuration
from experiments.sweep.record import Record
from experiments.tables import networks, report
from experiments.tables.table import Choice
from tests.experiments.tables.test_rates import write_runs

METHODS = {"method": ("Normal", "S1")}
BEST = {  # by method: a function's name, then its rate
    "Normal": {"ResNet": 3e-2, "ViT": 1e-2},
    "S1": {"ResNet": 3e-2, "ViT": 3e-3},
}


def at_its_best(flags):
    """A point is lost away from the best rate; S1 is two points ahead at its own."""
    _, name = flags.backbone.split(":")
    best = flags.learning_rate == BEST[flags.method][name]
    return 60 + best, 70 + best + 2 * (flags.method == "S1")


def written(choice, out):
    record = Record(out)
    choice = networks.TABLE.narrow(choice, record, out)
    report.write(networks.TABLE, choice, record, out, "the command")
    return json.loads((out / "networks.json").read_text()), (out / "networks.md").read_text()


@pytest.fixture
def chosen(tmp_path):
    write_runs(Choice("end", METHODS, seeds=(0,)), networks.TABLE, tmp_path, at_its_best)
    return tmp_path


def test_the_seed_that_chooses_compares_methods_at_equal_rates(chosen):
    figures, _ = written(Choice("end", METHODS, seeds=(0,)), chosen)
    cells = {(cell["backbone"], cell["learning_rate"], cell["method"]) for cell in figures["cells"]}
    assert len(cells) == 2 * 3 * 2
    for cell in figures["cells"]:
        to = f"Normal, learning_rate {cell['learning_rate']}" if cell["method"] == "S1" else None
        assert cell["to"] == to
    assert "claims" not in figures


def test_every_method_is_tested_at_its_own_rate(chosen):
    choice = Choice("end", METHODS)
    table = networks.TABLE.narrow(choice, Record(chosen), chosen)
    write_runs(table, networks.TABLE, chosen, at_its_best)
    figures, text = written(choice, chosen)
    rates = {(cell["section"], cell["row"]) for cell in figures["cells"]}
    assert rates == {
        ("cifar10, backbone ResNet", "Normal, learning_rate 0.03"),
        ("cifar10, backbone ResNet", "S1, learning_rate 0.03"),
        ("cifar10, backbone ViT", "Normal, learning_rate 0.01"),
        ("cifar10, backbone ViT", "S1, learning_rate 0.003"),
    }
    differences = [cell["difference"] for cell in figures["cells"] if cell["method"] == "S1"]
    assert [difference["mean"] for difference in differences] == [2.0, 2.0]
    (rows,) = [detail["rows"] for detail in figures["rates"]]
    assert {row["row"]: row["learning rate"] for row in rows} == {
        "cifar10, backbone ResNet, Normal": "0.03",
        "cifar10, backbone ResNet, S1": "0.03",
        "cifar10, backbone ViT, Normal": "0.01 (the highest)",
        "cifar10, backbone ViT, S1": "0.003",
    }
    assert {row["rates tried"] for row in rows} == {"3 of 3"}
    assert "Preset `end`: 10,000 training examples" in text
    assert "width 1, 10,000" not in text
    assert "diamonds" not in text


def test_a_network_of_the_command_line_has_no_rates_that_were_tried():
    other = Configuration(backbone="mine:Network", taps=("first",))
    assert networks._rates_of(other) == ()


def test_seeds_that_chose_a_rate_do_not_test_it(chosen):
    with pytest.raises(ValueError, match="seed 0 chooses the learning rates"):
        networks.TABLE.narrow(Choice("end", METHODS, seeds=(0, 1)), Record(chosen), chosen)
