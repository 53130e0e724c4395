"""Examples of one split, in memory or in files, read in any order."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np

from interflow_jax.data import pictures

_READ_WHOLE = 10**9  # bytes of pixels, more than the paper's datasets have
_SAMPLE = 2048  # examples

Progress = Callable[[list], Iterable]
"""Wraps a list that is slow to iterate over, as `tqdm.tqdm` does."""


class Split(Protocol):
    """Labelled images."""

    def __len__(self) -> int: ...

    def read(
        self, indices: np.ndarray, draws: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images [n, height, width, channels], uint8, and labels [n], int32, at `indices` [n].

        With `draws`, [n, pictures.TRIES, 4], a random box of each image (see `pictures.fit`).
        """
        ...


@dataclass(frozen=True)
class ArraySplit:
    """Examples in arrays or memory maps: images as uint8, labels as int32."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def read(
        self, indices: np.ndarray, draws: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self.images[indices], self.labels[indices]
        if draws is not None:
            boxes = zip(images, draws, strict=True)
            images = np.stack([pictures.fit(image, image.shape, draw) for image, draw in boxes])
        return images, labels


@dataclass(frozen=True)
class Subset:
    """The examples of a split at `indices`, [n]."""

    split: Split
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def read(
        self, indices: np.ndarray, draws: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.split.read(self.indices[indices], draws)


class UnreadableExamplesError(RuntimeError):
    """Examples of a split cannot be read or decoded."""


def one_line(error: Exception) -> str:
    """The reason of an error of any type, in a line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def read(
    split: Split, indices: np.ndarray, draws: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Like `split.read`; raises UnreadableExamplesError with the reason, but MemoryError as is."""
    try:
        return split.read(indices) if draws is None else split.read(indices, draws)
    except MemoryError:
        raise
    except Exception as error:  # array_record, tfds and the decoders raise errors of any type
        raise UnreadableExamplesError(one_line(error)) from error


def take(split: Split, size: int, after: int = 0) -> Split:
    """Keeps `size` examples of the split's fixed permutation, from the one at `after` on.

    The permutation is the same for every seed and size: a smaller subset is part of a larger one.
    """
    if size < 1 or not 0 <= after <= len(split) - size:
        rest = f", {after} of them taken" if after else ""
        raise ValueError(
            f"size is {size}; the split has {len(split)} examples{rest}: choose 1 to "
            f"{len(split) - after}"
        )
    if size == len(split):
        return split
    order = np.asarray(jax.random.permutation(jax.random.key(0), len(split)))
    return Subset(split, order[after : after + size])


def into_memory(split: Split, progress: Progress = iter) -> ArraySplit:
    """Reads a whole split into arrays, in order."""
    parts = zip(*(read(split, chunk) for chunk in progress(chunks(split))), strict=True)
    return ArraySplit(*map(np.concatenate, parts))


def class_counts(split: Split, classes: int) -> np.ndarray:
    """How many examples of a split every class has, [classes]; reads those without `labels`."""
    whole = split.split if isinstance(split, Subset) else split
    if (known := getattr(whole, "labels", None)) is not None:
        known = known[split.indices] if isinstance(split, Subset) else known
        return np.bincount(known, minlength=classes)
    labels = (read(split, chunk)[1] for chunk in chunks(split))
    return np.sum([np.bincount(part, minlength=classes) for part in labels], axis=0)


def channel_statistics(
    split: Split, progress: Progress = iter
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel over a split, of pixels in [0, 1].

    They come from counts of the 256 levels, so they do not depend on where the split is stored; for
    a split of more than 1 GB, from some of its examples, as reading all would take longer than the
    rest of the startup.
    """
    height, width, channels = read(split, np.arange(1))[0].shape[1:]
    if len(split) * height * width * channels > _READ_WHOLE:
        split = take(split, min(len(split), _SAMPLE))
    levels = np.arange(256) / 255
    counts = sum(_level_counts(read(split, chunk)[0]) for chunk in progress(chunks(split)))
    shares = counts / np.sum(counts, axis=1, keepdims=True)
    mean = shares @ levels
    deviation = np.sqrt(np.maximum(shares @ levels**2 - mean**2, 0))
    # A channel of one level is all zeros once centred; dividing by 1 keeps it so.
    deviation = np.where(deviation > 1e-6, deviation, 1.0)
    return tuple(mean.tolist()), tuple(deviation.tolist())


def _level_counts(images: np.ndarray) -> np.ndarray:
    channels = images.reshape(-1, images.shape[-1]).T
    return np.stack([np.bincount(channel, minlength=256) for channel in channels])


def chunks(split: Split, size: int = 1024) -> list[np.ndarray]:
    """Indices of all examples of a split, in order, in parts of at most `size`."""
    return [np.arange(start, min(start + size, len(split))) for start in range(0, len(split), size)]
