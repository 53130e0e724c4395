"""Networks of other authors: found by name, trusted by the caller, with their own parameters."""

import hashlib
import importlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict
from safetensors.flax import save

import interflow_jax as ij
from interflow_jax.networks import read_options, recorded_network, source

MODULE = """
import flax.linen as nn
from flax import nnx
from flax.errors import InvalidRngError


class Linen(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(not train, name="norm")(nn.Conv(self.width, (3, 3), name="a")(x)))
        x = nn.relu(nn.Conv(self.width, (3, 3), name="b")(x))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class Blocks(nnx.Module):
    def __init__(self, width, *, rngs):
        self.blocks = nnx.List([nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, 5, rngs=rngs)])
        self.nothing = Nothing()

    def __call__(self, x):
        self.nothing(x)
        return self.blocks[1](self.blocks[0](x))


class Nothing(nnx.Module):
    def __call__(self, x):
        return None


def nnx_network(width=4, *, rngs):
    return Blocks(width, rngs=rngs)


def number(value=1, **rest):
    return value


def no_module(*, rngs):
    return {}


made = Linen(7)
"""
SHAPE = (8, 8, 3)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, *SHAPE)), jnp.float32)
KEY = jax.random.key(0)
same = partial(jax.tree.map, np.testing.assert_array_equal)


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "somebodys.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "somebodys.py"
    sys.modules.pop("somebodys", None)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        (None, {}),
        (
            "a=1,b=(2,3),c=word,d='a b',e=None",
            {"a": 1, "b": (2, 3), "c": "word", "d": "a b", "e": None},
        ),
        ("a=[1e-3],b={'c':-1},d='false',", {"a": [1e-3], "b": {"c": -1}, "d": "false"}),
        *[(text, "each option is key=value") for text in ("a", "1,2", "**a", 5, {"a": 1})],
        *[(text, "is no number, string, tuple") for text in ("a=f(1)", "a=x.y", "a=(1,b)")],
        ("a=1 b=2", "invalid syntax"),
        ("a=1,a=2", "each option stands once"),
        ("a=1).b(c=2", "the brackets do not match"),
        ("a=true", "true is a word: write True, or 'true'"),
        ("a=" + "-" * 10**5 + "1", "are not as key=value"),
    ],
)
def test_options_are_those_of_a_call_or_refused(text, result):
    if isinstance(result, dict):
        assert read_options(text) == result
    else:
        with pytest.raises(ValueError, match=result):
            read_options(text)


@pytest.mark.parametrize(
    ("name", "options", "layer", "shape"),
    [
        ("Linen", "width=6", "a", (1, 8, 8, 6)),
        ("made", None, "a", (1, 8, 8, 7)),
        ("nnx_network", "width=7", "blocks/0", (1, 8, 8, 7)),
        ("Blocks", "width=9", "blocks/0", (1, 8, 8, 9)),  # a class
    ],
)
def test_a_network_is_called_with_its_options(module, name, options, layer, shape):
    network = ij.load_network(f"somebodys:{name}", options)
    layers = {layer.path: layer.shape for layer in ij.network_layers(network, SHAPE)}
    assert layers[layer] == shape
    assert "nothing" not in layers  # a module without output
    maps, variables = jax.jit(ij.Taps(network, (layer,)).init_with_output)(KEY, IMAGES)
    assert maps[0].shape == (4, *shape[1:])
    assert "head" not in variables["params"]["network"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *[
            (name, None, "give it as package.module:function")
            for name in ("somebodys", "a:b:c", ".a:b", "a:\x1b[2J", ":f", None, 5)
        ],
        ("nobodys:f", None, "cannot import 'nobodys'"),
        ("somebodys:Linnen", None, "no function 'Linnen'; the closest are Linen"),
        ("somebodys:Linen", "depth=3", "cannot be called with the options 'depth=3'"),
        ("somebodys:nnx_network", "depth=3", "does not take 'depth=3'"),
        ("somebodys:number", "value=3", "returns a int; it must return a flax.linen.Module"),
        ("somebodys:made", "width=3", "is a network, not a function: it takes no 'width=3'"),
        ("sys:exit", None, "cannot be called with no options"),
    ],
)
def test_a_network_that_cannot_be_made_is_named(module, name, options, message):
    with pytest.raises(ValueError, match=message):
        ij.load_network(name, options)
    with pytest.raises(ValueError, match=r"the network is a dict, not a flax.nnx.Module"):
        ij.network_layers(ij.load_network("somebodys:no_module"), SHAPE)


def record(name, options, file):
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return {"backbone": name, "backbone_options": options, "backbone_sha256": digest}


def test_what_a_record_names_is_neither_imported_nor_called(module, monkeypatch):
    module.write_text(f"open({str(module) + '.read'!r}, 'w')")
    monkeypatch.setattr(subprocess, "getoutput", lambda cmd: pytest.fail("called"))
    of_subprocess = record("subprocess:getoutput", "cmd='id'", subprocess.__file__)
    for entry in (record("somebodys:run", "", module), of_subprocess, {"backbone": ["a:b"]}):
        with pytest.raises(ValueError, match=r"what a file names is not imported: .*trust_code"):
            recorded_network(entry)
        for given in ("somebody:else", nn.Dense(2), nn.Dense, partial(print), read_options, "vgg"):
            with pytest.raises(ValueError, match="but the run's network is") as error:
                recorded_network(entry, given)
            assert "\n" not in str(error.value)
    assert "somebodys" not in sys.modules
    assert not Path(f"{module}.read").exists()


def test_the_project_s_own_networks_open_as_they_are_recorded(monkeypatch):
    name = "experiments.tables.backbones"
    file = Path(ij.__file__).parents[1] / "experiments/tables/backbones.py"
    monkeypatch.delitem(sys.modules, name, raising=False)
    for entry in (
        record(f"{name}:ResNet", "width=8", __file__),
        record(f"{name}:partial", "func='a'", file),
        record("experiments.tables.presets:grid", "", file.with_name("presets.py")),
    ):
        with pytest.raises(ValueError, match="what a file names is not imported"):
            recorded_network(entry)
    assert name not in sys.modules
    network: Any = recorded_network(record(f"{name}:ResNet", "width=8", file))
    assert (type(network).__name__, network.width) == ("ResNet", 8)


def test_a_package_of_that_name_in_the_current_folder_is_not_the_project_s(tmp_path):
    """Its record names the project's network, with the digest of the source that is here."""
    root = Path(ij.__file__).parents[1]
    (tmp_path / "experiments" / "tables").mkdir(parents=True)
    for place in ("__init__.py", "tables/__init__.py", "tables/backbones.py"):
        (tmp_path / "experiments" / place).write_text("print('imported')")
    entry = record("experiments.tables.backbones:ViT", "", root / "experiments/tables/backbones.py")
    code = f"from interflow_jax.networks import recorded_network as f; f({entry!r})"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "what a file names is not imported" in done.stderr.replace("\n", " ")
    assert "imported" not in done.stdout


def test_a_recorded_network_opens_with_the_caller_s_word(module):
    own = importlib.import_module("somebodys")
    linen, blocks, made = (
        record(f"somebodys:{name}", options, module)
        for name, options in (("Linen", "width=6"), ("Blocks", "width=3"), ("made", None))
    )
    for given in ("somebodys:Linen", own.Linen, own.Linen(width=2)):
        assert recorded_network(linen, given) == own.Linen(width=6)
    assert recorded_network(linen, trust_code=True) == own.Linen(width=6)
    assert recorded_network(made, own.made) is own.made
    loaded = ij.load_network("somebodys:Blocks", "width=2")
    for given in ("somebodys:Blocks", own.Blocks, loaded, own.Blocks(2, rngs=nnx.Rngs(0))):
        assert recorded_network(blocks, given).keywords == {"width": 3}
    assert recorded_network({}) is recorded_network({"backbone": "vgg"}, "vgg") is None
    with pytest.raises(ValueError, match="somebodys:Linen, but the run's is the paper's"):
        recorded_network({}, own.Linen)
    module.write_text(MODULE + "\n")
    for given in ("somebodys:Linen", own.Linen, None):
        with pytest.raises(ValueError, match=f"is not what the run was trained with: .*{module}"):
            recorded_network(linen, given, trust_code=True)
    assert source("somebodys:Linen")["sha256"] != linen["backbone_sha256"]


@pytest.mark.parametrize("method", [*ij.METHODS, *ij.BASELINES])
def test_a_method_is_a_fusion_and_a_start_over_any_number_of_taps(module, method):
    build = partial(ij.build, method, 10, network=ij.load_network("somebodys:Linen"))
    gives = len(ij.METHODS.get(method, ij.METHODS["S1"]).initial_weights or ()) > 1
    weights = (0.25, 0.75) if gives else None
    model, own = build(taps=("a", "b"), initial_weights=weights), ij.build(method, 10).fusion
    alone = method in ("Normal", "Scaled")
    if not alone and not gives:  # where nothing is learned, the last branch predicts
        weights = (0.0, 1.0) if own.kind == "fixed" else None
        weights = (0.5, 0.5) if method == "Concat" else weights
    assert model.labels == (("b",) if alone else ("a", "b"))
    assert model.fusion == own if alone else model.fusion.kind == own.kind
    assert alone or model.fusion.initial_weights == weights
    refused = f"{method} gives 4|{method} gives 7" if gives else f"{method} does not take any"
    with pytest.raises(ValueError, match=refused):
        build(taps=("a", "b"), initial_weights=None if gives else (0.5, 0.5))
    with pytest.raises(ValueError, match="a network needs taps"):
        build()


@pytest.fixture
def pretrained(module):
    network = ij.load_network("somebodys:Linen")
    variables = jax.jit(network.init)(jax.random.key(7), IMAGES)
    variables["batch_stats"] = jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])
    return network, variables


def test_pretrained_variables_go_where_they_belong_and_nowhere_else(pretrained):
    network, own = pretrained
    model = ij.build("S1", 10, taps=("a", "norm"), network=network)
    variables = jax.jit(model.init)(KEY, IMAGES)
    result = ij.with_backbone(variables, own)
    backbone = {kind: parts["backbone"] for kind, parts in result.items()}
    for kind, names in (("params", {"a", "norm"}), ("batch_stats", {"norm"})):
        same(backbone[kind]["network"], {name: own[kind][name] for name in names})
    for name in variables["params"].keys() - {"backbone"}:
        same(result["params"][name], variables["params"][name])
    # The network's own output up to the tap, bit for bit.
    apply = jax.jit(partial(network.apply, capture_intermediates=True))
    expected = apply(own, IMAGES)[1]["intermediates"]["norm"]["__call__"][0]
    np.testing.assert_array_equal(jax.jit(model.backbone.apply)(backbone, IMAGES)[1], expected)


def test_an_nnx_state_is_what_its_network_starts_from(module):
    instance = ij.load_network("somebodys:Blocks", "width=4")(rngs=nnx.Rngs(7))
    model = ij.Interflow(ij.Taps(type(instance)(4, rngs=nnx.Rngs(1)), "blocks/0"), 10, "shared")
    variables = jax.jit(model.init)(KEY, IMAGES)
    for given in (nnx.state(instance), instance, nnx.to_pure_dict(nnx.state(instance))):
        blocks = ij.with_backbone(variables, given)["params"]["backbone"]["network"]["blocks"]
        for number, block in enumerate(instance.blocks):
            same(blocks[number], {"kernel": block.kernel[...], "bias": block.bias[...]})


def test_an_nnx_state_has_statistics_and_streams_too():
    """The latter are no variables of the model's; `Taps` makes its own."""

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(self.norm(self.first(x)))

    network = Network(nnx.Rngs(7))
    network.norm.mean[...] += 3
    model = ij.Interflow(ij.Taps(Network(nnx.Rngs(1)), "norm"), 10, "shared")
    variables = jax.jit(model.init)(KEY, IMAGES)
    result = ij.with_backbone(variables, nnx.state(network))
    inside = {name: part["backbone"]["network"] for name, part in result.items() if part}
    same(inside["params"]["first"]["kernel"], network.first.kernel[...])
    same(inside["batch_stats"]["norm"]["mean"], network.norm.mean[...])
    assert jax.tree.structure(result) == jax.tree.structure(variables)
    network.eval()
    (tapped,) = model.backbone.apply(
        {name: part["backbone"] for name, part in result.items() if part}, IMAGES, train=False
    )
    np.testing.assert_allclose(tapped, network(IMAGES), rtol=1e-6)


def test_what_training_needs_of_an_nnx_network_is_asked_for_as_linen_does():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs, rng_collection="noise")

        def __call__(self, x):
            return self.dropout(self.norm(self.first(x)))

    model = ij.Interflow(ij.Taps(Network, "dropout"), 10, "shared")
    variables = model.init(KEY, IMAGES)
    apply = partial(model.apply, variables, IMAGES, train=True)
    with pytest.raises(InvalidRngError, match='Network needs PRNG for "default"'):
        apply(mutable=["batch_stats"])
    with pytest.raises(ValueError, match=r'statistics .* apply it with mutable=\["batch_stats"\]'):
        apply(rngs={"noise": KEY})
    first, second = (
        apply(rngs={"noise": jax.random.key(seed)}, mutable=["batch_stats"])[0].logits
        for seed in (0, 1)
    )
    assert not np.array_equal(first, second)
    model.apply(variables, IMAGES)


def test_a_backbone_whose_only_layer_is_called_network_is_itself():
    class Backbone(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [nn.Dense(3, name="network", kernel_init=partitioned)(x)]

    partitioned = nn.with_partitioning(nn.initializers.ones, (None, None))
    model = ij.Interflow(Backbone(), 10, ij.Fusion("shared"))
    own = jax.tree.map(lambda x: x + 1, jax.jit(Backbone().init)(KEY, IMAGES))
    result = ij.with_backbone({"batch_stats": {}} | jax.jit(model.init)(KEY, IMAGES), own)
    same(result["params"]["backbone"], own["params"])
    assert result["batch_stats"] == {}


def test_what_does_not_fit_is_named_by_path_and_shape(pretrained):
    network, own = pretrained
    model = ij.build("S1", 10, taps=("a", "b"), network=network)
    variables = jax.eval_shape(model.init, KEY, IMAGES)
    wrong = {**own, "params": {**own["params"], "b": {"kernel": jnp.zeros((1, 2))}}}
    with pytest.raises(ValueError, match="do not fit the backbone") as error:
        ij.with_backbone(variables, wrong)
    assert "params/b/kernel is (1, 2), the backbone's (3, 3, 4, 4)" in str(error.value)
    assert "params/b/bias (4,) is missing" in str(error.value)
    dense = jax.eval_shape(nn.Dense(2).init, KEY, IMAGES)
    with pytest.raises(ValueError, match="parameters are bias, kernel; pretrained ones go into"):
        ij.with_backbone(dense, own)


def test_collections_of_its_own_may_be_missing_statistics_may_not(pretrained):
    network, own = pretrained
    model = ij.build("S1", 10, taps=("a", "norm"), network=network)
    variables = jax.jit(model.init)(KEY, IMAGES)
    counters = {"backbone": {"network": {"count": jnp.ones(())}}}
    result = ij.with_backbone(variables | {"counters": counters}, own)
    assert result["counters"] == counters
    with pytest.raises(ValueError, match="Statistics belong to them: give both"):
        ij.with_backbone(variables, own["params"])
    torch = {"params": {"a": {"weight": jnp.zeros((4, 3, 3, 3))}}}
    with pytest.raises(ValueError, match="rename weight to kernel, and transpose"):
        ij.with_backbone(variables, torch)


@pytest.mark.parametrize("name", ["slashes.safetensors", "dots", "msgpack.safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_files_are_known_by_their_content_and_hold_what_was_written(tmp_path, name, dtype):
    tree = {"a": {"kernel": jnp.asarray([[0.5, -2.0]], dtype), "bias": jnp.asarray([3], "int8")}}
    for written in ({"params": tree, "batch_stats": {"a": jnp.asarray(True)}}, tree):
        packed = serialization.msgpack_serialize(serialization.to_state_dict(written))
        tensors = save(flatten_dict(written, sep="/" if "slash" in name else "."))
        (tmp_path / name).write_bytes(packed if "msgpack" in name else tensors)
        expected, read = {"params": tree} | written, ij.read_pretrained(tmp_path / name)
        if written is tree:
            expected = {"params": tree}
        same(read, expected)
        assert read["params"]["a"]["kernel"].dtype == dtype


ONES = jnp.ones(3)
SAVED, PACKED = save({"a": ONES}), serialization.msgpack_serialize({"a": ONES})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        *[(junk, "is of another kind or damaged") for junk in (b"\xc1nothing", b"PK\3\4 pickle")],
        *[(SAVED[:end], "is a safetensors file that is cut short or damaged") for end in (-1, 40)],
        (PACKED[:-1], "is cut short"),
        (serialization.msgpack_serialize(3), "holds a int, not a dict"),
        *[(none, "holds no arrays") for none in (serialization.msgpack_serialize({}), save({}))],
        (save({"a": ONES, "a.b": ONES}), "has an array a and another inside it, a.b"),
        (save({"a/b": ONES, "a.b": ONES}), "has two arrays of one name, a[./]b and a[./]b"),
        (SAVED.replace(b'"F32"', b'"F4" ').replace(b"[3]", b"24]"), "damaged"),
        (None, "cannot be read"),
    ],
)
def test_each_refusal_says_what_is_true_of_the_file(tmp_path, content, message):
    file = tmp_path / "weights.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=f"weights.safetensors .*{message}") as error:
        ij.read_pretrained(file)
    assert "\n" not in str(error.value)


def test_a_frozen_backbone_is_not_differentiated(pretrained):
    """It stays, statistics included, and the program convolves once, forward."""
    model = ij.build("S1", 10, taps=("a", "norm"), network=pretrained[0], frozen=True)
    optimizer = ij.make_optimizer(0.1, frozen=("backbone",))
    state = ij.create_state(model, optimizer, KEY, SHAPE)
    step = jax.jit(lambda state: ij.train_step(model, optimizer, state, IMAGES, jnp.arange(4))[0])
    assert step.lower(state).as_text().count("stablehlo.convolution") == 1
    after = step(state)
    same(after.batch_stats, state.batch_stats)
    same(after.params["backbone"], state.params["backbone"])
    assert jnp.any(after.params["fusion"]["weights"] != state.params["fusion"]["weights"])


def test_ours_lives_in_nnx_too():
    model = ij.build("S1", 10, depth=4, taps=(2, 4), width=1 / 32)
    ours = nnx.jit(lambda: nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(IMAGES))()
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    variables = {name: nnx.to_pure_dict(nnx.state(ours, kind)) for name, kind in kinds.items()}
    expected = jax.eval_shape(model.init, KEY, IMAGES)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, expected)
    logits = jax.jit(model.apply)(variables, IMAGES).logits
    grad = nnx.jit(nnx.value_and_grad(lambda ours: ours(IMAGES).logits.sum()))
    loss, gradients = grad(ours)
    np.testing.assert_allclose(loss, logits.sum(), rtol=1e-5)
    assert bool(jnp.any(gradients["fusion"]["weights"].get_value() != 0))
