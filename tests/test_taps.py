"""An unmodified network, tapped by the names of its layers."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import interflow_jax as ij

IMAGES = jax.random.normal(jax.random.key(7), (4, 8, 8, 3))
KEY = jax.random.key(0)


class Block(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, x, train=False):
        y = nn.Conv(self.channels, (3, 3), name="conv1")(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm1")(y))
        y = nn.Conv(self.channels, (3, 3), name="conv2")(y)
        return x + y if x.shape == y.shape else y


class Network(nn.Module):
    """Four blocks, three of them alike, and a head with BatchNorm."""

    block: type = Block

    @nn.compact
    def __call__(self, x, train=False):
        for number in range(4):
            x = self.block(4, name=f"block{number}")(x, train)
        x = nn.BatchNorm(use_running_average=not train, name="last_norm")(x)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class Around(nn.Module):
    """Two layers, and between them what a function of this module and their output does."""

    between: Any = lambda _, x: x

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(2, name="last")(self.between(self, nn.Dense(3, name="first")(x)))


class Dense(nn.Module):
    layer: str = "dense"

    @nn.compact
    def __call__(self, x, *_):
        return nn.Dense(3, name=self.layer)(x)


class Scaled(Dense):
    @nn.compact
    def __call__(self, x):
        return super().__call__(x) * 100


class Pair(Dense):
    @nn.compact
    def __call__(self, x, *_):
        return super().__call__(x), x.sum()


BLOCKS = {
    "plain": Block,
    "remat": nn.remat(Block, static_argnums=(2,)),
    "jit": nn.jit(Block, static_argnums=(2,)),
}
every_kind_of_block = pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)


def paths(network):
    return [layer.path for layer in ij.layers(network, IMAGES)]


def tapped(network, *taps, **options):
    """The variables of a `Taps`, and what it gives for them."""
    model = ij.Taps(network, taps)
    variables = jax.jit(model.init)(KEY, IMAGES)
    return variables, jax.jit(partial(model.apply, **options))(variables, IMAGES)


@every_kind_of_block
@pytest.mark.parametrize("train", [False, True])
def test_layers_are_listed_and_outputs_the_network_s_own_bit_for_bit(block, train):
    network, model = Network(block), ij.Taps(Network(block), ("block1/conv1", "block2"))
    listed = ij.layers(network, jax.ShapeDtypeStruct(IMAGES.shape, jnp.float32))
    inside = ("", "/conv1", "/norm1", "/conv2")
    blocks = [f"block{number}{layer}" for number in range(4) for layer in inside]
    assert [layer.path for layer in listed] == [*blocks, "last_norm", "head"]
    assert [listed[0].shape, *listed[-1][1:]] == [(4, 8, 8, 4), (4, 10), jnp.float32]
    whole = jax.jit(Network().init)(jax.random.key(1), IMAGES)
    # A trace of nn.jit that must not be taken for one of Taps.
    jax.eval_shape(partial(network.apply, mutable=True), whole, IMAGES)
    needed = jax.eval_shape(model.init, KEY, IMAGES)
    variables = {
        kind: {"network": {name: whole[kind][name] for name in parts["network"]}}
        for kind, parts in needed.items()
    }
    apply = partial(model.apply, train=train, mutable=["batch_stats"])
    (inner, outer), updates = jax.jit(apply)(variables, IMAGES)
    # The same parameters in plain blocks, whose intermediates Flax can capture.
    plain = partial(Network().apply, train=train, capture_intermediates=True, mutable=True)
    expected = jax.jit(plain)(whole, IMAGES)[1]
    outputs, statistics = expected["intermediates"], updates["batch_stats"]["network"]
    np.testing.assert_array_equal(inner, outputs["block1"]["conv1"]["__call__"][0])
    np.testing.assert_array_equal(outer, outputs["block2"]["__call__"][0])
    assert set(statistics) == {"block0", "block1", "block2"}
    for name, values in statistics.items():
        jax.tree.map(np.testing.assert_array_equal, values, expected["batch_stats"][name])


@every_kind_of_block
def test_what_lies_after_the_last_tap_is_neither_made_nor_computed(block):
    backbone = ij.Taps(Network(block), ("block0", "block1/conv1"))
    model, optimizer = ij.Interflow(backbone, 10, ij.Fusion("shared")), ij.make_optimizer(1e-2)
    create = partial(ij.create_state, model, optimizer, image_shape=IMAGES.shape[1:])
    state = jax.jit(create)(KEY)
    network = state.params["backbone"]["network"]
    assert {name: set(part) for name, part in network.items()} == {
        "block0": {"conv1", "norm1", "conv2"},
        "block1": {"conv1"},
    }
    assert set(state.batch_stats["backbone"]["network"]) == {"block0"}
    step = jax.jit(lambda state: ij.train_step(model, optimizer, state, IMAGES, jnp.arange(4)))
    convolutions = step.lower(state).as_text().count("stablehlo.convolution")
    # Three convolutions and their kernels' gradients, two gradients of inputs; remat convolves
    # again where a gradient needs an output that it did not keep.
    assert convolutions == 3 + 3 + 2 + (block is BLOCKS["remat"])
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    program = jax.make_jaxpr(model.apply)(variables, IMAGES)  # all that runs outside of jit
    assert str(program).count("conv_general_dilated[") == 3


@every_kind_of_block
def test_gradients_of_a_branch_reach_the_layers_before_its_tap_and_no_other(block):
    model = ij.Taps(Network(block), ("block0/conv1", "block1", "block2/norm1"))
    variables = jax.jit(model.init)(KEY, IMAGES)

    def sums(params):
        maps, _ = model.apply({**variables, "params": params}, IMAGES, True, mutable="batch_stats")
        return jnp.stack([jnp.sum(jnp.sin(x)) for x in maps])

    gradients = jax.jit(jax.jacrev(sums))(variables["params"])["network"]
    reached = [
        {
            f"{outer}/{inner}"
            for outer, parts in gradients.items()
            for inner, leaves in parts.items()
            if any(np.any(leaf[branch] != 0) for leaf in leaves.values())
        }
        for branch in range(3)
    ]
    whole = {f"block{n}/{layer}" for n in range(2) for layer in ("conv1", "norm1", "conv2")}
    assert reached == [{"block0/conv1"}, whole, {*whole, "block2/conv1", "block2/norm1"}]


def test_taps_in_another_order_and_after_an_activation():
    with pytest.warns(UserWarning, match="are not in the order of the calls"):
        variables, (later, earlier) = tapped(Network(), "block1", "block0/conv1")
    model = ij.Taps(Network(), ["block0/conv1", "block1"], after=nn.relu)
    other = jax.jit(model.apply)(variables, IMAGES)
    np.testing.assert_array_equal(other[0], nn.relu(earlier))
    np.testing.assert_array_equal(other[1], nn.relu(later))
    assert model.labels == ("block0/conv1", "block1")
    assert ij.Taps(Network(), "block0").labels == ("block0",)


def base_class(module, x):
    return Scaled(name="block")(x)


def networks(module, x):
    """Applies a network and another `Taps`, both with layers of the same name."""
    variables = {"params": {"first": {"kernel": 1e6 * jnp.eye(3), "bias": jnp.ones(3)}}}
    y, changed = Dense("first").apply(variables, x, mutable=True)
    assert set(changed) == {"params"}
    return ij.Taps(Around(), ("first",), name="taps")(x + y)[0]


def twice(module, x):
    pair = Pair(name="pair")
    return pair(pair(x)[0])[0]


def more(module, x, calls=(1, 3)):
    dense = nn.Dense(3, name="dense")
    for _ in range(calls[not module.is_initializing()]):
        x = dense(x)
    return x


def scan(module, x):
    copies = nn.scan(Pair, variable_axes={True: 0}, split_rngs={"params": True}, length=3)
    return copies(name="inside")(x, None)[0]


def vmap(module, x):
    options = {"split_rngs": {"params": True}, "in_axes": None, "axis_size": 2}
    return nn.vmap(Dense, variable_axes={"params": 0}, **options)(name="inside")(x).sum(0)


def cond(module, x):
    def inside(_, x):
        return Dense(name="inside")(x)

    # Flax's own capture does not take branches with different layers.
    branches = (inside, inside if module.is_mutable_collection("intermediates") else Around.between)
    initializing = module.is_initializing()
    return inside(module, x) if initializing else nn.cond(True, *branches, module, x)


@pytest.mark.parametrize(
    ("between", "listed", "taps"),
    [
        (base_class, ["block", "block/dense"], ["block"]),
        (networks, ["taps"], ["first", "taps"]),
        (twice, ["pair:0", "pair/dense:0", "pair:1", "pair/dense:1"], ["first", "pair"]),
        (more, ["dense:0", "dense:1", "dense:2"], ["first", "dense"]),
        (partial(more, calls=(2, 1)), ["dense"], ["first", "dense"]),
        (scan, [], ["first"]),
        (vmap, [], ["first"]),
        (cond, [], ["first"]),
    ],
)
def test_what_counts_is_the_last_call_of_the_network_s_own_modules(between, listed, taps):
    network = Around(between)
    assert paths(network) == ["first", *listed, "last"]
    variables, maps = tapped(network, *taps, "last")
    apply = partial(network.apply, capture_intermediates=True, mutable=["intermediates"])
    captured = jax.jit(apply)({"params": variables["params"]["network"]}, IMAGES)[1]
    for tap, array in zip([*taps, "last"], maps, strict=True):
        expected = jax.tree.leaves(captured["intermediates"][tap]["__call__"][-1])[0]
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("between", [twice, more])
def test_a_call_can_be_named_by_its_number(between):
    name = "pair" if between is twice else "dense"
    last, *calls = (f"{name}:{number}" for number in (1 if between is twice else 2, 0, 1))
    _, (unnamed, named, first, second) = tapped(Around(between), name, last, *calls)
    np.testing.assert_array_equal(unnamed, named)
    assert np.any(first != second)
    assert set(tapped(Around(between), "first")[0]["params"]["network"]) == {"first"}


@pytest.mark.parametrize("transform", [scan, vmap, cond])
def test_inside_a_transform_without_a_single_output_nothing_can_be_tapped(transform):
    network = Around(lambda _, x: Around(transform, name="around")(x).repeat(2, -1)[..., :3])
    for tap in ("around/inside", "around/inside/dense"):
        message = rf"inside nn\.{transform.__name__} .* tap the layer around it, 'around'"
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(ij.Taps(network, tap).init, KEY, IMAGES)
    with pytest.raises(ValueError, match="tap one before or after it"):
        jax.eval_shape(ij.Taps(Around(transform), "inside").init, KEY, IMAGES)


class State(nn.Module):
    """A count, statistics, sown values and noise, before and after its layer "first"."""

    @nn.compact
    def __call__(self, x, train=False):
        changes = self.is_mutable_collection("cache") and not self.is_initializing()
        cached = [self.variable("cache", name, jnp.zeros, ()) for name in ("count", "sum")]
        if train:
            x += jax.random.normal(self.make_rng("noise"), x.shape)
        first = nn.Dense(3, name="first")(x)
        self.sow("intermediates", "early", first.mean())
        trains = self.is_mutable_collection("batch_stats")  # as some networks tell it
        last = nn.Dense(3, name="last")(nn.BatchNorm(not trains, name="norm")(first))
        jax.debug.callback(lambda _: None, last)  # a print must not hold what lies after the tap
        self.sow("intermediates", "late", last.mean())
        if changes:
            cached[0].value, cached[1].value = cached[0].value + 1, last.sum()
        return last


@pytest.mark.parametrize("train", [False, True])
def test_what_the_caller_declares_mutable_comes_out_where_it_can_be_computed(train):
    options = {"train": train, "rngs": {"noise": KEY}}
    options["mutable"] = ["cache", "intermediates", "batch_stats"]
    for tap, computed in (("first", False), ("last", True)):
        variables, (maps, changed) = tapped(State(), tap, **options)
        assert set(changed["intermediates"]["network"]) == {"early", *["late"] * computed}
        cache = changed["cache"]["network"]
        assert (cache["count"], bool(cache["sum"])) == (1, computed)
        moved = jax.tree.map(
            lambda new, old: bool(jnp.any(new != old)),
            changed.get("batch_stats", {}),
            variables.get("batch_stats", {}),
        )
        assert jax.tree.leaves(moved) == [train] * 2 * computed
        _, (other, _) = tapped(State(), tap, **options | {"rngs": {"noise": jax.random.key(1)}})
        assert np.any(other[0] != maps[0]) == train
    with pytest.raises(ValueError, match="missing: batch_stats/norm/mean, batch_stats/norm/var"):
        ij.Taps(State(), ("last",)).apply({"params": variables["params"]}, IMAGES)


def test_layers_are_listed_for_arguments_of_any_kind():
    """A switch may come by position: it is no array."""

    class Switched(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(3, name="one" if train else "other")(x)

    assert [layer.path for layer in ij.layers(Switched(), IMAGES, False)] == ["other"]
    assert [layer.path for layer in ij.layers(Switched(), IMAGES, True)] == ["one"]


@pytest.mark.parametrize(
    ("network", "taps", "message"),
    [
        (Network(), (), r"taps are \(\); give one or more names"),
        (Network(), (0, 1), r"taps are \(0, 1\); give one or more names"),
        (Network(), 7, "taps are 7; give one or more names"),
        (Network, "block1", "network is the class Network; give an instance"),
        ({}, "block1", "network is a dict; give a Linen module, an NNX module, or a function"),
        (paths, "block1", "network is paths, which takes no rngs; give what it returns"),
        (Network(), "block_1", r"no layer 'block_1'; the closest are .*block1 \(4, 8, 8, 4\)"),
        (Network(), ("dense:7",), "no layer 'dense:7'; the closest are .*block"),
        (Network(), ("",), "no layer ''; the closest are"),
    ],
)
def test_taps_that_cannot_be_are_named(network, taps, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(ij.Taps(network, taps).init, KEY, IMAGES)


class NNXNetwork(nnx.Module):
    def __init__(self, *, rngs):
        self.stem = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rng_collection="drop_path", rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        x = self.dropout(self.norm(self.stem(x)))
        self.sow(nnx.Intermediate, "mean", x.mean())
        for block in self.blocks:
            x = nnx.relu(block(x))
        return x


INSTANCE = NNXNetwork(rngs=nnx.Rngs(5))


@pytest.mark.parametrize(
    ("network", "stream"),
    [
        (NNXNetwork, "drop_path"),
        (lambda rngs: NNXNetwork(rngs=rngs), "dropout"),
        (INSTANCE, "dropout"),
    ],
    ids=["class", "function", "instance"],
)
def test_an_nnx_network_trains_and_predicts_each_image_by_itself(network, stream):
    assert paths(network) == ["blocks/0", "blocks/1", "dropout", "norm", "stem"]
    model = ij.Taps(network, ("dropout", "blocks/0"), after=nn.relu)
    variables = jax.jit(model.init)(KEY, IMAGES)
    own = variables["params"]["network"]["stem"]["kernel"] == INSTANCE.stem.kernel[...]
    assert np.all(own) == (network is INSTANCE)
    options = {"train": True, "mutable": ["batch_stats", "intermediates"]}
    train = jax.jit(lambda key: model.apply(variables, IMAGES, rngs={stream: key}, **options))
    (one, changed), (same, _), (other, _) = (train(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one[1], same[1])
    assert np.any(one[1] != other[1])  # drawn anew at every step, whatever the stream's name
    assert one[0].min() == 0  # after relu
    assert np.any(changed["batch_stats"]["network"]["norm"]["mean"] != 0)
    assert set(changed["intermediates"]["network"]) == {"mean"}
    together, alone = (jax.jit(model.apply)(variables, x) for x in (IMAGES, IMAGES[2:3]))
    np.testing.assert_allclose(together[1][2:3], alone[1], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="switch is 'train', but an NNX network has modes"):
        ij.Taps(network, "stem", switch="train")
    with pytest.raises(ValueError, match=r"no layer 'tail'; the closest are .*stem \(4, 8, 8, 4\)"):
        jax.eval_shape(ij.Taps(network, ("tail",)).init, KEY, IMAGES)
