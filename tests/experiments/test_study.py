"""The study of small trainings: figures by hand from invented runs, and the command in small."""

import json

import numpy as np
import pytest

from experiments import study
from experiments.cli.configuration import Configuration
from experiments.sweep import planning


def test_smallest_difference_is_that_of_five_paired_seeds(tmp_path):
    planned = {}
    for method, accuracies in (("Normal", (50, 52, 54)), ("S1", (51, 55, 55))):
        planned["candidate", method] = []
        for seed, accuracy in enumerate(accuracies):
            run = planning.plan(Configuration(method=method, seed=seed), tmp_path)
            run.folder.path.mkdir(parents=True)
            run.folder.write_json("result.json", {"test_accuracy": accuracy, "train_seconds": 7.0})
            planned["candidate", method].append(run)
    planned = {((0.5, 10, 2), method): runs for (_, method), runs in planned.items()}
    found = study.measure((0.5, 10, 2), planned, "cifar10")
    assert found["deviation"] == pytest.approx(2.0)
    assert found["differences"] == [1, 3, 1]
    # Deviation of 1, 3, 1 over n - 1, and t(0.975, 4) = 2.7764.
    assert found["smallest_difference"] == pytest.approx(2.776445 * (4 / 3) ** 0.5 / 5**0.5)
    assert found["paper_difference"] == pytest.approx(92.04 - 91.12)
    assert found["seconds"] == 7.0


def test_the_command_in_small(tmp_path, capsys):
    arguments = ["--dataset=fashion_mini", "--depth=13", "--candidates=0.02x128x1", "--seeds=0,1"]
    assert study.main([*arguments, f"--out={tmp_path}"]) == 0
    (found,) = json.loads((tmp_path / "study.json").read_text())["candidates"]
    accuracies = np.array(found["accuracy"]["Normal"])
    assert f"{accuracies.mean():.2f} ± {accuracies.std(ddof=1):.2f}" in capsys.readouterr().out
    assert study.main([*arguments, "--seeds=0", f"--out={tmp_path}"]) == 2
    assert "two or more" in capsys.readouterr().err
    assert study.main(["--dataset=fashion_mini", f"--out={tmp_path}"]) == 2
    assert "--train_size=20000: fashion_mini has 6000" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        study.main(["--candidates=0.1x200"])
    assert "'0.1x200' is not as 0.125x20000x3" in capsys.readouterr().err
