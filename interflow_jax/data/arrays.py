"""Datasets from your own arrays."""

from collections.abc import Sequence

import numpy as np

from interflow_jax.data.datasets import Dataset
from interflow_jax.data.splits import ArraySplit


def from_arrays(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """A dataset of images and labels in memory.

    Args:
      train, test: images, [examples, height, width(, channels)], uint8 (preprocessing scales
        them), and labels, [examples], integers from 0 on.
      class_names: one per class, in the order of the labels; None for their numbers.
      name: the dataset's name.

    Raises:
      ValueError: for other shapes or types, no examples, test images of another shape than those
        of train, labels below 0 or beyond the class names, or fewer than two classes.
    """
    splits = _split("train", *train), _split("test", *test)
    shape, test_shape = (split.images.shape[1:] for split in splits)
    if shape != test_shape:
        raise ValueError(f"images of train are {shape}, of test {test_shape}")
    classes = 1 + max(int(split.labels.max()) for split in splits)
    names = tuple(map(str, range(classes) if class_names is None else class_names))
    if len(names) < 2:
        raise ValueError(f"there is one class, {', '.join(names)}; give two or more")
    if len(names) < classes:
        raise ValueError(f"labels go to {classes - 1}, but there are {len(names)} class names")
    return Dataset(name, *splits, "test", names, shape)


def _split(part: str, images: np.ndarray, labels: np.ndarray) -> ArraySplit:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.dtype != np.uint8 or not images.size:
        raise ValueError(
            f"{part} images have shape {images.shape} and type {images.dtype}; give uint8 of "
            "[examples, height, width] or [examples, height, width, channels]; scale floats to "
            "0 to 255 first"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{part} labels have shape {labels.shape} and type {labels.dtype}; give one "
            f"integer for each of the {len(images)} images"
        )
    if labels.min() < 0:
        raise ValueError(f"{part} labels begin at {labels.min()}; number the classes from 0 on")
    return ArraySplit(images, labels.astype(np.int32))
