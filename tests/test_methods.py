"""Eleven methods and five baselines through shared properties: shapes, parameters, gradients."""

from functools import partial
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interflow_jax as ij
from interflow_jax.fusion import KINDS

# Table II, row by row: branches, manual initialisation, shared weights, learned weights.
TABLE_II = {
    "S0": (4, True, True, False),
    "S1": (4, False, True, True),
    "S2": (4, True, True, True),
    "S3": (4, False, False, True),
    "S4": (4, True, False, True),
    "S5": (7, True, True, False),
    "S6": (7, False, True, True),
    "S7": (7, True, True, True),
    "S8": (7, False, False, True),
    "S9": (7, True, False, True),
}
ALL = ij.METHODS | ij.BASELINES
SUPERVISED = [name for name, method in ij.BASELINES.items() if method.auxiliary_loss]


def test_the_table_is_the_papers():
    assert list(ij.METHODS) == ["Normal", *TABLE_II]
    assert ij.build("Normal", 10).fusion == ij.Fusion("fixed", (1.0,))
    for name, (branches, initialised, shared, learned) in TABLE_II.items():
        method = ij.METHODS[name]
        assert len(method.taps) == branches
        assert (method.initial_weights is not None) == initialised
        assert method.fusion == ("fixed" if not learned else "shared" if shared else "class")
        assert method.taps == ((7, 9, 11, 13) if branches == 4 else tuple(range(7, 14)))
        if initialised:
            four, seven = (0.1, 0.2, 0.3, 0.4), (0.1, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2)
            assert method.initial_weights == (four if branches == 4 else seven)
        for start in ("xavier", "unit"):
            fusion = ij.Fusion(method.fusion, method.initial_weights, start)
            assert ij.build(name, 10, fusion_start=start).fusion == fusion


def parameters_by_hand(method: str, channels_in: int, classes: int) -> int:
    """Kernels and norms of VGG's 13 convolutions, two fully connected layers, the fusion."""
    separate = 2 * (512 * classes + classes) if method == "Concat" else 0  # of 9, 11 and 13
    equal = {
        "Scaled": "Normal",
        "Concat": "S0",
        "Detached": "S1",
        **dict.fromkeys(SUPERVISED, "S0"),
    }
    method = equal.get(method, method)
    widths = [channels_in, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    backbone = sum(9 * a * b + 2 * b for a, b in pairwise(widths))
    if method == "Normal":
        return backbone + 512 * classes + classes
    branches, _, shared, learned = TABLE_II[method]
    fusion = 0 if not learned else branches if shared else branches * classes
    return backbone + 256 * classes + classes + 512 * classes + classes + separate + fusion


@pytest.mark.parametrize("method", ALL)
def test_parameters_and_shapes(method):
    shape, classes = (28, 28, 1), 100
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    init = partial(ij.build(method, classes).init_with_output, train=False)
    prediction, variables = jax.eval_shape(init, jax.random.key(0), images)
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert counted == parameters_by_hand(method, shape[2], classes)
    branches, per_class = len(ALL[method].taps), ALL[method].fusion == "class"
    assert prediction.logits.shape == (2, classes)
    assert prediction.branch_logits.shape == (2, branches, classes)
    assert prediction.weights.shape == ((branches, classes) if per_class else (branches,))
    assert ("fusion" in variables["params"]) == (ALL[method].fusion != "fixed")


def test_a_branch_reaches_every_layer_before_it_and_none_after():
    """Paper, III-C: branches carry the gradient straight to the shallower layers.

    Of S5, whose taps are those of all methods: fusion comes after the branches.
    """
    model = ij.build("S5", 10, width=1 / 16)
    # Maps of 80, 40, 20, 10 and 5: small ones on the CPU are for tests/ops/test_convolution.py.
    x = jax.random.normal(jax.random.key(0), (2, 80, 80, 3))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), x)

    def branch_scores(backbone):
        prediction, _ = model.apply(
            {**variables, "params": {**variables["params"], "backbone": backbone}},
            x,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.sum(prediction.branch_logits**2, axis=(0, 2))

    @jax.jit
    def gradients(backbone, branch):
        return jax.vjp(branch_scores, backbone)[1](branch)[0]

    for tap, branch in zip(model.backbone.taps, jnp.eye(7), strict=True):
        reached = {
            (int(layer.removeprefix("conv")), name)
            for layer, of in gradients(variables["params"]["backbone"], branch).items()
            for name, gradient in (("kernel", of["kernel"]), ("scale", of["norm"]["scale"]))
            if jnp.any(gradient != 0)
        }
        assert reached == {(n, name) for n in range(1, tap + 1) for name in ("kernel", "scale")}
    for name, method in ALL.items():
        assert ij.build(name, 10, width=1 / 16).backbone == model.backbone.clone(taps=method.taps)


def shallow_prediction(key, model):
    x = jax.random.normal(key, (2, 20, 20, 3))
    return jax.jit(partial(model.init_with_output, train=False))(key, x)[0]


@pytest.mark.parametrize(("method", "taps"), [("Normal", (4,)), ("DSN", (1, 2, 4))])
def test_normal_and_the_baselines_predict_from_the_last_branch_alone(key, tiny, method, taps):
    prediction = shallow_prediction(key, tiny(method, depth=4, taps=taps))
    np.testing.assert_array_equal(prediction.logits, prediction.branch_logits[:, -1])
    assert jnp.all(prediction.branch_logits != 0)


@pytest.mark.parametrize("method", SUPERVISED)
@pytest.mark.parametrize(("depth", "taps"), [(13, None), (60, None), (5, (3, 5)), (5, (5,))])
def test_baselines_have_the_branches_of_s1_at_every_depth(key, method, depth, taps):
    model, s1 = (ij.build(name, 10, depth=depth, taps=taps) for name in (method, "S1"))
    assert model.backbone == s1.backbone
    scores = jax.random.normal(key, (2, len(s1.backbone.taps), 10))
    logits, *_ = model.fusion.apply({}, scores)
    np.testing.assert_array_equal(logits, scores[:, -1])


@pytest.mark.parametrize("method", ["S2", "DSN"])
@pytest.mark.parametrize("fusion", [name for name in KINDS if not KINDS[name].of_features][1:])
def test_any_fusion_starts_from_the_method_s_weights(key, method, fusion):
    module = ij.build(method, 10, fusion=fusion).fusion
    assert module == ij.Fusion(fusion, ij.METHODS["S2"].initial_weights if method == "S2" else None)
    (_, weights, _), _ = module.init_with_output(key, jnp.zeros((1, 4, 10)))
    if method == "S2":
        per_branch = weights[:, 0] if fusion == "class" else weights
        np.testing.assert_allclose(per_branch, (0.1, 0.2, 0.3, 0.4), rtol=1e-5)


def test_concat_is_one_linear_layer_on_all_features(key, tiny):
    """Times 1/2, at every number of branches."""
    images = jax.random.normal(key, (2, 20, 20, 3))
    for taps in ((1, 2, 3, 4), (2, 4)):
        model = tiny("Concat", depth=4, taps=taps)
        variables = jax.jit(partial(model.init, train=False))(key, images)
        variables = jax.tree.map(lambda x: x + 0.1, variables)  # biases, too
        prediction = jax.jit(partial(model.apply, train=False))(variables, images)
        layers = [
            variables["params"][f"fully_connected_branch_{n + 1}"] for n in range(len(model.labels))
        ]
        kernel = np.concatenate([np.asarray(layer["kernel"], np.float64) for layer in layers])
        bias = np.sum([layer["bias"] for layer in layers], axis=0)
        features = np.concatenate(prediction.features, axis=1)
        assert kernel.shape == (features.shape[1], 10)
        np.testing.assert_allclose(
            prediction.logits, (features @ kernel + bias) / 2, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("fusion", [None, "attention"])
def test_detached_branches_send_the_backbone_exactly_no_gradient(key, tiny, fusion):
    """Its gradient is that of the last branch alone, whose weight is what S1's would be."""
    options = {"depth": 4, "taps": (1, 2, 4), "fusion": fusion}
    detached, s1 = tiny("Detached", **options), tiny("S1", **options)
    assert detached == s1.clone(detached=True) == tiny("S1", detached=True, **options)
    images = jax.random.normal(key, (4, 20, 20, 3))
    variables = jax.jit(partial(detached.init, train=False))(key, images)

    def scores(model, backbone):
        """One per branch, and of the fused logits."""
        params = {**variables["params"], "backbone": backbone}
        given = {**variables, "params": params}
        prediction, _ = model.apply(given, images, train=True, mutable=["batch_stats"])
        alone = jnp.sum(prediction.branch_logits**2, axis=(0, 2))
        return jnp.append(alone, jnp.sum(prediction.logits**2))

    detached_leaves, s1_leaves = (
        jax.tree.leaves(
            jax.jit(jax.jacrev(partial(scores, model)))(variables["params"]["backbone"])
        )
        for model in (detached, s1)
    )
    for leaf, whole in zip(detached_leaves, s1_leaves, strict=True):
        assert not np.any(leaf[:-2])
        np.testing.assert_allclose(leaf[-2], whole[-2], rtol=1e-4, atol=1e-5)
        assert np.any(leaf[-1])
    pairs = zip(detached_leaves, s1_leaves, strict=True)
    assert any(np.abs(leaf[-1] - whole[-1]).max() > 1e-3 for leaf, whole in pairs)


def test_scaled_is_normal_times_the_expected_gain_of_s1(key, tiny):
    """E[w0^2] of one Xavier-uniform weight of n = 4 in and 1 out is 2 / 5; there are four."""
    draw = jax.jit(jax.vmap(lambda key: ij.Fusion("shared").init(key, jnp.zeros((1, 4, 2)))))
    weights = draw(jax.random.split(key, 20_000))["params"]["weights"]
    gain = float(jnp.sqrt((weights**2).sum(1).mean()))
    images = jax.random.normal(key, (2, 32, 32, 3))
    normal, scaled = (
        jax.jit(tiny(name, depth=4).init_with_output)(key, images)[0]
        for name in ("Normal", "Scaled")
    )
    np.testing.assert_allclose(scaled.logits / normal.logits, gain, rtol=0.01)
    np.testing.assert_allclose(scaled.logits / normal.logits, 1.6**0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("depth", "branches"), [(40, 5), (50, 7), (60, 9), (70, 11), (80, 13), (90, 15), (100, 15)]
)
def test_deep_networks_have_the_branches_of_table_vi(depth, branches):
    taps = ij.default_taps("S1", depth)
    assert len(taps) == branches
    assert taps[0] == (20 if depth < 100 else 30)
    assert taps[-1] == depth
    assert ij.default_taps("Normal", depth) == (depth,)


@pytest.mark.parametrize(
    ("layout", "widths", "branch_widths"),
    [
        ("spread", [64] * 6 + [128] * 6 + [256] * 9 + [512] * 19, (256, 512)),
        ("append", [64] * 2 + [128] * 2 + [256] * 3 + [512] * 33, (512,)),
    ],
)
def test_layouts_at_depth_40_by_hand(key, layout, widths, branch_widths):
    """Branches after 20, 25, 30, 35, 40: of one channel count, and of one layer, if appended."""
    model = ij.build("S1", 10, depth=40, layout=layout)
    variables = jax.eval_shape(partial(model.init, train=False), key, jnp.zeros((1, 32, 32, 3)))
    layers = {f"fully_connected_channels_{channels}" for channels in branch_widths}
    assert variables["params"].keys() == {"backbone", "fusion"} | layers
    by_hand = sum(9 * a * b + 2 * b for a, b in pairwise([3, *widths]))
    by_hand += sum(channels * 10 + 10 for channels in branch_widths) + 5
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == by_hand


def test_table_i_is_normal_at_each_depth():
    for depth in range(4, 14):
        assert ij.default_taps("Normal", depth) == (depth,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "S10"}, "'S10'; choose one of Normal, S0, S1"),
        ({"method": "S1", "num_classes": 1}, "num_classes is 1"),
        ({"method": "S1", "num_classes": 10.5}, "num_classes is 10.5; give a whole number"),
        ({"method": "S1", "num_classes": "10"}, "num_classes is '10'; give a whole number"),
        ({"method": "S1", "backbone_options": "width=8"}, "the paper's backbone takes none"),
        ({"method": "S1", "depth": 10}, "depth 10 has no convolution 11, 13"),
        ({"method": "S2", "depth": 40}, "S2 gives 4 branch weights, but there are 5 taps"),
        ({"method": "S1", "depth": 15}, "depth 15 has no branches by default"),
        (
            {"method": "Normal", "taps": (7, 13)},
            r"Normal gives 1 branch weights, but there are 2 taps \(7, 13\); choose as many",
        ),
        (
            {"method": "Normal", "taps": (7, 13), "initial_weights": (0.5, 0.5)},
            "Normal does not take any; leave them out, or choose one of S0, S2,",
        ),
        ({"method": "S1", "taps": (0, 7)}, "taps are .* depth 13 has no convolution 0"),
        ({"method": "S1", "fully_connected": "one"}, "'one'; choose one of shared, separate"),
        ({"method": "S1", "fusion_start": "one"}, "'one'; choose one of xavier, unit"),
        ({"method": "S1", "pool": "max"}, "'max'; choose one of mean, first"),
        ({"method": "S1", "fusion": "mean"}, "'mean'; choose one of fixed, shared, class, softmax"),
        ({"method": "S2", "fusion": "attention"}, "attention takes none: it starts from the mean"),
        (
            {"method": "S1", "network": nn.Dense(3), "taps": ("a",), "dtype": "bfloat16"},
            "dtype is 'bfloat16', which only the paper's backbone takes: leave it out",
        ),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ij.build(**{"num_classes": 10, **arguments})
