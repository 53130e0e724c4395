"""The methods by learning rate, from invented runs."""

import json

from experiments.sweep.record import Record
from experiments.tables import rates, report
from experiments.tables.frame import planned
from experiments.tables.table import Choice

CHOICE = Choice(
    preset="end",
    axes={
        "learning_rate": (1e-3, 1e-2),
        "method auxiliary_mean": (("Normal", 0.0), ("S1", 0.0), ("S1", 1.0)),
    },
    seeds=(0, 1),
)
ACCURACIES = {  # on held-out training examples and on the test split, by rate
    "Normal": {1e-3: (70, 60), 1e-2: (60, 90)},
    "S1": {1e-3: (50, 95), 1e-2: (80, 63)},
}


def test_the_rate_is_chosen_on_held_out_examples_and_the_test_split_reported(tmp_path):
    lines = []
    for run in planned(rates.TABLE.cells(CHOICE), CHOICE.seeds, tmp_path):
        flags = run.flags
        if flags.auxiliary_mean:
            continue
        held_out, test = ACCURACIES[flags.method][flags.learning_rate]
        figures = {"test_accuracy": test + flags.seed, "validation_accuracy": held_out}
        figures |= {"branch_accuracy": [test], "branches": [13], "weights": [1.0], "history": []}
        figures |= {"train_seconds": 1.0, "device": "CPU", "versions": {"jax": "0"}}
        lines.append(json.dumps({"run": run.name, **flags.identity(flags.seed), **figures}))
    (tmp_path / "runs.jsonl").write_text("\n".join(lines) + "\n")
    report.write(rates.TABLE, CHOICE, Record(tmp_path), tmp_path, "the command")
    (best,) = json.loads((tmp_path / "rates.json").read_text())["best"]
    normal, s1 = best["rows"]
    assert (normal["row"], normal["learning rate"], normal["test accuracy"]) == (
        "Normal",
        "0.001",
        60.5,
    )
    assert (s1["row"], s1["learning rate"], s1["test accuracy"]) == ("S1", "0.01", 63.5)
    assert (
        "| S1 | 0.01 | 80.00 | 63.50 | +3.00 (+3.00 to +3.00) |"
        in (tmp_path / "rates.md").read_text()
    )
    assert (tmp_path / "rates.png").exists()
