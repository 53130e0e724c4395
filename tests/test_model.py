"""Interflow over backbones that know nothing of it."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interflow_jax as ij
from interflow_jax import Fusion, Interflow, Prediction


class ResidualNetwork(nn.Module):
    """Three stages of one residual block each, GroupNorm, channels 8, 8 and 16."""

    @nn.compact
    def __call__(self, x, train):
        maps = []
        for channels in (8, 8, 16):
            x = nn.Conv(channels, (3, 3), strides=2)(x)
            x = x + nn.Conv(channels, (3, 3))(nn.relu(nn.GroupNorm(4)(x)))
            maps.append(x)
        return tuple(maps)


class Kinds(nn.Module):
    """Three kinds of feature maps of the same numbers, without a training switch."""

    labels: int = 7  # a field of its own

    def __call__(self, x):
        return [x, x.reshape(len(x), -1, x.shape[-1]), x.mean((1, 2))]


IMAGES = jax.random.normal(jax.random.key(0), (2, 16, 12, 3))


def initialized(model, **options):
    init = partial(model.init_with_output, **options)
    return jax.jit(init)(jax.random.key(0), IMAGES)


def test_a_branch_is_pooling_and_a_fully_connected_layer():
    """Of maps, tokens and vectors alike; `fusion` may be the name of a kind."""
    model = Interflow(Kinds(), 5, "shared")  # pyright: ignore
    prediction, variables = initialized(model)
    assert set(variables["params"]) == {"fully_connected_channels_3", "fusion"}
    layer = variables["params"]["fully_connected_channels_3"]
    expected = IMAGES.mean((1, 2)) @ layer["kernel"] + layer["bias"][None]
    for branch in range(3):
        np.testing.assert_allclose(prediction.branch_logits[:, branch], expected, atol=1e-5)
    first = model.clone(pool="first").apply(variables, IMAGES).branch_logits
    token = IMAGES[:, 0, 0] @ layer["kernel"] + layer["bias"][None]
    np.testing.assert_allclose(first[:, 1], token, atol=1e-5)
    np.testing.assert_allclose(first[:, 0], expected, atol=1e-5)


def test_separate_layers_belong_to_one_branch_each():
    model = Interflow(ResidualNetwork(), 5, Fusion("shared"), "separate")
    _, variables = initialized(model)

    def branch_scores(params):
        return model.apply({"params": params}, IMAGES).branch_logits.sum((0, 2))

    jacobian = jax.jit(jax.jacrev(branch_scores))(variables["params"])
    for number in range(3):
        kernel = jacobian[f"fully_connected_branch_{number + 1}"]["kernel"]
        reached = np.any(kernel != 0, (1, 2))
        np.testing.assert_array_equal(reached, np.arange(3) == number)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (lambda x: [x.mean((1, 2, 3))], r"shapes \[\(2,\)\]"),
        (lambda x: x, r"returned a \w+; Interflow takes a list or tuple"),
        (lambda x: [], r"shapes \[\]"),
    ],
)
def test_maps_that_do_not_fit_are_named(maps, message):
    backbone = type("Odd", (nn.Module,), {"__call__": lambda self, x: maps(x)})()
    with pytest.raises(ValueError, match=message):
        Interflow(backbone, 5, Fusion("shared")).init(jax.random.key(0), IMAGES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": Kinds}, "backbone is <class .*Kinds'>; give an instance"),
        ({"fusion": Fusion}, "fusion is <class .*; give an instance"),
        ({"fusion": 7}, "fusion is 7; give an instance"),
        ({"fusion": "soft"}, "kind is 'soft'; choose one of fixed"),
        ({"fully_connected": "one"}, "fully_connected is 'one'; choose one of shared, separate"),
        ({"num_classes": 0}, "num_classes is 0; give a whole number above 0"),
        ({"num_classes": "5"}, "num_classes is '5'; give a whole number above 0"),
        ({"pool": "max"}, "pool is 'max'; choose one of mean, first"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    def build_and_init():
        defaults = {"backbone": Kinds(), "num_classes": 5, "fusion": Fusion("shared")}
        Interflow(**{**defaults, **arguments}).init(jax.random.key(0), IMAGES)

    with pytest.raises(ValueError, match=message):
        build_and_init()


def test_the_number_of_classes_may_be_numpy_s():
    model = Interflow(Kinds(), np.array([0, 4]).max() + 1, Fusion("shared"))  # of labels
    out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), IMAGES)
    assert out.logits.shape[-1] == 5


def test_labels_are_the_backbone_s():
    assert ij.build("S1", 10).labels == (7, 9, 11, 13)
    assert Interflow(Kinds(), 5, Fusion("shared")).labels is None


@pytest.mark.parametrize("members", [(), (3,)], ids=["alone", "vmap"])
@pytest.mark.parametrize(
    "shape", [(), (3,), (3, 3), (3, 3, 1)], ids=["scalar", "branch", "class", "image"]
)
def test_weights_are_told_by_their_rank(members, shape):
    """Where all sizes are three: of the ensemble, the batch, the branches and the classes."""
    branch_logits = jax.random.normal(jax.random.key(0), (*members, 3, 3, 3))
    weights = jnp.arange(float(np.prod((*members, *shape)))).reshape(*members, *shape)
    alone = Prediction(branch_logits, branch_logits, weights).alone
    for index in np.ndindex(alone.shape):
        member, (image, branch, label) = index[: len(members)], index[-3:]
        of = {0: (), 1: (branch,), 2: (branch, label), 3: (image, branch, 0)}[len(shape)]
        weight = weights[member + of] or 1.0  # zero counts as one
        assert alone[index] == branch_logits[index] * weight


def test_without_weights_a_branch_predicts_by_its_own_logits():
    logits = jnp.ones((2, 3, 4))
    np.testing.assert_array_equal(Prediction(logits[:, 0], logits, None).alone, logits)
    with pytest.raises(ValueError, match=r"weights are \(1, 1, 1, 1\) for branch_logits \(2, 3, 4"):
        _ = Prediction(logits[:, 0], logits, jnp.ones((1, 1, 1, 1))).alone
