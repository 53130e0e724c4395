"""The trainer: dispatches, devices, evaluation over every example, models of others."""

import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import interflow_jax as ij
from interflow_jax.data import batches, preprocessing
from interflow_jax.data.datasets import Dataset
from interflow_jax.data.preprocessing import Preprocessing
from interflow_jax.data.splits import ArraySplit, Subset, UnreadableExamplesError

BATCH = 8
SHAPE = (12, 12, 1)
AUGMENTING = Preprocessing((0.5,), (0.25,), augment=True)
PLAIN = Preprocessing((0.5,), (0.25,), augment=False)


def random_split(examples):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (examples, *SHAPE), np.uint8)
    return ArraySplit(images, generator.integers(0, 10, examples).astype(np.int32))


@pytest.fixture(scope="module")
def dataset():
    split = random_split(50)
    return Dataset("random", split, split, "test", tuple("0123456789"), SHAPE)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("S1", depth=5, taps=(3, 4, 5))


def an_epoch(model, dataset):
    """Losses of each step of an epoch, and the parameters after it."""
    trained = ij.Trainer(model, dataset, batch_size=BATCH, preprocessing=AUGMENTING)
    state, metrics = trained.train_epoch(trained.init(), 0)
    return metrics.loss_sum, state.params


@pytest.fixture(scope="module")
def expected_epoch(model, dataset):
    return an_epoch(model, dataset)


@pytest.mark.parametrize(("dispatch", "resident"), [(4, True), (1, False), (4, False)])
def test_dispatches_and_sources_agree(
    model, dataset, expected_epoch, dispatch, resident, monkeypatch
):
    monkeypatch.setattr(batches, "steps_per_dispatch", lambda: dispatch)
    monkeypatch.setattr(batches, "fits", lambda nbytes: resident)
    losses, params = an_epoch(model, dataset)
    expected_losses, expected = expected_epoch
    assert len(losses) == 6
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), params, expected)


@pytest.mark.parametrize("batch_size", [7, 50])
def test_evaluation_does_not_depend_on_batch_size(model, dataset, batch_size):
    trained = ij.Trainer(model, dataset, batch_size=batch_size, preprocessing=PLAIN)
    state = trained.init()
    metrics = trained.evaluate(state)
    images = preprocessing.normalize(PLAIN, jnp.asarray(dataset.test.images))
    prediction = jax.jit(partial(ij.predict, model))(state, images)
    chosen = jax.nn.log_softmax(prediction.logits)[np.arange(50), dataset.test.labels]
    hits = (prediction.logits.argmax(-1) == dataset.test.labels).sum()
    branch_hits = (prediction.alone.argmax(-1) == dataset.test.labels[:, None]).sum(0)
    np.testing.assert_allclose(metrics.loss_sum, -chosen.sum(), rtol=1e-5)
    assert (metrics.correct, metrics.count) == (hits, 50)
    np.testing.assert_array_equal(metrics.branch_correct, branch_hits)
    np.testing.assert_array_equal(metrics.weights, state.params["fusion"]["weights"])
    assert metrics.accuracy == pytest.approx(2 * int(hits))
    assert metrics.branch_accuracy == pytest.approx([2 * int(hits) for hits in branch_hits])
    assert metrics.loss == pytest.approx(float(-chosen.mean()), rel=1e-5)


def test_prediction_of_any_number_of_images_is_that_of_the_model(model, dataset):
    trained = ij.Trainer(model, dataset, batch_size=BATCH, preprocessing=PLAIN)
    state = trained.init(3)
    prediction = trained.predict(state, dataset.test.images[:19])
    images = preprocessing.normalize(PLAIN, jnp.asarray(dataset.test.images[:19]))
    expected = ij.predict(model, state, images)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), prediction, expected)
    images = dataset.test.images
    for wrong in (images[:0], images[:, 1:], images / np.float32(255)):
        with pytest.raises(ValueError, match=r"give one or more, uint8 of \[images, 12, 12, 1\]"):
            trained.predict(state, wrong)


@pytest.mark.parametrize("dropout", [False, True])
def test_it_is_taken_up_inside_an_epoch_bit_for_bit(model, dataset, dropout):
    network = Plain() if dropout else model
    trained = ij.Trainer(network, dataset, batch_size=BATCH, preprocessing=AUGMENTING)
    taken_up_bit_for_bit(trained)


def taken_up_bit_for_bit(trained):
    """Takes an epoch up after its third step; returns the metrics of the epoch trained whole."""
    whole, metrics = trained.train_epoch(trained.init(1), 2, seed=1)
    for count, (state, _) in enumerate(trained.dispatches(trained.init(1), 2, seed=1), start=1):
        if count == 3:
            saved = jax.tree.map(np.asarray, state)
            break
    *_, (resumed, _) = trained.dispatches(trained.put(saved), 2, seed=1, first=3)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    return metrics


def test_a_batch_that_does_not_fit_is_named(model, dataset, monkeypatch):
    with pytest.raises(ValueError, match=r"batch_size is 64; .* at most the 50 training examples"):
        ij.Trainer(model, dataset, batch_size=64)

    class EightDevices:
        size = 8

    monkeypatch.setattr(batches, "device_mesh", EightDevices)
    with pytest.raises(ValueError, match=r"batch_size is 12; .* multiple of the 8 device"):
        ij.Trainer(model, dataset, batch_size=12)


def test_a_split_that_the_dataset_lacks_is_named(model, dataset):
    trained = ij.Trainer(model, dataset, batch_size=BATCH, preprocessing=PLAIN)
    with pytest.raises(ValueError, match="split is 'validation'; the dataset has train, test"):
        trained.evaluate(trained.init(), "validation")


def test_validation_does_not_decide_where_the_data_is(model, dataset, monkeypatch):
    asked = []
    monkeypatch.setattr(batches, "fits", asked.append)
    for validation in (None, dataset.test):
        ij.Trainer(
            model, dataset._replace(validation=validation), preprocessing=PLAIN, batch_size=8
        )
    assert asked[0] == asked[1] == 100 * 12 * 12


class Labelled(nn.Module):
    """Two maps, and labels of as many as it is told."""

    labels: tuple[str, ...]

    def __call__(self, images):
        return [images, images[:, ::2]]


def test_a_model_that_cannot_be_trained_is_refused_before_any_data_is_read(dataset):
    unread = dataset._replace(train=Broken(AssertionError("read")))
    for network, message in (
        (ij.Interflow(Labelled(("one",)), 10, ij.Fusion("shared")), "for 2 branches; give one"),
        (nn.Dense(10), "Dense returns no Prediction; wrap it in Interflow"),
        (ij.build("S1", 9, width=1 / 32), "tells 9 classes apart; random has 10: build it for as"),
    ):
        with pytest.raises(ValueError, match=message):
            ij.Trainer(network, unread, batch_size=BATCH)


def test_labels_are_those_that_the_backbone_offers(dataset):
    network = ij.Interflow(Labelled(("shallow", "deep")), 10, ij.Fusion("shared"))
    trained = ij.Trainer(network, dataset, batch_size=BATCH, preprocessing=PLAIN)
    assert trained.labels == ("shallow", "deep")


def test_training_leaves_what_it_was_given(tiny, dataset):
    """Steps are given their state's memory; arrays of the caller's must not be part of it."""
    model = tiny("S1", depth=4, taps=(3, 4))
    backbone = model.backbone.init(jax.random.key(7), jnp.zeros((1, *SHAPE)), train=False)
    trained = ij.Trainer(model, dataset, batch_size=BATCH, preprocessing=PLAIN, pretrained=backbone)
    saved = trained.init(0)
    ends = [trained.train_epoch(trained.put(saved), 0)[0] for _ in range(2)]
    trained.train_epoch(trained.init(1), 0)
    jax.tree.map(np.testing.assert_array_equal, ends[0].params, ends[1].params)
    for leaf in jax.tree.leaves((backbone, saved.params)):
        assert not leaf.is_deleted()


def test_a_container_s_memory_is_what_its_limit_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "Path", lambda path: tmp_path / path.lstrip("/"))
    whole = batches._host_memory()
    job = tmp_path / "sys" / "fs" / "cgroup" / "slurm" / "job1"
    (job / "step0").mkdir(parents=True)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/slurm/job1/step0\n")
    (job / "step0" / "memory.max").write_text("max\n")
    assert batches._host_memory() == whole
    (job / "memory.max").write_text("1000000\n")
    assert batches._host_memory() == 1000000
    assert not batches.fits(500000)


def test_only_what_leaves_room_is_kept_on_the_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(
        batches, "Path", lambda path: tmp_path / path.lstrip("/")
    )  # where no limit is set
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert batches.fits(memory // 5)
    assert not batches.fits(memory // 3)


class Broken:
    """A split that raises what it is given."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 16

    def read(self, indices):
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError("not\na record"), UnreadableExamplesError), (MemoryError(), MemoryError)],
)
@pytest.mark.parametrize("resident", [True, False])
def test_only_examples_that_cannot_be_read_are_said_to_be(
    model, dataset, error, raised, resident, monkeypatch
):
    monkeypatch.setattr(batches, "fits", lambda nbytes: resident)
    broken = dataset._replace(train=Broken(error))

    def train():
        trained = ij.Trainer(model, broken, batch_size=BATCH, preprocessing=PLAIN)
        trained.train_epoch(trained.init(), 0)

    with pytest.raises(raised):
        train()


class Pyramid(nn.Module):
    """A backbone without a training switch, as in the README."""

    @nn.compact
    def __call__(self, images):
        return [nn.relu(nn.Conv(4 * scale, (3, 3), strides=scale)(images)) for scale in (1, 2)]


class Plain(nn.Module):
    """A model that is no `Interflow`, with Dropout and a switch that means the opposite."""

    @nn.compact
    def __call__(self, images, deterministic):
        x = nn.Dense(32)(images.reshape(len(images), -1))
        x = nn.Dropout(0.5, deterministic=deterministic)(nn.relu(x))
        logits = nn.Dense(10)(x)
        return ij.Prediction(logits, logits[:, None], jnp.ones(1))


def learnable(examples=96):
    """Images that are as light as their label."""
    labels = (np.arange(examples) % 10).astype(np.int32)
    noise = np.random.default_rng(0).integers(0, 20, (examples, *SHAPE))
    images = (labels[:, None, None, None] * 23 + noise).astype(np.uint8)
    split = ArraySplit(images, labels)
    return Dataset("light", split, split, "test", tuple("0123456789"), SHAPE)


@pytest.mark.parametrize(
    ("network", "labels"),
    [(ij.Interflow(Pyramid(), 10, ij.Fusion("class")), (1, 2)), (Plain(), (1,))],
    ids=["no switch", "no Interflow"],
)
def test_models_of_others_learn(network, labels):
    trained = ij.Trainer(network, learnable(), batch_size=16, optimizer=optax.adam(1e-2))
    assert trained.labels == labels
    state = trained.init()
    before = trained.evaluate(state)
    for epoch in range(15):
        state, _ = trained.train_epoch(state, epoch)
    after = trained.evaluate(state)
    assert after.loss < 0.7 * before.loss
    assert after.accuracy > before.accuracy
    assert len(after.branch_accuracy) == len(labels)


def test_dropout_is_a_function_of_seed_epoch_and_step_and_absent_from_predictions():
    # One image again and again, and nothing learns: only what is dropped makes losses differ.
    dataset = learnable(1)
    repeated = Subset(dataset.train, np.zeros(32, int))
    dataset = dataset._replace(train=repeated)
    trained = ij.Trainer(Plain(), dataset, batch_size=16, optimizer=optax.sgd(0.0))
    state = trained.init()
    losses = {
        (seed, epoch): trained.train_epoch(trained.init(), epoch, seed)[1].loss_sum
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    }
    again = trained.train_epoch(trained.init(), 0, 0)[1].loss_sum
    np.testing.assert_array_equal(losses[0, 0], again)
    assert len({loss for each in losses.values() for loss in each.tolist()}) == 6
    one, other = (trained.predict(state, dataset.test.images) for _ in range(2))
    np.testing.assert_array_equal(one.logits, other.logits)


def test_dropout_s_key_is_none_of_augmentation_s():
    keys = preprocessing.epoch_keys(0, 0)
    step = jax.random.fold_in(keys.steps, 5)
    augmentation = [step, *jax.random.split(step)]
    dropout = preprocessing.dropout_key(keys, jnp.asarray(5))
    for key in (*augmentation, preprocessing.dropout_key(keys, jnp.asarray(6))):
        assert np.any(jax.random.key_data(key) != jax.random.key_data(dropout))


LOSSES_OF_A_CHILD = """
import json, numpy as np, jax, interflow_jax as ij
from interflow_jax.data.datasets import Dataset
from interflow_jax.data.preprocessing import Preprocessing
from interflow_jax.data.splits import ArraySplit

generator = np.random.default_rng(0)
images = generator.integers(0, 256, (64, 12, 12, 1), np.uint8)
labels = generator.integers(0, 10, 64).astype(np.int32)
dataset = Dataset("random", ArraySplit(images, labels), ArraySplit(images[:50], labels[:50]),
                  "test", tuple("0123456789"), (12, 12, 1))
model = ij.build("S1", 10, depth=5, taps=(3, 4, 5), width=1 / 16)
trainer = ij.Trainer(model, dataset, batch_size=16,
                     preprocessing=Preprocessing((0.5,), (0.25,), True))
state, trained = trainer.train_epoch(trainer.init(), 0)
tested = trainer.evaluate(state)
print(json.dumps({"devices": jax.device_count(), "counted": int(tested.count),
                  "losses": [*trained.loss_sum.tolist(), float(tested.loss_sum)]}))
"""


def test_eight_devices_lose_what_one_loses(on_cpu_devices):
    one, eight = (json.loads(on_cpu_devices(devices, LOSSES_OF_A_CHILD)) for devices in (1, 8))
    assert (one["devices"], eight["devices"]) == (1, 8)
    assert one["counted"] == eight["counted"] == 50
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-4)


def test_random_crops_are_streamed_and_taken_up_bit_for_bit(model, dataset):
    cutting = Preprocessing((0.5,), (0.25,), augment=True, resized_crop=True)
    metrics = taken_up_bit_for_bit(
        ij.Trainer(model, dataset, batch_size=BATCH, preprocessing=cutting)
    )
    padding = ij.Trainer(model, dataset, batch_size=BATCH, preprocessing=AUGMENTING)
    _, others = padding.train_epoch(padding.init(1), 2, seed=1)
    assert np.all(metrics.loss_sum != others.loss_sum)


PROCESS = (
    """
import sys, jax, numpy as np
from interflow_jax.data import batches, splits
port, processes, process, resident = map(int, sys.argv[1:])
jax.distributed.initialize(f"127.0.0.1:{port}", processes, process,
                           cluster_detection_method="deactivate")
batches.fits = lambda nbytes: bool(resident)
count, read = [], splits.ArraySplit.read
splits.ArraySplit.read = lambda self, indices, *draws: (
    count.append(len(indices)), read(self, indices, *draws))[1]
"""
    + LOSSES_OF_A_CHILD
    + """
print("read", sum(count))
"""
)


@pytest.mark.parametrize(("processes", "resident"), [(2, True), (4, False)])
def test_processes_lose_what_one_loses_and_read_their_part(processes, resident, on_cpu_devices):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ThreadPoolExecutor() as pool:
        outputs = pool.map(
            lambda process: on_cpu_devices(
                4 // processes, PROCESS, port, processes, process, int(resident)
            ),
            range(processes),
        )
        one = json.loads(on_cpu_devices(4, LOSSES_OF_A_CHILD))
    for output in outputs:
        # Gloo's threads print between and into each other's lines, at the start.
        losses, reads = (line for line in output.splitlines() if line.startswith(("{", "read ")))
        each = json.loads(losses)
        assert (each["devices"], each["counted"]) == (4, 50)
        np.testing.assert_allclose(each["losses"], one["losses"], rtol=1e-4)
        # 64 for training and 64 for testing, the last 14 of which only fill up the batch.
        assert reads == f"read {64 + 50 if resident else 128 // processes}"
