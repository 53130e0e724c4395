"""Epochs: order, batches, sharding, many steps a dispatch, evaluation over every example."""

import json
import os
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interflow_jax as ij
from interflow_jax.data import batches, preprocessing
from interflow_jax.data.preprocessing import Preprocessing
from interflow_jax.data.splits import ArraySplit, Subset

BATCH = 8
SHAPE = (12, 12, 1)


@pytest.fixture(scope="module")
def split():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (50, *SHAPE), np.uint8)
    return ArraySplit(images, generator.integers(0, 10, 50).astype(np.int32))


@pytest.fixture(scope="module")
def setting(tiny):
    """A shallow model, its optimiser, programs and mesh."""
    model = tiny("S1", depth=5, taps=(3, 4, 5))
    optimizer = ij.make_optimizer(ij.learning_rate_schedule(100, 0.5))
    mesh = batches.local_mesh()
    augmenting = Preprocessing((0.5,), (0.25,), augment=True)
    programs = batches.make_programs(model, optimizer, augmenting, mesh, BATCH)
    return model, optimizer, mesh, programs


@pytest.fixture(scope="module")
def initial(setting):
    model, optimizer, mesh, _ = setting
    state = ij.create_state(model, optimizer, preprocessing.initial_key(0), SHAPE)
    return jax.device_put(state, batches.replicated(mesh))


def train_an_epoch(setting, initial, split, dispatch, stream):
    """Losses of each step of an epoch, and the parameters after it."""
    _, _, mesh, programs = setting
    state = jax.tree.map(jnp.copy, initial)  # the program consumes it
    keys = preprocessing.epoch_keys(0, 0)
    order = batches.training_order(keys, len(split))
    chunks = batches.chunks(0, len(split) // BATCH, dispatch)
    if stream:
        sources = batches.streamed_batches(split, order, chunks, mesh, BATCH)
    else:
        sources = batches.resident_batches(batches.hold(split, mesh), order, chunks, mesh)
    losses = []
    for steps, source in sources:
        state, metrics = programs.train(state, source, keys, steps)
        losses += metrics.loss_sum.tolist()
    return losses, state.params


@pytest.fixture(scope="module")
def expected_epoch(setting, initial, split):
    return train_an_epoch(setting, initial, split, 1, False)


@pytest.mark.parametrize(("dispatch", "stream"), [(4, False), (1, True), (4, True)])
def test_dispatches_and_sources_agree(setting, initial, split, expected_epoch, dispatch, stream):
    expected_losses, expected = expected_epoch
    losses, params = train_an_epoch(setting, initial, split, dispatch, stream)
    assert len(losses) == 6
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), params, expected)


@pytest.mark.parametrize("subset", [False, True])
def test_streamed_batches_are_the_resident_ones(split, subset):
    if subset:
        split = Subset(split, np.arange(49, -1, -2))
    held = batches.hold(
        ArraySplit(*split.read(np.arange(len(split)))), mesh := batches.local_mesh()
    )
    order = batches.training_order(preprocessing.epoch_keys(3, 1), len(split))
    chunks = batches.chunks(0, len(split) // BATCH, 2)
    resident = batches.resident_batches(held, order, chunks, mesh)
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


@pytest.mark.parametrize("batch_size", [7, 64])
def test_evaluation_does_not_depend_on_batch_size(setting, initial, split, batch_size):
    model, optimizer, mesh, _ = setting
    state = initial
    plain = Preprocessing((0.5,), (0.25,), augment=False)
    order = batches.evaluation_order(len(split), batch_size)
    steps = batches.chunks(0, len(order) // batch_size, 1)
    programs = batches.make_programs(model, optimizer, plain, mesh, batch_size)
    sums = np.zeros(3)
    branches = np.zeros(3, int)
    for chunk, source in batches.resident_batches(batches.hold(split, mesh), order, steps, mesh):
        metrics = programs.evaluate(state, source, chunk, jnp.asarray(len(split)))
        sums += [metrics.loss_sum[0], metrics.correct[0], metrics.count[0]]
        branches += metrics.branch_correct[0]
    images = preprocessing.normalize(plain, jnp.asarray(split.images))
    prediction = jax.jit(partial(ij.predict, model))(state, images)
    chosen = jax.nn.log_softmax(prediction.logits)[np.arange(50), split.labels]
    hits = prediction.alone.argmax(-1) == split.labels[:, None]
    np.testing.assert_allclose(sums[0], -chosen.sum(), rtol=1e-5)
    assert sums[1] == (prediction.logits.argmax(-1) == split.labels).sum()
    assert sums[2] == 50
    np.testing.assert_array_equal(branches, hits.sum(0))


def test_a_batch_that_the_devices_do_not_divide_is_named(setting):
    model, optimizer, _, _ = setting

    class EightDevices:
        size = 8

    plain = Preprocessing((0.5,), (0.25,), augment=False)
    with pytest.raises(ValueError, match=r"batch_size is 12; .* multiple of the 8 device"):
        batches.make_programs(model, optimizer, plain, EightDevices(), 12)  # pyright: ignore


def test_only_what_leaves_room_is_held_on_the_devices():
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert batches.fits(memory // 5)
    assert not batches.fits(memory // 3)


LOSSES_OF_A_CHILD = """
import json, numpy as np, jax, interflow_jax as ij
from interflow_jax.data import batches, preprocessing
from interflow_jax.data.preprocessing import Preprocessing
from interflow_jax.data.splits import ArraySplit

generator = np.random.default_rng(0)
split = ArraySplit(generator.integers(0, 256, (64, 12, 12, 1), np.uint8),
                   generator.integers(0, 10, 64).astype(np.int32))
model = ij.build("S1", 10, depth=5, taps=(3, 4, 5), width=1 / 16)
optimizer = ij.make_optimizer(ij.learning_rate_schedule(4, 0.5))
mesh = batches.local_mesh()
programs = batches.make_programs(model, optimizer, Preprocessing((0.5,), (0.25,), True), mesh, 16)
state = ij.create_state(model, optimizer, preprocessing.initial_key(0), (12, 12, 1))
state = jax.device_put(state, batches.replicated(mesh))
keys = preprocessing.epoch_keys(0, 0)
order = batches.training_order(keys, 64)
losses = []
for steps, source in batches.resident_batches(
    batches.hold(split, mesh), order, batches.chunks(0, 4, 1), mesh
):
    state, metrics = programs.train(state, source, keys, steps)
    losses += metrics.loss_sum.tolist()
order = batches.evaluation_order(50, 16)
correct = 0
for steps, source in batches.resident_batches(
    batches.hold(split, mesh), order, batches.chunks(0, 4, 1), mesh
):
    metrics = programs.evaluate(state, source, steps, np.int32(50))
    losses += metrics.loss_sum.tolist()
    correct += int(metrics.count[0])
print(json.dumps({"devices": mesh.size, "losses": losses, "counted": correct}))
"""


def test_eight_devices_lose_what_one_loses(on_cpu_devices):
    one, eight = (json.loads(on_cpu_devices(devices, LOSSES_OF_A_CHILD)) for devices in (1, 8))
    assert (one["devices"], eight["devices"]) == (1, 8)
    assert one["counted"] == eight["counted"] == 50
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-4)
