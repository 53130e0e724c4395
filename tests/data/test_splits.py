"""Splits: subsets, reading whole, statistics of the channels."""

import numpy as np
import pytest

from interflow_jax.data import splits
from interflow_jax.data.splits import ArraySplit


@pytest.fixture
def split():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (3000, 3, 2, 3), np.uint8)
    return ArraySplit(images, np.arange(3000, dtype=np.int32))


def test_a_subset_is_part_of_a_larger_one(split):
    small, large = splits.take(split, 10), splits.take(split, 100)
    _, few = small.read(np.arange(10))
    images, many = large.read(np.arange(100))
    np.testing.assert_array_equal(few, many[:10])
    np.testing.assert_array_equal(images, split.images[many])
    assert len(set(many)) == 100
    assert list(many) != sorted(many)
    assert splits.take(split, 3000) is split


@pytest.mark.parametrize("size", [0, -1, 3001])
def test_a_size_that_the_split_lacks_is_named(split, size):
    with pytest.raises(ValueError, match=f"size is {size}; the split has 3000"):
        splits.take(split, size)


def test_reading_whole_keeps_the_order(split):
    reversed_split = splits.Subset(split, np.arange(2999, -1, -1))
    whole = splits.into_memory(reversed_split)
    np.testing.assert_array_equal(whole.labels, np.arange(2999, -1, -1))
    np.testing.assert_array_equal(whole.images, split.images[::-1])


def test_statistics_are_those_of_the_pixels(split):
    mean, deviation = splits.channel_statistics(split)
    pixels = split.images.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(deviation, pixels.std(0), rtol=1e-10)


def test_a_channel_of_one_level_divides_by_one():
    flat = ArraySplit(np.full((5, 2, 2, 1), 7, np.uint8), np.zeros(5, np.int32))
    mean, deviation = splits.channel_statistics(flat)
    np.testing.assert_allclose((mean[0], deviation[0]), (7 / 255, 1.0))


def test_the_statistics_of_a_large_split_are_those_of_some_of_its_examples(split, monkeypatch):
    monkeypatch.setattr(splits, "_READ_WHOLE", split.images.nbytes - 1)
    monkeypatch.setattr(splits, "_SAMPLE", 100)
    mean, deviation = splits.channel_statistics(split)
    some = splits.take(split, 100)
    monkeypatch.setattr(splits, "_READ_WHOLE", split.images.nbytes)
    assert (mean, deviation) == splits.channel_statistics(some)
    assert mean != splits.channel_statistics(split)[0]
