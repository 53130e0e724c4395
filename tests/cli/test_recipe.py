"""Recipes, configurations from files, and what is evaluated, kept and ended by held-out images."""

import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image

import interflow_jax as ij
from interflow_jax import load_run
from interflow_jax.cli import predict, run, single
from interflow_jax.cli.config import RunConfig, recorded
from interflow_jax.cli.parser import parse_run as parse
from interflow_jax.data import load, splits
from interflow_jax.saved_run import held_out
from interflow_jax.trainer import Trainer
from interflow_jax.training_recipe import TrainingRecipe, training_recipe
from tests.cli.conftest import SMALL, folder_in, result_in

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Pictures of three classes that differ by their grey, 20 of each."""
    place, generator = tmp_path_factory.mktemp("pictures") / "grey", np.random.default_rng(0)
    for label, name in enumerate(("black", "grey", "white")):
        (place / name).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(80 * label, 80 * label + 40, (16, 16)).astype(np.uint8)
            Image.fromarray(pixels).save(place / name / f"{number}.png")
    return place


def history(out):
    return list(csv.DictReader((folder_in(out) / "metrics.csv").open()))


def test_modern_is_the_default_of_one_s_own_pictures_and_flags_win(tmp_path):
    own = ["--dataset=folder:x", f"--out={tmp_path}"]
    modern = training_recipe("modern", 40)._asdict()
    assert {name: parse(own).flat()[name] for name in modern} == modern
    assert parse(own).training.recipe == "modern"
    for flags in (["--dataset=cifar10"], [], ["--dataset=food101"], [*own, "--recipe=paper"]):
        config = parse(flags)
        assert config.training.recipe == "paper"
        assert {config.flat()[name] for name in ("learning_rate", "label_smoothing")} == {1e-3, 0.0}
    given = parse([*own, "--epochs=20", "--schedule=step", "--batch_size=64"])
    assert given.training.warmup_epochs == 2
    assert given.training.schedule == "step"
    assert given.training.learning_rate == 64 / modern["batch_size"] * modern["learning_rate"]
    assert parse(["--recipe=modern"]).training.schedule == "cosine"
    sgd = parse([*own, "--optimizer=sgd"])  # to which the rate and decay of another mean nothing
    assert (sgd.training.learning_rate, sgd.training.weight_decay) == (1e-3, 5e-4)
    for config in (
        parse(own),
        given,
        sgd,
        parse([*own, "--recipe=paper"]),
        parse(["--recipe=modern"]),
    ):
        assert parse(config.arguments()) == config


def test_a_run_goes_on_under_the_recipe_that_it_recorded(folder, tmp_path, monkeypatch, capsys):
    """Whatever modern is by then; one older than recipes under the paper's."""
    command = [f"--dataset=folder:{folder}", *SMALL[:-2], "--epochs=1", f"--out={tmp_path}"]
    command += ["--train_size=32", "--batch_size=16", "--image_size=16"]
    assert run(command) == 0
    place = tmp_path / "folder-grey" / "S3" / "seed0"
    result = json.loads((place / "result.json").read_text())
    assert (result["recipe"], result["schedule"], result["augment"]) == (
        "modern",
        "cosine",
        "crop_flip",
    )
    stored = json.loads((place / "config.json").read_text())
    assert stored["recipe"] == training_recipe("modern", 1, 16)._asdict()
    other = TrainingRecipe(learning_rate=9.0)
    monkeypatch.setattr("interflow_jax.training_recipe._MODERN", other)
    assert parse(command).training.learning_rate == result["learning_rate"]
    assert run(command) == 0
    capsys.readouterr()
    assert predict([f"--run={place}", str(folder / "black")]) == 0
    seen = f"20 of them are in {folder}, which the run was trained from"
    assert seen in capsys.readouterr().out
    assert run([*command, "--recipe=paper"]) == 2
    assert "recipe 'modern' there, 'paper' asked for" in capsys.readouterr().err
    assert run([*command, "--label_smoothing=0.3"]) == 2
    assert "label_smoothing" in capsys.readouterr().err
    longer = [flag.replace("--epochs=1", "--epochs=30") for flag in command]
    assert run(longer) == 2  # with the schedule of 30 epochs, not that of one
    assert "epochs 1 there, 30 asked for" in capsys.readouterr().err
    del stored["recipe"], stored["configuration"]["recipe"]
    (place / "config.json").write_text(json.dumps(stored))
    assert parse(command).training == recorded({"epochs": 1, "batch_size": 16}).training


def test_a_folder_without_its_prefix_is_recognized(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    assert run(["--dataset=grey", f"--out={tmp_path / 'runs'}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("; for the pictures in the folder grey: --dataset=folder:grey")
    assert not (tmp_path / "runs").exists()


def test_a_recipe_taken_from_a_file_is_that_of_the_epochs_that_are_given(tmp_path):
    file, own = tmp_path / "config.json", ["--dataset=folder:x", f"--out={tmp_path / 'runs'}"]
    written = parse([*own, "--epochs=20", "--label_smoothing=0.3"])
    file.write_text(json.dumps({"configuration": written.identity()}))
    again = parse([f"--config={file}", own[1]])
    assert again.identity() == written.identity()
    assert parse([f"--config={file}", own[1], "--epochs=4"]) == parse(
        [*own, "--epochs=4", "--label_smoothing=0.3"]
    )


def test_a_run_of_other_classes_is_fine_tuned_with_new_heads(folder, finished, tmp_path, capsys):
    flags = [flag for flag in SMALL if not flag.startswith(("--train_size", "--epochs"))]
    flags += [f"--dataset=folder:{folder}", "--image_size=16", "--batch_size=16", "--epochs=4"]
    flags += [f"--pretrained={folder_in(finished)}", f"--out={tmp_path}"]
    assert run([*flags, "--frozen=backbone"]) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert said.endswith(
        "backbone; new: fully_connected_channels_16, fully_connected_channels_8, fusion"
    )
    tuned = ij.load_run(tmp_path / "folder-grey" / "S3" / "seed0")
    before, after = ij.load_run(folder_in(finished)).variables, tuned.variables
    for name, part in before.items():
        jax.tree.map(np.testing.assert_array_equal, after[name]["backbone"], part["backbone"])
    assert after["params"]["fusion"]["weights"].shape == (3, 3)
    assert tuned.class_names == ("black", "grey", "white")
    losses = (tuned.result["train_loss"], np.log(3))
    assert losses[0] < 1.5 * losses[1]


def test_a_file_of_flags_says_what_the_flags_say(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'method = "S3"\ntaps = [7, 9]\nfrozen = true\ndetached = true\n'
        "[training]\nepochs = 5\nlearning_rate = 0.01\n[regularization]\nmixup = 0.2\n"
    )
    told = ["--method=S3", "--taps=7,9", "--frozen=backbone", "--detached", "--epochs=5"]
    told += ["--learning_rate=0.01", "--mixup=0.2"]
    assert parse([f"--config={file}"]) == parse(told)
    assert parse([f"--config={file}", "--epochs=6"]) == parse([*told, "--epochs=6"])
    assert parse(["--epochs=6", f"--config={file}"]) == parse([*told, "--epochs=6"])
    file.write_text("seeds = [1, 2]")
    assert parse([f"--config={file}", "--seed=0"]) == parse(["--seed=0"])
    file.write_text('dataset = "cifar10"\naugment = false\nfc = "separate"\ndetached = false')
    assert parse([f"--config={file}"]) == parse(
        ["--dataset=cifar10", "--augment=none", "--fc=separate"]
    )


def test_a_run_s_own_configuration_is_one_of_another_method_or_seed(finished, tmp_path):
    file = folder_in(finished) / "config.json"
    assert parse([f"--config={file}"]).identity() == parse(SMALL).identity()
    seeds = parse([f"--config={file}", "--seeds=3,4"])
    assert [each.training.seed for each in seeds.by_seed()] == [3, 4]
    whole = {"method": "S7", "dataset": "cifar10", "taps": [7, 8, 9, 10, 11, 12, 13], "seed": 3}
    (tmp_path / "config.json").write_text(json.dumps({"configuration": whole}))
    config = parse([f"--config={tmp_path / 'config.json'}", "--method=S1"])
    assert (config.model.resolved_taps(), config.training.seed) == ((7, 9, 11, 13), 3)
    (tmp_path / "config.json").write_text(
        json.dumps({"configuration": parse(["--method=Concat"]).identity()})
    )
    config = parse([f"--config={tmp_path / 'config.json'}", "--method=S1"])
    assert config == parse(["--method=S1", "--epochs=3"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch = 3", ["'epoch'", "did you mean epochs?", "label_smoothing"]),
        ("epochs = 'many'", ["--epochs", "many"]),
        ("label_smoothing = false", ["--label_smoothing"]),
        ("seed = 1\nseeds = [1, 2]", ["--seed=1 and --seeds=1,2 together"]),
        ("optimizer = 'adam'", ["'adam'", "did you mean adamw?"]),
        ("epochs = ", ["cannot be read"]),
        ("{}", ["it has no configuration"]),
        ('{"configuration": 3}', ["--config="]),
        ('backbone = "mine:Network"', ["mine:Network", "add --backbone=mine:Network"]),
        ("epochs = 3\n[training]\nepochs = 5", ["epochs twice: at the top, and in [training]"]),
        ("[data]\nlearning_rate = 0.1", ["learning_rate in [data]; it is of [training]"]),
    ],
)
def test_a_wrong_file_is_one_line(text, said, tmp_path, capsys):
    file = tmp_path / "a.toml"
    file.write_text(text)
    assert run([f"--config={file}", f"--out={tmp_path / 'runs'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in said:
        assert part in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flag", ["--keep=best", "--patience=2"])
def test_what_needs_held_out_images_is_refused_without(flag, tmp_path, capsys):
    assert run([flag, f"--out={tmp_path / 'runs'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{flag} needs held-out images" in line
    assert "--train_size=5400" in line
    assert not (tmp_path / "runs").exists()


def test_what_it_began_from_has_seen_is_not_held_out(finished, tmp_path, capsys):
    more = [f"--pretrained={folder_in(finished)}", "--train_size=128", f"--out={tmp_path}"]
    assert run([*SMALL, *more, "--epochs=1", "--optimizer=adamw"]) == 0
    assert (
        "was trained on 256 images of fashion_mini: none of them count" in capsys.readouterr().out
    )
    tuned, train = ij.load_run(folder_in(tmp_path)), load("fashion_mini").train
    assert (tuned.result["train_size"], tuned.seen_size) == (128, 256)
    assert tuned.result["optimizer"] == "adamw"  # whose state is another
    held = held_out(tuned, load("fashion_mini"), 10_000)
    assert held is not None
    order = splits.take(train, len(train) - 1).indices
    np.testing.assert_array_equal(held.indices[:-1], order[256:])
    whole = RunConfig().replace(train_size=128, patience=2, pretrained="runs/before")
    with pytest.raises(ValueError, match=r"all 6000 training .* by runs/before; .*=5400 there"):
        single.check_held_out(whole, 6000, seen=6000)


def test_the_best_epoch_is_kept_and_patience_ends_what_gets_no_better(
    tmp_path, monkeypatch, capsys
):
    """By the first of the best on held-out images; of the averaged weights, if there are any."""
    held_out, evaluate = iter((100, 300, 200, 300, 5, 900)), Trainer.evaluate

    def decided(trainer, state, split="test", *rest):
        metrics = evaluate(trainer, state, split, *rest)
        if split == "validation":
            metrics = metrics._replace(correct=next(held_out), count=1000)
        return metrics

    monkeypatch.setattr(Trainer, "evaluate", decided)
    flags = [*SMALL[:-1], "--epochs=9", "--keep=best", "--patience=3", "--ema=0.9"]
    assert run([*flags, f"--out={tmp_path}"]) == 0
    rows, result = history(tmp_path), result_in(tmp_path)
    assert [float(row["validation_accuracy"]) for row in rows] == [10, 30, 20, 30, 0.5]
    assert (result["trained_epochs"], result["kept_epoch"]) == (5, 2)
    assert result["test_accuracy"] == float(rows[1]["test_accuracy"])
    assert result["validation_accuracy"] == 30
    said = capsys.readouterr().out
    assert "25 held-out training images choose the epoch" in said
    assert "no better on held-out images since epoch 2: ended after 5 of 9 epochs" in said
    assert "after epoch 2, the best on held-out images, of 5 epoch(s) (of 9; " in said
    assert predict([f"--run={folder_in(tmp_path)}", "--dataset=fashion_mini"]) == 0
    assert f"{result['test_accuracy']:.2f}% correct" in capsys.readouterr().out


def test_patience_is_asked_after_an_evaluation(tmp_path):
    """So that the figures are of the weights that are kept."""
    flags = [*SMALL[:-1], "--epochs=5", "--evaluate_every=2", "--patience=1", "--learning_rate=0"]
    assert run([*flags, f"--out={tmp_path}"]) == 0
    result = result_in(tmp_path)
    assert result["trained_epochs"] == result["kept_epoch"] == 4
    loaded = load_run(folder_in(tmp_path))
    images, labels = load("fashion_mini").test.read(np.arange(1000))
    correct = np.mean(np.asarray(loaded.predict(images).logits).argmax(1) == labels)
    assert 100 * correct == pytest.approx(result["test_accuracy"])


def test_every_second_epoch_is_evaluated(finished, tmp_path):
    """Without another effect; the training loss is the mean since the evaluation before."""
    assert run([*SMALL, "--evaluate_every=2", f"--out={tmp_path}"]) == 0
    (row,), both = history(tmp_path), history(finished)
    assert row["epoch"] == "2"
    np.testing.assert_allclose(
        float(row["train_loss"]), np.mean([float(each["train_loss"]) for each in both])
    )
    assert row["test_accuracy"] == both[-1]["test_accuracy"]
    assert result_in(tmp_path)["fingerprint"] == result_in(finished)["fingerprint"]
    # Of the two last epochs, the one that is among the last ten and was evaluated.
    assert result_in(tmp_path)["late_accuracy"] == float(row["test_accuracy"])
