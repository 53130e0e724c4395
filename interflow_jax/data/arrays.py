"""Datasets from your own arrays."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from interflow_jax.data.dataset import Dataset, check_labels, clean_names
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
      ValueError: for other shapes or types, channels before height and width, no examples, test
        images of another shape than those of train, labels below 0 or beyond the class names, class
        names that are not distinct strings, or fewer than two classes.
    """
    if class_names is not None:
        named = not isinstance(class_names, str | bytes)
        if not named or not all(isinstance(each, str) for each in class_names):
            raise ValueError(f"class_names are {class_names!r:.100}; give a string per class")
        if repeated := [each for each, count in Counter(class_names).items() if count > 1]:
            raise ValueError(f"class_names repeat {', '.join(repeated)}; give every class its own")
    known = None if class_names is None else len(class_names)
    splits = _split("train", *train, known), _split("test", *test, known)
    shape, test_shape = (split.images.shape[1:] for split in splits)
    if shape != test_shape:
        raise ValueError(f"images of train are {shape}, of test {test_shape}")
    if class_names is None:
        class_names = [str(label) for label in range(max(s.labels.max() for s in splits) + 1)]
    names, notes = clean_names(class_names)
    if len(names) < 2:
        raise ValueError(f"the classes are {', '.join(names) or 'none'}; give two or more")
    return Dataset(name, *splits, "test", names, shape, notes=notes)


def _split(part: str, images: np.ndarray, labels: np.ndarray, classes: int | None) -> ArraySplit:
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.dtype != np.uint8 or not images.size:
        raise ValueError(
            f"{part} images have shape {images.shape} and type {images.dtype}; give uint8 of "
            "[examples, height, width] or [examples, height, width, channels]; scale floats to "
            "0 to 255 and cast them by astype(np.uint8)"
        )
    if images.shape[1] in (1, 3) and min(images.shape[2:]) > 4:
        raise ValueError(
            f"{part} images of shape {images.shape} have their channels first; give "
            "images.transpose(0, 2, 3, 1), [examples, height, width, channels]"
        )
    labels = check_labels(labels, classes, f"{part} labels")
    if len(labels) != len(images):
        raise ValueError(f"{part} has {len(labels)} labels for {len(images)} images; give one each")
    return ArraySplit(images, labels)
