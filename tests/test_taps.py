"""An unmodified network, tapped by the names of its layers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import interflow_jax as ij
from interflow_jax.nnx_taps import NNXTaps
from interflow_jax.taps import Taps, layers

IMAGES = jax.random.normal(jax.random.key(7), (4, 8, 8, 3))


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

    block: Any = Block

    @nn.compact
    def __call__(self, x, train=False):
        for number in range(4):
            x = self.block(8, name=f"block{number}")(x, train)
        x = nn.BatchNorm(use_running_average=not train, name="last_norm")(x)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


BLOCKS = {
    "plain": Block,
    "remat": nn.remat(Block, static_argnums=(2,)),
    "jit": nn.jit(Block, static_argnums=(2,)),
}
every_kind_of_block = pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)


def within(shapes, whole):
    """The part of a tree that another has, by their names."""
    if not isinstance(shapes, dict):
        return whole
    return {name: within(part, whole[name]) for name, part in shapes.items()}


def variables_of(taps, network, whole):
    """The variables that `Taps` needs, taken from the whole network's."""
    needed = jax.eval_shape(Taps(network, taps).init, jax.random.key(0), IMAGES)
    return {
        collection: {"network": within(parts["network"], whole[collection])}
        for collection, parts in needed.items()
    }


@every_kind_of_block
def test_layers_lists_every_call_in_order(block):
    paths = [layer.path for layer in layers(Network(block), IMAGES)]
    blocks = [
        f"block{number}{inner}"
        for number in range(4)
        for inner in ("", "/conv1", "/norm1", "/conv2")
    ]
    assert paths == [*blocks, "last_norm", "head"]
    first, *_, last = layers(Network(block), jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32))
    assert (first.shape, last.shape, last.dtype) == ((4, 8, 8, 8), (4, 10), jnp.float32)


@every_kind_of_block
@pytest.mark.parametrize("train", [False, True])
def test_outputs_are_the_network_s_own_bit_for_bit(block, train):
    network, taps = Network(block), ("block1/conv1", "block2")
    whole = network.init(jax.random.key(1), IMAGES)
    variables = variables_of(taps, network, whole)

    @jax.jit
    def tapped(variables):
        return Taps(network, taps).apply(variables, IMAGES, train, mutable=["batch_stats"])

    @jax.jit
    def untouched(variables):
        return network.apply(variables, IMAGES, train, mutable=["batch_stats"])[1]

    (inner, outer), updates = tapped(variables)
    kept = untouched(whole)
    # The same parameters in plain blocks, whose intermediates Flax can capture.
    plain = jax.jit(
        lambda variables: Network().apply(
            variables, IMAGES, train, capture_intermediates=True, mutable=True
        )[1]["intermediates"]
    )(whole)
    np.testing.assert_array_equal(inner, plain["block1"]["conv1"]["__call__"][0])
    np.testing.assert_array_equal(outer, plain["block2"]["__call__"][0])
    statistics = updates["batch_stats"]["network"]
    assert set(statistics) == {"block0", "block1", "block2"}
    for name, values in statistics.items():
        jax.tree.map(np.testing.assert_array_equal, values, kept["batch_stats"][name])


@every_kind_of_block
def test_what_lies_after_the_last_tap_is_neither_made_nor_computed(block):
    model = ij.Interflow(Taps(Network(block), ("block0", "block1/conv1")), 10, ij.Fusion("shared"))
    optimizer = ij.make_optimizer(1e-2)
    state = ij.create_state(model, optimizer, jax.random.key(0), IMAGES.shape[1:])
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


@every_kind_of_block
def test_gradients_of_a_branch_reach_the_layers_before_its_tap_and_no_other(block):
    taps = ("block0/conv1", "block1", "block2/norm1")
    model = Taps(Network(block), taps)
    variables = model.init(jax.random.key(0), IMAGES)

    def sums(params):
        maps, _ = model.apply({**variables, "params": params}, IMAGES, True, mutable="batch_stats")
        return jnp.stack([jnp.sum(jnp.sin(x)) for x in maps])

    gradients = jax.jit(jax.jacrev(sums))(variables["params"])["network"]
    reached = [
        {
            f"{outer}/{inner}"
            for outer, parts in gradients.items()
            for inner, leaves in parts.items()
            if any(bool(jnp.any(jnp.abs(leaf[branch]) > 1e-6)) for leaf in leaves.values())
        }
        for branch in range(3)
    ]
    whole = [[f"block{n}/{layer}" for layer in ("conv1", "norm1", "conv2")] for n in range(2)]
    assert reached[0] == {"block0/conv1"}
    assert reached[1] == {*whole[0], *whole[1]}
    assert reached[2] == {*whole[0], *whole[1], "block2/conv1", "block2/norm1"}


def test_taps_in_another_order_and_after_an_activation():
    network, taps = Network(), ("block1", "block0/conv1")
    variables = Taps(network, taps).init(jax.random.key(0), IMAGES)
    later, earlier = Taps(network, taps).apply(variables, IMAGES)
    other = Taps(network, taps[::-1], after=nn.relu).apply(variables, IMAGES)
    np.testing.assert_array_equal(other[0], nn.relu(earlier))
    np.testing.assert_array_equal(other[1], nn.relu(later))
    assert Taps(network, taps).labels == taps


class Twice(nn.Module):
    """A module called twice, and one that returns a tuple."""

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(3, name="dense")
        x = dense(dense(x))
        return Pair(name="pair")(x)[0]


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * 2, x.sum()


def test_of_a_module_called_twice_the_last_call_counts_or_the_one_that_is_named():
    x = jnp.ones((2, 3))
    assert [layer.path for layer in layers(Twice(), x)] == ["dense:0", "dense:1", "pair"]
    taps = ("dense", "dense:0", "dense:1", "pair")
    last, first, second, pair = Taps(Twice(), taps).apply(
        Taps(Twice(), taps).init(jax.random.key(0), x), x
    )
    np.testing.assert_array_equal(last, second)
    assert np.any(np.asarray(first) != np.asarray(second))
    np.testing.assert_array_equal(pair, second * 2)


class Cell(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(3, name="dense")(x), None


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        scan = nn.scan(Cell, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return scan(name="cells")(x, None)[0]


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(Encoder(name="encoder")(x))


def test_around_a_scan_can_be_tapped_and_inside_not():
    x = jnp.ones((2, 3))
    assert [layer.path for layer in layers(Scanned(), x)] == ["encoder", "head"]
    variables = Taps(Scanned(), ("encoder",)).init(jax.random.key(0), x)
    assert set(variables["params"]["network"]) == {"encoder"}
    for inside in ("encoder/cells", "encoder/cells/dense"):
        with pytest.raises(ValueError, match=r"inside nn\.scan .* the layer around it, 'encoder'"):
            Taps(Scanned(), (inside,)).init(jax.random.key(0), x)


@pytest.mark.parametrize(
    ("tap", "close"),
    [("block_1", r"block1 \(4, 8, 8, 8\)"), ("block11", "block1"), ("dense:7", "block"), ("", "")],
)
def test_an_unknown_layer_is_named_with_the_closest(tap, close):
    with pytest.raises(ValueError, match=f"no layer '{tap}'; the closest are .*{close}"):
        Taps(Network(), (tap,)).init(jax.random.key(0), IMAGES)


class NNXBlock(nnx.Module):
    def __init__(self, channels_in, channels, *, rngs):
        self.conv = nnx.Conv(channels_in, channels, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(channels, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(nnx.relu(self.norm(self.conv(x))))


class NNXNetwork(nnx.Module):
    def __init__(self, *, rngs):
        self.stem = NNXBlock(3, 4, rngs=rngs)
        self.blocks = nnx.List([NNXBlock(4, 4, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 10, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def test_an_nnx_network_trains_and_predicts_each_image_by_itself():
    model = ij.Interflow(NNXTaps(NNXNetwork, ("stem", "blocks/0")), 10, ij.Fusion("shared"))
    optimizer = ij.make_optimizer(1e-2)
    state = ij.create_state(model, optimizer, jax.random.key(0), IMAGES.shape[1:])
    labels = jnp.arange(4)
    step = jax.jit(
        lambda state, key: ij.train_step(model, optimizer, state, IMAGES, labels, key=key)[0]
    )
    after = step(state, jax.random.key(1))
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.batch_stats, after.batch_stats)
    assert all(jax.tree.leaves(changed["backbone"]["network"]["stem"]))
    together = ij.predict(model, after, IMAGES).logits
    alone = ij.predict(model, after, IMAGES[2:3]).logits
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"no layer 'tail'; the closest are .*head \(4, 10\)"):
        NNXTaps(NNXNetwork, ("tail",)).init(jax.random.key(0), IMAGES)


def test_our_models_live_in_nnx_too():
    model = nnx.bridge.ToNNX(ij.build("S1", 10, width=1 / 16), rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(model, IMAGES)
    assert model(IMAGES).logits.shape == (4, 10)
