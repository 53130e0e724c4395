"""Fusion weighs branches and sums them (paper, III-B)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interflow_jax import Fusion


@pytest.fixture
def branch_logits(key):
    return jax.random.normal(key, (3, 4, 10))


def test_equal_fixed_weights_are_the_mean_of_the_branches(branch_logits):
    logits, _ = Fusion("fixed", (0.25,) * 4).apply({}, branch_logits)
    np.testing.assert_allclose(logits, branch_logits.mean(1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["fixed", "shared", "class"])
@pytest.mark.parametrize("branch", range(4))
def test_one_weight_at_one_is_that_branch_alone(key, branch_logits, kind, branch):
    weights = tuple(float(number == branch) for number in range(4))
    (logits, _), _ = Fusion(kind, weights).init_with_output(key, branch_logits)
    np.testing.assert_array_equal(logits, branch_logits[:, branch])


def test_fixed_has_no_parameter(key, branch_logits):
    assert jax.tree.leaves(Fusion("fixed", (0.1, 0.2, 0.3, 0.4)).init(key, branch_logits)) == []


def test_class_with_equal_columns_is_shared(key, branch_logits):
    weights = jax.random.normal(key, (4,))
    shared, _ = Fusion("shared").apply({"params": {"weights": weights}}, branch_logits)
    columns = jnp.tile(weights[:, None], (1, 10))
    per_class, _ = Fusion("class").apply({"params": {"weights": columns}}, branch_logits)
    np.testing.assert_array_equal(shared, per_class)


def test_each_class_is_weighed_by_its_own_column(key, branch_logits):
    weights = jax.random.normal(key, (4, 10))
    logits, given = Fusion("class").apply({"params": {"weights": weights}}, branch_logits)
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
@pytest.mark.parametrize(("start", "fan_out"), [("xavier", 1), ("unit", 4)])
def test_xavier_weights_are_uniform_within_its_bound(kind, classes, start, fan_out):
    fusion = Fusion(kind, start=start)
    draws = [
        fusion.init(jax.random.key(seed), jnp.zeros((1, 4, classes)))["params"]["weights"]
        for seed in range(1000 if kind == "shared" else 1)
    ]
    weights = np.concatenate([draw.ravel() for draw in draws])
    bound = np.sqrt(6 / (4 + fan_out))  # n branches in
    assert np.abs(weights).max() <= bound
    # 4000 draws: the extremes come within 1 %, mean and variance within 4 standard errors.
    assert np.abs(weights).max() > 0.99 * bound
    assert abs(weights.mean()) < 4 * bound / np.sqrt(3 * 4000)
    assert abs(weights.var() - bound**2 / 3) < 4 * bound**2 * np.sqrt(4 / 45 / 4000)


@pytest.mark.parametrize("branches", [4, 7, 15])
def test_a_unit_start_leaves_logits_as_large_as_a_branch_s_on_average(key, branches):
    """The mean over draws of independent branches' summed variance is that of one branch."""
    fusion, logits = Fusion("class", start="unit"), jnp.zeros((1, branches, 9))
    init = jax.vmap(lambda key: fusion.init(key, logits))
    weights = init(jax.random.split(key, 2_000))["params"]["weights"]
    # The square of a uniform weight deviates by sqrt(4 / 5) of its mean, 1 / n.
    error = np.sqrt(0.8 / branches / (9 * 2_000))
    assert abs((weights**2).sum(1).mean() - 1) < 4 * error


def test_fuses_in_float32(branch_logits):
    logits, weights = Fusion("fixed", (1.0, 0.0, 0.0, 0.0)).apply(
        {}, branch_logits.astype(jnp.bfloat16)
    )
    assert logits.dtype == weights.dtype == jnp.float32


@pytest.mark.parametrize(
    ("fusion", "message"),
    [
        (Fusion("soft"), "'soft'; choose one of fixed, shared, class"),  # pyright: ignore
        (Fusion("shared", start="zero"), "'zero'; choose one of xavier, unit"),  # pyright: ignore
        (Fusion("fixed"), "give it initial_weights"),
        (Fusion("shared", (0.5, 0.5)), "2 initial fusion weights .* for 4 branches"),
    ],
)
def test_what_does_not_fit_is_named(key, branch_logits, fusion, message):
    with pytest.raises(ValueError, match=message):
        fusion.init(key, branch_logits)
