"""The command line: what it teaches, and one line for what it cannot take."""

import os
import re

import pytest

import interflow_jax as ij
from experiments import run
from experiments.cli import configuration
from experiments.cli.configuration import Configuration, parse
from experiments.runs import files, single
from interflow_jax.data import datasets


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch):
    def too_late(*_):
        raise AssertionError("reached the work")

    monkeypatch.setattr(single, "Trainer", too_late)


def test_both_ways_to_give_a_value():
    assert parse(["--method=S3", "--epochs=7"]) == parse(["--method", "S3", "--epochs", "7"])
    assert parse(["--taps=7,9"]).taps == (7, 9)
    assert parse(["--seeds", "0,1,2"]).all_seeds() == (0, 1, 2)
    assert parse(["--seed=4"]).all_seeds() == (4,)


def test_help_has_a_line_on_every_method(capsys):
    with pytest.raises(SystemExit) as done:
        parse(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    methods, baselines = text.split("baselines (not the paper's methods")
    for part, table in ((methods, ij.METHODS), (baselines, ij.BASELINES)):
        for name, method in table.items():
            assert re.search(rf"^  {name} +{re.escape(method.summary)}$", part, re.MULTILINE)
    for name in datasets.RECIPES:
        assert name in text.replace("\n", " ")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method=S10"], ["S10", "Normal", "S9"]),
        (["--method=s7"], ["s7", "did you mean S7?"]),
        (["--dataset=cifar11"], ["cifar11", "cifar10", "list_builders"]),
        (["--metod=S1"], ["--metod", "did you mean --method"]),
        (["--epochs=many"], ["--epochs", "many"]),
        (["--taps=a"], ["--taps=a", "vgg has convolutions, as 7,9,11,13"]),
        (["--width=inf"], ["width is inf", "above 0"]),
        (["--epochs=0"], ["--epochs=0", "above 0"]),
        (["--width=-1"], ["-1", "above 0"]),
        (["--batch_size=0"], ["--batch_size=0", "above 0"]),
        (["--dtype=float16"], ["float16", "float32", "bfloat16"]),
        (["--downsample=middle"], ["middle", "first", "last"]),
        (["--layout=even"], ["even", "spread", "append"]),
        (["--fusion_start=zero"], ["zero", "xavier", "unit"]),
        (["--fc=none"], ["none", "shared", "separate"]),
        (["--depth=3"], ["depth is 3", "4 to 200"]),
        (["--depth=10"], ["no convolution 11, 12, 13", "choose taps"]),
        (["--method=S1", "--taps=9,14"], ["depth 13 has no convolution 14", "1 to 13"]),
        (["--taps=7,9"], ["7 branch weights", "2 taps"]),
        (["--seed=1", "--seeds=1,2"], ["--seed=1", "--seeds", "give one"]),
        (["--seed=-1"], ["-1", "choose 0 to"]),
        (["--train_size=6001"], ["6001", "6000"]),
        (["--image_size=32"], ["image_size is 32", "images of 28", "leave it out"]),
    ],
)
def test_one_line_says_what_is_wrong(flags, said, capsys, tmp_path):
    with pytest.raises(SystemExit) as done:
        raise SystemExit(run.main([*flags, f"--out={tmp_path / 'runs'}"]))
    assert done.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    for part in said:
        assert part in lines[0]
    assert not (tmp_path / "runs").exists()


def test_weights_may_be_equal_and_nothing_else():
    assert parse(["--initial_weights=0.25,0.25,0.5"]).initial_weights == (0.25, 0.25, 0.5)
    for twice in ("--seeds=1,1", "--taps=7,7"):
        with pytest.raises(SystemExit):
            parse([twice])


def test_a_batch_that_the_devices_do_not_divide(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("jax.device_count", lambda: 8)
    assert run.main(["--batch_size=60", f"--out={tmp_path}"]) == 2
    assert "--batch_size=60 on 8 devices: choose a multiple of 8" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert run.main([f"--out={tmp_path / 'file'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"run: error: cannot write to {tmp_path / 'file'}")
    assert "give another folder by --out" in error


def test_the_identity_leaves_out_places_and_fills_in_defaults():
    given = parse(["--method=S1", "--dataset=cifar10", "--out=x", "--data_dir=y"])
    identity = given.identity(3)
    assert (identity["seed"], identity["epochs"], identity["taps"]) == (3, 100, [7, 9, 11, 13])
    assert identity == parse(["--method=S1", "--dataset=cifar10", "--epochs=100"]).identity(3)
    assert not set(identity) & set(configuration.PLACES)


def test_a_folder_is_probed_without_leaving_a_trace(tmp_path):
    files.writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


def test_a_mean_of_branch_losses_takes_the_place_of_a_baseline_s_sum():
    for method, weight in (("S1", 0.0), ("Aux", 0.3), ("DSN", 1.0)):
        assert Configuration(method=method).auxiliary_loss() == weight
        assert Configuration(method=method, auxiliary_mean=0.5).auxiliary_loss() == 0.0
