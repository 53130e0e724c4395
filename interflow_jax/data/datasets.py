"""Labelled images by dataset name: the paper's six, the sample that ships here, or any of tfds."""

from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from interflow_jax.data.splits import ArraySplit, Split

VARYING_SIZE = 32  # for datasets whose images vary in size: that of CIFAR and SVHN


class Recipe(NamedTuple):
    """How the paper trains on a dataset (IV-B)."""

    tfds_name: str
    epochs: int
    drop_after: float  # fraction of the epochs; the paper's learning rate drops for the last 20
    augment: bool  # by random crops and flips


RECIPES: dict[str, Recipe] = {
    "fashion_mini": Recipe("fashion_mnist", 3, 0.5, False),
    "cifar10": Recipe("cifar10", 100, 0.8, True),
    "cifar100": Recipe("cifar100", 100, 0.8, True),
    "svhn": Recipe("svhn_cropped", 40, 0.5, False),
    "mnist": Recipe("mnist", 40, 0.5, False),
    "kmnist": Recipe("kmnist", 40, 0.5, False),
    "fashion_mnist": Recipe("fashion_mnist", 40, 0.5, False),
}


class Dataset(NamedTuple):
    """Labelled images to train on and to test on.

    Attributes:
      name: as in `RECIPES`, or a tfds name.
      train: the training split.
      test: the whole test split.
      test_name: the part of the dataset that `test` is, in tfds's notation.
      class_names: one per class, in the order of the labels.
      image_shape: (height, width, channels) of every image.
      validation: training examples held out of `train`, if any.
    """

    name: str
    train: Split
    test: Split
    test_name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    validation: Split | None = None


def recipe(name: str) -> Recipe:
    """The recipe of a dataset; one that the paper does not use is trained like its easier four."""
    return RECIPES.get(name, Recipe(name, 40, 0.5, False))


def load(name: str, data_dir: str | Path | None = None, image_size: int | None = None) -> Dataset:
    """Opens a dataset; examples in array_record and in folders are read only when its splits are.

    Args:
      name: one of `RECIPES`, "folder:PATH" (see `from_folder`), or the tfds name of any dataset
        with `image` and `label`.
      data_dir: the folder of prepared tfds datasets; None for $TFDS_DATA_DIR, then
        ~/tensorflow_datasets.
      image_size: height and width to resize to; None for the images' own, or 32 if it varies.

    Raises:
      ImportError: for a dataset of tfds without `pip install 'interflow_jax[data]'`.
      tfds_folders.NotPreparedError: if no folder holds the dataset.
      tfds_folders.PreparationError: for tfrecord files that TensorFlow cannot decode.
      ValueError: for a name that tfds does not have, a dataset without integer labels, 8-bit images
        or a training split, another size of fashion_mini, or what `from_folder` refuses.
    """
    if name == "fashion_mini":
        return _fashion_mini(image_size)
    if name.startswith("folder:"):
        from interflow_jax.data.folders import from_folder

        return from_folder(name.removeprefix("folder:"), image_size)
    from interflow_jax.data import tfds_folders  # the rest of the library needs no tfds

    return Dataset(name, *tfds_folders.open_prepared(recipe(name).tfds_name, data_dir, image_size))


def _fashion_mini(image_size: int | None) -> Dataset:
    if image_size not in (None, 28):
        raise ValueError(f"image_size is {image_size}; fashion_mini has images of 28: leave it out")
    file = resources.files("interflow_jax.data.fashion_mini") / "fashion_mini.npz"
    with file.open("rb") as stream, np.load(stream) as arrays:
        train, test = (
            ArraySplit(arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int32))
            for split in ("train", "test")
        )
        names = tuple(arrays["class_names"].tolist())
    return Dataset("fashion_mini", train, test, "test", names, (28, 28, 1))
