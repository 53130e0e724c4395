"""Cutting a model and leaving it early: exact, smaller, and by the examples that are sure."""

import re
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import interflow_jax as ij
from interflow_jax.early_exit import confidence
from interflow_jax.training import cross_entropy

TAPS = {"S1": (2, 3, 5), "S3": (2, 3, 5), "S7": (2, 3, 4, 5, 6, 7, 8), "DSN": (2, 3, 5)}
VGGS = [(method, None) for method in TAPS] + [("S1", "softmax"), ("S1", "geometric")]


class Block(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(self.channels, (3, 3), name="conv")(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for number in range(4):
            x = Block(4, name=f"block{number}")(x, train)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class Maps(nn.Module):
    """Knows nothing of taps: three maps, the last through two layers."""

    @nn.compact
    def __call__(self, x, train):
        maps = [Block(4, name=f"block{number}")(x, train) for number in range(2)]
        deepest = nn.Dense(8, name="wide")(Block(6, name="block2")(maps[1], train))
        return [*maps, deepest]


class Segmented(nn.Module):
    """Two blocks of a size, and how to run them one by one."""

    first: int = 0
    last: int = 1

    @nn.compact
    def __call__(self, x, train):
        maps = []
        for number in range(self.first, self.last + 1):
            x = Block(3, name=f"block{number}")(x, train)
            maps.append(x)
        return maps

    @nn.nowrap
    def segments(self):
        return [Segmented(0, 0), Segmented(1, 1)]


class NNXNetwork(nnx.Module):
    def __init__(self, *, rngs):
        self.convs = nnx.List([nnx.Conv(3, 3, (3, 3), rngs=rngs) for _ in range(3)])

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.relu(conv(x))
        return x


FOREIGN = {
    "Taps": ij.Taps(Network(), ("block0", "block1", "block3")),
    "maps": Maps(),
    "NNX": ij.NNXTaps(NNXNetwork, ("convs/0", "convs/1", "convs/2")),
}


ALL = (*VGGS, *FOREIGN)


def vgg(method, fusion=None):
    taps = TAPS[method]
    return ij.build(method, 10, depth=taps[-1], width=1 / 16, taps=taps, fusion=fusion)


def trained(model, seed=0):
    """Variables as after training: every one of them moved."""
    key = jax.random.key(seed)
    images = jnp.zeros((1, 8, 8, 3))
    variables = jax.jit(model.init)(key, images)
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(key, len(leaves))
    moved = [
        leaf + 0.1 * jnp.abs(jax.random.normal(each, leaf.shape))
        for leaf, each in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def zeros(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)


def model_of(name):
    if isinstance(name, tuple):
        return vgg(*name)
    return ij.Interflow(FOREIGN[name], 10, ij.Fusion("class"))


def size(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(5), (16, 8, 8, 3))


def run(model, variables, images):
    return jax.jit(model.apply, compiler_options=ij.cpu_compiler_options())(variables, images)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == ("S7", None))) for name in ALL],
    ids=str,
)
def test_a_cut_model_predicts_what_its_branches_did(images, name):
    model = model_of(name)
    variables = trained(model)
    before = jax.tree.map(jnp.copy, variables)
    whole = run(model, variables, images)
    count = whole.branch_logits.shape[1]
    sizes = []
    for branches in range(1, count + 1):
        cut, its_variables = ij.truncate(model, variables, branches, images)
        prediction = run(cut, its_variables, images)
        sizes.append(size(its_variables))
        first = whole.branch_logits[:, :branches]
        np.testing.assert_array_equal(prediction.branch_logits, first)
        kind = model.fusion.kind
        if kind == "geometric":
            np.testing.assert_array_equal(prediction.logits, whole.ensembles[:, branches - 1])
        elif kind == "softmax":
            terms = jax.nn.log_softmax(first) * whole.weights[None, :branches, None]
            expected = jnp.exp(variables["params"]["fusion"]["log_scale"]) * terms.sum(1)
            np.testing.assert_allclose(prediction.logits, expected, rtol=1e-5, atol=1e-5)
        elif name[0] == "DSN":
            np.testing.assert_array_equal(prediction.logits, first[:, -1])
        else:
            weights = whole.weights[:branches]
            weights = weights if weights.ndim == 2 else weights[:, None]
            expected = jax.jit(lambda first, weights: jnp.sum(first * weights[None], axis=1))
            np.testing.assert_array_equal(prediction.logits, expected(first, weights))
        assert cut.labels is None or cut.labels == model.labels[:branches]
    np.testing.assert_array_equal(prediction.logits, whole.logits)  # of all branches
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == size(variables)
    jax.tree.map(np.testing.assert_array_equal, variables, before)


@pytest.mark.parametrize("method", TAPS)
def test_what_is_left_of_a_stride_vgg_by_hand(method):
    model = vgg(method)
    variables = trained(model)
    channels = [4, 4, 8, 8, 16, 16, 16, 32][: TAPS[method][-1]]
    for branches, tap in enumerate(TAPS[method], start=1):
        cut, its_variables = ij.truncate(model, variables, branches)
        inputs = [3, *channels]
        convolutions = sum(
            9 * inputs[number] * channels[number] + 2 * channels[number] for number in range(tap)
        )
        widths = {channels[tap - 1] for tap in TAPS[method][:branches]}
        heads = sum(10 * width + 10 for width in widths)
        fusion = {"S1": branches, "S3": 10 * branches, "S7": branches, "DSN": 0}[method]
        assert size(its_variables) == convolutions + heads + fusion
        program = jax.export.export(jax.jit(cut.apply), platforms=["tpu"])(
            its_variables, jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
        )
        assert program.mlir_module().count("stablehlo.convolution") == tap


def test_only_what_a_map_needs_is_left_of_a_backbone_that_is_not_ours(images):
    for name, left in (
        ("Taps", {"network": {"block0", "block1"}}),
        ("maps", {"backbone": {"block0", "block1"}}),
    ):
        model = model_of(name)
        _, variables = ij.truncate(model, trained(model), 2, images)
        (inner,) = left
        assert set(variables["params"]["backbone"][inner]) == left[inner]
        assert set(variables["batch_stats"]["backbone"][inner]) == left[inner]
        assert "fully_connected_channels_8" not in variables["params"]


def test_a_cut_model_trains_on(images):
    model = model_of("maps")
    cut, variables = ij.truncate(model, trained(model), 2, images)
    _, updates = cut.apply(variables, images, train=True, mutable=["batch_stats"])
    statistics = updates["batch_stats"]["backbone"]["backbone"]["block1"]["norm"]["mean"]
    before = variables["batch_stats"]["backbone"]["backbone"]["block1"]["norm"]["mean"]
    assert jnp.all(statistics != before)


@pytest.mark.parametrize("kind", [None, "geometric"])
def test_a_refitted_cut_is_better_where_it_was_fitted(images, kind):
    model = vgg("S1")
    variables = trained(model)
    branch_logits = run(model, variables, images).branch_logits
    labels = (branch_logits[:, 1] + branch_logits[:, 0]).argmax(-1)
    losses = []
    for options in ({}, {"refit": (branch_logits, labels), "kind": kind}):
        cut, its_variables = ij.truncate(model, variables, 2, **options)
        losses.append(cross_entropy(run(cut, its_variables, images).logits, labels).mean())
    assert losses[1] < losses[0]
    _, expected = ij.fit_fusion(branch_logits[:, :2], labels, kind or "shared")
    jax.tree.map(np.testing.assert_array_equal, its_variables["params"]["fusion"], expected)
    cut, _ = ij.truncate(vgg("DSN"), trained(vgg("DSN")), 2, refit=(branch_logits, labels))
    assert cut.fusion.kind == "shared"  # nothing of a fixed fusion could be fitted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"branches": 0}, "branches is 0; the model has 3: choose 1 to 3"),
        ({"branches": 4}, "branches is 4; the model has 3: choose 1 to 3"),
        ({"branches": 1, "kind": "class"}, "kind is 'class', but nothing to fit it to"),
        (
            {"branches": 3, "refit": (np.zeros((4, 2, 10)), np.zeros(4, int))},
            "refit has the logits of 2 branches; give those of 3 or more",
        ),
    ],
)
def test_a_cut_that_cannot_be_is_named(arguments, message):
    model = vgg("S1")
    with pytest.raises(ValueError, match=message):
        ij.truncate(model, zeros(model), **arguments)


def test_a_foreign_backbone_needs_images():
    model = model_of("maps")
    with pytest.raises(ValueError, match=r"Maps does not tell .* give images, or"):
        ij.truncate(model, {}, 1)


@pytest.mark.parametrize("name", [("S3", None), ("S1", "geometric"), "maps"], ids=str)
def test_at_the_extremes_exits_are_the_first_branch_and_the_whole_model(images, name):
    """Bit for bit, at the batch size of the models that they are compared with."""
    model = model_of(name)
    variables = trained(model)
    for threshold, branches in ((0.0, 1), (1.0, 3)):
        exits = ij.EarlyExit(
            model, variables, [threshold] * 2, images, batch_sizes=(1, 4, len(images))
        )(images)
        expected = run(*ij.truncate(model, variables, branches, images), images)
        np.testing.assert_array_equal(exits.logits, expected.logits)
        np.testing.assert_array_equal(exits.exits, branches)


@pytest.mark.parametrize("measure", ["probability", "margin", "entropy"])
@pytest.mark.parametrize("name", [("S1", None), "Taps"], ids=str)
def test_an_example_leaves_where_it_is_surer_than_the_threshold(name, measure):
    model = model_of(name)
    variables = trained(model, seed=2)
    images = jax.random.normal(jax.random.key(6), (70, 8, 8, 3))
    images *= jnp.linspace(0.1, 5, 70)[:, None, None, None]
    temperatures = (0.5, 2.0, 1.0)
    cuts = [run(*ij.truncate(model, variables, k, images), images).logits for k in (1, 2, 3)]
    sure = [
        confidence(logits, measure, temperature)
        for logits, temperature in zip(cuts, temperatures, strict=True)
    ]
    stay = sure[0] <= jnp.median(sure[0])
    thresholds = [float(jnp.median(sure[0])), float(jnp.median(sure[1][stay]))]
    exits = ij.EarlyExit(
        model,
        variables,
        thresholds,
        images,
        measure=measure,
        temperatures=temperatures,
        batch_sizes=(1, 4, 16),
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
def test_a_backbone_s_own_segments_run_one_by_one(images, count):
    """Block 1 of the second program has no block 0 before it: that is the first one's."""
    model = ij.Interflow(Segmented(), 10, ij.Fusion("class"), "separate")
    variables = trained(model)
    exits = ij.EarlyExit(model, variables, [1.0] * (count - 1), images, batch_sizes=(len(images),))
    expected = run(*ij.truncate(model, variables, count, images), images)
    np.testing.assert_array_equal(exits(images).logits, expected.logits)
    for number, program in enumerate(exits._programs):
        carry = images, jnp.zeros((len(images), number, 10))
        text = program.lower(exits._variables[number], carry).as_text()
        assert text.count("stablehlo.convolution") == 1


def test_programs_are_compiled_for_few_batch_sizes():
    model = vgg("S1")
    variables = trained(model, seed=1)
    images = np.random.default_rng(0).normal(size=(90, 8, 8, 3)).astype(np.float32)
    sure = confidence(run(*ij.truncate(model, variables, 1), images).logits)
    exits = ij.EarlyExit(model, variables, [float(jnp.median(sure)), 1.0], batch_sizes=(8, 32))
    for count in (90, 40, 17, 3, 1):
        assert len(exits(images[:count]).exits) == count
        np.testing.assert_array_equal(exits(images[:count], [1.0, 1.0]).exits, 3)
    with pytest.raises(ValueError, match=r"thresholds are \(0.5,\); choose 2 from 0 to 1"):
        exits(images, [0.5])
    assert [program._cache_size() for program in exits._programs] == [2, 2, 2]
    assert exits.labels == (2, 3, 5)


def test_the_documentation_s_examples_run(capsys):
    text = (Path(__file__).parent.parent / "docs" / "depth.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    namespace: dict = {}
    for example in examples[:3]:
        exec(compile(example, "depth.md", "exec"), namespace)
    assert namespace["smaller"].labels == (7, 9)
    assert capsys.readouterr().out.startswith("(64, 10) [4 4")  # untrained, nothing is sure
    assert namespace["left"].logits.shape == (64, 10)


def test_confidence_has_three_measures():
    with pytest.raises(ValueError, match="'max'; choose one of probability, margin, entropy"):
        confidence(jnp.zeros((1, 3)), "max")  # pyright: ignore


def test_confidence_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(confidence(logits), [0.5, 1 / 3], rtol=1e-5)
    np.testing.assert_allclose(confidence(logits, "margin"), [0.2, 0], atol=1e-6)
    entropy = -sum(p * np.log(p) for p in (0.5, 0.3, 0.2))
    expected = [1 - entropy / np.log(3), 0]
    np.testing.assert_allclose(confidence(logits, "entropy"), expected, atol=1e-6)
    cooler = np.array([0.5, 0.3, 0.2]) ** 2
    np.testing.assert_allclose(
        confidence(logits, temperature=0.5)[0], cooler[0] / cooler.sum(), rtol=1e-5
    )
    certain = jnp.array([[1000.0, 0.0, 0.0]])
    for measure in ("probability", "margin", "entropy"):
        assert confidence(certain, measure)[0] == 1  # never above a threshold of one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thresholds": [0.5, 1.5]}, r"thresholds are \(0.5, 1.5\); choose 2 from 0 to 1"),
        ({"thresholds": [0.5, float("nan")]}, "choose 2 from 0 to 1"),
        ({"thresholds": [0.5] * 3}, "branches is 4; the model has 3"),
        ({"temperatures": [1.0, 0.0, 1.0]}, "give 3 above 0"),
        ({"temperatures": [1.0]}, "give 3 above 0"),
        ({"measure": "doubt"}, "'doubt'; choose one of probability, margin, entropy"),
        ({"batch_sizes": ()}, "give one or more from 1 on"),
    ],
)
def test_exits_that_cannot_be_are_named(arguments, message):
    model = vgg("S1")
    variables = zeros(model)
    with pytest.raises(ValueError, match=message):
        ij.EarlyExit(model, variables, **{"thresholds": [0.5, 0.5], **arguments})


def test_segments_are_the_backbone():
    model = vgg("S1")
    backbone, variables = model.backbone, trained(model)
    variables = {collection: parts["backbone"] for collection, parts in variables.items()}
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    x = images
    for segment, expected in zip(
        backbone.segments(),
        jax.jit(partial(backbone.apply, train=False))(variables, images),
        strict=True,
    ):
        (x,) = jax.jit(partial(segment.apply, train=False))(variables, x)
        np.testing.assert_array_equal(x, expected)
    with pytest.raises(ValueError, match="start is 3; choose 1 to the first tap, 2"):
        backbone.clone(start=3).check()
