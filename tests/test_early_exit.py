"""Leaving a model early: by the examples that are sure, and exact."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interflow_jax as ij
from tests import test_depth
from tests.test_depth import run

SHAPE = (8, 8, 3)
IMAGES = jax.random.normal(jax.random.key(5), (16, *SHAPE))


class Maps(test_depth.Maps):
    """Knows nothing of exits, and has a field of its own."""

    segments: int = 3


class Segmented(nn.Module):
    """Two layers of a size, and how to run them one by one."""

    numbers: tuple[int, ...] = (0, 1)

    @nn.compact
    def __call__(self, x, train):
        maps = []
        for number in self.numbers:
            x = nn.relu(nn.Conv(3, (3, 3), name=f"layer{number}")(x))
            maps.append(x)
        return maps

    @nn.nowrap
    def segments(self):
        return [Segmented((number,)) for number in self.numbers]


VGG = {"depth": 4, "width": 1 / 16, "taps": (2, 3, 4)}
MODELS = {
    "maps": ij.Interflow(Maps(), 10, ij.Fusion("class")),
    "segmented": ij.Interflow(Segmented(), 10, ij.Fusion("class"), "separate"),
    "vgg": ij.build("S1", 10, **VGG),
    "geometric": ij.build("S1", 10, fusion="geometric", **VGG),
    "attention": ij.build("S1", 10, fusion="attention", **VGG),
    "attentive maps": ij.Interflow(Maps(), 10, ij.Fusion("attention")),
}


def trained(name, seed=0):
    return MODELS[name], test_depth.trained(MODELS[name], seed)


@pytest.mark.parametrize("name", ["vgg", "geometric", "attention", "maps", "attentive maps"])
def test_at_the_extremes_exits_are_the_first_branch_and_the_whole_model(name, default_fusions):
    """Bit for bit, at the batch size of the models that they are compared with."""
    model, variables = trained(name)
    exits = ij.EarlyExit(model, variables, [0.0, 0.0], IMAGES, batch_sizes=(len(IMAGES),))
    for threshold, branches in ((0.0, 1), (1.0, 3)):
        result = exits(IMAGES, [threshold] * 2)
        cut, its_variables = ij.truncate(model, variables, branches, IMAGES)
        expected = jax.jit(cut.apply, compiler_options=default_fusions)(its_variables, IMAGES)
        np.testing.assert_array_equal(result.logits, expected.logits)
        np.testing.assert_array_equal(result.exits, branches)


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("vgg", "probability"),
        ("attention", "probability"),
        ("maps", "margin"),
        ("maps", "entropy"),
    ],
)
def test_an_example_leaves_where_it_is_surer_than_the_threshold(name, measure):
    model, variables = trained(name, seed=2)
    images = jax.random.normal(jax.random.key(6), (70, *SHAPE))
    images *= jnp.linspace(0.1, 5, 70)[:, None, None, None]
    temperatures = (0.5, 2.0, 1.0)
    cuts = [run(*ij.truncate(model, variables, k, images), images).logits for k in (1, 2, 3)]
    sure = [
        ij.confidence(logits, measure, temperature)
        for logits, temperature in zip(cuts, temperatures, strict=True)
    ]
    stay = sure[0] <= jnp.median(sure[0])
    thresholds = [float(jnp.median(sure[0])), float(jnp.median(sure[1][stay]))]
    exits = ij.EarlyExit(
        model,
        variables,
        np.array(thresholds),
        images,
        measure=measure,
        temperatures=temperatures,
        batch_sizes=(1, 16),
    )
    result = exits(images)
    close = np.any([np.abs(s - t) < 1e-5 for s, t in zip(sure, thresholds, strict=False)], axis=0)
    first, second = (np.asarray(s > t) for s, t in zip(sure, thresholds, strict=False))
    expected = np.where(first, 1, np.where(second, 2, 3))
    assert set(expected) == {1, 2, 3}
    assert close.sum() <= 3  # the medians themselves
    np.testing.assert_array_equal(result.exits[~close], expected[~close])
    for k in (1, 2, 3):
        there = result.exits == k
        np.testing.assert_allclose(result.logits[there], cuts[k - 1][there], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(result.confidence[there], sure[k - 1][there], atol=1e-5)
    alone = exits(images[11:12])  # packed with no other
    assert alone.exits[0] == result.exits[11] or close[11]


@pytest.mark.parametrize("count", [1, 2])
def test_a_backbone_s_own_segments_run_one_by_one(count):
    """Layer 1 of the second program has no layer 0 before it: that is the first one's."""
    model, variables = trained("segmented")
    exits = ij.EarlyExit(model, variables, [1.0] * (count - 1), IMAGES, batch_sizes=(len(IMAGES),))
    expected = run(*ij.truncate(model, variables, count, IMAGES), IMAGES)
    np.testing.assert_array_equal(exits(IMAGES).logits, expected.logits)
    for number, program in enumerate(exits._programs):
        carry = IMAGES, jnp.zeros((len(IMAGES), number, 10))
        text = program.lower(exits._variables[number], carry).as_text()
        assert text.count("stablehlo.convolution") == 1


def test_programs_are_compiled_for_few_batch_sizes():
    model, variables = trained("segmented", seed=1)
    images = np.random.default_rng(0).normal(size=(90, *SHAPE)).astype(np.float32)
    sure = ij.confidence(run(*ij.truncate(model, variables, 1, images), images).logits)
    exits = ij.EarlyExit(model, variables, [float(jnp.median(sure))], images, batch_sizes=(8, 32))
    for count in (90, 40, 17, 3, 1):
        assert len(exits(images[:count]).exits) == count
        np.testing.assert_array_equal(exits(images[:count], [1.0]).exits, 2)
    assert [program._cache_size() for program in exits._programs] == [2, 2]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("thresholds", [0.5, 1.5], r"\[0.5, 1.5\]; give a list of numbers from 0 to 1"),
        ("thresholds", [0.5, float("nan")], "numbers from 0 to 1"),
        ("thresholds", 0.9, "thresholds are 0.9; give a list"),
        ("thresholds", "0.9", "thresholds are 0.9; give a list"),
        ("thresholds", [0.5] * 3, "the model has 3 branches: give at most 2"),
        ("temperatures", [1.0, 0.0, 1.0], "give a list of 3 numbers above 0"),
        ("temperatures", [1.0], "give a list of 3 numbers above 0"),
        ("temperatures", 1.0, "temperatures are 1.0; give a list of 3"),
        ("measure", "doubt", "'doubt'; choose one of probability, margin, entropy"),
        ("batch_sizes", (), "give a list of one or more whole numbers from 1 on"),
        ("batch_sizes", 8, "batch_sizes are 8; give a list"),
        ("batch_sizes", [0.5], r"batch_sizes are \[0.5\]; give a list"),
    ],
)
@pytest.mark.parametrize("model", ["vgg", "maps"])
def test_exits_that_cannot_be_are_named(model, name, value, message):
    arguments = {"thresholds": [0.5, 0.5], "images": IMAGES, name: value}
    with pytest.raises(ValueError, match=message):
        ij.EarlyExit(*trained(model), **arguments)


@pytest.mark.parametrize("given", [None, IMAGES])
def test_images_that_cannot_be_are_named(given):
    """Above all pixels, of which a model is always sure."""
    model, variables = trained("vgg")
    exits = ij.EarlyExit(model, variables, [0.5, 0.5], given)
    assert exits.labels == (2, 3, 4)
    for images, message in (
        (np.full((2, *SHAPE), 200, np.uint8), "images are uint8; the model takes floats"),
        (IMAGES[0], r"images are \(8, 8, 3\); give a batch of 4 dimensions, the last one 3"),
        (IMAGES[..., :1], r"images are \(16, 8, 8, 1\); give a batch of 4 .* one 3"),
    ):
        with pytest.raises(ValueError, match=message):
            exits(images)
    with pytest.raises(ValueError, match=r"are \[0.5\]; give a list of 2 numbers from"):
        exits(IMAGES, [0.5])
