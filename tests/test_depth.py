"""Cutting a model: exact, and smaller."""

import re
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interflow_jax as ij
from interflow_jax.fusion import KINDS
from interflow_jax.steps import cross_entropy
from tests.test_taps import IMAGES, Network, NNXNetwork


class Maps(nn.Module):
    """Three maps; state that only training reads; sown values; a stream of its own name."""

    @nn.compact
    def __call__(self, x, train):
        shift = self.variable("constants", "shift", jnp.ones, (3,))
        mean = self.variable("ema", "mean", jnp.zeros, (4,))
        first = nn.Dense(4, name="dense0")(x + shift.value.reshape(1, 1, 1, 3))
        if train:
            mean.value = 0.9 * mean.value + 0.1 * first.mean((0, 1, 2))
            first = first - mean.value.reshape(1, 1, 1, 4)
        self.sow("intermediates", "first", first.mean())
        dropped = nn.Dropout(0.5, rng_collection="noise")(first, deterministic=not train)
        second = nn.BatchNorm(not train, name="norm1")(nn.Dense(4, name="dense1")(dropped))
        deepest = nn.BatchNorm(not train, name="norm2")(nn.Dense(8, name="dense2")(second))
        self.sow("intermediates", "deepest", deepest.mean())
        return [first, second, deepest]


def vgg(method, **options):
    return ij.build(method, 10, depth=4, width=1 / 32, taps=(1, 2, 4), **options)


MAPS = {
    kind: ij.Interflow(Maps(), 10, ij.Fusion(kind, (0.0, 0.0, 1.0) if kind == "fixed" else None))
    for kind in KINDS
}
TAPS = ij.Taps(Network(), ("block0", "block1", "block3"))
MODELS = MAPS | {
    "StrideVGG": vgg("S3"),
    "Taps": ij.Interflow(TAPS, 10, ij.Fusion("class")),
    "NNX": ij.Interflow(
        ij.Taps(NNXNetwork, ("stem", "blocks/0", "blocks/1")), 10, ij.Fusion("shared")
    ),
}


def trained(model, seed=0):
    """Variables as after training: every one of them moved."""
    random = np.random.default_rng(seed)

    def moved(path, leaf):
        x = random.normal(0, 0.4, leaf.shape).astype(np.float32)
        return jnp.abs(x) if path[-1].key == "var" else jnp.asarray(x)

    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    return jax.tree_util.tree_map_with_path(moved, shapes)


@partial(jax.jit, static_argnums=0, compiler_options=ij.cpu_compiler_options())
def run(model, variables, images=IMAGES):
    return model.apply(variables, images)


def names(tree):
    return {"/".join(str(key.key) for key in path) for path, _ in jax.tree.leaves_with_path(tree)}


@pytest.mark.parametrize("name", MODELS)
def test_a_cut_model_predicts_what_its_branches_did(name):
    model = MODELS[name]
    variables = trained(model)
    before = jax.tree.map(jnp.copy, variables)
    whole = run(model, variables)
    sizes = []
    for branches in (1, 2, 3):
        cut, its_variables = ij.truncate(model, variables, branches, IMAGES)
        prediction = run(cut, its_variables)
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(its_variables["params"])))
        first, weights = whole.branch_logits[:, :branches], whole.weights[:branches]
        np.testing.assert_array_equal(prediction.branch_logits, first)
        if name == "geometric":
            expected = whole.ensembles[:, branches - 1]
        elif name == "fixed":  # the last branch predicts
            expected = first[:, -1]
        elif name == "softmax":
            terms = jax.nn.log_softmax(first) * weights[None, :, None]
            expected = jnp.exp(variables["params"]["fusion"]["log_scale"]) * terms.sum(1)
            np.testing.assert_allclose(prediction.logits, expected, rtol=1e-5, atol=1e-5)
            expected = prediction.logits
        elif name == "attention":
            shares = whole.weights[:, :branches] / whole.weights[:, :branches].sum(1, keepdims=True)
            scale = jnp.exp(variables["params"]["fusion"]["log_scale"])
            np.testing.assert_allclose(prediction.weights, scale * shares, rtol=1e-5)
            expected = jax.jit(lambda first, weights: (first * weights).sum(1))(
                first, prediction.weights
            )
            np.testing.assert_allclose(prediction.logits, expected, rtol=1e-5, atol=1e-5)
            expected = prediction.logits
        else:
            weights = weights.reshape(1, branches, -1)
            expected = jax.jit(lambda first, weights: (first * weights).sum(1))(first, weights)
        np.testing.assert_array_equal(prediction.logits, expected)
        assert cut.labels is None or cut.labels == model.labels[:branches]
        shapes = jax.eval_shape(cut.init, jax.random.key(0), IMAGES)
        assert names(shapes) == names(its_variables)
        if name == "StrideVGG":
            convolutions = range(1, (1, 2, 4)[branches - 1] + 1)
            assert its_variables["params"]["backbone"].keys() == {f"conv{n}" for n in convolutions}
            heads = sum(part.startswith("fully") for part in its_variables["params"])
            assert heads == (1, 1, 2)[branches - 1]  # of 2 and of 4 channels
            program = jax.export.export(jax.jit(cut.apply), platforms=["tpu"])(shapes, IMAGES)
            assert program.mlir_module().count("stablehlo.convolution") == len(convolutions)
    np.testing.assert_array_equal(prediction.logits, whole.logits)  # of all branches
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    jax.tree.map(np.testing.assert_array_equal, variables, before)


@pytest.mark.parametrize(("name", "inner"), [("Taps", "network"), ("shared", "backbone")])
def test_only_what_two_maps_need_is_left_of_a_backbone_that_is_not_ours(name, inner):
    _, variables = ij.truncate(MODELS[name], trained(MODELS[name]), 2, IMAGES)
    left = {"network": {"block0", "block1"}, "backbone": {"dense0", "dense1", "norm1"}}[inner]
    assert set(variables["params"]["backbone"][inner]) == left
    assert set(variables["batch_stats"]["backbone"][inner]) == left - {"dense0", "dense1"}
    assert "fully_connected_channels_8" not in variables["params"]


def test_a_cut_model_trains_on_with_any_collection_and_stream():
    model = MAPS["shared"]
    variables = trained(model)
    cut, its_variables = ij.truncate(model, variables, 2, IMAGES)
    for collection in ("constants", "ema"):
        assert names(its_variables[collection]) == {
            f"backbone/{name}" for name in names(variables[collection])
        }
    options = {"rngs": {"noise": jax.random.key(0)}, "mutable": ["batch_stats", "ema"]}
    _, updates = jax.jit(partial(cut.apply, train=True, **options))(its_variables, IMAGES)
    _, expected = jax.jit(partial(model.apply, train=True, **options))(variables, IMAGES)
    got, whole = updates["ema"]["backbone"]["backbone"], expected["ema"]["backbone"]
    np.testing.assert_allclose(got["mean"], whole["mean"], rtol=1e-5)
    for part in ("mean", "var"):  # dropout draws from another key
        changed = updates["batch_stats"]["backbone"]["backbone"]["norm1"][part]
        assert jnp.all(changed != variables["batch_stats"]["backbone"]["norm1"][part])
    # Of what is sown, that which needs what is left.
    _, sown = cut.apply(its_variables, IMAGES, mutable=["intermediates"])
    assert set(sown["intermediates"]["backbone"]["backbone"]) == {"first"}


@pytest.mark.parametrize("kind", [None, "geometric", "attention"])
def test_a_refitted_cut_is_better_where_it_was_fitted(kind):
    model = MAPS["shared"]
    variables = trained(model)
    _, branch_logits, _, _, features = run(model, variables)
    labels = (branch_logits[:, 1] + branch_logits[:, 0]).argmax(-1)
    losses = []
    for options in ({}, {"refit": (branch_logits, labels, features), "kind": kind}):
        cut, its_variables = ij.truncate(model, variables, 2, IMAGES, **options)
        losses.append(cross_entropy(run(cut, its_variables).logits, labels).mean())
    assert losses[1] < losses[0]
    _, expected = ij.fit_fusion(branch_logits[:, :2], labels, kind or "shared", features[:2])
    jax.tree.map(np.testing.assert_array_equal, its_variables["params"]["fusion"], expected)
    fixed = MAPS["fixed"]  # of which nothing could be fitted
    cut, _ = ij.truncate(fixed, trained(fixed), 2, IMAGES, refit=(branch_logits, labels))
    assert cut.fusion.kind == "shared"


S1 = vgg("S1")
LOGITS, LABELS = np.zeros((4, 3, 10)), np.zeros(4, int)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[
            ({"branches": branches}, f"branches is {branches!r}; the model has 3: choose 1 to 3")
            for branches in (0, 4, True, 2.0, "2")
        ],
        ({"model": nn.Dense(2)}, "model is a Dense; give an Interflow"),
        ({"model": S1.clone(fusion=nn.Dense(2))}, "fusion is a Dense; only a Fusion can be cut"),
        ({"variables": {}}, "variables are not the model's: they lack a conv1"),
        ({"variables": {"params": trained(S1)["params"]}}, "not the model's: .*batch_stats"),
        ({"model": MAPS["shared"]}, "Maps does not tell .* give images, or"),
        ({"images": np.zeros((2, 8, 8, 3), np.uint8)}, "images are uint8; give them as the model"),
        ({"images": (8, 8, 3)}, "images are tuple; give them as the model"),
        ({"branches": 1, "kind": "class"}, "kind is 'class', but nothing to fit it to"),
        ({"refit": LOGITS}, "refit holds 4 things; give branch logits and labels"),
        ({"refit": (LOGITS[:, :1], LABELS)}, r"shape \(4, 1, 10\); give .* 2 branches or more"),
        ({"refit": (LOGITS[..., :7], LABELS)}, r"shape \(4, 3, 7\); .* 10 classes"),
        ({"refit": (LOGITS[:, 0], LABELS)}, r"shape \(4, 10\); give"),
    ],
)
def test_a_cut_that_cannot_be_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ij.truncate(**{"model": S1, "variables": trained(S1), "branches": 2} | arguments)


def test_the_documentation_s_examples_run(capsys):
    text = (Path(__file__).parent.parent / "docs" / "depth.md").read_text()
    namespace: dict = {}
    for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:3]:
        exec(compile(example, "depth.md", "exec"), namespace)
    assert namespace["smaller"].labels == (7, 9)
    assert capsys.readouterr().out.startswith("(64, 10) [4 4")  # untrained, nothing is sure
    assert namespace["left"].logits.shape == (64, 10)
