"""What a dataset is, whatever it is read from."""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from interflow_jax.data.splits import Split, chunks, read

VARYING_SIZE = 32  # for datasets whose images vary in size: that of CIFAR and SVHN


class NotPreparedError(FileNotFoundError):
    """No folder holds the dataset in a form that tfds has prepared."""


class PreparationError(RuntimeError):
    """tfds could not download, prepare or decode the dataset."""


def prepare_again(name: str) -> str:
    """What to do where a dataset's prepared files are damaged."""
    return (
        "restore its prepared files, or move their folder away and prepare it again: "
        f"interflow prepare --dataset={name}"
    )


class Dataset(NamedTuple):
    """Labelled images to train on and to test on.

    Attributes:
      name: as in `recipes.RECIPES`, a tfds name, or "folder:PATH".
      train: the training split.
      test: the whole test split.
      test_name: the part of the dataset that `test` is, in tfds's notation.
      class_names: one per class, in the order of the labels.
      image_shape: (height, width, channels) of every image.
      validation: training examples held out of `train`, if any.
      notes: what to know of how it was read, a sentence each: images resized, files not read.
      source: what the splits were opened from, in words that change with it; empty for arrays.
    """

    name: str
    train: Split
    test: Split
    test_name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    validation: Split | None = None
    notes: tuple[str, ...] = ()
    source: str = ""

    def __repr__(self) -> str:
        return (
            f"<{printable(self.name)}: {len(self.train):,} training and {len(self.test):,} test "
            f"images of {self.image_shape}, {len(self.class_names)} classes>"
        )

    def digest(self) -> str:
        """Tells datasets of one name apart: the first 16 hexadecimal digits of a SHA-256.

        Of class names and `source` (tfds: version and counts; folders: the files' names, with
        their classes, and sizes), so of what was opened, not of a part taken since; of arrays, the
        bytes.
        """
        # JSON is ASCII, where `repr` follows the Unicode that the running Python knows.
        digest = hashlib.sha256(json.dumps([self.class_names, self.source]).encode())
        if not self.source:
            for split in filter(None, (self.train, self.test, self.validation)):
                digest.update(json.dumps([len(split), *self.image_shape]).encode())
                for indices in chunks(split):
                    for array in read(split, indices):
                        digest.update(array.tobytes())
        return digest.hexdigest()[:16]


_MOST_CLASSES = 2**20  # where nothing says how many; larger labels are keys, not numbers
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's controls, formats, surrogates, breaks


def check_labels(labels: np.ndarray, classes: int | None, what: str) -> np.ndarray:
    """Labels, integers from 0 to below `classes`, if that is known, as [examples], int32.

    Raises ValueError, by the name `what`, for other shapes or types, and labels out of range.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{what} have shape {labels.shape} and type {labels.dtype}; give one integer per image"
        )
    if labels.size and labels.min() < 0:
        raise ValueError(f"{what} begin at {labels.min()}; number the classes from 0 on")
    most = _MOST_CLASSES if classes is None else classes
    if labels.size and labels.max() >= most:
        raise ValueError(
            f"{what} go to {labels.max()}, but {most} classes are numbered 0 to {most - 1}"
        )
    return labels.astype(np.int32)


def printable(text: str) -> str:
    """Text with its control characters, as of terminals, written as escapes, like \\x1b."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _UNPRINTABLE
        else char
        for char in text
    )


def clean_names(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names made `printable`, and notes that say which were not."""
    clean = tuple(map(printable, names))
    changed = [new for old, new in zip(names, clean, strict=True) if old != new]
    notes = [f"class names with control characters are written as {', '.join(changed)}"]
    return clean, tuple(notes if changed else ())
