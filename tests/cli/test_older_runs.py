"""Run folders made before the commands came with the package (jax 0.10.2, flax 0.12.8)."""

import json
import shutil
from pathlib import Path

import jax
import pytest

import interflow_jax as ij
from interflow_jax.cli import predict, run
from tests.cli.conftest import SMALL, folder_in, result_in

RUNS = Path(__file__).parent / "runs"


@pytest.fixture
def copied(tmp_path):
    return lambda kind: shutil.copytree(RUNS / kind, tmp_path / kind)


def test_a_finished_one_opens_predicts_and_is_not_trained_again(copied, capsys):
    out = copied("finished")
    result = result_in(out)
    loaded = ij.load_run(folder_in(out))
    assert loaded.model.fully_connected == result["fc"] == "shared"
    assert not loaded.model.frozen
    assert predict([f"--run={folder_in(out)}", "--dataset=fashion_mini"]) == 0
    assert f"{result['test_accuracy']:.2f}% correct" in capsys.readouterr().out
    assert run([*SMALL, f"--out={out}"]) == 0
    assert result_in(out) == result
    assert run([*SMALL, "--fc=separate", f"--out={out}"]) == 2
    assert "fully_connected 'shared' there, 'separate' asked for" in capsys.readouterr().err


def test_a_stopped_one_goes_on_to_the_end_of_one_that_never_stopped(copied, finished, capsys):
    out = copied("stopped")
    assert run([*SMALL, f"--out={out}"]) == 0
    assert "after epoch 1, step 0 of 4" in capsys.readouterr().out
    history = (folder_in(out) / "metrics.csv").read_text().splitlines()
    before = (RUNS / "stopped/fashion_mini/S3/seed0/metrics.csv").read_text().splitlines()
    assert history[: len(before)] == before
    assert len(history) == 3
    versions = json.loads((folder_in(out) / "config.json").read_text())["versions"]
    if versions["jax"] == jax.__version__:  # another one may round otherwise
        assert result_in(out)["train_loss"] == pytest.approx(result_in(finished)["train_loss"])
