"""Prediction with a finished run, by its folder alone."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

import interflow_jax as ij
from experiments import predict, run
from interflow_jax.data import recipes
from tests.cli.conftest import SMALL, folder_in, result_in


@pytest.fixture
def run_flag(finished):
    return f"--run={folder_in(finished)}"


def test_a_dataset_is_measured_as_the_run_measured_it(finished, run_flag, capsys, tmp_path):
    out = tmp_path / "predictions.csv"
    assert predict.main([run_flag, "--dataset=fashion_mini", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    result = result_in(finished)
    assert f"{result['test_accuracy']:.2f}% correct" in said
    for tap, accuracy in zip(result["branches"], result["branch_accuracy"], strict=True):
        assert f"after {tap} alone: {accuracy:.2f}%" in said
    rows = list(csv.reader(out.open()))
    assert rows[0][2:] == result["class_names"]
    probabilities = np.array([row[2:] for row in rows[1:]], float)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    labels = recipes.load("fashion_mini").test.read(np.arange(1000))[1]
    assert np.mean(probabilities.argmax(1) == labels) * 100 == pytest.approx(
        result["test_accuracy"]
    )


def test_image_files_of_any_size(finished, run_flag, capsys, tmp_path):
    image = recipes.load("fashion_mini").test.read(np.array([3]))[0][0]
    exact, colour, large = (tmp_path / name for name in ("exact.png", "colour.png", "large.jpg"))
    Image.fromarray(image[..., 0]).save(exact)
    Image.fromarray(image[..., 0]).convert("RGBA").save(colour)
    Image.fromarray(image[..., 0]).resize((300, 200)).save(large)
    out = tmp_path / "out.csv"
    flags = [run_flag, "--images", str(exact), str(colour), str(large), f"--out={out}"]
    assert predict.main(flags) == 0
    said = capsys.readouterr().out
    assert f"{exact}: 28x28" not in said
    assert f"{colour}: 28x28 RGBA turned to 28x28 L" in said
    assert f"{large}: 300x200 L turned to 28x28 L" in said
    rows = list(csv.reader(out.open()))
    assert [row[0] for row in rows[1:]] == [str(exact), str(colour), str(large)]
    assert rows[1][1:] == rows[2][1:]
    whole = tmp_path / "whole.csv"
    assert predict.main([run_flag, "--dataset=fashion_mini", f"--out={whole}"]) == 0
    assert list(csv.reader(whole.open()))[4][1:] == rows[1][1:]


@pytest.mark.parametrize("form", [["--images={}"], ["{}"], ["--images={}", "{}"]])
def test_files_may_be_given_in_any_form(run_flag, form, tmp_path, capsys):
    file = tmp_path / "a.png"
    Image.new("L", (28, 28)).save(file)
    assert predict.main([run_flag, *(part.format(file) for part in form)]) == 0
    assert capsys.readouterr().out.count(f"{file}: ") == len(form)


def test_a_run_is_opened_with_the_library_alone(finished):
    loaded = ij.load_run(folder_in(finished))
    dataset = recipes.load("fashion_mini")
    images, labels = dataset.test.read(np.arange(1000))
    prediction = loaded.predict(images)
    accuracy = 100 * np.mean(prediction.logits.argmax(-1) == labels)
    assert accuracy == pytest.approx(loaded.result["test_accuracy"])
    assert (loaded.class_names, loaded.image_shape) == (dataset.class_names, (28, 28, 1))
    assert loaded.labels == (3, 4, 5)
    with pytest.raises(ValueError, match=r"give one or more, uint8 of \[images, 28, 28, 1\]"):
        loaded.predict(images[:, :20])


def test_a_run_of_another_optimizer_is_opened_as_well(tmp_path):
    flags = ["--optimizer=adamw", "--schedule=cosine", "--warmup_epochs=0.5", "--augment=crop_flip"]
    assert run.main([*SMALL, *flags, f"--out={tmp_path}"]) == 0
    loaded = ij.load_run(folder_in(tmp_path))
    assert loaded.result["optimizer"] == "adamw"
    assert set(loaded.variables) == {"params", "batch_stats"}


def test_a_run_without_its_last_checkpoint_says_how_to_remake_it(finished, tmp_path, capsys):
    copy = shutil.copytree(folder_in(finished), tmp_path / "copy")
    numbers = [int(path.name) for path in (copy / "checkpoints").iterdir() if path.is_dir()]
    shutil.rmtree(copy / "checkpoints" / str(max(numbers)) / "state")
    assert predict.main([f"--run={copy}", "--dataset=fashion_mini"]) == 2
    error = capsys.readouterr().err
    assert f"move {copy / 'result.json'} away and run again: python -m interflow_jax run" in error
