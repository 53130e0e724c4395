"""Prediction with a finished run, by its folder alone."""

import csv
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import interflow_jax as ij
from experiments import predict
from interflow_jax.data import recipes
from tests.cli.conftest import folder_in, result_in


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
    assert rows[0] == ["file", "truth", "class", "probability", *result["class_names"]]
    probabilities = np.array([row[4:] for row in rows[1:]], float)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.max(1), [float(row[3]) for row in rows[1:]])
    labels = recipes.load("fashion_mini").test.read(np.arange(1000))[1]
    assert [row[1] for row in rows[1:]] == [result["class_names"][label] for label in labels]
    measured = json.loads((tmp_path / "classes.json").read_text())
    assert measured == json.loads((folder_in(finished) / "classes.json").read_text())
    assert measured["accuracy"] == pytest.approx(result["test_accuracy"])
    for picture in (tmp_path / "mistakes.png", folder_in(finished) / "pictures" / "confusion.png"):
        assert Image.open(picture).size[0] > 300
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
    assert "2 of 3 images: 2 sizes and modes, resized to 28x28 (squashed), L" in said
    assert "branches" not in said
    rows = list(csv.reader(out.open()))
    assert [row[0] for row in rows[1:]] == [str(exact), str(colour), str(large)]
    assert rows[1][1:] == rows[2][1:]
    whole = tmp_path / "whole.csv"
    assert predict.main([run_flag, "--dataset=fashion_mini", f"--out={whole}"]) == 0
    assert list(csv.reader(whole.open()))[4][2:] == rows[1][1:]


def test_a_broken_picture_is_left_out_and_said(run_flag, tmp_path, capsys):
    good, broken, out = (tmp_path / name for name in ("good.png", "broken.png", "out.csv"))
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels).save(good)
    broken.write_bytes(good.read_bytes()[:200])
    assert predict.main([run_flag, str(broken), str(good), f"--out={out}"]) == 1
    said = capsys.readouterr().out
    assert f"{broken} cannot be read as an image" in said
    assert "1 file(s) could not be read, and are left out" in said
    assert [row[0] for row in list(csv.reader(out.open()))[1:]] == [str(good)]
    assert predict.main([run_flag, str(broken)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{broken} cannot be read as an image" in line


@pytest.mark.parametrize("form", [["--images={}"], ["{}"], ["--images={}", "{}"]])
def test_files_may_be_given_in_any_form(run_flag, form, tmp_path, capsys):
    file = tmp_path / "a.png"
    Image.new("L", (28, 28)).save(file)
    assert predict.main([run_flag, *(part.format(file) for part in form)]) == 0
    said = capsys.readouterr().out
    assert said.count(f"{file}: ") == 1
    assert ("1 file(s) are named more than once, and taken once" in said) == (len(form) == 2)


def test_predictions_replace_no_file_of_a_run(finished, run_flag, capsys):
    (own := folder_in(finished) / "classes.json").touch()
    before = own.read_bytes()
    out = folder_in(finished) / "predictions.csv"
    assert predict.main([run_flag, "--dataset=fashion_mini", f"--out={out}"]) == 2
    assert "is in the folder of a run, whose own classes.json" in capsys.readouterr().err
    assert own.read_bytes() == before


def test_predictions_are_not_replaced_by_what_is_written_beside_them(run_flag, tmp_path, capsys):
    out = tmp_path / "classes.json"
    assert predict.main([run_flag, "--dataset=fashion_mini", f"--out={out}"]) == 2
    assert "a file of that name is written beside it" in capsys.readouterr().err
    assert not out.exists()


def test_a_name_that_is_no_utf_8_loses_nothing(run_flag, tmp_path):
    name = os.path.join(os.fsencode(tmp_path), b"Shirt", b"caf\xe9.png")
    os.mkdir(os.path.dirname(name))
    with open(name, "wb") as file:
        Image.new("L", (28, 28)).save(file, "PNG")
    out = tmp_path / "out" / "all.csv"
    assert predict.main([run_flag, str(tmp_path / "Shirt"), f"--out={out}"]) == 0
    assert name in out.read_bytes()
    assert {"classes.json", "mistakes.png"} < {file.name for file in out.parent.iterdir()}


def test_pictures_in_folders_below_those_of_a_class_are_counted(run_flag, tmp_path, capsys):
    for place in ("Shirt", "Shirt/more", "Dress"):
        (tmp_path / place).mkdir()
        Image.new("L", (28, 28)).save(tmp_path / place / "a.png")
    assert predict.main([run_flag, str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "3 of 3 pictures are in folders named after" in said
    assert "1 of them in folders below those: " in said


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


def test_a_run_without_its_last_checkpoint_says_how_to_remake_it(finished, tmp_path, capsys):
    copy = shutil.copytree(folder_in(finished), tmp_path / "copy")
    numbers = [int(path.name) for path in (copy / "checkpoints").iterdir() if path.is_dir()]
    shutil.rmtree(copy / "checkpoints" / str(max(numbers)) / "state")
    assert predict.main([f"--run={copy}", "--dataset=fashion_mini"]) == 2
    error = capsys.readouterr().err
    assert f"move {copy / 'result.json'} away and run again: python -m interflow_jax run" in error


@pytest.fixture
def turned(finished, tmp_path):
    """30 pictures in folders named after their classes, and beside them one that EXIF turns."""
    names = result_in(finished)["class_names"]
    test = recipes.load("fashion_mini").test
    images, labels = test.read(np.flatnonzero(test.labels)[:30])  # class 0's name has a slash
    for image, label in zip(images[..., 0], labels, strict=True):
        folder = tmp_path / "mixed" / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{len(list(folder.iterdir()))}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in (".hidden.png", "notes.txt"):
        (folder / name).write_text("no picture")
    Image.fromarray(np.rot90(images[3, ..., 0])).save(tmp_path / "turned.png", exif=exif)
    return tmp_path / "mixed"


def test_files_folders_and_globs_are_rows(finished, turned):
    trained, names = ij.load_run(folder_in(finished)), result_in(finished)["class_names"]
    test = recipes.load("fashion_mini").test
    image = test.read(np.flatnonzero(test.labels)[3:4])[0]
    rows = trained.predict_files(turned)
    assert [row["file"] for row in rows] == sorted(turned.rglob("[0-9]*.png"))
    assert trained.predict_files([f"{turned}/*/*.png"])[0].keys() == rows[0].keys()
    assert len(trained.predict_files([f"{turned}/**/*.png", str(turned)])) == 60
    (whole,) = np.asarray(jax.nn.softmax(trained.predict(image).logits))
    (turned_row,) = trained.predict_files(turned.parent / "turned.png")
    np.testing.assert_allclose(turned_row["probabilities"], whole, atol=1e-6)
    assert turned_row["class"] == names[whole.argmax()]
    assert turned_row["probability"] == pytest.approx(whole.max())
    assert len(turned_row["branches"]) == 3
    (turned.parent / "notes").mkdir()
    for paths, reason in (
        ([], r"paths are \[\]"),
        ("nosuch/*.png", "'nosuch/.*' names no file"),
        ([turned, turned.parent / "notes"], "holds no pictures"),
    ):
        with pytest.raises(ValueError, match=reason):
            trained.predict_files(paths)


def test_folders_named_after_classes_are_measured(run_flag, finished, turned, tmp_path, capsys):
    loose, out = tmp_path / "turned.png", tmp_path / "out" / "a.csv"
    assert predict.main([run_flag, str(turned), str(loose), f"--out={out}", "--branches"]) == 0
    said = capsys.readouterr().out
    assert f"1 file in {turned} is not read (.txt)" in said
    assert "30 of 31 pictures are in folders named after the run's classes" in said
    assert said.count("branches alone: 3: ") == 31
    rows = list(csv.DictReader(out.open()))
    folders = [Path(row["file"]).parent.name for row in rows]
    assert [row["truth"] for row in rows] == [*folders[:-1], ""]
    hits = sum(row["truth"] == row["class"] for row in rows)
    measured = json.loads((out.parent / "classes.json").read_text())
    assert (measured["count"], measured["accuracy"]) == (30, pytest.approx(100 * hits / 30))
    assert {file.name for file in out.parent.iterdir()} == {
        *("a.csv", "classes.json", "confusion.png", "mistakes.png")
    }
    out = tmp_path / "bare.csv"
    assert predict.main([run_flag, str(loose), f"--out={out}"]) == 0
    assert next(csv.reader(out.open()))[:3] == ["file", "class", "probability"]
    assert not (tmp_path / "confusion.png").exists()


def test_an_image_s_own_weights_are_said_and_written(
    run_flag, turned, tmp_path, monkeypatch, capsys
):
    """As a fusion of `attention` has them, where every other kind has one set for all images."""
    whole = ij.TrainedRun.predict

    def predicting(self, images):
        weights = np.arange(3 * len(images), dtype=np.float32).reshape(-1, 3, 1)
        return whole(self, images)._replace(weights=weights)

    monkeypatch.setattr(ij.TrainedRun, "predict", predicting)
    assert predict.main([run_flag, str(turned), f"--out={tmp_path / 'a.csv'}"]) == 0
    assert "  weights: 3: 3.000, 4: 4.000, 5: 5.000\n" in capsys.readouterr().out
    rows = list(csv.reader((tmp_path / "a.csv").open()))
    assert rows[0][-3:] == ["weight after 3", "weight after 4", "weight after 5"]
    assert [float(cell) for row in rows[1:] for cell in row[-3:]] == list(range(90))
