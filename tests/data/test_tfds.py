"""Datasets through tfds, prepared by its own builders from files that the tests write."""

import io
import json
import os
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets.core import shuffle

from interflow_jax.data import batches, recipes, splits, tfds
from interflow_jax.data.fashion_mini.make import original_order
from interflow_jax.data.records import RecordSplit

PREPARE = """
import sys
from pathlib import Path
import numpy as np, tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums
from interflow_jax.data import with_tensorflow

root = Path(sys.argv[1])
manual = root / "downloads" / "svhn_cropped" / "manual"
# tfds checks originals against registered checksums; the files of the tests register their own.
builder = tfds.builder("svhn_cropped", data_dir=root)
type(builder).url_infos = {
    url: checksums.compute_url_info(manual / known.filename)
    for url, known in builder.url_infos.items()
}
with_tensorflow.prepare("svhn_cropped", str(root), str(manual.parent))

exif = Image.Exif()
exif[0x0112] = 6
def examples():
    for number in range(20):
        noise = np.random.default_rng(number).integers(0, 256, (4 + number, 6, 3), np.uint8)
        Image.fromarray(noise).save(root / "x.jpg", exif=exif if number % 2 else b"")
        yield number, {"image": str(root / "x.jpg"), "label": number % 2}
image = tfds.features.Image(shape=(None, None, 3))
label = tfds.features.ClassLabel(names=["a", "b\\x1b[2J"])
def unlabelled():  # as tfds has ImageNet's test split
    for number, example in examples():
        yield number, example | {"label": -1}
for file_format in ("array_record", "tfrecord"):
    tfds.dataset_builders.store_as_tfds_dataset(
        name="mine", version="1.0.0", data_dir=root / file_format, file_format=file_format,
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        split_datasets={"train": examples()},
    )
tfds.dataset_builders.store_as_tfds_dataset(
    name="like_imagenet", version="1.0.0", data_dir=root / "array_record",
    file_format="array_record",
    features=tfds.features.FeaturesDict({"image": image, "label": label}),
    split_datasets={"train": examples(), "validation": examples(), "test": unlabelled()},
)
"""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, on_cpu_devices):
    """A folder with SVHN, its originals, and `mine`, of sizes that vary, in two formats."""
    from scipy.io import savemat

    folder = tmp_path_factory.mktemp("tfds")
    manual = tfds.download_dir("svhn_cropped", folder) / "manual"
    manual.mkdir(parents=True)
    generator = np.random.default_rng(0)
    originals = {}
    for part, count in (("train", 40), ("test", 20), ("extra", 5)):
        # SVHN keeps images last and names the digit 0 as 10.
        images = generator.integers(0, 256, (32, 32, 3, count), np.uint8)
        labels = generator.integers(1, 11, (count, 1)).astype(np.uint8)
        savemat(manual / f"{part}_32x32.mat", {"X": images, "y": labels})
        originals[part] = (np.moveaxis(images, -1, 0), labels[:, 0] % 10)
    on_cpu_devices(1, PREPARE, folder)
    return folder, originals


def test_svhn_from_its_original_files_in_any_order(prepared):
    folder, originals = prepared
    dataset = recipes.load("svhn", folder)
    assert (dataset.image_shape, dataset.test_name, dataset.notes) == ((32, 32, 3), "test", ())
    assert dataset.class_names == tuple("0123456789")
    for part in ("train", "test"):
        split = splits.into_memory(getattr(dataset, part))
        read, original = (
            sorted((image.tobytes(), int(label)) for image, label in zip(*examples, strict=True))
            for examples in ((split.images, split.labels), originals[part])
        )
        assert read == original
    order = np.random.default_rng(1).permutation(20)
    images, labels = dataset.test.read(order)
    np.testing.assert_array_equal(images, split.images[order])
    np.testing.assert_array_equal(labels, split.labels[order])
    small = recipes.load("svhn", folder, image_size=20)
    assert small.train.read(np.arange(3))[0].shape == (3, *small.image_shape) == (3, 20, 20, 3)
    assert small.notes == ("images: 32x32, resized to 20x20 (squashed)",)
    assert small.digest() == dataset.digest()
    eps = io.BytesIO()
    Image.new("L", (2, 3)).save(eps, "EPS")
    records = SimpleNamespace(__getitems__=lambda _: [{"image": eps.getvalue(), "label": 0}])
    with pytest.raises(splits.UnreadableExamplesError, match=r"example 0 .* \(it is none of PNG"):
        splits.read(replace(dataset.test, source=records), np.arange(1))
    with pytest.raises(splits.UnreadableExamplesError, match=r"labels go to \d, but 3 classes"):
        splits.read(replace(dataset.test, classes=3), order)


def test_a_test_split_without_labels_is_none(prepared):
    dataset = recipes.load("like_imagenet", prepared[0] / "array_record")
    assert dataset.test_name == "validation"
    assert "test has no labels: validation is to test on" in dataset.notes
    assert set(dataset.test.read(np.arange(20))[1]) == {0, 1}


def test_tfrecord_is_array_record_in_the_same_order(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    decoded, from_cache, records = (
        recipes.load("mine", prepared[0] / file_format, image_size=8, resize="crop")
        for file_format in ("tfrecord", "tfrecord", "array_record")
    )
    assert records.class_names == ("a", r"b\x1b[2J")
    assert records.notes[0] == "images: sizes that vary, resized to 8x8 (cropped)"
    for dataset in (decoded, from_cache):
        assert dataset[3:] == records[3:]
        for part, size in (("train", 18), ("test", 2)):
            ours, expected = (splits.into_memory(getattr(d, part)) for d in (dataset, records))
            assert ours.images.shape == (size, 8, 8, 3)
            np.testing.assert_array_equal(ours.images, expected.images)
            np.testing.assert_array_equal(ours.labels, expected.labels)
    caches = list(tmp_path.glob("interflow_jax/mine-*"))
    assert len(caches) == 2
    for cache in caches:
        (cache / "images.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"interflow_jax/mine-\w+ cannot be read .*; delete"):
        recipes.load("mine", prepared[0] / "tfrecord", image_size=8, resize="crop")


WITHOUT = """
import sys

missing = ["tensorflow_datasets", "tensorflow", "matplotlib", "tqdm", "pytest", "pandas"]
sys.modules.update(dict.fromkeys(missing))  # None: an import fails
import numpy as np, interflow_jax as ij
from interflow_jax.data import splits

images = np.zeros((64, 8, 8, 1), np.uint8)
dataset = ij.data.from_arrays((images, np.arange(64) % 2), (images, np.arange(64) % 2))
trainer = ij.Trainer(ij.build("Normal", 2, depth=4, width=1 / 16), dataset, epochs=1)
state, _ = trainer.train_epoch(trainer.init(), 0)
print(trainer.evaluate(state).count)
try:
    ij.data.load("cifar10")
except ImportError as error:
    print(error)
for name in missing:
    del sys.modules[name]
import interflow_jax.cli.data
print(len(splits.into_memory(ij.data.load("svhn", sys.argv[1]).train)), "tensorflow" in sys.modules)
"""


def test_arrays_need_the_core_alone_and_prepared_files_no_tensorflow(prepared, on_cpu_devices):
    evaluated, missing, read = on_cpu_devices(1, WITHOUT, prepared[0]).splitlines()
    assert (evaluated, read) == ("64", "40 False")
    assert missing == "datasets of tfds need pip install 'interflow_jax[data]'"


def test_neither_start_nor_memory_grows_with_the_set(prepared, monkeypatch):
    read, indices_read = RecordSplit.read, []

    def counted(self, indices, draws=None):
        indices_read.extend(indices)
        return read(self, indices, draws)

    monkeypatch.setattr(RecordSplit, "read", counted)
    split = recipes.load("svhn", prepared[0]).train
    assert not indices_read
    steps = batches.chunks(0, 10, 1)
    stream = batches.streamed_batches(split, np.arange(40), steps, batches.device_mesh(), 4)
    for taken, _ in enumerate(stream, 1):
        assert len(indices_read) <= 4 * (taken + batches.PREFETCHED_WINDOWS)
    assert sorted(indices_read) == list(range(40))


DAMAGED = r"mine cannot be read in .*/mine/1.0.0 \(.*{}.*; restore its prepared files, or move"
NESTED = json.dumps({"jsonFeature": {"json": json.dumps({"type": "antigravity.X"})}})


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("features.json", '"uint8"', '"uint16"', "images of uint16; only uint8"),
        ("features.json", '"label": {', '"y": {', "needs an image 'image' and a class 'label'"),
        ("dataset_info.json", '"train"', '"test"', "has splits test; training needs 'train'"),
        ("dataset_info.json", '"20"', '"1"', "mine has too few examples: 1 and 0"),
        ("features.json", '"2"', '"two"', DAMAGED.format("numClasses")),
        ("dataset_info.json", "1.0.0", "one", DAMAGED.format("one")),
        ("features.json", "tensorflow_datasets.core", "antigravity", "only classes of tfds are"),
        ("features.json", None, NESTED, r"names 'antigravity\.X', and only classes of tfds are"),
        *(
            (file, None, content, DAMAGED.format(file))
            for file in ("features.json", "dataset_info.json")
            for content in ("", "[]", "5", "{", "[" * 10**5, "\0\x01")
        ),
    ],
)
def test_what_does_not_fit_or_is_damaged_is_one_line(prepared, tmp_path, file, old, new, message):
    shutil.copytree(prepared[0] / "array_record" / "mine", tmp_path / "mine")
    file = tmp_path / "mine" / "1.0.0" / file
    text = file.read_text()
    assert old is None or old in text
    file.write_text(new if old is None else text.replace(old, new))
    with pytest.raises(ValueError, match=message) as raised:
        recipes.load("mine", tmp_path)
    assert "\n" not in str(raised.value)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", r"no dataset 'cifar11' .*cifar10"),
        ("svnh", r"no dataset 'svnh' \(close: svhn[,)]"),  # tfds's own is further: svhn_cropped
        ("/data/mnist", "'/data/mnist' is a path; .* give folder:/data/mnist, .* data_dir"),
        ("../x", "is a path"),
        ("~/x", "is a path"),
        ("a/../b", "is a path"),
        (r"C:\x", "is a path"),
    ],
)
def test_what_is_no_name_is_answered(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        recipes.load(name, tmp_path)


def test_places_in_order(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    home = os.path.expanduser("~")
    assert [str(place) for place in tfds.places("~/given")] == [f"{home}/given"]
    assert [str(place) for place in tfds.places(None)] == [f"{home}/tensorflow_datasets"]
    monkeypatch.setenv("TFDS_DATA_DIR", "/set")
    assert [str(place) for place in tfds.places(None)] == ["/set", f"{home}/tensorflow_datasets"]
    with pytest.raises(ValueError, match="data_dir is empty; give the folder"):
        recipes.load("svhn", "")


def test_the_newest_version_and_the_default_configuration_are_found(tmp_path):
    for version in ("mnist/3.0.0", "mnist/3.0.10", "mnist/3.0.9", "mnist/new", "eurosat/rgb/2.0.0"):
        (tmp_path / version).mkdir(parents=True)
        (tmp_path / version / "dataset_info.json").write_text("{}")
    assert recipes.find("mnist", tmp_path).name == "3.0.10"
    assert recipes.find("mnist:3.0.9", tmp_path).name == "3.0.9"
    assert recipes.find("eurosat", tmp_path).parent.name == "rgb"
    assert recipes.find("eurosat:2.0.0", tmp_path).parent.name == "rgb"
    with pytest.raises(tfds.NotPreparedError, match="no prepared svhn_cropped in"):
        recipes.find("svhn", tmp_path)


def test_recipes_are_the_papers():
    for name, recipe in recipes.RECIPES.items():
        if name != "fashion_mini":
            assert recipe.epochs == (100 if name.startswith("cifar") else 40)
            np.testing.assert_allclose(recipe.epochs * (1 - recipe.drop_after), 20)  # the last 20
            assert recipe.augment == name.startswith("cifar")
    assert recipes.recipe("eurosat/rgb") == ("eurosat/rgb", 40, 0.5, False, None)
    cifar10 = recipes.RECIPES["cifar10"]
    assert recipes.recipe("cifar10:3.0.2") == cifar10._replace(tfds_name="cifar10:3.0.2")
    assert recipes.recipe("svhn:3.1.0").tfds_name == "svhn_cropped:3.1.0"
    originals = {original.file_name: original for original in tfds.originals("svhn_cropped")}
    assert set(originals) == {"train_32x32.mat", "test_32x32.mat", "extra_32x32.mat"}
    assert 1.5e9 < sum(original.size for original in originals.values()) < 1.6e9
    with pytest.raises(ValueError, match="tfds cannot build mnist:99"):
        tfds.originals("mnist:99.0.0")


def test_the_sample_that_ships_here(tmp_path):
    dataset, recipe = recipes.load("fashion_mini"), recipes.recipe("fashion_mini")
    assert dataset.image_shape == dataset.train.images.shape[1:] == (28, 28, 1)
    assert recipe.train_examples == 6_000
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), [600] * 10)
    np.testing.assert_array_equal(np.bincount(dataset.test.read(np.arange(1000))[1]), [100] * 10)
    # Fashion-MNIST's files begin with these labels; none of the ten is cut this early.
    assert dataset.train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert dataset.class_names[9] == "Ankle boot"
    assert dataset.digest() == "0ab3803c413b6f0c"
    for options, message in (({"image_size": 32}, "images of 28"), ({"resize": "x"}, "choose one")):
        with pytest.raises(ValueError, match=message):
            recipes.load("fashion_mini", **options)
    # Its order undoes that of the shuffler with which tfds itself prepares a split.
    shuffler = shuffle.Shuffler(tmp_path, hash_salt="train", disable_shuffling=False)
    for number in range(500):
        shuffler.add(number, str(number).encode())
    shuffled = [int(value) for _, value in shuffler]
    assert shuffled != sorted(shuffled)
    np.testing.assert_array_equal(np.array(shuffled)[original_order("train", 500)], np.arange(500))
