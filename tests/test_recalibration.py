"""BatchNorm's statistics by one pass."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import interflow_jax as ij

IMAGES = 3 + 2 * jax.random.normal(jax.random.key(5), (48, 6, 6, 2))
IMAGES *= jnp.linspace(0.2, 3, 48)[:, None, None, None]  # batches differ


class Norm(nn.Module):
    """One layer of statistics, of a momentum of its own."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3))(x)
        return [nn.relu(nn.BatchNorm(not train, momentum=0.7)(x))]


class NNXNorm(nnx.Module):
    def __init__(self, *, rngs):
        self.dense = nnx.Linear(2, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.97, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dense(x))


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.SpectralNorm(nn.Conv(4, (3, 3)))(x, update_stats=train)
        return [nn.BatchNorm(not train, momentum=0.0)(x)]


class Dropping(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        count = self.variable("cache", "count", jnp.zeros, ())
        if train:
            count.value += 1
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return [nn.BatchNorm(not train)(x)]


MODELS = {
    "StrideVGG": ij.build("S1", 10, depth=4, taps=(1,), width=1 / 16),
    "Linen": ij.Interflow(Norm(), 10, ij.Fusion("shared")),
    "NNX": ij.Interflow(ij.Taps(NNXNorm, ("norm",)), 10, ij.Fusion("shared")),
}


def variables_of(model):
    arguments = ij.switch_arguments(model, False)
    return jax.jit(partial(model.init, **arguments))(jax.random.key(0), IMAGES[:1])


def statistics(variables):
    """By name, of which the first of Linen's and NNX's differ."""
    leaves = jax.tree.leaves_with_path(variables["batch_stats"])
    return {str(getattr(path[-1], "key", path[-1])): leaf for path, leaf in leaves}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sizes", [(16, 16, 16), (8, 40)])
def test_they_are_those_of_one_big_batch(name, sizes):
    """Not the mean of the variances, which is less; whatever they were, and of any momentum."""
    model = MODELS[name]
    variables = variables_of(model)
    parts = jnp.split(IMAGES, np.cumsum(sizes)[:-1])
    one, several = (
        statistics(ij.recalibrate(model, variables, batches)) for batches in ([IMAGES], parts)
    )
    assert set(one) == {"mean", "var"}
    for figure in one:
        np.testing.assert_allclose(several[figure], one[figure], rtol=1e-5)
    each = [statistics(ij.recalibrate(model, variables, [part]))["var"] for part in parts]
    mean_of_variances = np.average(each, axis=0, weights=sizes)
    assert np.all(mean_of_variances < one["var"])
    assert np.any(mean_of_variances < 0.95 * one["var"])
    moved = jax.tree.map(lambda x: x + 1, variables["batch_stats"])
    again = statistics(ij.recalibrate(model, {**variables, "batch_stats": moved}, parts))
    for figure in one:
        np.testing.assert_array_equal(again[figure], several[figure])


def test_by_hand():
    model = MODELS["Linen"]
    variables = variables_of(model)
    x = nn.Conv(4, (3, 3)).apply({"params": variables["params"]["backbone"]["Conv_0"]}, IMAGES)
    after = statistics(ij.recalibrate(model, variables, [IMAGES[:8], IMAGES[8:]]))
    np.testing.assert_allclose(after["mean"], np.mean(x, (0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(after["var"], np.var(x, (0, 1, 2)), rtol=1e-4)


def test_deeper_layers_are_given_what_training_gives_them():
    """And all else of a state stays as it is."""
    model, optimizer = (
        ij.build("S1", 10, depth=5, taps=(3, 5), width=1 / 16),
        ij.make_optimizer(0.1),
    )
    create = partial(ij.create_state, model, optimizer, image_shape=IMAGES.shape[1:])
    state = jax.jit(create)(jax.random.key(0))
    step = jax.jit(partial(ij.train_step, model, optimizer))
    after = ij.recalibrate(model, state, [IMAGES[:24], IMAGES[24:]])
    assert after.replace(batch_stats=None) == state.replace(batch_stats=None)
    sums = []
    for half in (IMAGES[:24], IMAGES[24:]):
        stepped, _ = step(state, half, jnp.arange(24) % 10)
        norms = [each.batch_stats["backbone"]["conv5"]["norm"] for each in (stepped, state)]
        sums.append([(norms[0][k] - 0.9 * norms[1][k]) / 0.1 for k in ("mean", "var")])
    means, variances = np.swapaxes(sums, 0, 1)
    norm = after.batch_stats["backbone"]["conv5"]["norm"]
    np.testing.assert_allclose(norm["mean"], means.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(norm["var"], variances.mean(0) + means.var(0), rtol=1e-3, atol=1e-4)


def test_a_frozen_backbone_and_other_collections_stay():
    model = ij.Interflow(Dropping(), 10, ij.Fusion("shared"))
    variables = variables_of(model)
    with pytest.raises(ValueError, match="random stream 'dropout' in training; give a key"):
        ij.recalibrate(model, variables, [IMAGES])
    after = ij.recalibrate(model, variables, [IMAGES], key=jax.random.key(1))
    assert after["cache"] == variables["cache"]
    assert np.all(statistics(after)["var"] > 1.1 * np.var(IMAGES, (0, 1, 2)))  # half are doubled
    frozen = ij.recalibrate(model.clone(frozen=True), variables, [IMAGES])
    jax.tree.map(np.testing.assert_array_equal, frozen, variables)


def test_statistics_that_are_no_means_stay_and_count():
    """Flax's SpectralNorm keeps a vector and a size, which divide the kernel in the pass, too."""
    model = ij.Interflow(Spectral(), 10, ij.Fusion("shared"))
    variables = variables_of(model)
    step = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    for _ in range(100):  # a power iteration each
        variables |= step(variables, IMAGES)[1]
    after = ij.recalibrate(model, variables, [IMAGES])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), after, variables)


def test_averages_of_weights_are_what_is_recalibrated():
    model, optimizer = MODELS["Linen"], ij.make_optimizer(0.1)
    create = partial(ij.create_state, model, optimizer, image_shape=IMAGES.shape[1:])
    state = jax.jit(create)(jax.random.key(0)).with_average()
    step = jax.jit(partial(ij.train_step, model, optimizer, ema=0.9))
    state, _ = step(state, 5 * IMAGES, jnp.arange(48) % 10)
    after = ij.recalibrate(model, state, [IMAGES])
    assert after.params == state.average["params"]
    expected = ij.recalibrate(model, state.averaged().variables, [IMAGES])
    jax.tree.map(np.testing.assert_array_equal, after.variables, expected)
    logits = [ij.predict(model, each, IMAGES).logits for each in (after, state)]
    assert np.any(np.abs(logits[0] - logits[1]) > 0.01)


def test_what_cannot_be_recalibrated_is_named():
    model = MODELS["StrideVGG"]
    variables = variables_of(model)
    for batches, message in (
        ([], "batches are empty; give one or more of training images"),
        ([np.zeros((2, 6, 6, 2), np.uint8)], "images are uint8; the model takes floats"),
    ):
        with pytest.raises(ValueError, match=message):
            ij.recalibrate(model, variables, batches)
