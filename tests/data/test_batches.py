"""Batches: their order, where they come from, how many a dispatch takes."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from interflow_jax.data import batches, pictures, preprocessing
from interflow_jax.data.splits import ArraySplit, Subset

BATCH = 8
KEYS = preprocessing.epoch_keys(3, 1)
_GENERATOR = np.random.default_rng(0)
SPLIT = ArraySplit(
    _GENERATOR.integers(0, 256, (50, 12, 12, 1), np.uint8),
    _GENERATOR.integers(0, 10, 50).astype(np.int32),
)


@pytest.mark.parametrize("split", [SPLIT, Subset(SPLIT, np.arange(49, -1, -2))])
def test_streamed_batches_are_the_resident_ones(split):
    mesh = batches.device_mesh()
    order = batches.training_order(KEYS, len(split))
    chunks = batches.chunks(0, len(split) // BATCH, 2)
    examples = (*split.read(np.arange(len(split))), order)
    whole = batches.Resident(*batches.replicate(examples, mesh))
    streamed = batches.streamed_batches(split, order, chunks, mesh, BATCH)
    seen = []
    for steps, (same_steps, window) in zip(chunks, streamed, strict=True):
        np.testing.assert_array_equal(steps, same_steps)
        for step in steps:
            for a, b in zip(whole.batch(step, BATCH), window.batch(step, BATCH), strict=True):
                np.testing.assert_array_equal(a, b)
        seen.extend(steps)
    assert seen == list(range(len(split) // BATCH))


@pytest.mark.parametrize(("size", "readers"), [(1, 3), (4, 1), (4, 5), (1, 99)])
def test_random_crops_do_not_hang_on_dispatches_or_readers(size, readers):
    order = batches.training_order(KEYS, len(SPLIT))
    draws = partial(preprocessing.crop_draws, KEYS, BATCH)
    for first in (0, 3):
        seen = []
        chunks = batches.chunks(first, 6, size)
        for steps, window in batches.streamed_batches(
            SPLIT, order, chunks, batches.device_mesh(), BATCH, draws, readers
        ):
            for step in steps:
                visited = order[step * BATCH : (step + 1) * BATCH]
                images, labels = window.batch(step, BATCH)
                for image, index, draw in zip(images, visited, draws(step), strict=True):
                    expected = pictures.fit(SPLIT.images[index], (12, 12, 1), draw)
                    np.testing.assert_array_equal(image, expected)
                np.testing.assert_array_equal(labels, SPLIT.labels[visited])
            seen.extend(steps)
        assert seen == list(range(first, 6))


def test_an_epoch_visits_each_example_once_in_an_order_of_its_own():
    epochs = (0, 0), (0, 1), (1, 0), (0, 0)
    orders = [batches.training_order(preprocessing.epoch_keys(*epoch), 50) for epoch in epochs]
    for order, other in pairwise(orders):
        assert sorted(order) == list(range(50))
        assert np.any(order != other)
    np.testing.assert_array_equal(orders[0], orders[3])


@pytest.mark.parametrize(("first", "last", "size"), [(0, 10, 4), (3, 10, 4), (4, 8, 4), (9, 9, 4)])
def test_chunks_cover_the_steps_and_end_on_a_fixed_grid(first, last, size):
    chunks = batches.chunks(first, last, size)
    assert [step for chunk in chunks for step in chunk] == list(range(first, last))
    assert all((chunk[-1] + 1) % size == 0 for chunk in chunks[:-1])
