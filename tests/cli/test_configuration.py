"""The command line: what it teaches, and one line for what it cannot take."""

import os
import re

import pytest

import interflow_jax as ij
from experiments import run
from interflow_jax.cli import files, single
from interflow_jax.cli.config import RunConfig, fields, recorded, recorded_identity
from interflow_jax.cli.parser import parse_run as parse
from interflow_jax.data.recipes import RECIPES


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch):
    def too_late(*_):
        raise AssertionError("reached the work")

    monkeypatch.setattr(single, "Trainer", too_late)


def test_both_ways_to_give_a_value():
    assert parse(["--method=S3", "--epochs=7"]) == parse(["--method", "S3", "--epochs", "7"])
    assert parse(["--taps=7,9"]).model.taps == (7, 9)
    seeds = [run.training.seed for run in parse(["--seeds", "0,1,2"]).by_seed()]
    assert seeds == [0, 1, 2]
    assert [run.training.seed for run in parse(["--seed=4"]).by_seed()] == [4]
    assert parse(["--fc=separate"]) == parse(["--fully_connected=separate"])
    assert parse(["--frozen=backbone"]).model.frozen


def test_a_flag_that_the_method_overrides_is_refused():
    assert parse(["--method=Concat", "--fc=separate"]).model.method == "Concat"
    with pytest.raises(ValueError, match="--fully_connected=shared: Concat always has separate"):
        parse(["--method=Concat", "--fc=shared"])


def test_a_command_line_and_a_record_give_the_configuration_back():
    flags = ["--method=S3", "--taps=7,8,9,10", "--frozen=backbone", "--width=0.5", "--seed=3"]
    config = parse([*flags, "--weight_decay=0.001", "--out=a b"])
    assert parse(config.arguments()) == config
    assert recorded(config.identity()).flat() == config.flat() | {"epochs": 3}
    older = {"fc": "separate", "frozen": "none", "method": "S1", "taps": [7, 9]}
    assert (
        recorded(older).model
        == RunConfig().replace(method="S1", taps=(7, 9), fully_connected="separate").model
    )
    assert recorded_identity(older)["learning_rate"] == 1e-3


def test_help_has_a_line_on_every_method(capsys):
    with pytest.raises(SystemExit) as done:
        parse(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    methods, baselines = text.split("baselines (not the paper's methods")
    for part, table in ((methods, ij.METHODS), (baselines, ij.BASELINES)):
        for name, method in table.items():
            assert re.search(rf"^  {name} +{re.escape(method.summary)}$", part, re.MULTILINE)
    for name in RECIPES:
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
        (["--width=inf"], ["--width=inf", "choose a number from"]),
        (["--epochs=0"], ["--epochs=0", "from 1 to 1,000,000"]),
        (["--width=-1"], ["--width=-1", "choose a number from"]),
        (["--batch_size=0"], ["--batch_size=0", "from 1 to"]),
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
        (["--seed=0", "--seeds=1,2"], ["--seed=0", "--seeds", "give one"]),
        (["--seeds=1,01"], ["'1,01' has 1 more than once"]),
        (["--seed=-1"], ["--seed=-1", "from 0 to"]),
        (["--seeds=0,-1"], ["--seed=-1", "from 0 to"]),
        (["--frozen=all"], ["'all'", "none", "backbone"]),
        (["--epochs=99999999999999999999"], ["--epochs=99999999999999999999", "to 1,000,000"]),
        (["--width=1e9"], ["--width=1000000000.0", "to 64"]),
        (["--schedule=cosine", "--drop_after=0.5"], ["--drop_after=0.5", "a cosine has no drop"]),
        (["--initial_weights=nan,1,1,1,1,1,1"], ["nan", "finite"]),
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


@pytest.mark.parametrize(
    ("flags", "idle"),
    [
        (["--method=S7", "--fusion_start=unit"], "--fusion_start=unit is without effect: no weig"),
        (["--method=S1", "--fusion_start=unit"], None),
        (["--fusion=softmax", "--fusion_start=unit"], "--fusion_start=unit is without effect"),
        (["--pool=first"], "--pool=first is without effect: vgg has no maps of tokens"),
        (["--layout=append"], "--layout=append is without effect: 13 layers add none"),
        (["--layout=append", "--depth=20", "--method=S1"], None),
        (["--method=Normal", "--detached"], "--detached is without effect: there is one branch"),
        (["--detached", "--frozen=backbone", "--pretrained=x"], "the backbone is frozen"),
        (["--method=Normal", "--distillation=1"], "--distillation=1.0 is without effect"),
        (
            ["--method=Normal", "--auxiliary_mean=1"],
            "--auxiliary_mean=1.0 scales the loss: there is one branch",
        ),
        (["--method=S1", "--auxiliary_mean=1", "--distillation=1"], None),
        (["--frozen=backbone"], "--frozen=backbone without --pretrained: it stays as it is drawn"),
        (["--method=Detached"], None),
    ],
)
def test_flags_without_effect_are_said(flags, idle):
    told = parse(flags).idle()
    assert len(told) == (idle is not None)
    assert (idle or "") in "".join(told)


def test_weights_may_be_equal_and_nothing_else():
    assert parse(["--initial_weights=0.25,0.25,0.5"]).model.initial_weights == (0.25, 0.25, 0.5)
    for twice in ("--seeds=1,1", "--taps=7,7"):
        with pytest.raises(SystemExit):
            parse([twice])


def test_a_batch_that_the_devices_do_not_divide(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("jax.device_count", lambda: 8)
    assert run.main(["--batch_size=60", f"--out={tmp_path}"]) == 2
    assert "--batch_size=60 on 8 devices: choose a multiple of 8" in capsys.readouterr().err


def test_the_identity_leaves_out_places_and_fills_in_defaults():
    given = parse(["--method=S1", "--dataset=cifar10", "--seed=3", "--out=x", "--data_dir=y"])
    identity = given.identity()
    assert (identity["seed"], identity["epochs"], identity["taps"]) == (3, 100, [7, 9, 11, 13])
    same = parse(["--method=S1", "--dataset=cifar10", "--epochs=100", "--seed=3"])
    assert identity == same.identity()
    assert not set(identity) & fields("places")


def test_a_pretrained_file_is_read_once_while_it_does_not_change(tmp_path, monkeypatch):
    file, reads = tmp_path / "a.safetensors", []
    file.write_bytes(b"1")
    read = type(file).read_bytes
    monkeypatch.setattr(type(file), "read_bytes", lambda path: (reads.append(path), read(path))[1])
    config = RunConfig().replace(pretrained=str(file))
    first = [config.replace(seed=seed).identity()["pretrained_sha256"] for seed in range(13)]
    assert (len(set(first)), len(reads)) == (1, 1)
    file.write_bytes(b"22")
    assert config.identity()["pretrained_sha256"] != first[0]


def test_a_folder_is_probed_without_leaving_a_trace(tmp_path):
    files.writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


def test_a_mean_of_branch_losses_takes_the_place_of_a_baseline_s_sum():
    for method, weight in (("S1", 0.0), ("Aux", 0.3), ("DSN", 1.0)):
        config = RunConfig().replace(method=method)
        assert list(config.losses().values()) == [weight, 0.0, 0.0]
        losses = config.replace(auxiliary_mean=0.5, distillation=0.2).losses()
        assert losses == {"auxiliary_loss": 0.0, "auxiliary_mean": 0.5, "distillation": 0.2}
