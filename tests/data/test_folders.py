"""Datasets of pictures in folders."""

import numpy as np
import pytest
from PIL import Image

import interflow_jax as ij
from interflow_jax.data import datasets
from interflow_jax.data.splits import UnreadableExamplesError, read


def picture(file, level=0, size=(6, 5), mode="L"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode == "L" else (level,) * len(mode)).save(file)


@pytest.fixture
def root(tmp_path):
    for part, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                picture(tmp_path / part / name / f"{number}.png", 50 * label + number)
    return tmp_path


def test_folders_are_classes(root):
    dataset = datasets.load(f"folder:{root}")
    assert dataset.name == f"folder:{root}"
    assert (dataset.class_names, dataset.image_shape) == (("cat", "dog"), (5, 6, 1))
    images, labels = dataset.train.read(np.array([5, 0, 2]))
    assert images[:, 0, 0, 0].tolist() == [52, 0, 2]
    assert labels.tolist() == [1, 0, 0]
    assert (len(dataset.train), len(dataset.test), dataset.test_name) == (6, 2, "test")


def test_one_level_holds_a_tenth_out_by_name(tmp_path):
    for number in range(20):
        picture(tmp_path / "a" / f"{number:02}.png", number)
        picture(tmp_path / "b" / f"{number:02}.JPG", 100)
    dataset = ij.data.from_folder(tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (36, 4)
    assert dataset.test.read(np.array([0, 1]))[0][:, 0, 0, 0].tolist() == [9, 19]
    assert dataset.test_name == "every 10th picture of a class"


def test_sizes_that_vary_become_32_and_one_colour_colours_all(root):
    picture(root / "train" / "cat" / "large.png", 7, (9, 9), "RGB")
    assert ij.data.from_folder(root).image_shape == (32, 32, 3)
    dataset = ij.data.from_folder(root, image_size=8)
    assert dataset.train.read(np.array([0]))[0].shape == (1, 8, 8, 3)


def test_transparency_is_no_colour(root):
    picture(root / "train" / "cat" / "7.png", 7, mode="LA")
    assert ij.data.from_folder(root).image_shape == (5, 6, 1)


def test_what_does_not_fit_is_named(root, tmp_path):
    def message():
        with pytest.raises(ValueError, match=str(root)) as raised:
            ij.data.from_folder(root)
        return str(raised.value)

    picture(root / "test" / "cow" / "0.png")
    assert "has the class cow, which train lacks" in message()
    (root / "train" / "cow").mkdir()
    assert "cow 0, dog 3; there must be two or more, each with some" in message()
    (root / "train" / "cow" / "0.png").write_text("no picture")
    assert f"{root / 'train' / 'cow' / '0.png'} cannot be read as an image" in message()
    with pytest.raises(ValueError, match="is no folder"):
        ij.data.from_folder(root / "nowhere")


def test_a_picture_that_breaks_off_is_named_when_it_is_read(root):
    file = root / "train" / "cat" / "0.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:600])
    dataset = ij.data.from_folder(root)
    with pytest.raises(UnreadableExamplesError, match=str(file)):
        read(dataset.train, np.array([0]))


def test_a_picture_of_16_bits_is_named(root):
    file = root / "train" / "cat" / "deep.png"
    Image.new("I;16", (6, 5), 2**15).save(file)
    with pytest.raises(ValueError, match=f"{file} has more than 8 bits per channel"):
        ij.data.from_folder(root)


def test_a_picture_too_large_to_open_is_named(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(ValueError, match=r"0\.png cannot be read as an image \(Image size \(30"):
        ij.data.from_folder(root)
