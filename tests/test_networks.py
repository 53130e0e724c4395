"""Networks of other authors: found by name, tapped, with parameters of their own."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization
from safetensors.numpy import save_file

import interflow_jax as ij
from interflow_jax.networks import read_options, source
from interflow_jax.pretrained import read_pretrained

MODULE = """
import flax.linen as nn
from flax import nnx


class Linen(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(not train, name="norm")(nn.Conv(self.width, (3, 3), name="a")(x)))
        x = nn.relu(nn.Conv(self.width, (3, 3), name="b")(x))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def nnx_network(width=4, *, rngs):
    return nnx.Sequential(nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, 5, rngs=rngs))


class Blocks(nnx.Module):
    def __init__(self, width, *, rngs):
        self.blocks = nnx.List([nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, 5, rngs=rngs)])
        self.nothing = Nothing()

    def __call__(self, x):
        self.nothing(x)
        for block in self.blocks:
            x = block(x)
        return x


class Nothing(nnx.Module):
    def __call__(self, x):
        return None


class Patches(nn.Module):
    # As many transformers have them: tokens, and how many there are along the sides.
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(x).reshape(x.shape[0], -1, 4), x.shape[1], x.shape[2]


class OfPatches(nn.Module):
    @nn.compact
    def __call__(self, x):
        x, height, width = Patches(name="patches")(x)
        x = nn.Dense(4, name="dense")(x)
        return Patches(name="later")(x.reshape(x.shape[0], height, width, 4))


def no_module(*, rngs):
    return {}


def number(value=1):
    return value
"""
SHAPE = (8, 8, 3)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, *SHAPE)), jnp.float32)


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "somebodys.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "somebodys.py"
    sys.modules.pop("somebodys", None)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (None, {}),
        ("a=1,b=(2,3),c=word,d='two words',e=None,f=[1e-3]", None),
    ],
)
def test_options_are_those_of_a_call(text, options):
    if options is None:
        options = {"a": 1, "b": (2, 3), "c": "word", "d": "two words", "e": None, "f": [1e-3]}
    assert read_options(text) == options


@pytest.mark.parametrize("text", ["a", "1,2", "a=1 b=2", "a=f(1)", "**a", "a=1,a=2", "a=1)(b=2"])
def test_options_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="are not as key=value"):
        read_options(text)


def test_a_network_is_called_with_its_options(module):
    network = ij.load_network("somebodys:Linen", "width=6")
    assert isinstance(network, nn.Module)
    shapes = {layer.path: layer.shape for layer in ij.network_layers(network, SHAPE)}
    assert shapes["a"] == (1, 8, 8, 6)
    shapes = {
        layer.path: layer.shape
        for layer in ij.network_layers(ij.load_network("somebodys:nnx_network", "width=7"), SHAPE)
    }
    assert shapes["layers/0"] == (1, 8, 8, 7)
    blocks = ij.load_network("somebodys:Blocks", "width=9")  # a class, and a module without output
    shapes = {layer.path: layer.shape for layer in ij.network_layers(blocks, SHAPE)}
    assert shapes["blocks/0"] == (1, 8, 8, 9)
    assert "nothing" not in shapes


def test_numbers_beside_arrays_are_no_outputs(module):
    network = ij.load_network("somebodys:OfPatches")
    assert isinstance(network, nn.Module)
    shapes = {layer.path: layer.shape for layer in ij.network_layers(network, SHAPE)}
    assert shapes["patches"] == (1, 64, 4)
    taps = ij.Taps(network, ("patches", "dense"))
    maps, variables = taps.init_with_output(jax.random.key(0), IMAGES)
    assert [x.shape for x in maps] == [(4, 64, 4), (4, 64, 4)]
    assert set(variables["params"]["network"]) == {"patches", "dense"}


def test_what_is_no_module_is_named_when_it_is_made(module):
    with pytest.raises(ValueError, match=r"the network is a dict, not a flax.nnx.Module"):
        ij.network_layers(ij.load_network("somebodys:no_module"), SHAPE)


def test_a_backbone_whose_only_layer_is_called_network_is_itself():
    class Backbone(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [nn.Dense(3, name="network")(x)]

    model = ij.Interflow(Backbone(), 10, ij.Fusion("shared"))
    own = Backbone().init(jax.random.key(1), IMAGES)
    result = ij.with_backbone(model.init(jax.random.key(0), IMAGES), own)
    jax.tree.map(np.testing.assert_array_equal, result["params"]["backbone"], own["params"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("somebodys", None, "give it as package.module:function"),
        ("nobodys:f", None, "cannot import 'nobodys'"),
        ("somebodys:Linnen", None, "no function 'Linnen'; the closest are Linen"),
        ("somebodys:Linen", "depth=3", "cannot be called with the options 'depth=3'"),
        ("somebodys:nnx_network", "depth=3", "does not take 'depth=3'"),
        ("somebodys:number", "value=3", "returns a int; it must return a flax.linen.Module"),
    ],
)
def test_a_network_that_cannot_be_made_is_named(module, name, options, message):
    with pytest.raises(ValueError, match=message):
        ij.load_network(name, options)


def test_the_source_is_the_file_that_defines_the_function(module):
    first = source("somebodys:Linen")
    assert (first["file"], first["module"]) == (str(module), "somebodys")
    module.write_text(MODULE + "\n")
    assert source("somebodys:Linen")["sha256"] != first["sha256"]


@pytest.mark.parametrize("method", [*ij.METHODS, *ij.BASELINES])
def test_a_method_is_a_fusion_and_a_start_over_any_number_of_taps(module, method):
    network = ij.load_network("somebodys:Linen")
    gives = len(ij.METHODS.get(method, ij.METHODS["S1"]).initial_weights or ()) > 1
    weights = (0.25, 0.75) if gives else None
    model = ij.build(method, 10, taps=("a", "b"), network=network, initial_weights=weights)
    own = ij.build(method, 10)
    alone = method in ("Normal", "Scaled")
    assert model.labels == (("b",) if alone else ("a", "b"))
    assert model.fusion.kind == own.fusion.kind
    if alone:
        assert model.fusion == own.fusion
    elif gives:
        assert model.fusion.initial_weights == weights
    elif own.fusion.kind == "fixed":  # the last branch predicts
        assert model.fusion.initial_weights == (0.0, 1.0)
    else:
        assert model.fusion.initial_weights is None


def test_given_weights_are_for_methods_that_give_some(module):
    network = ij.load_network("somebodys:Linen")
    with pytest.raises(ValueError, match=r"S2 gives 4 branch weights, but there are 2 taps"):
        ij.build("S2", 10, taps=("a", "b"), network=network)
    with pytest.raises(ValueError, match="S1 does not take any"):
        ij.build("S1", 10, taps=("a", "b"), network=network, initial_weights=(0.5, 0.5))
    with pytest.raises(ValueError, match="a network needs taps"):
        ij.build("S1", 10, network=network)


@pytest.fixture
def pretrained(module):
    network = ij.load_network("somebodys:Linen")
    variables = network.init(jax.random.key(7), IMAGES)
    variables["batch_stats"] = jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])
    return network, variables


def test_pretrained_variables_go_where_they_belong_and_nowhere_else(pretrained):
    network, own = pretrained
    model = ij.build("S1", 10, taps=("a", "norm"), network=network)
    variables = model.init(jax.random.key(0), IMAGES)
    result = ij.with_backbone(variables, own)
    for collection, names in (("params", ("a", "norm")), ("batch_stats", ("norm",))):
        inside = result[collection]["backbone"]["network"]
        assert set(inside) == set(names)
        for name in names:
            jax.tree.map(np.testing.assert_array_equal, inside[name], own[collection][name])
    for name in variables["params"].keys() - {"backbone"}:
        jax.tree.map(
            np.testing.assert_array_equal, result["params"][name], variables["params"][name]
        )
    # The network's own output up to the tap, bit for bit.
    _, intermediates = network.apply(own, IMAGES, capture_intermediates=True)
    expected = intermediates["intermediates"]["norm"]["__call__"][0]
    backbone = {name: part["backbone"] for name, part in result.items()}
    np.testing.assert_array_equal(model.backbone.apply(backbone, IMAGES)[1], expected)


def test_what_does_not_fit_is_named_by_path_and_shape(pretrained):
    network, own = pretrained
    model = ij.build("S1", 10, taps=("a", "b"), network=network)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    wrong = {**own, "params": {**own["params"], "b": {"kernel": jnp.zeros((1, 2))}}}
    with pytest.raises(ValueError, match="do not fit the backbone") as error:
        ij.with_backbone(variables, wrong)
    assert "params/b/kernel is (1, 2), the backbone's (3, 3, 4, 4)" in str(error.value)
    assert "params/b/bias (4,) is missing" in str(error.value)


def test_a_model_without_a_backbone_has_no_place_for_them(pretrained):
    variables = jax.eval_shape(nn.Dense(2).init, jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match="parameters are bias, kernel; pretrained ones go into"):
        ij.with_backbone(variables, pretrained[1])


@pytest.mark.parametrize("kind", ["safetensors", "msgpack", "parameters alone"])
def test_files_hold_what_was_written(pretrained, tmp_path, kind):
    _, own = pretrained
    own = own if kind != "parameters alone" else {"params": own["params"]}
    if kind == "safetensors":
        file = tmp_path / "weights.safetensors"
        flat = jax.tree_util.tree_leaves_with_path(own)
        separator = jax.tree_util.keystr
        save_file(
            {separator(path, simple=True, separator="/"): np.asarray(x) for path, x in flat}, file
        )
    else:
        file = tmp_path / "weights.msgpack"
        file.write_bytes(
            serialization.msgpack_serialize(
                serialization.to_state_dict(own if kind == "msgpack" else own["params"])
            )
        )
    jax.tree.map(np.testing.assert_array_equal, read_pretrained(file), dict(own))


def test_files_that_are_none_are_refused(tmp_path):
    for name in ("a.safetensors", "a.msgpack"):
        (tmp_path / name).write_bytes(b"\xc1nothing")
        with pytest.raises(ValueError, match=r"neither safetensors .* nor Flax's msgpack"):
            read_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be read"):
        read_pretrained(tmp_path / "absent.safetensors")


def test_a_frozen_backbone_stays_as_it_is_and_the_heads_train(pretrained):
    """Decay, gradients and statistics leave it; so does a network that trains where it can."""
    network, own = pretrained
    model = ij.build("S1", 10, taps=("a", "norm"), network=network, frozen=True)
    optimizer = ij.make_optimizer(0.1, frozen=("backbone",))
    state = ij.create_state(model, optimizer, jax.random.key(0), SHAPE)
    variables = ij.with_backbone({"params": state.params, "batch_stats": state.batch_stats}, own)
    state = state.replace(**variables)
    step = jax.jit(lambda state: ij.train_step(model, optimizer, state, IMAGES, jnp.arange(4))[0])
    after = step(step(state))
    for before, now in (
        (state.batch_stats, after.batch_stats),
        (state.params["backbone"], after.params["backbone"]),
    ):
        jax.tree.map(np.testing.assert_array_equal, before, now)
    for name in state.params.keys() - {"backbone"}:
        changed = jax.tree.map(
            lambda a, b: bool(jnp.any(a != b)), state.params[name], after.params[name]
        )
        assert all(jax.tree.leaves(changed)), name
    # The program has no backward pass through the backbone: one convolution, forward.
    assert step.lower(state).as_text().count("stablehlo.convolution") == 1


def test_frozen_names_are_those_of_parameters():
    model = ij.build("S1", 10, width=1 / 32)
    with pytest.raises(ValueError, match=r"frozen is 'backbon', but .* begin with backbone, fully"):
        ij.create_state(
            model, ij.make_optimizer(0.1, frozen=("backbon",)), jax.random.key(0), SHAPE
        )


def test_a_class_token_is_the_first_of_a_map_of_tokens():
    class Tokens(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [x.reshape(x.shape[0], -1, x.shape[-1]), x]

    def logits(pool, images):
        model = ij.Interflow(Tokens(), 10, ij.Fusion("fixed", (0.5, 0.5)), pool=pool)
        variables = model.init(jax.random.key(0), images)
        return model.apply(variables, images).branch_logits

    first = jnp.broadcast_to(IMAGES[:, :1, :1], IMAGES.shape)
    np.testing.assert_allclose(
        logits("first", IMAGES)[:, 0], logits("mean", first)[:, 0], atol=1e-5
    )
    np.testing.assert_array_equal(logits("first", IMAGES)[:, 1], logits("mean", IMAGES)[:, 1])


def test_ours_lives_in_nnx_too():
    model = ij.build("S1", 10, depth=4, taps=(2, 4), width=1 / 32)
    ours = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(IMAGES)
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    variables = {name: nnx.to_pure_dict(nnx.state(ours, kind)) for name, kind in kinds.items()}
    expected = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, expected)
    logits = model.apply(variables, IMAGES).logits
    np.testing.assert_array_equal(ours(IMAGES).logits, logits)
    loss, gradients = nnx.value_and_grad(lambda ours: ours(IMAGES).logits.sum())(ours)
    np.testing.assert_allclose(loss, logits.sum(), rtol=1e-5)
    assert bool(jnp.any(gradients["fusion"]["weights"].get_value() != 0))


def test_operations_of_a_foreign_network_are_xla_s():
    from interflow_jax.backbones import forward_flops

    class Dense(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [nn.Dense(5, use_bias=False)(x)]

    assert forward_flops(Dense(), (8, 8, 3)) == 2 * 8 * 8 * 3 * 5
