"""Fusion weighs branches and sums them (paper, III-B)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interflow_jax import Fusion, fit_fusion
from interflow_jax.fusion import KINDS, cut_fusion
from interflow_jax.metrics import cross_entropy

KEY = jax.random.key(0)
GIVEN = (0.1, 0.2, 0.3, 0.4)
OF_PROBABILITIES = ["softmax", "geometric"]
LEARNED = [name for name in KINDS if KINDS[name].learned and not KINDS[name].of_features]


@pytest.fixture(scope="module")
def branch_logits():
    return jax.random.normal(KEY, (3, 4, 10))


@partial(jax.jit, static_argnums=0)
def fuse(fusion, params, *given):
    return fusion.apply({"params": params}, *given)


@partial(jax.jit, static_argnums=0)
def init(fusion, *given):
    return fusion.init(KEY, *given).get("params", {})


def moved(fusion, branch_logits):
    """Parameters of a fusion as after training."""
    params = init(fusion, branch_logits)
    return jax.tree.map(lambda x: x + jax.random.normal(KEY, x.shape), params)


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("fixed", GIVEN),
        ("fixed", (0.25,) * 4),
        ("shared", (1.0, -0.7, 0.0, 2.0)),
        ("class", np.arange(40.0).reshape(4, 10) - 15),
        ("class", np.tile(np.array(GIVEN)[:, None], 10)),
    ],
)
def test_logits_are_the_weighted_sum_of_the_branches(branch_logits, kind, weights):
    """Paper, III-B: without a bias; of each class by its own column of weights."""
    fusion = Fusion(kind, weights if kind == "fixed" else None)
    params = {} if kind == "fixed" else {"weights": jnp.asarray(weights, jnp.float32)}
    assert jax.tree.structure(init(fusion, branch_logits)) == jax.tree.structure(params)
    logits, given, ensembles = fuse(fusion, params, branch_logits)
    low, *_ = fuse(fusion, params, branch_logits.astype(jnp.bfloat16))
    assert low.dtype == logits.dtype == given.dtype == jnp.float32
    each = np.broadcast_to(np.reshape(weights, (4, -1)), (4, 10))
    expected = np.einsum("bnc,nc->bc", np.asarray(branch_logits, np.float64), each)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(given, np.asarray(weights, np.float32))
    assert ensembles is None


@pytest.mark.parametrize("weights", [GIVEN, list(GIVEN), np.array(GIVEN, np.float32)], ids=type)
@pytest.mark.parametrize(("kind", "shape"), [("shared", (4, 1)), ("class", (4, 10))])
def test_given_weights_are_where_learning_starts(branch_logits, kind, shape, weights):
    fusion = Fusion(kind, weights)
    assert hash(fusion) == hash(Fusion(kind, tuple(map(float, weights))))
    start = init(fusion, branch_logits)["weights"].reshape(shape)
    expected = np.broadcast_to(np.array(GIVEN, np.float32)[:, None], shape)
    np.testing.assert_array_equal(start, expected)


@pytest.mark.parametrize(("kind", "classes"), [("shared", 1), ("class", 10)])
@pytest.mark.parametrize(("start", "fan_out"), [("xavier", 1), ("unit", 4)])
def test_xavier_weights_are_uniform_within_its_bound(kind, classes, start, fan_out):
    keys = jax.random.split(KEY, 1000 // classes)
    draw = partial(Fusion(kind, start=start).init, branch_logits=jnp.zeros((1, 4, classes)))
    weights = np.asarray(jax.jit(jax.vmap(draw))(keys)["params"]["weights"])
    bound = np.sqrt(6 / (4 + fan_out))  # n branches in
    assert np.abs(weights).max() <= bound
    # 4000 draws: the extremes come within 1 %, mean and variance within 4 standard errors.
    assert np.abs(weights).max() > 0.99 * bound
    assert abs(weights.mean()) < 4 * bound / np.sqrt(3 * 4000)
    assert abs(weights.var() - bound**2 / 3) < 4 * bound**2 * np.sqrt(4 / 45 / 4000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("soft",), "kind is 'soft'; choose one of fixed, shared, class, softmax, geometric, a"),
        (("shared", None, "zero"), "start is 'zero'; choose one of xavier, unit"),
        (("fixed",), "give it initial_weights"),
        (("shared", (0.5, 0.5)), r"initial_weights are \(0.5, 0.5\) for 4 branches"),
        (("shared", ()), r"initial_weights are \(\) for 4 branches"),
        (("shared", "0.5"), "initial_weights are '0.5'; give one finite number per branch"),
        (("shared", 0.5), "initial_weights are 0.5; give one finite number per branch"),
        (("shared", [float("nan")] * 4), "give one finite number per branch"),
        (("softmax", (0.5, 0.5, -0.1, 0.1)), "softmax takes ones above 0"),
        (("geometric", (0.0, 0.0, 0.0, 1.0)), "geometric takes ones above 0"),
        (("attention", (0.25,) * 4), "attention takes none: it starts from the mean; leave them"),
        (("attention",), "features are missing for 4 branches, which attention weighs by them"),
    ],
)
def test_what_does_not_fit_is_named(branch_logits, arguments, message):
    with pytest.raises(ValueError, match=message):
        Fusion(*arguments).init(KEY, branch_logits)


@pytest.mark.parametrize("weights", [None, (0.25,) * 4])
@pytest.mark.parametrize("kind", OF_PROBABILITIES)
def test_equal_weights_are_the_mean_of_the_log_probabilities(branch_logits, kind, weights):
    log_probabilities = jax.nn.log_softmax(branch_logits)
    fusion = Fusion(kind, weights)
    logits, weights, ensembles = fuse(fusion, init(fusion, branch_logits), branch_logits)
    np.testing.assert_allclose(logits, log_probabilities.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights, [0.25] * 4, rtol=1e-6)
    if kind == "geometric":
        for count in range(1, 5):
            mean = log_probabilities[:, :count].mean(1)
            np.testing.assert_allclose(ensembles[:, count - 1], mean, rtol=1e-5, atol=1e-6)


def test_softmax_weights_sum_to_one_and_the_scale_multiplies(branch_logits):
    params = {"log_weights": jax.random.normal(KEY, (4,)), "log_scale": jnp.log(3.0)}
    logits, weights, _ = fuse(Fusion("softmax"), params, branch_logits)
    assert weights.sum() == pytest.approx(1)
    terms = np.einsum("bnc,n->bc", jax.nn.log_softmax(branch_logits), weights)
    np.testing.assert_allclose(logits, 3 * terms, rtol=1e-5, atol=1e-5)


def test_an_ensemble_depends_on_its_branches_alone(branch_logits):
    """Gradients by deeper branches, and by other ensembles' parameters, are zero."""
    fusion = Fusion("geometric")

    def scores(params, branch_logits):
        return fusion.apply({"params": params}, branch_logits)[2][:, :, 3].sum(0)

    params = moved(fusion, branch_logits)
    params_grad, branches_grad = jax.jit(jax.jacrev(scores, (0, 1)))(params, branch_logits)
    rows = np.arange(4)
    for row in rows:
        np.testing.assert_array_equal(np.any(branches_grad[row] != 0, (0, 2)), rows <= row)
        expected = (rows[:, None] == row) & (rows[None] <= row)
        np.testing.assert_array_equal(params_grad["log_weights"][row] != 0, expected)
        np.testing.assert_array_equal(np.any(params_grad["bias"][row], 1), rows == row)


def test_geometric_is_the_weighted_geometric_mean_times_a_factor_per_class(branch_logits):
    fusion = Fusion("geometric")
    params = moved(fusion, branch_logits)
    logits, weights, ensembles = fuse(fusion, params, branch_logits)
    np.testing.assert_array_equal(logits, ensembles[:, -1])
    np.testing.assert_allclose(weights, np.exp(params["log_weights"][3]) / 4, rtol=1e-6)
    probabilities = np.asarray(jax.nn.softmax(branch_logits), np.float64)
    product = np.prod(probabilities ** np.asarray(weights)[None, :, None], axis=1)
    product *= np.exp(params["bias"][3])[None]
    expected = product / product.sum(1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, rtol=1e-4)


@pytest.fixture(scope="module")
def examples():
    """Branches that know 400 labels better the deeper they are, and not all in one direction."""
    keys = jax.random.split(KEY, 3)
    labels = jax.random.randint(keys[0], (400,), 0, 3)
    noise = jax.random.normal(keys[1], (400, 4, 3))
    sharpness = jnp.array([-0.5, 0.3, 1.0, 1.5])[None, :, None]
    return 2 * (noise + sharpness * jax.nn.one_hot(labels, 3)[:, None]), labels


def loss_of(fusion, examples, params):
    logits, _, ensembles = fusion.apply({"params": params}, examples[0])
    each = logits[:, None] if ensembles is None else ensembles
    return cross_entropy(each, jnp.repeat(examples[1][:, None], each.shape[1], 1)).mean()


@pytest.mark.parametrize("kind", LEARNED)
def test_a_fit_is_the_minimum(examples, kind):
    fusion, params = fit_fusion(*examples, kind)
    loss, gradient = jax.jit(jax.value_and_grad(partial(loss_of, fusion, examples)))(params)
    start = Fusion(kind, (0.25,) * 4)
    assert loss < loss_of(start, examples, init(start, examples[0])) - 0.01
    # Of a convex function the minimum is where no step along the gradient leads lower.
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) < 1e-4
    noise = jax.tree.map(lambda x: 0.1 * jax.random.normal(KEY, (20, *x.shape)), params)
    near = jax.tree.map(lambda x, noise: x[None] + noise, params, noise)
    assert jnp.all(jax.jit(jax.vmap(partial(loss_of, fusion, examples)))(near) >= loss - 1e-6)


@pytest.mark.parametrize(("kind", "shape"), [("shared", (4,)), ("class", (4, 3))])
def test_the_loss_is_convex_in_the_weights(examples, kind, shape):
    a, b = 3 * jax.random.normal(KEY, (2, 20, *shape))
    losses = jax.jit(jax.vmap(lambda w: loss_of(Fusion(kind), examples, {"weights": w})))
    assert jnp.all(losses((a + b) / 2) <= (losses(a) + losses(b)) / 2 + 1e-5)


def test_a_cut_fixed_fusion_keeps_its_weights_or_lets_the_last_branch_predict():
    assert cut_fusion(Fusion("fixed", GIVEN), {}, 2)[0].initial_weights == (0.1, 0.2)
    last_alone = Fusion("fixed", (0.0, 0.0, 0.0, 1.0))
    assert cut_fusion(last_alone, {}, 2)[0].initial_weights == (0.0, 1.0)
    assert cut_fusion(last_alone, {}, 4)[0] == last_alone


@pytest.fixture(scope="module")
def features():
    channels = (2, 3, 3, 5)
    return tuple(jax.random.normal(jax.random.key(n), (3, n)) for n in channels)


def moved_attention(branch_logits, features):
    params = init(Fusion("attention"), branch_logits, features)
    keys = jax.random.split(KEY, len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    return jax.tree.map(lambda x, key: x + jax.random.normal(key, x.shape), params, keys)


def attend(params, branch_logits, features):
    return fuse(Fusion("attention"), params, branch_logits, features)


def test_attention_s_weights_by_hand(branch_logits, features):
    """A query times layer-normalised keys of 64 channels, scaled, softmax, times a scale."""
    params = moved_attention(branch_logits, features)
    logits, weights, ensembles = attend(params, branch_logits, features)
    query, scores = np.asarray(params["query"], np.float64), []
    for number, x in enumerate(features, start=1):
        layer = params[f"key_{number}"]
        kernel, bias = (np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
        key = np.asarray(x, np.float64) @ kernel + bias
        key = (key - key.mean(1, keepdims=True)) / np.sqrt(key.var(1, keepdims=True) + 1e-6)
        scores.append(key @ query / 8)
    shares = np.exp(np.stack(scores, 1))
    shares *= np.exp(params["log_scale"]) / shares.sum(1, keepdims=True)
    assert shares.std(0).min() > 0.01  # they depend on the image
    np.testing.assert_allclose(weights, shares[..., None], rtol=1e-4)
    expected = np.einsum("bnc,bn->bc", branch_logits, shares)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert ensembles is None


def test_attention_starts_as_the_mean_and_equal_keys_give_it(branch_logits, features):
    start = init(Fusion("attention"), branch_logits, features)
    mean = branch_logits.mean(1)
    logits, weights, _ = attend(start, branch_logits, features)
    np.testing.assert_array_equal(weights, np.full((3, 4, 1), 0.25, np.float32))
    np.testing.assert_allclose(logits, mean, rtol=1e-5, atol=1e-6)
    equal = tuple(features[1] for _ in range(4))
    params = moved_attention(branch_logits, equal)
    params |= {f"key_{number}": params["key_1"] for number in range(1, 5)} | {"log_scale": 0.0}
    np.testing.assert_allclose(attend(params, branch_logits, equal)[0], mean, rtol=1e-5, atol=1e-6)


def test_attention_under_vmap_has_the_weights_of_each_member(branch_logits, features):
    params = moved_attention(branch_logits, features)
    members = jax.tree.map(lambda x: jnp.stack([x, -x, 0 * x]), params)
    several = jax.jit(jax.vmap(attend, (0, None, None)))(members, branch_logits, features)
    assert several[1].shape == (3, 3, 4, 1)
    for number in range(3):
        one = attend(jax.tree.map(lambda x, n=number: x[n], members), branch_logits, features)
        np.testing.assert_allclose(several[0][number], one[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(several[1][number], one[1], rtol=1e-4)


def test_attention_is_fitted_to_features_that_tell_which_branch_knows(examples):
    """Every image is known to one of two branches, which its features tell: no constant does."""
    _, labels = examples
    knows = jax.random.bernoulli(jax.random.key(7), shape=(400, 1))
    right, wrong = (4 * jax.nn.one_hot((labels + n) % 3, 3) for n in (0, 1))
    branch_logits = jnp.stack([jnp.where(knows, right, wrong), jnp.where(knows, wrong, right)], 1)
    features = tuple(2.0 * knows - 1 + jnp.zeros((400, channels)) for channels in (2, 5))
    fusion, params = fit_fusion(branch_logits, labels, "attention", features)
    loss = cross_entropy(fuse(fusion, params, branch_logits, features)[0], labels)
    constant, its = fit_fusion(branch_logits, labels, "class")
    assert loss.mean() < 0.1
    assert loss_of(constant, (branch_logits, labels), its) > 0.5
    with pytest.raises(ValueError, match="features are missing for 2 branches"):
        fit_fusion(branch_logits, labels, "attention")


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (np.zeros(5, int), "fixed", "'fixed'; choose one that is learned: shared, class, soft"),
        (np.zeros(4, int), "shared", r"\(5, 4, 3\) and labels \(4,\)"),
        (np.array([0, 1, 2, 0, -1]), "shared", "labels begin at -1"),
        (np.array([0, 1, 2, 0, 3]), "shared", "labels go to 3"),
        (np.array([0, 1, 2, 0, 2**32 + 1]), "shared", "labels go to 4294967297"),
        (np.zeros(5), "shared", "type float64; give one integer"),
    ],
)
def test_what_cannot_be_fitted_is_named(labels, kind, message):
    with pytest.raises(ValueError, match=message):
        fit_fusion(jnp.zeros((5, 4, 3)), labels, kind)
    with pytest.raises(ValueError, match="of one or more"):
        fit_fusion(jnp.zeros((0, 4, 3)), np.zeros(0, int), "shared")
