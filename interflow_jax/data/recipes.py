"""Labelled images by dataset name: the paper's six, the sample that ships here, or any of tfds."""

import difflib
import re
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from interflow_jax.data.dataset import Dataset
from interflow_jax.data.folders import from_folder
from interflow_jax.data.pictures import Resize, check_image_size, check_resize
from interflow_jax.data.splits import ArraySplit


class Recipe(NamedTuple):
    """How the paper trains on a dataset (IV-B), and its sizes (IV-A)."""

    tfds_name: str
    epochs: int
    drop_after: float  # fraction of the epochs; the paper's learning rate drops for the last 20
    augment: bool  # by random crops and flips
    train_examples: int | None = None  # None where unknown


RECIPES: dict[str, Recipe] = {
    "fashion_mini": Recipe("fashion_mnist", 3, 0.5, False, 6_000),
    "cifar10": Recipe("cifar10", 100, 0.8, True, 50_000),
    "cifar100": Recipe("cifar100", 100, 0.8, True, 50_000),
    "svhn": Recipe("svhn_cropped", 40, 0.5, False, 73_257),
    "mnist": Recipe("mnist", 40, 0.5, False, 60_000),
    "kmnist": Recipe("kmnist", 40, 0.5, False, 60_000),
    "fashion_mnist": Recipe("fashion_mnist", 40, 0.5, False, 60_000),
}


def recipe(name: str) -> Recipe:
    """The recipe of a dataset, whatever its version, as of cifar10:3.0.2, or its configuration.

    One that the paper does not use is trained like its easier four.
    """
    if name in RECIPES:
        return RECIPES[name]
    base = re.split("[:/]", name)[0]
    own = RECIPES.get(base if base != "fashion_mini" else "", Recipe(base, 40, 0.5, False))
    return own._replace(tfds_name=own.tfds_name + name.removeprefix(base))


def load(
    name: str,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    resize: Resize = "squash",
) -> Dataset:
    """Opens a dataset; examples in array_record and in folders are read only when its splits are.

    Args:
      name: one of `RECIPES`, "folder:PATH" (see `from_folder`), or the tfds name of any dataset
        with `image` and `label`.
      data_dir: the folder of prepared tfds datasets; None for $TFDS_DATA_DIR, then
        ~/tensorflow_datasets.
      image_size: height and width to resize to; None for the images' own, or 32 if it varies.
      resize: how (see `pictures.fit`).

    Raises:
      ImportError: for a dataset of tfds without `pip install 'interflow_jax[data]'`.
      NotPreparedError: if no folder holds the dataset.
      PreparationError: for tfrecord files that TensorFlow cannot decode.
      ValueError: for a path, a name that tfds does not have, a damaged folder, a dataset without
        integer labels, 8-bit images or a training split, another size of fashion_mini, one
        above `pictures.LARGEST_SIDE`, or what `from_folder` refuses.
    """
    check_resize(resize)
    check_image_size(image_size)
    if name == "fashion_mini":
        return _fashion_mini(image_size)
    if name.startswith("folder:"):
        return from_folder(name.removeprefix("folder:"), image_size, resize)
    folder = find(name, data_dir)
    from interflow_jax.data import records  # the rest of the library needs no tfds

    return records.open_prepared(name, folder, image_size, resize)


def find(name: str, data_dir: str | Path | None = None) -> Path:
    """The folder in which tfds has prepared a dataset, the newest version if the name has none.

    Raises:
      ImportError, NotPreparedError, ValueError: as `load` does.
    """
    if name.startswith(("/", "~", ".")) or "\\" in name or ".." in name:
        raise ValueError(
            f"the dataset {name!r} is a path; for pictures in folders give folder:{name}, for what "
            "tfds has prepared the dataset's name, and data_dir, the folder above it"
        )
    from interflow_jax.data import tfds

    try:
        return tfds.find(recipe(name).tfds_name, data_dir)
    except tfds.UnknownNameError as error:
        close = difflib.get_close_matches(name.lower(), {*RECIPES, *error.known}, n=3)
        raise ValueError(
            f"there is no dataset {name!r} (close: {', '.join(close) or 'none'}); choose one of "
            f"{', '.join(RECIPES)}, folder:PATH, or one that `tfds.list_builders()` lists"
        ) from error


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
