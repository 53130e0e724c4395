"""The training step against plain NumPy, and its properties."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import interflow_jax as ij
from interflow_jax import training
from interflow_jax.model import Prediction
from interflow_jax.optimizer import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY


class Linear(nn.Module):
    """Logits linear in the pixels: small enough to train by hand."""

    classes: int

    @nn.compact
    def __call__(self, images, train):
        del train
        kernel = self.param("kernel", nn.initializers.normal(), (images[0].size, self.classes))
        logits = images.reshape(len(images), -1) @ kernel
        return Prediction(logits, logits[:, None], jnp.ones(1))


def test_first_steps_are_the_papers_by_hand(key):
    """Paper, IV-B: momentum 0.95, decay 5e-4 added to the gradient, 1e-3 and then 1e-4."""
    assert (LEARNING_RATE, MOMENTUM, WEIGHT_DECAY) == (1e-3, 0.95, 5e-4)
    model = Linear(3)
    optimizer = ij.make_optimizer(ij.learning_rate_schedule(total_steps=6, drop_after=0.5))
    state = ij.create_state(model, optimizer, key, (2, 2, 1))
    step = jax.jit(partial(ij.train_step, model, optimizer))

    generator = np.random.default_rng(0)
    kernel = np.asarray(state.params["kernel"], np.float64)
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
        np.testing.assert_allclose(state.params["kernel"], kernel, rtol=1e-5)
        np.testing.assert_allclose(metrics.loss_sum, loss, rtol=1e-5)
        assert metrics.count == 5
        assert state.step == number + 1


def test_decay_reaches_every_parameter(key, tiny):
    """Also biases, BatchNorm's and the fusion's: with zero gradients all shrink alike."""
    model = tiny("S1", depth=5, taps=(3, 5))
    optimizer = ij.make_optimizer(0.1)
    params = ij.create_state(model, optimizer, key, (8, 8, 1)).params
    ones = jax.tree.map(jnp.ones_like, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(ones), ones)
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -0.1 * 5e-4, rtol=1e-6)


@pytest.mark.parametrize(
    ("epochs", "drop_after", "boundary"), [(100, 0.8, 80), (40, 0.5, 20), (5, 0.8, 4), (2, 0.5, 1)]
)
def test_the_rate_drops_where_the_paper_drops_it(epochs, drop_after, boundary):
    schedule = ij.learning_rate_schedule(epochs * 7, drop_after)
    rates = [float(schedule(step)) for step in (0, boundary * 7 - 1, boundary * 7, epochs * 7 - 1)]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-4, 1e-4], rtol=1e-6)


def test_state_starts_the_same_for_the_same_key(tiny):
    optimizer = ij.make_optimizer(0.1)
    model = tiny("S3", depth=5, taps=(3, 5))
    create = partial(ij.create_state, model, optimizer, image_shape=(8, 8, 1))
    one, same, other = (create(jax.random.key(seed)) for seed in (0, 0, 1))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jnp.any(one.params["fusion"]["weights"] != other.params["fusion"]["weights"])


def test_loss_is_that_of_the_fused_logits_alone(key, tiny):
    """Paper, IV-B. Branches of weight zero do not touch what only they use."""
    model = tiny("S1", depth=5, taps=(3, 4, 5))
    optimizer = ij.make_optimizer(0.1)
    state = ij.create_state(model, optimizer, key, (16, 16, 1))
    only_last = jnp.array([0.0, 0.0, 1.0])
    state = state.replace(params={**state.params, "fusion": {"weights": only_last}})
    images = jax.random.normal(key, (4, 16, 16, 1))
    after, metrics = jax.jit(partial(ij.train_step, model, optimizer))(state, images, jnp.arange(4))
    layer = "fully_connected_channels_8"  # that of the branches after 3 and 4 alone
    decayed = state.params[layer]["kernel"] * (1 - 0.1 * 5e-4)
    np.testing.assert_allclose(after.params[layer]["kernel"], decayed, rtol=1e-6)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    apply = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    prediction, _ = apply(variables, images)
    chosen = jax.nn.log_softmax(prediction.logits)[jnp.arange(4), jnp.arange(4)]
    np.testing.assert_allclose(metrics.loss_sum, -chosen.sum(), rtol=1e-4)


@pytest.mark.parametrize(("method", "weight"), [("Aux", 0.3), ("DSN", 1.0)])
def test_baselines_minimise_the_weighted_sum_of_all_branches_losses(key, tiny, method, weight):
    """The last branch's at weight 1; with plain SGD at rate 1 an update is the gradient."""
    model = tiny(method, depth=5, taps=(3, 4, 5))
    optimizer = optax.sgd(1.0)
    state = ij.create_state(model, optimizer, key, (16, 16, 1))
    images, labels = jax.random.normal(key, (4, 16, 16, 1)), jnp.array([1, 7, 1, 4])

    def branch_losses(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        prediction, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return [
            -jnp.mean(
                jax.nn.log_softmax(prediction.branch_logits[:, branch])[jnp.arange(4), labels]
            )
            for branch in range(3)
        ]

    gradients = jax.jit(jax.jacrev(branch_losses))(state.params)
    for gradient in gradients:
        assert jnp.any(jnp.abs(gradient["backbone"]["conv1"]["kernel"]) > 1e-3)
    auxiliary_loss = ij.BASELINES[method].auxiliary_loss
    step = partial(ij.train_step, model, optimizer, auxiliary_loss=auxiliary_loss)
    after, metrics = jax.jit(step)(state, images, labels)
    moved = jax.tree.map(jnp.subtract, state.params, after.params)
    expected = jax.tree.map(lambda a, b, last: last + weight * (a + b), *gradients)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), moved, expected)
    last_alone = jax.jit(branch_losses)(state.params)[-1]
    np.testing.assert_allclose(metrics.loss_sum, 4 * last_alone, rtol=1e-4)


def test_an_auxiliary_loss_of_weight_zero_leaves_normal(key, tiny):
    """On the same network; and the program has the softmax of the fused logits alone."""
    model, normal = tiny("Aux", depth=5, taps=(3, 4, 5)), tiny("Normal", depth=5)
    optimizer = optax.sgd(1.0)
    state = ij.create_state(model, optimizer, key, (16, 16, 1))
    unused = "fully_connected_channels_8"  # that of the branches after 3 and 4 alone
    params = {name: leaf for name, leaf in state.params.items() if name != unused}
    batch = jax.random.normal(key, (4, 16, 16, 1)), jnp.arange(4)
    expected, expected_metrics = jax.jit(partial(ij.train_step, normal, optimizer))(
        state.replace(params=params), *batch
    )
    with_others, step = (
        jax.jit(partial(ij.train_step, model, optimizer, auxiliary_loss=weight))
        for weight in (0.3, 0.0)
    )
    softmaxes = [
        program.lower(state, *batch).as_text().count("stablehlo.exponential")
        for program in (with_others, step)
    ]
    assert softmaxes == [2, 1]
    after, metrics = step(state, *batch)
    np.testing.assert_allclose(metrics.loss_sum, expected_metrics.loss_sum, rtol=1e-5)
    np.testing.assert_array_equal(after.params[unused]["kernel"], state.params[unused]["kernel"])
    common = {name: after.params[name] for name in params}
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), common, expected.params)


def test_evaluation_counts_only_what_the_mask_keeps(key, tiny):
    model = tiny("S1", depth=5, taps=(3, 4, 5))
    state = ij.create_state(model, ij.make_optimizer(0.1), key, (16, 16, 1))
    images = jax.random.normal(key, (6, 16, 16, 1))
    labels = jnp.arange(6)
    evaluate = jax.jit(partial(ij.eval_step, model))
    mask = jnp.array([True, False, True, True, False, False])
    masked = evaluate(state, images, labels, mask)
    kept = evaluate(state, images[mask], labels[mask], jnp.ones(3, bool))
    np.testing.assert_allclose(masked.loss_sum, kept.loss_sum, rtol=1e-5)
    assert (masked.correct, masked.count) == (kept.correct, 3)
    np.testing.assert_array_equal(masked.branch_correct, kept.branch_correct)
    assert masked.branch_correct.shape == (3,)


@pytest.mark.parametrize("method", ["S1", "S3"])
def test_a_branch_alone_is_what_the_fusion_makes_of_it(key, tiny, method):
    """Also with a negative weight: no other branch may weigh anything, and nothing changes."""
    model = tiny(method, depth=5, taps=(3, 4, 5))
    state = ij.create_state(model, ij.make_optimizer(0.1), key, (16, 16, 1))
    images = jax.random.normal(key, (6, 16, 16, 1))
    weights = jnp.array([-0.5, 0.7, -2.0])
    if method == "S3":
        weights = weights[:, None] * jnp.linspace(-0.5, 2.0, 10)[None]
    state.params["fusion"]["weights"] = weights
    all_at_once = ij.predict(model, state, images)
    everything = jnp.ones(6, bool)
    for branch in range(3):
        only = jnp.zeros_like(weights).at[branch].set(weights[branch])
        state.params["fusion"]["weights"] = only
        fused = ij.predict(model, state, images)
        np.testing.assert_array_equal(all_at_once.alone[:, branch], fused.logits)
        labels = fused.logits.argmax(-1)
        hits = ij.eval_step(model, state, images, labels, everything).branch_correct
        assert hits[branch] == 6
        other = (branch + 1) % 3  # its weight is zero
        np.testing.assert_array_equal(fused.alone[:, other], fused.branch_logits[:, other])


def test_trains_in_bfloat16_with_float32_state(key, tiny):
    model = tiny("S1", depth=5, taps=(3, 5), dtype=jnp.bfloat16)
    optimizer = ij.make_optimizer(1e-3)
    state = ij.create_state(model, optimizer, key, (16, 16, 1))
    images = jax.random.normal(key, (4, 16, 16, 1))
    after, metrics = jax.jit(partial(ij.train_step, model, optimizer))(state, images, jnp.arange(4))
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(after.batch_stats)} == {jnp.dtype("float32")}
    assert np.isfinite(metrics.loss_sum)
    assert jnp.any(
        after.params["backbone"]["conv1"]["kernel"] != state.params["backbone"]["conv1"]["kernel"]
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_step_lowers_for_accelerators(key, tiny, platform):
    model = tiny("S7")
    optimizer = ij.make_optimizer(ij.learning_rate_schedule(10, 0.5))
    state = ij.create_state(model, optimizer, key, (28, 28, 1))
    # jax.export knows plain containers; the state travels as its leaves.
    leaves, structure = jax.tree.flatten(state)

    def step(leaves, images, labels):
        after, metrics = ij.train_step(
            model, optimizer, jax.tree.unflatten(structure, leaves), images, labels
        )
        return jax.tree.leaves(after), tuple(metrics)

    exported = jax.export.export(jax.jit(step), platforms=[platform])(
        leaves,
        jax.ShapeDtypeStruct((64, 28, 28, 1), jnp.float32),
        jax.ShapeDtypeStruct((64,), jnp.int32),
    )
    assert exported.platforms == (platform,)
    # 13 convolutions forward, 13 kernel gradients, 12 input gradients (none for the images).
    assert exported.mlir_module().count("stablehlo.convolution") == 13 + 13 + 12


def test_the_auxiliary_mean_weighs_all_branches_as_one():
    """By hand: three branches of which the first is sure and right, the others undecided."""
    sure, undecided = jnp.array([20.0, -20.0]), jnp.zeros(2)
    branch_logits = jnp.stack([sure, undecided, undecided])[None]
    prediction = Prediction(undecided[None], branch_logits, jnp.ones(3))
    labels = jnp.zeros(1, int)
    half = np.log(2)
    minimised, loss = training.mean_losses(prediction, labels, auxiliary_mean=0.3)
    np.testing.assert_allclose([minimised, loss], [half + 0.3 * (2 / 3) * half, half], rtol=1e-6)
    minimised, _ = training.mean_losses(prediction, labels, auxiliary_loss=0.3, auxiliary_mean=3.0)
    np.testing.assert_allclose(minimised, half + 0.3 * half + 2 * half, rtol=1e-6)


def test_the_loss_of_ensembles_is_the_mean_over_all_of_them():
    """By hand: the first ensemble is sure and right, the last undecided."""
    sure, undecided = jnp.array([[20.0, -20.0]]), jnp.zeros((1, 2))
    ensembles = jnp.stack([sure, undecided], axis=1)
    prediction = Prediction(undecided, ensembles, jnp.ones(2), ensembles)
    minimised, loss = training.mean_losses(prediction, jnp.zeros(1, int))
    np.testing.assert_allclose([minimised, loss], [np.log(2) / 2, np.log(2)], rtol=1e-6)


def test_a_branch_with_a_loss_of_its_own_predicts_by_its_own_logits(key, tiny):
    """Whatever the sign of its weight; without such a loss, by its term of the fusion."""
    model = tiny("S1", depth=5, taps=(3, 5))
    state = ij.create_state(model, ij.make_optimizer(0.1), key, (8, 8, 1))
    state.params["fusion"]["weights"] = jnp.array([-0.04, 1.0])
    images = jax.random.normal(key, (6, 8, 8, 1))
    everything = jnp.ones(6, bool)
    branch_logits = ij.predict(model, state, images).branch_logits
    for supervised, turned in ((True, 1), (False, -1)):
        labels = (turned * branch_logits[:, 0]).argmax(-1)
        measure = partial(ij.eval_step, model, state, images, labels, everything)
        assert measure(supervised=supervised).branch_correct[0] == 6
        assert measure(supervised=not supervised).branch_correct[0] < 6


class TwoMaps(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(4)(x))
        return [x, nn.relu(nn.Dense(8)(x))]


@pytest.mark.parametrize("fusion", ["softmax", "geometric"])
def test_all_parameters_learn_through_a_fusion_of_probabilities(key, fusion):
    model = ij.Interflow(TwoMaps(), 10, ij.Fusion(fusion))
    optimizer = ij.make_optimizer(0.1)
    state = ij.create_state(model, optimizer, key, (8, 8, 1))
    images = jax.random.normal(key, (6, 8, 8, 1))
    step = jax.jit(partial(ij.train_step, model, optimizer))
    after, _ = step(state, images, jnp.arange(6))
    changes = jax.tree.map(lambda a, b: jnp.any(a != b), after.params, state.params)
    assert all(jax.tree.leaves(changes))


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize(("kind", "late"), [("step", 1e-3), ("cosine", 0.0)])
def test_schedules_rise_hold_and_fall(kind, late, warmup):
    schedule = ij.learning_rate_schedule(40, 0.5, 1e-2, kind, warmup)
    assert schedule(warmup) == pytest.approx(1e-2)
    if warmup:
        assert schedule(0) == 0
        assert schedule(2) == pytest.approx(0.4e-2)
    assert schedule(40) == pytest.approx(late, abs=1e-9)
    boundary = [schedule(20), schedule(21)]
    if kind == "step":
        assert boundary[1] == pytest.approx(1e-3)
        assert schedule(19) == pytest.approx(1e-2)
    else:
        assert boundary[0] > boundary[1] > 0


def test_adamw_decays_apart_from_the_gradient():
    optimizer = ij.make_optimizer(0.1, "adamw", weight_decay=0.5)
    params = {"w": jnp.array(2.0)}
    updates, _ = optimizer.update({"w": jnp.array(0.0)}, optimizer.init(params), params)
    assert updates["w"] == pytest.approx(-0.1 * 0.5 * 2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("adam",), "choose one of sgd, adamw"), (("adamw", 0.9), "adamw has none")],
)
def test_an_optimizer_that_is_not_there_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ij.make_optimizer(0.1, *arguments)
    with pytest.raises(ValueError, match="choose one of step, cosine"):
        ij.learning_rate_schedule(1, 0.5, kind="linear")  # pyright: ignore
