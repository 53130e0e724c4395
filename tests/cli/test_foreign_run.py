"""The main command and those after it on a network that knows nothing of branches."""

import json
import shutil
import sys

import numpy as np
import pytest
from flax import serialization

import interflow_jax as ij
from experiments import exits, export, predict, run
from interflow_jax.pretrained import read_pretrained
from tests.cli.conftest import folder_in

NETWORK = """
import flax.linen as nn


class Network(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x, train):
        for name in ("first", "second"):
            x = nn.Conv(self.width, (3, 3), strides=4, name=name)(x)
            x = nn.relu(nn.BatchNorm(not train, name=f"{name}_norm")(x))
            self.sow("losses", f"{name}_mean", x.mean())
        return nn.Dense(10, name="head")(x.mean((1, 2)))
"""
BACKBONE = ("--backbone=mine:Network", "--taps=first,second_norm", "--method=S1")
SMALL = ("--train_size=128", "--epochs=2", "--dataset=fashion_mini")


@pytest.fixture
def network(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    sys.modules.pop("mine", None)


def test_it_trains_resumes_predicts_and_refuses_another_source(network, tmp_path, capsys):
    out = tmp_path / "runs"
    command = [*BACKBONE, *SMALL, f"--out={out}"]
    assert run.main(command) == 0
    folder = out / "fashion_mini" / "S1" / "seed0"
    result = json.loads((folder / "result.json").read_text())
    assert result["branches"] == ["first", "second_norm"]
    config = json.loads((folder / "config.json").read_text())
    assert config["backbone_source"]["file"] == str(network)
    assert (folder / "pictures" / "branch_accuracy.png").exists()
    opening = [f"--run={folder}", "--dataset=fashion_mini"]
    assert predict.main(opening) == 2
    assert "what a file names is not imported" in capsys.readouterr().err
    for trusted in ("--backbone=mine:Network", "--trust_code"):
        assert predict.main([*opening, trusted]) == 0
        assert f"{result['test_accuracy']:.2f}% correct" in capsys.readouterr().out
    assert run.main(command) == 0
    network.write_text(NETWORK + "\n")
    assert run.main(command) == 2
    assert "backbone_sha256" in capsys.readouterr().err
    assert predict.main([*opening, "--trust_code"]) == 2
    assert "mine:Network is not what the run was trained with" in capsys.readouterr().err


def test_nothing_that_a_stranger_s_file_names_is_imported(finished, tmp_path, capsys):
    """Neither by a run's folder nor by exported parameters, whatever digest they claim."""
    trap = {"backbone": "subprocess:getoutput", "backbone_sha256": "0", "taps": ["a"]}
    trap["backbone_options"] = f"cmd='touch {tmp_path / 'ran'}'"
    folder = shutil.copytree(folder_in(finished), tmp_path / "run")
    trained = ij.load_run(folder)
    result = json.loads((folder / "result.json").read_text()) | trap
    (folder / "result.json").write_text(json.dumps(result))
    trained.result = result
    (tmp_path / "a.safetensors").write_bytes(ij.to_safetensors(trained))
    for command in (predict, export, exits):
        flags = ["--dataset=fashion_mini"] if command is predict else []
        flags += [f"--out={tmp_path / 'out'}"] if command is export else []
        assert command.main([f"--run={folder}", *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "subprocess:getoutput" in line
        assert "is not imported" in line
    for opens in (
        lambda: ij.load_run(folder),
        lambda: ij.load_safetensors(tmp_path / "a.safetensors"),
    ):
        with pytest.raises(ValueError, match=r"subprocess:getoutput.* is not imported"):
            opens()
    with pytest.raises(ValueError, match="but the run's network is 'subprocess:getoutput'"):
        ij.load_run(folder, backbone="mine:Network")
    with pytest.raises(ValueError, match=r"has been changed|no source"):
        ij.load_run(folder, trust_code=True)
    assert not (tmp_path / "ran").exists()


NNX = """
from flax import nnx


class Network(nnx.Module):
    def __init__(self, *, rngs):
        self.blocks = nnx.List([nnx.Linear(1, 4, rngs=rngs), nnx.Linear(4, 5, rngs=rngs)])

    def __call__(self, x):
        for block in self.blocks:
            x = nnx.relu(block(x))
        return x
"""


def test_an_nnx_network_is_opened_as_it_was_trained(network, tmp_path, capsys):
    """Its lists have numbers for names, which files turn into strings."""
    network.write_text(NNX)
    flags = ["--backbone=mine:Network", "--taps=blocks/0,blocks/1", "--method=S1"]
    assert run.main([*flags, *SMALL, f"--out={tmp_path / 'runs'}"]) == 0
    folder = tmp_path / "runs" / "fashion_mini" / "S1" / "seed0"
    result = json.loads((folder / "result.json").read_text())
    opening = [f"--run={folder}", "--dataset=fashion_mini", "--backbone=mine:Network"]
    assert predict.main(opening) == 0
    assert f"{result['test_accuracy']:.2f}% correct" in capsys.readouterr().out
    opened = ij.load_run(folder, trust_code=True)
    (tmp_path / "model.safetensors").write_bytes(ij.to_safetensors(opened))
    again = ij.load_safetensors(tmp_path / "model.safetensors", "mine:Network")
    images = np.zeros((2, 28, 28, 1), np.uint8)
    np.testing.assert_array_equal(again.predict(images).logits, opened.predict(images).logits)


def test_layers_are_listed_without_a_run(network, tmp_path, capsys):
    assert run.main(["--backbone=mine:Network", "--list_layers", f"--out={tmp_path / 'no'}"]) == 0
    assert "  first_norm  7 x 7 x 4\n" in capsys.readouterr().out
    assert not (tmp_path / "no").exists()


def test_a_pretrained_backbone_is_kept_where_it_is_frozen(network, tmp_path):
    out = tmp_path / "runs"
    assert run.main([*BACKBONE, *SMALL, f"--out={out}"]) == 0
    variables = ij.load_run(folder_in(out, "S1"), "mine:Network").variables
    own = {name: part["backbone"]["network"] for name, part in variables.items()}
    file = tmp_path / "own.msgpack"
    file.write_bytes(serialization.to_bytes(own))
    kept = [*BACKBONE, *SMALL, f"--pretrained={file}", "--frozen=backbone", "--seed=1"]
    assert run.main([*kept, f"--out={tmp_path / 'kept'}"]) == 0
    frozen = ij.load_run(folder_in(tmp_path / "kept", "S1", 1), trust_code=True)
    for name, part in read_pretrained(file).items():
        inside = frozen.variables[name]["backbone"]["network"]
        for layer, values in part.items():
            for leaf, array in values.items():
                np.testing.assert_array_equal(inside[layer][leaf], array)
