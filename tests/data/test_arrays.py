"""Datasets of a person's own arrays."""

import subprocess
import sys

import numpy as np
import pytest

import interflow_jax as ij

IMAGES, LABELS = np.zeros((4, 5, 6), np.uint8), np.array([0, 1, 2, 1])


def test_grey_images_gain_a_channel_and_labels_name_themselves():
    dataset = ij.data.from_arrays((IMAGES, LABELS), (IMAGES[:2], LABELS[:2].astype(np.uint8)))
    assert dataset.image_shape == (5, 6, 1)
    assert dataset.class_names == ("0", "1", "2")
    assert (len(dataset.train), len(dataset.test)) == (4, 2)
    assert dataset.test.read(np.array([1]))[1].dtype == np.int32


@pytest.mark.parametrize(
    ("train", "names", "message"),
    [
        ((IMAGES / 255, LABELS), None, "float64; give uint8"),
        ((IMAGES[0], LABELS), None, r"shape \(5, 6\)"),
        ((IMAGES[:0], LABELS[:0]), None, r"shape \(0, 5, 6, 1\)"),
        ((IMAGES, LABELS[:3]), None, "one integer for each of the 4 images"),
        ((IMAGES, LABELS / 1), None, "labels have shape .* float64"),
        ((IMAGES, LABELS - 1), None, "labels begin at -1"),
        ((IMAGES, LABELS), ("a", "b"), "labels go to 2, but there are 2 class names"),
        ((IMAGES, LABELS), ("a",), "there is one class, a; give two or more"),
        ((IMAGES[:, :4], LABELS), None, "images of train are"),
    ],
)
def test_what_does_not_fit_is_named(train, names, message):
    with pytest.raises(ValueError, match=message):
        ij.data.from_arrays(train, (IMAGES, LABELS), names)


def test_one_class_is_too_few():
    with pytest.raises(ValueError, match="there is one class, 0; give two or more"):
        ij.data.from_arrays((IMAGES, 0 * LABELS), (IMAGES, 0 * LABELS))


TRAINING = """
import importlib.abc, sys


class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ImportError(name)


sys.meta_path.insert(0, Blocked())
import numpy as np, interflow_jax as ij

images = np.zeros((64, 8, 8, 1), np.uint8)
dataset = ij.data.from_arrays((images, np.arange(64) % 2), (images, np.arange(64) % 2))
trainer = ij.Trainer(ij.build("Normal", 2, depth=4, width=1 / 16), dataset)
state, _ = trainer.train_epoch(trainer.init(), 0)
print(trainer.evaluate(state).count)
try:
    ij.data.load("cifar10")
except ImportError as error:
    print(error)
"""


def test_training_from_arrays_needs_the_core_alone():
    blocked = {"tensorflow_datasets", "tensorflow", "matplotlib", "tqdm", "pytest", "pandas"}
    program = TRAINING.replace("{BLOCKED}", repr(blocked))
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    count, missing = child.stdout.splitlines()
    assert count == "64"
    assert missing == "datasets of tfds need pip install 'interflow_jax[data]'"
