"""StrideVGG's shapes, strides and taps, as the paper's IV-B and Tables I and VI have them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interflow_jax.vgg import StrideVGG, convolutions, forward_flops


def test_the_thirteen_layers_are_vggs():
    assert convolutions(13, 1.0, "first") == [
        *[(64, 1), (64, 1)],
        *[(128, 2), (128, 1)],
        *[(256, 2), (256, 1), (256, 1)],
        *[(512, 2), (512, 1), (512, 1)],
        *[(512, 2), (512, 1), (512, 1)],
    ]


def test_downsample_last_closes_each_block():
    strides = [stride for _, stride in convolutions(13, 1.0, "last")]
    assert [number for number, stride in enumerate(strides, 1) if stride == 2] == [2, 4, 7, 10, 13]


@pytest.mark.parametrize("depth", range(4, 14))
@pytest.mark.parametrize("downsample", ["first", "last"])
def test_shallower_networks_drop_the_deepest(depth, downsample):
    assert convolutions(depth, 1.0, downsample) == convolutions(13, 1.0, downsample)[:depth]


@pytest.mark.parametrize(
    ("depth", "counts"),
    [
        (14, (2, 2, 3, 3, 4)),
        (40, (6, 6, 9, 9, 10)),
        (60, (9, 9, 13, 13, 16)),
        (100, (15, 15, 23, 23, 24)),
    ],
)
def test_deeper_networks_spread_over_the_blocks(depth, counts):
    layers = convolutions(depth, 1.0, "first")
    assert len(layers) == depth
    openings = [number for number, (_, stride) in enumerate(layers) if stride == 2]
    assert openings == list(np.cumsum(counts)[:-1])
    assert [layers[number][0] for number in openings] == [128, 256, 512, 512]


@pytest.mark.parametrize("depth", [14, 40, 60, 200])
@pytest.mark.parametrize(("downsample", "width"), [("first", 1.0), ("last", 0.125)])
def test_deeper_networks_append_to_the_last_scale(depth, downsample, width):
    layers = convolutions(depth, width, downsample, "append")
    assert layers[:13] == convolutions(13, width, downsample)
    assert layers[13:] == [(round(512 * width), 1)] * (depth - 13)


@pytest.mark.parametrize("layout", ["spread", "append"])
def test_any_depth_has_that_many_convolutions(layout):
    for depth in range(4, 201):
        assert len(convolutions(depth, 1.0, "last", layout)) == depth


@pytest.mark.parametrize("depth", range(4, 14))
def test_up_to_the_thirteenth_convolution_layouts_are_one(depth):
    assert convolutions(depth, 1.0, "first", "append") == convolutions(depth, 1.0, "first")


@pytest.mark.parametrize("layout", ["spread", "append"])
def test_operations_follow_the_layout(key, layout):
    """Two per multiply-add of each kernel at each place of the map that it makes."""
    deep = StrideVGG((20, 25), 40, 1 / 16, layout=layout)
    init = partial(StrideVGG(tuple(range(1, 26)), 40, 1 / 16, layout=layout).init_with_output)
    maps, variables = jax.eval_shape(partial(init, train=False), key, jnp.zeros((1, 28, 28, 1)))
    by_hand = sum(
        2 * variables["params"][f"conv{number}"]["kernel"].size * np.prod(feature_map.shape[1:3])
        for number, feature_map in enumerate(maps, start=1)
    )
    assert forward_flops(deep, (28, 28, 1)) == by_hand


@pytest.mark.parametrize("size", [(32, 32, 3), (28, 28, 1), (37, 21, 3), (1, 1, 1)])
@pytest.mark.parametrize("downsample", ["first", "last"])
def test_feature_maps_are_those_after_the_taps(key, size, downsample):
    vgg = StrideVGG((1, 2, 3, 7, 13), width=1 / 16, downsample=downsample)
    images = jnp.zeros((2, *size))
    maps, _ = jax.eval_shape(lambda key: vgg.init_with_output(key, images, train=False), key)
    halvings = {"first": (0, 0, 1, 2, 4), "last": (0, 1, 1, 3, 5)}[downsample]
    for feature_map, halved, channels in zip(maps, halvings, (4, 4, 8, 16, 32), strict=True):
        height, width = (-(-side // 2**halved) for side in size[:2])
        assert feature_map.shape == (2, height, width, channels)


def test_nothing_is_built_beyond_the_last_tap(key):
    init = partial(StrideVGG((2, 5)).init, train=False)
    parameters = jax.eval_shape(init, key, jnp.zeros((1, 8, 8, 3)))
    assert set(parameters["params"]) == {f"conv{number}" for number in range(1, 6)}


def test_kernels_are_xavier_uniform_and_norms_start_as_identity(key):
    init = jax.jit(partial(StrideVGG((3,)).init, train=False))
    parameters = init(key, jnp.zeros((1, 8, 8, 3)))["params"]
    kernel = np.asarray(parameters["conv3"]["kernel"])
    bound = np.sqrt(6 / (9 * 64 + 9 * 128))
    assert kernel.shape == (3, 3, 64, 128)
    assert 0.999 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.var(), bound**2 / 3, rtol=0.02)
    np.testing.assert_array_equal(parameters["conv3"]["norm"]["scale"], 1.0)
    np.testing.assert_array_equal(parameters["conv3"]["norm"]["bias"], 0.0)


def test_bfloat16_computes_low_and_keeps_parameters_high(key):
    vgg = StrideVGG((3,), width=1 / 16, dtype=jnp.bfloat16)
    init = partial(vgg.init_with_output, train=False)
    maps, variables = jax.eval_shape(init, key, jnp.ones((2, 8, 8, 3)))
    assert maps[0].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": (3,), "depth": 3}, "depth is 3; choose 4 to 200"),
        ({"taps": (3,), "depth": 201}, "depth is 201; choose 4 to 200"),
        ({"taps": (7, 9, 11), "depth": 8}, "depth 8 has no convolution 9, 11; choose taps from 1"),
        ({"taps": (2, 3), "start": 3}, "start is 3; choose 1 to the first tap, 2"),
        ({"taps": (7, 9.5)}, "has no convolution 9.5"),
        ({"taps": ("conv7",)}, "has no convolution conv7"),
        ({"taps": ()}, "give one or more convolutions"),
        ({"taps": 13}, "taps are 13; give one or more convolutions"),
        ({"taps": (9, 7)}, "ascending"),
        ({"taps": (7, 7)}, "ascending"),
        ({"taps": (7,), "width": 0}, "width is 0"),
        ({"taps": (7,), "downsample": "middle"}, "'middle'; choose one of first, last"),
        ({"taps": (7,), "layout": "even"}, "'even'; choose one of spread, append"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        StrideVGG(**options).check()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), "images are uint8; the model takes floats"),
        (np.zeros((2, 3, 8, 8), np.float32), r"shape \(2, 3, 8, 8\), which is channels first"),
        (np.zeros((8, 8, 3), np.float32), r"shape \(8, 8, 3\); StrideVGG takes \[batch"),
    ],
)
def test_images_that_would_mislead_are_refused(key, images, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(StrideVGG((7,), depth=7).init, train=False), key, images)
