"""Fusion weighs branches and sums them (paper, III-B)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interflow_jax import Fusion, fit_fusion
from interflow_jax.fusion import cut_fusion
from interflow_jax.training import cross_entropy


@pytest.fixture
def branch_logits(key):
    return jax.random.normal(key, (3, 4, 10))


def test_equal_fixed_weights_are_the_mean_of_the_branches(branch_logits):
    logits, *_ = Fusion("fixed", (0.25,) * 4).apply({}, branch_logits)
    np.testing.assert_allclose(logits, branch_logits.mean(1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["fixed", "shared", "class"])
@pytest.mark.parametrize("branch", range(4))
def test_one_weight_at_one_is_that_branch_alone(key, branch_logits, kind, branch):
    weights = tuple(float(number == branch) for number in range(4))
    (logits, *_), _ = Fusion(kind, weights).init_with_output(key, branch_logits)
    np.testing.assert_array_equal(logits, branch_logits[:, branch])


def test_fixed_has_no_parameter(key, branch_logits):
    assert jax.tree.leaves(Fusion("fixed", (0.1, 0.2, 0.3, 0.4)).init(key, branch_logits)) == []


def test_class_with_equal_columns_is_shared(key, branch_logits):
    weights = jax.random.normal(key, (4,))
    shared, *_ = Fusion("shared").apply({"params": {"weights": weights}}, branch_logits)
    columns = jnp.tile(weights[:, None], (1, 10))
    per_class, *_ = Fusion("class").apply({"params": {"weights": columns}}, branch_logits)
    np.testing.assert_array_equal(shared, per_class)


def test_each_class_is_weighed_by_its_own_column(key, branch_logits):
    weights = jax.random.normal(key, (4, 10))
    logits, given, _ = Fusion("class").apply({"params": {"weights": weights}}, branch_logits)
    expected = np.zeros((3, 10))
    for example, branch, label in np.ndindex(3, 4, 10):
        expected[example, label] += weights[branch, label] * branch_logits[example, branch, label]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(given, weights)


@pytest.mark.parametrize(("kind", "shape"), [("shared", (4,)), ("class", (4, 10))])
def test_given_weights_are_where_learning_starts(key, branch_logits, kind, shape):
    given = (0.1, 0.2, 0.3, 0.4)
    weights = Fusion(kind, given).init(key, branch_logits)["params"]["weights"]
    assert weights.shape == shape
    expected = given if kind == "shared" else [[weight] * 10 for weight in given]
    np.testing.assert_array_equal(weights, np.array(expected, np.float32))


@pytest.mark.parametrize(("kind", "classes"), [("shared", 1), ("class", 1000)])
def test_xavier_weights_are_uniform_within_its_bound(kind, classes):
    draws = [
        Fusion(kind).init(jax.random.key(seed), jnp.zeros((1, 4, classes)))["params"]["weights"]
        for seed in range(1000 if kind == "shared" else 1)
    ]
    weights = np.concatenate([draw.ravel() for draw in draws])
    bound = np.sqrt(6 / (4 + 1))  # n branches in, one score out
    assert np.abs(weights).max() <= bound
    # 4000 draws: the extremes come within 1 %, mean and variance within 4 standard errors.
    assert np.abs(weights).max() > 0.99 * bound
    assert abs(weights.mean()) < 4 * bound / np.sqrt(3 * 4000)
    assert abs(weights.var() - bound**2 / 3) < 4 * bound**2 * np.sqrt(4 / 45 / 4000)


def test_fuses_in_float32(branch_logits):
    logits, weights, _ = Fusion("fixed", (1.0, 0.0, 0.0, 0.0)).apply(
        {}, branch_logits.astype(jnp.bfloat16)
    )
    assert logits.dtype == weights.dtype == jnp.float32


@pytest.mark.parametrize(
    ("fusion", "message"),
    [
        (Fusion("soft"), "'soft'; choose one of fixed, shared, class, softmax, geometric"),  # pyright: ignore
        (Fusion("fixed"), "give it initial_weights"),
        (Fusion("shared", (0.5, 0.5)), "2 initial fusion weights .* for 4 branches"),
        (Fusion("softmax", (0.5, 0.5, -0.1, 0.1)), "softmax takes positive ones"),
        (Fusion("geometric", (0.0, 0.0, 0.0, 1.0)), "geometric takes positive ones"),
    ],
)
def test_what_does_not_fit_is_named(key, branch_logits, fusion, message):
    with pytest.raises(ValueError, match=message):
        fusion.init(key, branch_logits)


OF_PROBABILITIES = ["softmax", "geometric"]
LEARNED = ["shared", "class", *OF_PROBABILITIES]


@pytest.mark.parametrize("kind", OF_PROBABILITIES)
def test_equal_weights_are_the_mean_of_the_log_probabilities(key, branch_logits, kind):
    log_probabilities = jax.nn.log_softmax(branch_logits)
    for weights in (None, (0.25,) * 4):
        (logits, weights, ensembles), _ = Fusion(kind, weights).init_with_output(key, branch_logits)
        np.testing.assert_allclose(logits, log_probabilities.mean(1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(weights, [0.25] * 4, rtol=1e-6)
        if kind == "geometric":
            for count in range(1, 5):
                mean = log_probabilities[:, :count].mean(1)
                np.testing.assert_allclose(ensembles[:, count - 1], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", OF_PROBABILITIES)
def test_a_constant_added_to_a_branch_s_logits_changes_no_probability(key, branch_logits, kind):
    fusion = Fusion(kind, (0.1, 0.2, 0.3, 0.4))
    logits, variables = fusion.init_with_output(key, branch_logits)
    shifted, *_ = fusion.apply(
        variables, branch_logits + jnp.array([3.0, -5.0, 0, 1])[None, :, None]
    )
    np.testing.assert_allclose(shifted, logits[0], rtol=1e-4, atol=1e-4)


def test_softmax_weights_sum_to_one_and_the_scale_multiplies(key, branch_logits):
    log_weights, log_scale = jax.random.normal(key, (4,)), jnp.log(3.0)
    params = {"log_weights": log_weights, "log_scale": log_scale}
    logits, weights, _ = Fusion("softmax").apply({"params": params}, branch_logits)
    assert weights.sum() == pytest.approx(1)
    terms = [
        weight * jax.nn.log_softmax(branch_logits[:, branch])
        for branch, weight in enumerate(weights)
    ]
    np.testing.assert_allclose(logits, 3 * sum(terms), rtol=1e-5, atol=1e-6)


def test_an_ensemble_depends_on_its_branches_alone(key, branch_logits):
    """By its gradients: those by deeper branches, and by other ensembles' parameters, are zero."""
    fusion = Fusion("geometric")
    params = fusion.init(key, branch_logits)["params"]
    params = jax.tree.map(lambda x: x + jax.random.normal(key, x.shape), params)

    def scores(params, branch_logits):
        return fusion.apply({"params": params}, branch_logits)[2][:, :, 3].sum(0)

    of_params, of_branches = jax.jacrev(scores, (0, 1))(params, branch_logits)
    for row in range(4):
        reached = np.any(of_branches[row] != 0, (0, 2))
        np.testing.assert_array_equal(reached, np.arange(4) <= row)
        expected = np.zeros((4, 4), bool)
        expected[row, : row + 1] = True
        np.testing.assert_array_equal(of_params["log_weights"][row] != 0, expected)
        np.testing.assert_array_equal(np.any(of_params["bias"][row], 1), np.arange(4) == row)


def test_geometric_is_the_weighted_geometric_mean_times_a_factor_per_class(key, branch_logits):
    fusion = Fusion("geometric")
    params = fusion.init(key, branch_logits)["params"]
    params["bias"] = jax.random.normal(key, (4, 10))
    params["log_weights"] = jax.random.normal(key, (4, 4))
    logits, weights, ensembles = fusion.apply({"params": params}, branch_logits)
    np.testing.assert_array_equal(logits, ensembles[:, -1])
    np.testing.assert_allclose(weights, np.exp(params["log_weights"][3]) / 4, rtol=1e-6)
    probabilities = np.asarray(jax.nn.softmax(branch_logits), np.float64)
    product = np.prod(probabilities ** np.asarray(weights)[None, :, None], axis=1)
    product *= np.exp(params["bias"][3])[None]
    expected = product / product.sum(1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, rtol=1e-4)


@pytest.fixture
def examples(key):
    """Branches that know 400 labels better the deeper they are, and not all in one direction."""
    keys = jax.random.split(key, 3)
    labels = jax.random.randint(keys[0], (400,), 0, 3)
    noise = jax.random.normal(keys[1], (400, 4, 3))
    sharpness = jnp.array([-0.5, 0.3, 1.0, 1.5])[None, :, None]
    return 2 * (noise + sharpness * jax.nn.one_hot(labels, 3)[:, None]), labels


@partial(jax.jit, static_argnums=0)
def loss_of(fusion, params, branch_logits, labels):
    logits, _, ensembles = fusion.apply({"params": params}, branch_logits)
    each = logits[:, None] if ensembles is None else ensembles
    return cross_entropy(each, jnp.repeat(labels[:, None], each.shape[1], 1)).mean()


@pytest.mark.parametrize("kind", LEARNED)
def test_a_fit_is_the_minimum(key, examples, kind):
    branch_logits, labels = examples
    fusion, params = fit_fusion(branch_logits, labels, kind)
    loss, gradient = jax.value_and_grad(lambda p: loss_of(fusion, p, *examples))(params)
    start = Fusion(kind, (0.25,) * 4)
    assert loss < loss_of(start, start.init(key, branch_logits)["params"], *examples) - 0.01
    # Of a convex function the minimum is where no step along the gradient leads lower.
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) < 1e-4
    rng = np.random.default_rng(0)
    for _ in range(20):
        near = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), params)
        assert loss_of(fusion, near, *examples) >= loss - 1e-6


@pytest.mark.parametrize("kind", ["shared", "class"])
def test_the_loss_is_convex_in_the_weights(key, examples, kind):
    fusion = Fusion(kind)
    shape = (4,) if kind == "shared" else (4, 3)
    for number in range(20):
        a, b = 3 * jax.random.normal(jax.random.fold_in(key, number), (2, *shape))
        ends = [loss_of(fusion, {"weights": each}, *examples) for each in (a, b)]
        assert loss_of(fusion, {"weights": (a + b) / 2}, *examples) <= sum(ends) / 2 + 1e-5


def test_a_fit_of_shared_weights_is_scipy_s(examples):
    optimize = pytest.importorskip("scipy.optimize")
    branch_logits, labels = examples

    def loss(weights):
        logits = np.einsum("bnc,n->bc", np.asarray(branch_logits, np.float64), weights)
        logits -= logits.max(1, keepdims=True)
        normalizers = np.log(np.exp(logits).sum(1))
        return np.mean(normalizers - logits[np.arange(400), np.asarray(labels)])

    reference = optimize.minimize(loss, np.zeros(4))
    _, params = fit_fusion(branch_logits, labels, "shared")
    np.testing.assert_allclose(params["weights"], reference.x, atol=1e-3)
    assert params["weights"][0] < 0 < params["weights"][3]


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("branches", [1, 2, 4])
def test_a_cut_fusion_has_the_terms_of_the_whole(key, branch_logits, kind, branches):
    fusion = Fusion(kind)
    params = fusion.init(key, branch_logits)["params"]
    params = jax.tree.map(lambda x: x + jax.random.normal(key, x.shape), params)
    logits, weights, ensembles = fusion.apply({"params": params}, branch_logits)
    if kind == "geometric":
        expected = ensembles[:, branches - 1]
    else:
        terms = jax.nn.log_softmax(branch_logits) if kind == "softmax" else branch_logits
        scale = jnp.exp(params["log_scale"]) if kind == "softmax" else 1.0
        per_class = weights if weights.ndim == 2 else weights[:, None]
        expected = scale * (terms * per_class[None])[:, :branches].sum(1)
    cut, params = cut_fusion(fusion, params, branches)
    first = branch_logits[:, :branches]
    shapes = jax.eval_shape(cut.init, key, first)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    cut_logits, *_ = cut.apply({"params": params}, first)
    np.testing.assert_allclose(cut_logits, expected, rtol=1e-5, atol=1e-5)
    if branches == 4:
        np.testing.assert_allclose(cut_logits, logits, rtol=1e-5, atol=1e-5)


def test_a_cut_fixed_fusion_keeps_its_weights_or_lets_the_last_branch_predict():
    whole = Fusion("fixed", (0.1, 0.2, 0.3, 0.4))
    assert cut_fusion(whole, {}, 2)[0].initial_weights == (0.1, 0.2)
    last_alone = Fusion("fixed", (0.0, 0.0, 0.0, 1.0))
    assert cut_fusion(last_alone, {}, 2)[0].initial_weights == (0.0, 1.0)
    assert cut_fusion(last_alone, {}, 4)[0] == last_alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.zeros((5, 4, 3)), jnp.zeros(5, int), "fixed"), "'fixed'; choose one that is learned"),
        ((jnp.zeros((5, 4, 3)), jnp.zeros(4, int), "shared"), r"\(5, 4, 3\) and labels \(4,\)"),
    ],
)
def test_what_cannot_be_fitted_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_fusion(*arguments)
