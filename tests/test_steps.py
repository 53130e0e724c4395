"""The training step against plain NumPy, and its properties."""

import operator
from functools import lru_cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import interflow_jax as ij
from interflow_jax.metrics import EvalMetrics, TrainMetrics, mean_losses
from interflow_jax.model import Prediction
from interflow_jax.optimizer import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY
from interflow_jax.steps import predict_in_batches

SHAPE = (4, 4, 2)
KEY = jax.random.key(0)
EVERYTHING = jnp.ones(6, bool)
SGD = optax.sgd(1.0)  # an update is the gradient


class Maps(nn.Module):
    """Maps of 4, 4 and 8 channels; the first `count` of them."""

    count: int = 3

    @nn.compact
    def __call__(self, x, train):
        maps = []
        for channels in (4, 4, 8)[: self.count]:
            norm = nn.BatchNorm(use_running_average=not train)
            x = nn.relu(norm(nn.Dense(channels)(x)))
            maps.append(x)
        return maps


def maps(kind="shared", weights=None, count=3):
    return ij.Interflow(Maps(count), 10, ij.Fusion(kind, weights))


ONLY_SHALLOW = "fully_connected_channels_4"  # of the first two branches


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(5), (6, *SHAPE))


@pytest.fixture(scope="module")
def labels():
    return jnp.array([1, 7, 1, 4, 0, 9])


@lru_cache
def start(model, optimizer=SGD):
    return jax.jit(partial(ij.create_state, model, optimizer, image_shape=SHAPE))(KEY)


def weighing(state, *weights):
    return state.replace(params={**state.params, "fusion": {"weights": jnp.array(weights)}})


def stepped(model, state, images, labels, optimizer=SGD, **options):
    step = partial(ij.train_step, model, optimizer, **options)
    return jax.jit(step)(state, images, labels)


predict = jax.jit(ij.predict, static_argnums=0)
evaluate = jax.jit(ij.eval_step, static_argnums=0, static_argnames="supervised")


def close(a, b, rtol=1e-4, atol=1e-6):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b)


class Linear(nn.Module):
    """Logits linear in the pixels: small enough to train by hand."""

    @nn.compact
    def __call__(self, images):
        logits = nn.Dense(3, use_bias=False)(images.reshape(len(images), -1))
        return Prediction(logits, logits[:, None], jnp.ones(1))


def test_first_steps_are_the_papers_by_hand(key):
    """Paper, IV-B: momentum 0.95, decay 5e-4 added to the gradient, 1e-3 and then 1e-4."""
    assert (LEARNING_RATE, MOMENTUM, WEIGHT_DECAY) == (1e-3, 0.95, 5e-4)
    model = Linear()
    optimizer = ij.make_optimizer(ij.learning_rate_schedule(total_steps=6, drop_after=0.5))
    state = ij.create_state(model, optimizer, key, (2, 2, 1))
    step = jax.jit(partial(ij.train_step, model, optimizer))

    generator = np.random.default_rng(0)
    kernel = np.asarray(state.params["Dense_0"]["kernel"], np.float64)
    velocity = np.zeros_like(kernel)
    for number in range(6):
        images = generator.normal(size=(5, 2, 2, 1))
        labels = generator.integers(0, 3, 5)
        pixels = images.reshape(5, 4)
        scores = np.exp(pixels @ kernel)
        softmax = scores / scores.sum(1, keepdims=True)
        loss = -np.log(softmax[np.arange(5), labels]).sum()
        gradient = pixels.T @ (softmax - np.eye(3)[labels]) / 5
        velocity = 0.95 * velocity + gradient + 5e-4 * kernel
        kernel = kernel - (1e-3 if number < 3 else 1e-4) * velocity

        state, metrics = step(state, jnp.asarray(images, jnp.float32), jnp.asarray(labels))
        np.testing.assert_allclose(state.params["Dense_0"]["kernel"], kernel, rtol=1e-5)
        np.testing.assert_allclose(metrics.loss_sum, loss, rtol=1e-5)
        assert metrics.count == 5
        assert state.step == number + 1


def test_a_state_is_a_pure_function_of_its_key(tiny):
    model = tiny("S3", depth=4, taps=(3, 4))
    create = partial(ij.create_state, model, ij.make_optimizer(0.1), image_shape=(8, 8, 1))
    keys = jax.random.split(jax.random.key(0), 2)
    states = [create(key) for key in keys]
    assert np.any(states[0].params["fusion"]["weights"] != states[1].params["fusion"]["weights"])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    for several in (jax.jit(jax.vmap(create)), partial(jax.lax.map, create)):
        close(several(keys), stacked, rtol=1e-6)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(create, keys[0]))
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), states[0])


@pytest.mark.parametrize(("method", "softmaxes"), [("Aux", 2), ("DSN", 2), ("S0", 1)])
def test_baselines_minimise_the_weighted_sum_of_all_branches_losses(
    images, labels, method, softmaxes
):
    """The last branch's at weight 1."""
    weight = (ij.METHODS | ij.BASELINES)[method].auxiliary_loss
    assert weight == {"Aux": 0.3, "DSN": 1.0, "S0": 0.0}[method]
    model = maps("fixed", (0.0, 0.0, 1.0))
    state = start(model)

    def loss(params):
        variables = {**state.variables, "params": params}
        prediction, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        log_probabilities = jax.nn.log_softmax(prediction.branch_logits)
        losses = -log_probabilities[jnp.arange(6), :, labels].mean(0)
        return losses[2] + weight * (losses[0] + losses[1]), losses[2]

    gradient, last = jax.jit(jax.grad(loss, has_aux=True))(state.params)
    step = jax.jit(partial(ij.train_step, model, SGD, auxiliary_loss=weight))
    after, metrics = step(state, images, labels)
    moved = jax.tree.map(jnp.subtract, state.params, after.params)
    close(moved, gradient, rtol=1e-3, atol=1e-5)
    close(metrics.loss_sum, 6 * last)
    text = step.lower(state, images, labels).as_text()
    assert text.count("stablehlo.exponential") == softmaxes  # of nothing that weighs nothing


@pytest.mark.parametrize(
    ("weights", "ensembles", "expected"),
    [
        ({"auxiliary_mean": 0.3}, False, 1 + 0.3 * 2 / 3),  # one weight for all branches
        ({"auxiliary_loss": 0.3, "auxiliary_mean": 3.0}, False, 1 + 0.3 + 2),
        ({}, True, 2 / 3),  # the mean over all ensembles
    ],
)
def test_auxiliary_losses_by_hand(weights, ensembles, expected):
    """Three branches of which the first is sure and right, the others undecided: log(2) nats."""
    sure, undecided = jnp.array([20.0, -20.0]), jnp.zeros(2)
    branch_logits = jnp.stack([sure, undecided, undecided])[None]
    given = branch_logits if ensembles else None
    prediction = Prediction(undecided[None], branch_logits, jnp.ones(3), given)
    losses = mean_losses(prediction, jnp.zeros(1, int), **weights)
    np.testing.assert_allclose(losses, [expected * np.log(2), np.log(2)], rtol=1e-6)


def test_distillation_by_hand(images, labels):
    """KL(fused || branch), the mean over branches and images; the teacher gets no gradient."""
    logits = jax.random.normal(jax.random.key(3), (6, 10))
    branch_logits = jax.random.normal(jax.random.key(4), (6, 3, 10))

    def minimised(logits, branch_logits, **weights):
        prediction = Prediction(logits, branch_logits, jnp.ones(3))
        return mean_losses(prediction, labels, **weights)[0]

    plain, both = (
        minimised(logits, branch_logits, **weights) for weights in ({}, {"distillation": 0.5})
    )
    teacher, students = (np.exp(np.float64(x)) for x in (logits, branch_logits))
    teacher /= teacher.sum(-1, keepdims=True)
    students /= students.sum(-1, keepdims=True)
    divergences = (teacher[:, None] * np.log(teacher[:, None] / students)).sum(-1)
    np.testing.assert_allclose(both - plain, 0.5 * divergences.mean(), rtol=1e-4)
    gradient = jax.grad(partial(minimised, distillation=0.5), (0, 1))(logits, branch_logits)
    close(gradient[0], jax.grad(minimised)(logits, branch_logits))
    close(gradient[1], 0.5 * (students - teacher[:, None]) / 18)
    model = maps()
    state = start(model)
    after, metrics = stepped(model, state, images, labels, distillation=0.5)
    other, same = stepped(model, state, images, labels)
    close(metrics.loss_sum, same.loss_sum)
    assert jnp.any(after.params[ONLY_SHALLOW]["kernel"] != other.params[ONLY_SHALLOW]["kernel"])


@pytest.mark.parametrize("kind", ["softmax", "geometric"])
def test_all_parameters_learn_through_a_fusion_of_probabilities(images, labels, kind):
    model = maps(kind)
    state = start(model)
    after, _ = stepped(model, state, images, labels)
    changes = jax.tree.map(lambda a, b: jnp.any(a != b), after.params, state.params)
    assert all(jax.tree.leaves(changes))


def test_evaluation_counts_only_what_the_mask_keeps(images, labels):
    model = maps()
    state = weighing(start(model), -0.5, 0.7, -2.0)
    mask = jnp.array([True, False, True, True, False, False])
    masked = evaluate(model, state, images, labels, mask)
    prediction = predict(model, state, images[mask])
    chosen = jax.nn.log_softmax(prediction.logits)[jnp.arange(3), labels[mask]]
    close(masked.loss_sum, -chosen.sum())
    assert masked.correct == (prediction.logits.argmax(-1) == labels[mask]).sum()
    hits = prediction.alone.argmax(-1) == labels[mask][:, None]
    np.testing.assert_array_equal(masked.branch_correct, hits.sum(0))
    assert masked.count == 3
    answers = np.stack([labels[mask], prediction.logits.argmax(-1)], axis=1)
    np.testing.assert_array_equal(masked.answers[mask], answers)
    assert (masked.answers[~mask] == -1).all()
    supervised = evaluate(model, state, images, labels, mask, supervised=True)
    hits = prediction.branch_logits.argmax(-1) == labels[mask][:, None]
    np.testing.assert_array_equal(supervised.branch_correct, hits.sum(0))


def test_trains_in_bfloat16_with_float32_state(key, tiny):
    model = tiny("S1", depth=4, taps=(3, 4), dtype=jnp.bfloat16)
    optimizer = ij.make_optimizer(1e-3)
    state = jax.jit(partial(ij.create_state, model, optimizer, image_shape=(8, 8, 1)))(key)
    images = jax.random.normal(key, (4, 8, 8, 1))
    after, metrics = stepped(model, state, images, jnp.arange(4), optimizer)
    assert {leaf.dtype for leaf in jax.tree.leaves(after.variables)} == {jnp.dtype("float32")}
    assert np.isfinite(metrics.loss_sum)
    first = [each.params["backbone"]["conv1"]["kernel"] for each in (state, after)]
    assert jnp.any(first[0] != first[1])


def test_the_step_lowers_for_accelerators(tiny):
    model = tiny("S7")
    optimizer = ij.make_optimizer(ij.learning_rate_schedule(10, 0.5))
    create = partial(ij.create_state, model, optimizer, image_shape=(28, 28, 1))
    # jax.export knows plain containers; the state travels as its leaves.
    leaves, structure = jax.tree.flatten(jax.eval_shape(create, jax.random.key(0)))

    def step(leaves, images, labels):
        state = jax.tree.unflatten(structure, leaves)
        return jax.tree.leaves(ij.train_step(model, optimizer, state, images, labels))

    batch = [jax.ShapeDtypeStruct((64, *shape), "f4") for shape in ((28, 28, 1), ())]
    batch[1] = batch[1].update(dtype="i4")
    for platform in ("cuda", "tpu"):
        exported = jax.export.export(jax.jit(step), platforms=[platform])(leaves, *batch)
        # 13 convolutions forward, 13 kernel gradients, 12 input gradients (none for the images).
        assert exported.mlir_module().count("stablehlo.convolution") == 13 + 13 + 12


class Drawing(nn.Module):
    """A model whose logits are what it draws from streams of these names."""

    streams: tuple[str, ...]

    @nn.compact
    def __call__(self, images, train):
        noise = [jax.random.normal(self.make_rng(name), (3,)) for name in self.streams if train]
        logits = jnp.tile(sum(noise, self.param("bias", nn.initializers.zeros, (3,)))[None], (6, 1))
        return Prediction(logits, logits[:, None], None)


def test_random_streams_have_any_name_and_each_draws_its_own(key, images):
    labels = jnp.zeros(6, int)
    losses = {}
    for streams in (("dropout",), ("drop_path",), ("noise",), ("drop_path", "dropout")):
        model = Drawing(streams)
        state = start(model)
        _, metrics = stepped(model, state, images, labels, key=key)
        losses[streams] = float(metrics.loss_sum)
        np.testing.assert_array_equal(predict(model, state, images).logits, 0)
        with pytest.raises(ValueError, match=f"the random stream '{streams[0]}' in training; give"):
            stepped(model, state, images, labels)
    assert len(set(losses.values())) == 4
    variables = {"params": {"bias": jnp.zeros(3)}}
    drawn = Drawing(("dropout",)).apply(variables, images, True, rngs={"dropout": key})
    close(losses["dropout",], -6 * jax.nn.log_softmax(drawn.logits)[0, 0])


class Collecting(nn.Module):
    """A backbone with variables of all kinds, and what is sown besides."""

    late: bool = False

    @nn.compact
    def __call__(self, x, train):
        scale = self.variable("constants", "scale", lambda: jnp.full((2,), 3.0))
        count = self.variable("cache", "count", lambda: jnp.zeros((), jnp.int32))
        average = self.variable("averages", "mean", jnp.zeros, (2,))
        for collection in ("cache", "losses", "intermediates"):
            self.sow(collection, "sown", x.mean())
        self.sow("losses", "sum", x.mean(), init_fn=lambda: 0.0, reduce_fn=operator.add)
        if self.is_mutable_collection("cache") and not self.is_initializing():
            count.value += 1
        if train and self.late:
            self.variable("cache", "late", jnp.zeros, ())
        if train:
            average.value = 0.9 * average.value + 0.1 * x.mean((0, 1, 2))
        return [nn.Dense(4)(x * scale.value[None, None, None])]


@pytest.mark.parametrize("frozen", [False, True])
def test_collections_of_any_name_are_state_and_what_is_sown_is_not(images, labels, frozen):
    model = ij.Interflow(Collecting(), 10, ij.Fusion("shared"), frozen=frozen)
    optimizer = ij.make_optimizer(0.1)  # whose decay would move a frozen backbone
    state = start(model, optimizer)
    assert jax.tree.map(jnp.shape, state.collections) == {
        "constants": {"backbone": {"scale": (2,)}},
        "cache": {"backbone": {"count": ()}},
        "averages": {"backbone": {"mean": (2,)}},
    }
    after = state
    for _ in range(2):
        after, _ = stepped(model, after, images, labels, optimizer)
        evaluate(model, after, images, labels, EVERYTHING)
    if frozen:
        for collection, before in state.variables.items():
            kept = after.variables[collection].get("backbone", {})
            close(kept, before.get("backbone", {}), rtol=0, atol=0)
        assert jnp.any(after.params["fusion"]["weights"] != state.params["fusion"]["weights"])
        return
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert after.collections["cache"]["backbone"]["count"] == 2
    mean = images.mean((0, 1, 2))
    close(after.collections["averages"]["backbone"]["mean"], 0.1 * mean + 0.09 * mean)
    _, sown = model.apply(after.variables, images, mutable=["losses"])  # elsewhere it still sows
    assert set(sown["losses"]["backbone"]) == {"sown", "sum"}
    late = model.clone(backbone=Collecting(late=True))
    with pytest.raises(ValueError, match="cache/backbone/late in training; let it do so"):
        stepped(late, state, images, labels, optimizer)


PLATEAU = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1, rtol=0.9))


@pytest.mark.parametrize(
    "optimizer",
    [PLATEAU, optax.polyak_sgd(0.1), optax.lbfgs(), optax.MultiSteps(optax.adam(0.1), 2)],
    ids=["reduce_on_plateau", "polyak_sgd", "lbfgs", "MultiSteps"],
)
def test_any_optimizer_trains(images, labels, optimizer):
    model = Linear()
    state = start(model, optimizer)
    step = jax.jit(partial(ij.train_step, model, optimizer))
    losses = []
    for _ in range(6):
        state, metrics = step(state, images, labels % 3)
        losses.append(metrics.loss)
    assert losses[-1] < losses[0] - 0.01
    if optimizer is PLATEAU:  # a loss that does not fall by 90 % stands still
        assert state.opt_state[1].scale < 1
        assert state.opt_state[1].best_value in [pytest.approx(loss) for loss in losses]


@pytest.mark.parametrize("optimizer", [optax.adam, optax.MultiSteps, 1e-2, "sgd"])
def test_what_is_no_optimizer_is_named(optimizer):
    with pytest.raises(ValueError, match=r"optimizer is .*; give an optax optimiser, such as"):
        start(maps(), optimizer)


def test_pixels_are_refused(images, labels):
    model = maps()
    state, pixels = start(model), images.astype(jnp.uint8)
    for call in (
        lambda: ij.predict(model, state, pixels),
        lambda: ij.eval_step(model, state, pixels, labels, EVERYTHING),
        lambda: ij.train_step(model, SGD, state, pixels, labels),
        lambda: ij.train_step(model, SGD, state, pixels, labels, mixup=1.0, key=jax.random.key(0)),
    ):
        with pytest.raises(ValueError, match="images are uint8; the model takes floats"):
            call()


@pytest.mark.parametrize(
    "wrong",
    [lambda y: y[:, None], lambda y: y[:1], lambda y: jax.nn.one_hot(y, 9), lambda y: y * 1.0],
)
def test_labels_that_would_be_taken_for_others_are_refused(images, labels, wrong):
    """Such as [batch, 1], which Keras's CIFAR has: as soft targets they would train nonsense."""
    model, wrong = maps(), wrong(labels)
    state = start(model)
    for call in (
        lambda: ij.train_step(model, SGD, state, images, wrong),
        lambda: ij.eval_step(model, state, images, wrong, EVERYTHING),
    ):
        with pytest.raises(ValueError, match=r"labels are .* give one class number per image"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": (1.0, 5.0)}, r"class_weights are \(2,\) for 3 classes; give one per"),
        ({"class_weights": np.ones(4)}, r"class_weights are \(4,\) for 3 classes; give one per"),
        ({"ema": 1.0}, "ema is 1, .* from 0 to below 1"),
        ({"ema": -0.5}, "ema is -0.5, .* from 0 to below 1"),
        ({"label_smoothing": 1.0}, "label_smoothing 1 and .* from 0 to below 1"),
        ({"mixup": -1.0}, "mixup -1; .* mixup is 0 or more"),
    ],
)
def test_options_out_of_bounds_are_named(options, message):
    state = ij.create_state(Linear(), SGD, jax.random.key(0), (2, 2, 1))
    images, labels = jnp.zeros((4, 2, 2, 1)), jnp.zeros(4, int)
    with pytest.raises(ValueError, match=message):
        ij.train_step(Linear(), SGD, state, images, labels, **options)


def test_float32_stays_float32_where_x64_is_on(tiny):
    with jax.enable_x64(True):
        model, optimizer = tiny("S3", depth=4, taps=(3, 4)), ij.make_optimizer(1e-2)
        create = partial(ij.create_state, model, optimizer, image_shape=(8, 8, 1))
        state = jax.eval_shape(create, jax.random.key(0))
        images, labels = jnp.zeros((6, 8, 8, 1), jnp.float32), jnp.arange(6)
        results = [
            jax.eval_shape(partial(ij.train_step, model, optimizer), state, images, labels),
            jax.eval_shape(partial(ij.eval_step, model), state, images, labels, EVERYTHING),
            jax.eval_shape(partial(ij.predict, model), state, images),
        ]
        for kind in ("softmax", "geometric", "attention"):
            results.append(jax.eval_shape(maps(kind).init, jax.random.key(0), images))
        _, fitted = ij.fit_fusion(np.eye(3)[None].repeat(6, 0), np.arange(6) % 3, "class")
        results += [fitted, ij.confidence(images, "entropy", np.float64(2.0))]
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(results)}
    assert dtypes == {"float32", "int32"}


def test_metrics_are_sums_over_all_that_is_stacked():
    metrics = EvalMetrics(
        loss_sum=np.array([1.0, 2.0, 3.0]),
        correct=np.array([1, 2, 3]),
        count=np.array([4, 4, 4]),
        branch_correct=np.array([[1, 0], [2, 0], [3, 3]]),
        weights=np.ones((3, 2)),
    )
    assert (metrics.loss, metrics.accuracy, metrics.branch_accuracy) == (0.5, 50.0, [50.0, 25.0])
    assert repr(metrics) == "<EvalMetrics: loss 0.5000, accuracy 50.00 %, 12 examples>"
    shown = []
    jax.jit(lambda metrics: shown.append(repr(metrics)))(TrainMetrics(*metrics[:3]))
    assert "Tracer" in shown[0]


@pytest.mark.parametrize("weights", ["per image", 2.0, None])
def test_weights_may_depend_on_the_image_or_be_none(weights):
    """Evaluation reports their mean over what the mask keeps; predictions have those of each."""
    branch_logits = jnp.ones((6, 2, 3))
    per_image = jnp.arange(12.0).reshape(6, 2, 1)

    class Model(nn.Module):
        def __call__(self, images):
            given = per_image[: len(images)] if weights == "per image" else weights
            return Prediction(branch_logits.sum(1), branch_logits, given)

    state = start(Model())
    mask = jnp.arange(6) < 3
    labels = jnp.arange(6) % 2
    metrics = ij.eval_step(Model(), state, jnp.zeros((6, *SHAPE)), labels, mask)
    program = partial(ij.predict, Model(), state)
    whole = predict_in_batches(lambda x: program(x / 1.0), np.zeros((8, *SHAPE), "u1"), SHAPE, 6)
    if weights == "per image":
        np.testing.assert_allclose(metrics.weights, [2.0, 3.0])
        np.testing.assert_allclose(metrics.weight_sums.deviation, [(8 / 3) ** 0.5] * 2, rtol=1e-6)
        by_class = [[2.0, 2.0, 0.0], [3.0, 3.0, 0.0]]  # of labels 0, 1, 0
        np.testing.assert_allclose(metrics.weight_sums.by_class, by_class)
        np.testing.assert_array_equal(metrics.weight_sums.count, [2, 1, 0])
        np.testing.assert_array_equal(whole.weights, np.concatenate([per_image, per_image[:2]]))
    else:
        assert metrics.weights == whole.weights == weights
        assert metrics.weight_sums is None


def cross_entropies(logits, targets):
    """By hand, in float64: [batch]."""
    logits = np.asarray(logits, np.float64)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(np.asarray(targets, np.float64) * log_softmax).sum(1)


ONE_HOT = np.eye(3)
WEIGHTS = (0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        ({"label_smoothing": 0.3}, 0.7 * ONE_HOT + 0.1),
        ({"class_weights": WEIGHTS}, ONE_HOT * WEIGHTS),
        # The weight is of the example: else, a common one's target would be mostly a rare class.
        (
            {"class_weights": WEIGHTS, "label_smoothing": 0.3},
            (0.7 * ONE_HOT + 0.1) * np.array(WEIGHTS)[:, None],
        ),
    ],
)
def test_smoothed_and_weighted_labels_are_what_the_loss_is_of(options, targets):
    """And their loss is what is minimised: by its gradient, from pixels by hand."""
    model, labels = Linear(), np.array([0, 2, 1, 2])
    images = np.random.default_rng(1).normal(size=(4, 2, 2, 1)).astype(np.float32)
    state = ij.create_state(model, SGD, jax.random.key(0), (2, 2, 1))
    after, metrics = stepped(model, state, images, labels, **options)
    kernel = np.asarray(state.params["Dense_0"]["kernel"], np.float64)
    logits, own = images.reshape(4, 4) @ kernel, targets[labels]
    np.testing.assert_allclose(metrics.loss_sum, cross_entropies(logits, own).sum(), rtol=1e-5)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = images.reshape(4, 4).T @ (softmax * own.sum(1, keepdims=True) - own) / 4
    np.testing.assert_allclose(
        after.params["Dense_0"]["kernel"], kernel - gradient, rtol=1e-4, atol=1e-6
    )


def test_the_loss_of_mixup_is_the_mixture_of_the_losses_of_mixed_images(key):
    model, labels = Linear(), np.array([0, 2, 1, 2])
    images = np.random.default_rng(2).normal(size=(4, 2, 2, 1)).astype(np.float32)
    state, shares = ij.create_state(model, SGD, key, (2, 2, 1)), []
    kernel = np.asarray(state.params["Dense_0"]["kernel"], np.float64)
    step = jax.jit(partial(ij.train_step, model, SGD, mixup=0.5))
    for number in range(5):
        _, metrics = step(state, images, labels, key=jax.random.fold_in(key, number))

        def loss(share):
            mixed = (share * images + (1 - share) * images[::-1]).reshape(4, 4) @ kernel
            first, second = (
                cross_entropies(mixed, ONE_HOT[part]) for part in (labels, labels[::-1])
            )
            return (share * first + (1 - share) * second).sum()

        grid = np.linspace(0, 1, 1001)
        losses = np.array([loss(share) for share in grid])
        distance = np.abs(losses - float(metrics.loss_sum))
        assert distance.min() < np.abs(np.diff(losses)).max()  # some share explains it
        shares.append(grid[distance.argmin()])
    assert len(set(shares)) == 5  # a draw per step
    same = [float(step(state, images, labels, key=key)[1].loss_sum) for _ in range(2)]
    assert same[0] == same[1]
    with pytest.raises(ValueError, match=r"mixup is 0.5, which draws; give a key"):
        stepped(model, state, images, labels, mixup=0.5)


def test_averages_of_weights_and_statistics_are_the_closed_form(images, labels):
    """By weights decay^(t - s) over their sum; evaluation is by them, training is not."""
    model, optimizer = maps(), ij.make_optimizer(0.1)
    plain = start(model, optimizer)
    state, steps = plain.with_average(), []
    step, averaging = (
        jax.jit(partial(ij.train_step, model, optimizer, ema=ema)) for ema in (0.0, 0.8)
    )
    for _ in range(5):
        state, _ = averaging(state, images, labels)
        plain, _ = step(plain, images, labels)
        steps.append({"params": plain.params, "batch_stats": plain.batch_stats})
    powers = 0.8 ** np.arange(4, -1, -1.0)
    expected = jax.tree.map(
        lambda *leaves: np.tensordot(powers / powers.sum(), np.stack(leaves), 1), *steps
    )
    close(state.average, expected, rtol=1e-5)
    close(state.params, plain.params, rtol=1e-6)
    averaged = plain.replace(**expected)
    close(predict(model, state, images).logits, predict(model, averaged, images).logits)
    assert not np.allclose(
        predict(model, state, images).logits, predict(model, plain, images).logits
    )
    with pytest.raises(ValueError, match=r"has an average and ema is 0: begin from state.averaged"):
        step(state, images, labels)
    with pytest.raises(ValueError, match=r"has no average and ema is 0.8: .* state.with_average"):
        averaging(plain, images, labels)
    step(state.averaged(), images, labels)
