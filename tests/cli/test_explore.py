"""The page on which a run is looked at; that its figures are those of exits, in test_exits.py."""

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import interflow_jax as ij
from experiments import explore
from interflow_jax.cli.commands.explore import html, picture_weights
from interflow_jax.data import recipes
from tests.cli.conftest import folder_in
from tests.cli.page import content, in_a_browser, in_browser, text_of

EVIL = "</script><img src=x onerror=alert(1)>&<!--\u2028'\"`${alert(1)}"


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "new" / "page.html"
    flags = [f"--run={folder_in(finished)}", f"--out={file}", "--pictures=12", "--held_out=100"]
    assert explore.main(flags) == 0
    return file


def test_without_enough_held_out_images_it_shows_the_model_s_own(finished, page):
    run, shows = ij.load_run(folder_in(finished)), content(page)
    test = recipes.load("fashion_mini").test
    images, labels = test.read(np.arange(len(test)))
    np.testing.assert_array_equal(shows["labels"], labels)
    for depth in range(3):
        logits = run.cut(depth + 1).predict(images).logits
        assert np.mean(shows["said"][:, depth] == logits.argmax(-1)) > 0.998  # rounding
    sure = ij.confidence(run.predict(images).logits)
    np.testing.assert_allclose(shows["confidence"][:, -1], sure, atol=1e-5)
    assert "it takes 146" in " ".join(shows["notes"])
    assert shows["plans"] == []


def test_where_there_is_no_room_for_all_images_the_whole_is_measured_on_the_same(
    finished, tmp_path, monkeypatch
):
    monkeypatch.setattr("interflow_jax.cli.commands.explore._MOST_ANSWERS", 300)
    file = tmp_path / "page.html"
    assert explore.main([f"--run={folder_in(finished)}", f"--out={file}", "--held_out=100"]) == 0
    shows = content(file)
    assert len(shows["labels"]) == 100
    right = 100 * np.mean(shows["said"][:, -1] == shows["labels"])
    assert shows["whole_accuracy"] == pytest.approx(right)


def test_pictures_are_of_every_kind_with_their_own_weights(finished, page):
    run, shows = ij.load_run(folder_in(finished)), content(page)
    test = recipes.load("fashion_mini").test
    right = shows["said"] == shows["labels"][:, None]
    first = np.where(right.any(1), right.argmax(1), 3)
    indices = [picture["index"] for picture in shows["pictures"]]
    assert np.bincount(first[indices], minlength=4).tolist() == [3, 3, 3, 3]
    images, _ = test.read(np.array(indices))
    prediction = run.predict(images)
    for picture, image, logits in zip(shows["pictures"], images, prediction.logits, strict=True):
        encoded = base64.b64decode(picture["image"].partition("base64,")[2])
        np.testing.assert_array_equal(Image.open(io.BytesIO(encoded)), image[..., 0])
        weights = np.asarray(prediction.weights)[:, int(logits.argmax())]
        np.testing.assert_allclose(picture["weights"], weights)


def test_weights_of_any_kind_are_one_per_picture_and_branch():
    logits = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    for weights, expected in (
        (np.array([0.25, 0.75]), [[0.25, 0.75]] * 3),
        (np.array([[1.0, 2.0], [3.0, 4.0]]), [[2, 4], [1, 3], [2, 4]]),
        (np.arange(6.0).reshape(3, 2, 1), [[0, 1], [2, 3], [4, 5]]),
    ):
        shown = picture_weights(ij.Prediction(logits, np.zeros((3, 2, 2)), weights))
        np.testing.assert_array_equal(shown, expected)


def test_it_is_one_file_that_runs_its_own_script_alone(page):
    text = page.read_text()
    assert len(text) < 5e6
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']|url\(|@import|https?:", text)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy


def evil(page, tmp_path):
    file = tmp_path / "evil.html"
    (text,) = re.findall(r'id="data">(.*)</script>', page.read_text())
    shows = json.loads(text)
    shows |= {"classes": [EVIL] * 10, "depths": [EVIL] * 3, "title": EVIL, "notes": [EVIL]}
    for picture in shows["pictures"]:
        picture["name"] = EVIL
    file.write_text(html(shows))
    return file


def test_no_name_is_markup(page, tmp_path):
    file = evil(page, tmp_path)
    tags = re.compile(r"<[!/a-z]")
    assert len(tags.findall(file.read_text())) == len(tags.findall(page.read_text()))
    assert content(file)["classes"] == [EVIL] * 10


@in_a_browser
def test_no_name_is_markup_in_a_browser(page, tmp_path):
    whole = in_browser(evil(page, tmp_path))
    assert "onerror=alert(1)&gt;" in text_of("title", whole)
    assert "12 of 12" in whole
    assert not re.search(r"<img[^>]*(?:onerror|src=\"x)", whole)


@pytest.mark.parametrize("flag", ["--pictures=0", "--pictures=101", "--held_out=1"])
def test_what_it_cannot_show_is_named_before_any_work(flag, finished, tmp_path, capsys):
    assert explore.main([f"--run={folder_in(finished)}", f"--out={tmp_path / 'a.html'}", flag]) == 2
    assert flag in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
