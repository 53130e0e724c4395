"""The trainer: dispatches, devices, evaluation over every example, models of others."""

import json
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
from interflow_jax.data.dataset import Dataset
from interflow_jax.data.preprocessing import Preprocessing
from interflow_jax.data.splits import ArraySplit, Subset, UnreadableExamplesError
from interflow_jax.training_recipe import training_recipe

BATCH = 8
SHAPE = (12, 12, 1)
AUGMENTING = Preprocessing((0.5,), (0.25,), augment=True)
PLAIN = Preprocessing((0.5,), (0.25,), augment=False)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, rtol=1e-4, atol=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b)


class Pyramid(nn.Module):
    """A backbone without a training switch, as in the README, and with labels."""

    labels: tuple[str, ...] = ("shallow", "deep")

    @nn.compact
    def __call__(self, images):
        return [nn.relu(nn.Conv(4 * scale, (3, 3), strides=scale)(images)) for scale in (1, 2)]


class Plain(nn.Module):
    """A model that is no `Interflow`: a stream, a collection and a switch by other names."""

    @nn.compact
    def __call__(self, images, deterministic):
        x = nn.Dense(32)(images.reshape(len(images), -1))
        average = self.variable("averages", "mean", jnp.zeros, 32)
        if not deterministic:
            average.value = 0.9 * average.value + 0.1 * x.mean(0)
        x = nn.Dropout(0.5, rng_collection="drop_path")(nn.relu(x), deterministic=deterministic)
        logits = nn.Dense(10)(x)
        return ij.Prediction(logits, logits[:, None], None)


PYRAMID = ij.Interflow(Pyramid(), 10, ij.Fusion("class"))


def light(examples, name="light"):
    """Images that are as light as their label."""
    labels = (np.arange(examples) % 10).astype(np.int32)
    noise = np.random.default_rng(0).integers(0, 20, (examples, *SHAPE))
    images = (labels[:, None, None, None] * 23 + noise).astype(np.uint8)
    split = ArraySplit(images, labels)
    return Dataset(name, split, split, "test", tuple("0123456789"), SHAPE)


DATASET = light(50)


def make(model=PYRAMID, dataset=DATASET, **options):
    defaults = {"batch_size": BATCH, "optimizer": optax.sgd(0.01, 0.9), "preprocessing": PLAIN}
    return ij.Trainer(model, dataset, **{**defaults, **options})


@pytest.fixture(scope="module")
def trainer():
    return make(preprocessing=AUGMENTING)


@pytest.fixture(scope="module")
def epoch(trainer):
    return trainer.train_epoch(trainer.init(1), 2, seed=1)


@pytest.mark.parametrize(("dispatch", "resident"), [(4, True), (1, False), (4, False)])
def test_dispatches_and_sources_agree(epoch, dispatch, resident, monkeypatch):
    monkeypatch.setattr(batches, "steps_per_dispatch", lambda: dispatch)
    monkeypatch.setattr(batches, "fits", lambda nbytes: resident)
    other = make(preprocessing=AUGMENTING)
    state, metrics = other.train_epoch(other.init(1), 2, seed=1)
    assert len(metrics.loss_sum) == 6
    close(metrics.loss_sum, epoch[1].loss_sum)
    close(state.params, epoch[0].params, rtol=1e-3)


@pytest.mark.parametrize("batch_size", [7, 50])
def test_evaluation_does_not_depend_on_batch_size(batch_size):
    trainer = make(batch_size=batch_size)
    state = trainer.init()
    images, labels = DATASET.test.read(np.arange(50))
    batch = preprocessing.normalize(PLAIN, jnp.asarray(images)), labels, np.ones(50, bool)
    expected = jax.jit(partial(ij.eval_step, PYRAMID))(state, *batch)
    metrics = trainer.evaluate(state)
    close(metrics, expected)
    np.testing.assert_array_equal(metrics.weights, state.params["fusion"]["weights"])
    assert metrics.weights.dtype == np.float32


def test_prediction_of_any_number_of_images_is_that_of_the_model(trainer):
    state = trainer.init(3)
    images = DATASET.test.images
    prediction = trainer.predict(state, images[:19])
    normalized = preprocessing.normalize(AUGMENTING, jnp.asarray(images[:19]))
    close(prediction, jax.jit(partial(ij.predict, PYRAMID))(state, normalized))
    for wrong in (images[:0], images[:, 1:], images / np.float32(255)):
        with pytest.raises(ValueError, match=r"give one or more, uint8 of \[images, 12, 12, 1\]"):
            trainer.predict(state, wrong)


def resume(trainer):
    """The epoch's second half, from a state saved on the host after its third step."""
    for count, (state, _) in enumerate(trainer.dispatches(trainer.init(1), 2, seed=1), start=1):
        if count == 3:
            saved = jax.tree.map(np.asarray, state)
            break
    *_, (resumed, _) = trainer.dispatches(trainer.put(saved), 2, seed=1, first=3)
    return resumed


def test_it_is_taken_up_inside_an_epoch_bit_for_bit(trainer, epoch):
    equal(resume(trainer), epoch[0])
    plain = make(Plain())
    whole, _ = plain.train_epoch(plain.init(1), 2, seed=1)
    equal(resume(plain), whole)
    assert np.all(whole.collections["averages"]["mean"] != 0)


def test_random_crops_are_streamed_and_taken_up_bit_for_bit(epoch):
    cropping = make(preprocessing=AUGMENTING._replace(resized_crop=True))
    state, metrics = cropping.train_epoch(cropping.init(1), 2, seed=1)
    equal(resume(cropping), state)
    assert np.all(metrics.loss_sum != epoch[1].loss_sum)


class Broken:
    """A split that raises what it is given, or has a label of its own."""

    def __init__(self, error=None, label=0):
        self.error, self.label = error, label

    def __len__(self):
        return 16

    def read(self, indices):
        if self.error is not None:
            raise self.error
        return np.zeros((len(indices), *SHAPE), np.uint8), np.full(len(indices), self.label, "i4")


UNREAD = DATASET._replace(train=Broken(AssertionError("read")))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (PYRAMID.clone(backbone=Pyramid(("one",))), {}, "for 2 branches; give one"),
        (nn.Dense(10), {}, "Dense returns no Prediction; wrap it in Interflow"),
        (PYRAMID.clone(num_classes=9), {}, "tells 9 classes apart; light has 10: build it for as"),
        (PYRAMID, {"batch_size": 64}, "batch_size is 64; .* at most the 16 training examples"),
        (PYRAMID, {"batch_size": 0}, "batch_size is 0; .* at most the 16 training examples"),
        (PYRAMID, {"epochs": 0}, "epochs is 0; choose 1 or more"),
        (PYRAMID, {"optimizer": optax.adam}, "optimizer is .*; give an optax optimiser"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_data_is_read(model, options, message):
    with pytest.raises(ValueError, match=message):
        make(model, UNREAD, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.evaluate(t.init(), "validation"), "'validation'; the dataset has train, test"),
        (lambda t: t.init(2**32), "seed is 4294967296; choose 0 to 4294967295"),
        (lambda t: t.train_epoch(t.init(), 0, seed=-1), "seed is -1; choose 0 to"),
        (lambda t: t.train_epoch(t.init(), -1), "epoch is -1; they count from 0, .*epochs=any"),
    ],
)
def test_what_cannot_be_done_is_named(trainer, call, message):
    with pytest.raises(ValueError, match=message):
        call(trainer)


def test_a_state_that_has_been_trained_is_named(trainer):
    state = trainer.init()
    trainer.train_epoch(state, 0)
    for use in (partial(trainer.train_epoch, epoch=1), trainer.evaluate, trainer.put):
        with pytest.raises(ValueError, match="this state has been trained; use the one returned"):
            use(state)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(
    ("split", "raised", "message"),
    [
        (Broken(OSError("not\na record")), UnreadableExamplesError, "not a record"),
        (Broken(MemoryError()), MemoryError, "^$"),
        (Broken(label=-1), ValueError, "train labels begin at -1"),
        (Broken(label=10), ValueError, "train labels go to 10"),
        (ArraySplit(DATASET.test.images, np.full(50, 2**32 + 7)), ValueError, "go to 4294967303"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_examples_that_cannot_be_used_are_named(split, raised, message, resident, monkeypatch):
    monkeypatch.setattr(batches, "fits", lambda nbytes: resident)

    def train():
        trainer = make(dataset=DATASET._replace(train=split))
        trainer.train_epoch(trainer.init(), 0)

    with pytest.raises(raised, match=message):
        train()


def test_the_recipe_of_a_known_dataset_is_the_default(monkeypatch):
    """CIFAR-10's: 100 epochs, a drop after 80, crops and flips."""
    schedules = []
    schedule = "interflow_jax.trainer.learning_rate_schedule"
    monkeypatch.setattr(schedule, lambda *given: schedules.append(given) or 0.1)
    known = ij.Trainer(PYRAMID, light(16, "cifar10"), batch_size=16)
    assert (known.labels, make(Plain()).labels) == (("shallow", "deep"), (1,))
    paper = (100, 0.8, 1e-3, "step", 0)
    assert (known.epochs, known.preprocessing.augment, schedules) == (100, True, [paper])
    with pytest.raises(ValueError, match=r"epoch is 100; .* for epochs=100, .* as many epochs as"):
        known.train_epoch(known.init(), 100)
    # Where nothing says how many, the schedule spans one, and no second one is trained at its end.
    other = ij.Trainer(PYRAMID, light(16), batch_size=16)
    modern = training_recipe("modern", 1, 16)
    assert schedules[1:] == [(1, 0.5, modern.learning_rate, "cosine", 0)]
    assert other.preprocessing.augment
    with pytest.raises(ValueError, match="recipe is 'new'; choose one of paper, modern"):
        ij.Trainer(PYRAMID, light(16), batch_size=16, recipe="new")  # pyright: ignore
    own = ij.Trainer(PYRAMID, light(16), batch_size=16, recipe="paper", ema=0.9)
    assert not own.preprocessing.augment
    for averages in (own, other):
        assert averages.init().average  # of the weights
    assert not known.init().average
    with pytest.raises(ValueError, match=r"epoch is 1; .* for epochs=1, .* as many epochs as you"):
        other.train_epoch(other.init(), 1)
    assert repr(known).startswith("<Trainer: Interflow with 2 branches, cifar10, 16 images of 12 x")


def test_attention_trains_from_another_model_s_variables_and_is_recalibrated(tiny):
    """Any split can be evaluated, and a pass over the training images replaces the statistics."""
    options = {"depth": 4, "taps": (2, 4)}
    other = make(tiny("S1", **options)).init(3)
    model = tiny("Detached", fusion="attention", **options)
    trainer = make(model, distillation=0.5, pretrained=other.variables)
    state = trainer.init(0)
    for name in other.params.keys() - {"fusion"}:
        equal(state.params[name], other.params[name])
    state, _ = trainer.train_epoch(state, 0)
    whole, again = trainer.evaluate(state), trainer.evaluate(state, DATASET.test)
    close(again, whole)
    np.testing.assert_array_equal(whole.weight_sums.count, [5] * 10)
    order = batches.training_order(preprocessing.epoch_keys(0, 0), len(DATASET.train))
    images = preprocessing.normalize(PLAIN, jnp.asarray(DATASET.train.images[order[:48]]))
    expected = ij.recalibrate(model, state, np.split(images, 6))
    close(trainer.recalibrate(state), expected)


def test_training_leaves_what_it_was_given():
    """Steps are given their state's memory; arrays of the caller's must not be part of it."""
    backbone = jax.jit(Pyramid().init)(jax.random.key(7), jnp.zeros((1, *SHAPE)))
    trainer = make(pretrained=backbone)
    saved = trainer.init(0)
    ends = [trainer.train_epoch(trainer.put(saved), 0)[0] for _ in range(2)]
    trainer.train_epoch(trainer.init(1), 0)
    equal(ends[0].params, ends[1].params)
    for leaf in jax.tree.leaves((backbone, saved.params)):
        assert not leaf.is_deleted()


def test_validation_does_not_decide_where_the_data_is(monkeypatch):
    asked = []
    monkeypatch.setattr(batches, "fits", asked.append)
    for validation in (None, DATASET.test):
        make(dataset=DATASET._replace(validation=validation))
    assert asked == [100 * 12 * 12] * 2


def test_dropout_is_a_function_of_seed_epoch_and_step_and_absent_from_predictions():
    # One image again and again, and nothing learns: only what is dropped makes losses differ.
    repeated = Subset(DATASET.train, np.zeros(32, int))
    trainer = make(
        Plain(), DATASET._replace(train=repeated), batch_size=16, optimizer=optax.sgd(0.0)
    )
    losses = {
        (seed, epoch): trainer.train_epoch(trainer.init(), epoch, seed)[1].loss_sum
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    }
    again = trainer.train_epoch(trainer.init(), 0, 0)[1].loss_sum
    np.testing.assert_array_equal(losses[0, 0], again)
    assert len({loss for each in losses.values() for loss in each.tolist()}) == 6
    one, other = (trainer.predict(trainer.init(), DATASET.test.images) for _ in range(2))
    np.testing.assert_array_equal(one.logits, other.logits)


def test_dropout_s_key_is_none_of_augmentation_s():
    keys = preprocessing.epoch_keys(0, 0)
    step = jax.random.fold_in(keys.steps, 5)
    augmentation = [step, *jax.random.split(step)]
    dropout = preprocessing.dropout_key(keys, jnp.asarray(5))
    assert dropout not in augmentation
    assert dropout != preprocessing.dropout_key(keys, jnp.asarray(6))


def losses():
    """Of an epoch and a test split that no batch divides, by all devices."""
    model = ij.build("S1", 10, depth=4, taps=(3, 4), width=1 / 16)
    dataset = light(70)._replace(test=light(50).test)
    trainer = make(model, dataset, batch_size=16, preprocessing=AUGMENTING)
    state, trained = trainer.train_epoch(trainer.init(), 0)
    tested = trainer.evaluate(state)
    assert tested.answers[:, 0].tolist() == dataset.test.labels.tolist()
    assert (jax.device_count(), int(tested.count)) in ((1, 50), (4, 50))
    return [*trained.loss_sum.tolist(), float(tested.loss_sum)]


@pytest.fixture(scope="module")
def by_one():
    return losses()


PROCESS = """
import json, sys, jax, pytest
from interflow_jax.data import batches, splits

port, process = map(int, sys.argv[1:])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, cluster_detection_method="deactivate")
from tests.test_trainer import losses, make

with pytest.raises(ValueError, match="batch_size is 7; .* multiple of the 4 device"):
    make(batch_size=7)
count, read = [], splits.ArraySplit.read
splits.ArraySplit.read = lambda self, indices, *draws: (
    count.append(len(indices)), read(self, indices, *draws))[1]
for resident in (True, False):
    batches.fits = lambda nbytes: resident
    count.clear()
    found = losses()
    print("\\n" + json.dumps({"devices": jax.device_count(), "losses": found, "read": sum(count)}))
"""


def test_processes_lose_what_one_loses_and_read_their_part(by_one, on_cpu_devices):
    """Two of them, with two devices each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ThreadPoolExecutor() as pool:
        outputs = pool.map(lambda process: on_cpu_devices(2, PROCESS, port, process), range(2))
    for output in outputs:
        # Gloo's threads print between and into each other's lines, at the start.
        resident, streamed = (
            json.loads(line) for line in output.splitlines() if line.startswith("{")
        )
        # Streamed, half of 64 for training and of 64 for testing; the last 14 fill up the batch.
        assert (resident["read"], streamed["read"]) == (70 + 50, 128 // 2)
        for each in (resident, streamed):
            assert each["devices"] == 4
            np.testing.assert_allclose(each["losses"], by_one, rtol=1e-4)


def test_balanced_classes_weigh_alike_however_many_images_they_have():
    """A step on all images minimises the mean over classes of their mean losses."""

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images):
            logits = nn.Dense(4)(images.reshape(len(images), -1))  # a logit more than classes
            return ij.Prediction(logits, logits[:, None], None)

    labels = np.array([0, 0, 0, 1, 0, 2, 0, 2], np.int32)
    images = np.random.default_rng(0).integers(0, 255, (8, *SHAPE)).astype(np.uint8)
    split = ArraySplit(images, labels)
    dataset = Dataset("few", split, split, "test", ("a", "b", "c"), SHAPE)
    trainer = make(Linear(), dataset, batch_size=8, balanced=True)
    state = trainer.init()
    logits = trainer.predict(state, images).logits
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    by_class = [losses[labels == label].mean() for label in range(3)]
    metrics = trainer.train_epoch(state, 0)[1]
    np.testing.assert_allclose(metrics.loss, np.mean(by_class), rtol=1e-4)


def test_statistics_do_not_depend_on_how_a_dataset_is_sorted():
    """Sorted by class, as folders are, a batch of one class would be normalised by itself."""
    random, labels = np.random.default_rng(0), np.arange(256) % 4
    levels = 50 + 50 * labels[:, None, None, None] + random.normal(0, 25, (256, 8, 8, 1))
    images, order = np.clip(levels, 0, 255).astype(np.uint8), np.argsort(labels, kind="stable")
    model = ij.build("S1", 4, depth=4, taps=(2, 4), width=1 / 16)

    def trainer(order):
        dataset = ij.data.from_arrays((images[order], labels[order]), (images, labels))
        return ij.Trainer(model, dataset, recipe="paper", batch_size=32, augment=False)

    mixed, by_class = trainer(np.arange(256)), trainer(order)
    state = mixed.init(0)
    variances, expected = (
        each.recalibrate(state).batch_stats["backbone"]["conv4"]["norm"]["var"]
        for each in (by_class, mixed)
    )
    np.testing.assert_allclose(variances, expected, rtol=0.2)
