"""Splits: subsets, reading whole, statistics of the channels."""

import numpy as np
import pytest

from interflow_jax.data import splits
from interflow_jax.data.splits import ArraySplit

IMAGES = np.random.default_rng(0).integers(0, 256, (3000, 3, 2, 3), np.uint8)
SPLIT = ArraySplit(IMAGES, np.arange(3000, dtype=np.int32))


def test_a_subset_is_part_of_a_larger_one_and_the_rest_none_of_it():
    parts = splits.take(SPLIT, 10), splits.take(SPLIT, 100), splits.take(SPLIT, 2900, after=100)
    (_, few), (images, many), (_, rest) = (part.read(np.arange(len(part))) for part in parts)
    np.testing.assert_array_equal(few, many[:10])
    np.testing.assert_array_equal(images, IMAGES[many])
    np.testing.assert_array_equal(np.sort([*many, *rest]), np.arange(3000))
    assert many[:5].tolist() == [2632, 1507, 9, 2383, 1635]  # as runs have trained
    assert splits.take(SPLIT, 3000) is SPLIT
    for size in (0, -1, 3001):
        with pytest.raises(ValueError, match=f"size is {size}; the split has 3000"):
            splits.take(SPLIT, size)


def test_classes_are_counted_by_labels_that_are_known():
    """Of pictures in files, which would otherwise be decoded for that; of records by reading."""

    class Records:
        read, __len__ = SPLIT.read, SPLIT.__len__

    counts = np.bincount(SPLIT.labels, minlength=3001)
    unreadable = ArraySplit(None, SPLIT.labels)
    for split in (unreadable, Records()):
        np.testing.assert_array_equal(splits.class_counts(split, 3001), counts)
    some = splits.class_counts(splits.take(unreadable, 10), 3000)
    assert sorted(np.flatnonzero(some)) == sorted(splits.take(SPLIT, 10).indices)


def test_reading_whole_keeps_the_order():
    whole = splits.into_memory(splits.Subset(SPLIT, np.arange(2999, -1, -1)))
    np.testing.assert_array_equal(whole.labels, np.arange(2999, -1, -1))
    np.testing.assert_array_equal(whole.images, IMAGES[::-1])


def test_statistics_are_those_of_the_pixels_of_a_large_split_of_some(monkeypatch):
    mean, deviation = splits.channel_statistics(SPLIT)
    pixels = IMAGES.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(deviation, pixels.std(0), rtol=1e-10)
    some = splits.channel_statistics(splits.take(SPLIT, 100))
    monkeypatch.setattr(splits, "_READ_WHOLE", IMAGES.nbytes - 1)
    monkeypatch.setattr(splits, "_SAMPLE", 100)
    assert splits.channel_statistics(SPLIT) == some != (mean, deviation)
    # A channel of one level divides by one.
    flat = ArraySplit(np.full((5, 2, 2, 1), 7, np.uint8), np.zeros(5, np.int32))
    np.testing.assert_allclose(splits.channel_statistics(flat), [[7 / 255], [1.0]])
