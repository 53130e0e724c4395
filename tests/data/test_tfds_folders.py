"""Datasets through tfds, prepared by its real builders from files that the tests write."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from interflow_jax.data import datasets, splits, tfds_folders

TRAIN, TEST = 40, 20


def in_a_child(program: str, *arguments: object) -> str:
    """Runs a program that may import TensorFlow; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# tfds checks originals against registered checksums; the files of the tests register their own.
PREPARE = """
import sys
from pathlib import Path
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
from interflow_jax.data import with_tensorflow
name, data_dir, download_dir, file_format = sys.argv[1:]
builder = tfds.builder(name, data_dir=data_dir, file_format=file_format)
manual = Path(download_dir) / "manual"
type(builder).url_infos = {
    url: checksums.compute_url_info(manual / known.filename)
    for url, known in builder.url_infos.items()
}
if file_format == "array_record":
    with_tensorflow.prepare(name, data_dir, download_dir)
else:
    config = tfds.download.DownloadConfig(manual_dir=str(manual))
    builder.download_and_prepare(download_dir=download_dir, download_config=config)
"""


@pytest.fixture(scope="session")
def svhn(tmp_path_factory):
    """SVHN prepared by the real builder from files in its original .mat format."""
    from scipy.io import savemat

    folder = tmp_path_factory.mktemp("svhn")
    download_dir = tfds_folders.download_dir("svhn_cropped", folder)
    manual = download_dir / "manual"
    manual.mkdir(parents=True)
    generator = np.random.default_rng(0)
    originals = {}
    for part, count in (("train", TRAIN), ("test", TEST), ("extra", 5)):
        # SVHN keeps images last and names the digit 0 as 10.
        images = generator.integers(0, 256, (32, 32, 3, count), np.uint8)
        labels = generator.integers(1, 11, (count, 1)).astype(np.uint8)
        savemat(manual / f"{part}_32x32.mat", {"X": images, "y": labels})
        originals[part] = (np.moveaxis(images, -1, 0), labels[:, 0] % 10)
    in_a_child(PREPARE, "svhn_cropped", folder, download_dir, "array_record")
    return folder, originals


def as_pairs(images, labels):
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


@pytest.mark.parametrize("part", ["train", "test"])
def test_svhn_from_its_original_files(svhn, part):
    folder, originals = svhn
    dataset = datasets.load("svhn", folder)
    assert (dataset.image_shape, dataset.test_name) == ((32, 32, 3), "test")
    assert dataset.class_names == tuple("0123456789")
    split = splits.into_memory(getattr(dataset, part))
    assert as_pairs(split.images, split.labels) == as_pairs(*originals[part])


def test_reading_in_any_order(svhn):
    split = datasets.load("svhn", svhn[0]).train
    whole = splits.into_memory(split)
    order = np.random.default_rng(1).permutation(TRAIN)
    images, labels = split.read(order)
    np.testing.assert_array_equal(images, whole.images[order])
    np.testing.assert_array_equal(labels, whole.labels[order])


def test_resizing_on_reading(svhn):
    dataset = datasets.load("svhn", svhn[0], image_size=20)
    assert dataset.image_shape == (20, 20, 3)
    assert dataset.train.read(np.arange(3))[0].shape == (3, 20, 20, 3)


def test_tfrecord_is_array_record_in_the_same_order(svhn, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, _ = svhn
    download_dir = tfds_folders.download_dir("svhn_cropped", folder)
    in_a_child(PREPARE, "svhn_cropped", tmp_path, download_dir, "tfrecord")
    assert list(tmp_path.glob("svhn_cropped/*/*.tfrecord*"))
    for _ in range(2):  # decoded, then from the cache
        for part in ("train", "test"):
            ours = splits.into_memory(getattr(datasets.load("svhn", tmp_path), part))
            theirs = splits.into_memory(getattr(datasets.load("svhn", folder), part))
            np.testing.assert_array_equal(ours.images, theirs.images)
            np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert len(list((tmp_path / "cache" / "interflow_jax").iterdir())) == 2


def test_nothing_imports_tensorflow(svhn):
    program = """
import sys
from interflow_jax.data import datasets, splits
import experiments.run
splits.into_memory(datasets.load("svhn", sys.argv[1]).train)
print("tensorflow" in sys.modules)
"""
    assert in_a_child(program, svhn[0]).split()[-1] == "False"


def test_places_in_order(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert [str(place) for place in tfds_folders.places("/given")] == ["/given"]
    home = os.path.expanduser("~/tensorflow_datasets")
    assert [str(place) for place in tfds_folders.places(None)] == [home]
    monkeypatch.setenv("TFDS_DATA_DIR", "/set")
    assert [str(place) for place in tfds_folders.places(None)] == ["/set", home]


def test_the_newest_version_is_found(tmp_path):
    for version in ("3.0.0", "3.0.10", "3.0.9", "incomplete"):
        (tmp_path / "mnist" / version).mkdir(parents=True)
        (tmp_path / "mnist" / version / "dataset_info.json").write_text("{}")
    assert tfds_folders.find("mnist", tmp_path).name == "3.0.10"
    assert tfds_folders.find("mnist:3.0.9", tmp_path).name == "3.0.9"


def test_what_is_registered_for_the_originals():
    originals = {
        original.file_name: original for original in tfds_folders.originals("svhn_cropped")
    }
    assert set(originals) == {"train_32x32.mat", "test_32x32.mat", "extra_32x32.mat"}
    assert 1.5e9 < sum(original.size for original in originals.values()) < 1.6e9


def test_a_dataset_named_without_its_configuration_is_the_default_one(tmp_path):
    (tmp_path / "eurosat" / "rgb" / "2.0.0").mkdir(parents=True)
    (tmp_path / "eurosat" / "rgb" / "2.0.0" / "dataset_info.json").write_text("{}")
    assert tfds_folders.find("eurosat", tmp_path).parent.name == "rgb"
    assert tfds_folders.find("eurosat:2.0.0", tmp_path).parent.name == "rgb"
    with pytest.raises(ValueError, match="tfds cannot build mnist:99"):
        tfds_folders.originals("mnist:99.0.0")


def test_an_unknown_name_is_answered_with_close_ones(tmp_path):
    with pytest.raises(ValueError, match=r"no dataset 'cifar11' .*cifar10"):
        datasets.load("cifar11", tmp_path)
    with pytest.raises(ValueError, match=r"no dataset 'svnh' \(close: svhn[,)]"):
        datasets.load("svnh", tmp_path)  # tfds's own name is further away: svhn_cropped


def write_custom(folder, features, counts):
    """Writes a dataset in tfds's format as users do with datasets of their own."""
    program = """
import json, sys
import numpy as np, tensorflow_datasets as tfds
folder, kind, counts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
image = {
    "varying": tfds.features.Image(shape=(None, None, 3)),
    "deep": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16),
    "none": tfds.features.Text(),
}[kind]
def examples(count):
    for number in range(count):
        picture = np.full((4 + number, 6, 3), number, np.uint8)
        value = {"varying": picture, "deep": np.zeros((4, 4, 1), np.uint16), "none": "x"}[kind]
        yield number, {"image": value, "label": number % 2}
tfds.dataset_builders.store_as_tfds_dataset(
    name="mine", version="1.0.0", data_dir=folder, file_format="array_record",
    features=tfds.features.FeaturesDict(
        {"image": image, "label": tfds.features.ClassLabel(num_classes=2)}
    ),
    split_datasets={name: examples(count) for name, count in counts.items()},
)
"""
    in_a_child(program, folder, features, json.dumps(counts))


def test_images_of_varying_size_and_no_test_split(tmp_path):
    write_custom(tmp_path, "varying", {"train": 20})
    dataset = datasets.load("mine", tmp_path)
    assert dataset.image_shape == (tfds_folders.VARYING_SIZE, tfds_folders.VARYING_SIZE, 3)
    assert dataset.test_name == "train[90%:]"
    assert (len(dataset.train), len(dataset.test)) == (18, 2)
    assert dataset.train.read(np.arange(18))[0].shape == (18, 32, 32, 3)
    assert datasets.load("mine", tmp_path, image_size=8).image_shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("features", "counts", "message"),
    [
        ("deep", {"train": 4}, "images of uint16; only uint8"),
        ("none", {"train": 4}, "needs an image 'image' and a class 'label'"),
        ("varying", {"test": 4}, "has splits test; training needs 'train'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, features, counts, message):
    write_custom(tmp_path, features, counts)
    with pytest.raises(ValueError, match=message):
        datasets.load("mine", tmp_path)


def test_the_sample_that_ships_here():
    dataset = datasets.load("fashion_mini")
    assert isinstance(dataset.train, splits.ArraySplit)
    assert dataset.train.images.shape == (6000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), [600] * 10)
    np.testing.assert_array_equal(np.bincount(dataset.test.read(np.arange(1000))[1]), [100] * 10)
    # Fashion-MNIST's files begin with these labels; none of the ten is cut this early.
    assert dataset.train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert dataset.class_names[9] == "Ankle boot"


def test_recipes_are_the_papers():
    paper = {
        "cifar10": 100,
        "cifar100": 100,
        "svhn": 40,
        "mnist": 40,
        "kmnist": 40,
        "fashion_mnist": 40,
    }
    for name, epochs in paper.items():
        recipe = datasets.recipe(name)
        assert recipe.epochs == epochs
        np.testing.assert_allclose(recipe.epochs * (1 - recipe.drop_after), 20)  # the last 20
        assert recipe.augment == name.startswith("cifar")
        assert recipe.tfds_name in tfds.list_builders(with_community_datasets=False)
    assert datasets.recipe("eurosat/rgb").tfds_name == "eurosat/rgb"
