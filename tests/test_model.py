"""Interflow over backbones that know nothing of it."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interflow_jax as ij
from interflow_jax import Fusion, Interflow


class ResidualNetwork(nn.Module):
    """Three stages of one residual block each, GroupNorm, doubling channels."""

    @nn.compact
    def __call__(self, x, train):
        del train
        maps = []
        for channels in (8, 8, 16):
            x = nn.Conv(channels, (3, 3), strides=2)(x)
            inside = nn.Conv(channels, (3, 3))(nn.relu(nn.GroupNorm(4)(x)))
            x = x + inside
            maps.append(x)
        return tuple(maps)


class FeaturePyramid(nn.Module):
    """Maps of one image at three scales, every one with channels of its own."""

    @nn.compact
    def __call__(self, x):
        return [nn.Conv(4 * scale, (1, 1))(x[:, ::scale, ::scale]) for scale in (1, 2, 4)]


@pytest.fixture
def images(key):
    return jax.random.normal(key, (2, 16, 12, 3))


def test_wraps_a_residual_network(key, images):
    model = Interflow(ResidualNetwork(), 5, Fusion("class"))
    init = partial(model.init_with_output, train=True)
    prediction, variables = jax.eval_shape(init, key, images)
    assert prediction.logits.shape == (2, 5)
    assert prediction.branch_logits.shape == (2, 3, 5)
    assert prediction.weights.shape == (3, 5)
    layers = {name for name in variables["params"] if name.startswith("fully_connected")}
    assert layers == {"fully_connected_channels_8", "fully_connected_channels_16"}


def test_wraps_a_feature_pyramid_without_a_train_argument(key, images):
    model = Interflow(FeaturePyramid(), 5, Fusion("shared"))
    prediction, variables = model.init_with_output(key, images)
    assert prediction.branch_logits.shape == (2, 3, 5)
    kernels = [
        variables["params"][f"fully_connected_channels_{channels}"]["kernel"].shape
        for channels in (4, 8, 12 + 4)
    ]
    assert kernels == [(4, 5), (8, 5), (16, 5)]


def test_a_branch_is_pooling_and_a_fully_connected_layer(key, images):
    model = Interflow(FeaturePyramid(), 5, Fusion("fixed", (0.5, 0.25, 0.25)))
    prediction, variables = model.init_with_output(key, images)
    backbone = {"params": variables["params"]["backbone"]}
    for number, feature_map in enumerate(FeaturePyramid().apply(backbone, images)):
        layer = variables["params"][f"fully_connected_channels_{feature_map.shape[-1]}"]
        expected = feature_map.mean((1, 2)) @ layer["kernel"] + layer["bias"][None]
        np.testing.assert_allclose(prediction.branch_logits[:, number], expected, atol=1e-5)


def test_separate_layers_belong_to_one_branch_each(key, images):
    model = Interflow(ResidualNetwork(), 5, Fusion("shared"), "separate")
    variables = jax.jit(partial(model.init, train=True))(key, images)

    def branch_scores(params):
        prediction = model.apply({"params": params}, images, train=True)
        return prediction.branch_logits.sum((0, 2))

    jacobian = jax.jit(jax.jacrev(branch_scores))(variables["params"])
    for number in range(3):
        kernel = jacobian[f"fully_connected_branch_{number + 1}"]["kernel"]
        reached = [bool(jnp.any(kernel[branch] != 0)) for branch in range(3)]
        assert reached == [branch == number for branch in range(3)]


class Flat(nn.Module):
    def __call__(self, x):
        return [x.mean((1, 2, 3))]


class OneMap(nn.Module):
    def __call__(self, x):
        return x


class Silent(nn.Module):
    def __call__(self, x):
        return []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Interflow(Flat(), 5, Fusion("shared")), r"shapes \[\(2,\)\]"),
        (
            Interflow(OneMap(), 5, Fusion("shared")),
            r"returned a \w+; Interflow takes a list or tuple",
        ),
        (Interflow(Silent(), 5, Fusion("shared")), r"shapes \[\]"),
        (Interflow(FeaturePyramid(), 5, Fusion("shared"), "one"), "'one'; choose one of shared"),  # pyright: ignore
    ],
)
def test_what_does_not_fit_is_named(key, images, model, message):
    with pytest.raises(ValueError, match=message):
        model.init(key, images)


class Tokens(nn.Module):
    """Three kinds of feature maps of the same numbers."""

    def __call__(self, x):
        return [x, x.reshape(len(x), -1, x.shape[-1]), x.mean((1, 2))]


def test_maps_tokens_and_vectors_are_averaged_over_what_lies_between(key, images):
    prediction, variables = Interflow(Tokens(), 5, Fusion("shared")).init_with_output(key, images)
    assert set(variables["params"]) == {"fully_connected_channels_3", "fusion"}
    for branch in (1, 2):
        np.testing.assert_allclose(
            prediction.branch_logits[:, branch],
            prediction.branch_logits[:, 0],
            rtol=1e-4,
            atol=1e-6,
        )


def test_labels_are_the_backbone_s():
    assert ij.build("S1", 10).labels == (7, 9, 11, 13)
    assert Interflow(Tokens(), 5, Fusion("shared")).labels is None
