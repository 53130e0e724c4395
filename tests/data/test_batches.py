"""Batches: their order, where they come from, how many a dispatch takes."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from interflow_jax.data import batches, pictures, preprocessing
from interflow_jax.data.splits import ArraySplit, Subset

BATCH = 8


@pytest.fixture(scope="module")
def split():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (50, 12, 12, 1), np.uint8)
    return ArraySplit(images, generator.integers(0, 10, 50).astype(np.int32))


@pytest.mark.parametrize("subset", [False, True])
def test_streamed_batches_are_the_resident_ones(split, subset):
    if subset:
        split = Subset(split, np.arange(49, -1, -2))
    resident_split = batches.put(
        ArraySplit(*split.read(np.arange(len(split)))), mesh := batches.device_mesh()
    )
    order = batches.training_order(preprocessing.epoch_keys(3, 1), len(split))
    chunks = batches.chunks(0, len(split) // BATCH, 2)
    resident = batches.resident_batches(resident_split, order, chunks, mesh)
    streamed = batches.streamed_batches(split, order, chunks, mesh, BATCH)
    steps_seen = 0
    for (steps, whole), (same_steps, window) in zip(resident, streamed, strict=True):
        np.testing.assert_array_equal(steps, same_steps)
        for step in steps:
            for a, b in zip(whole.batch(step, BATCH), window.batch(step, BATCH), strict=True):
                np.testing.assert_array_equal(a, b)
            steps_seen += 1
    assert steps_seen == len(split) // BATCH


def test_an_epoch_visits_each_example_once_in_an_order_of_its_own():
    orders = [
        batches.training_order(preprocessing.epoch_keys(seed, epoch), 50)
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    for order in orders:
        assert sorted(order) == list(range(50))
    for a, b in pairwise(orders):
        assert np.any(a != b)
    again = batches.training_order(preprocessing.epoch_keys(0, 0), 50)
    np.testing.assert_array_equal(orders[0], again)


@pytest.mark.parametrize(("first", "last", "size"), [(0, 10, 4), (3, 10, 4), (4, 8, 4), (9, 9, 4)])
def test_chunks_cover_the_steps_and_end_on_a_fixed_grid(first, last, size):
    chunks = batches.chunks(first, last, size)
    assert [step for chunk in chunks for step in chunk] == list(range(first, last))
    assert all((chunk[-1] + 1) % size == 0 for chunk in chunks[:-1])


@pytest.mark.parametrize(("size", "readers"), [(1, 3), (4, 1), (4, 5), (1, 99)])
def test_random_crops_do_not_hang_on_dispatches_or_readers(split, size, readers):
    mesh = batches.device_mesh()
    keys = preprocessing.epoch_keys(3, 1)
    order = batches.training_order(keys, len(split))
    draws = partial(preprocessing.crop_draws, keys, BATCH)
    steps_seen = 0
    for first in (0, 3):
        chunks = batches.chunks(first, len(split) // BATCH, size)
        windows = batches.streamed_batches(split, order, chunks, mesh, BATCH, draws, readers)
        for steps, window in windows:
            for step in steps:
                visited = order[step * BATCH : (step + 1) * BATCH]
                images, labels = window.batch(step, BATCH)
                for image, index, draw in zip(images, visited, draws(step), strict=True):
                    expected = pictures.fit(split.images[index], (12, 12, 1), draw)
                    np.testing.assert_array_equal(image, expected)
                np.testing.assert_array_equal(labels, split.labels[visited])
                steps_seen += 1
    assert steps_seen == 6 + 3
