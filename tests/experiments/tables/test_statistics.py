"""Intervals, outlying runs and signs, against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import interflow_jax as ij
from experiments.tables import statistics, weights


def test_interval_of_paired_seeds():
    """Differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.3027, divided by sqrt(3)."""
    ours = pd.Series({0: 11.0, 1: 22.0, 2: 33.0, 7: 1.0})
    difference = statistics.difference(ours, pd.Series({2: 30.0, 1: 20.0, 0: 10.0, 8: 0.0}))
    assert difference.pairs == 3
    assert difference.mean == pytest.approx(2.0)
    assert difference.low == pytest.approx(2 - 4.302653 / 3**0.5)
    assert difference.high == pytest.approx(2 + 4.302653 / 3**0.5)
    assert str(difference) == "+2.00 (-0.48 to +4.48), 3 pairs"  # ours has a run more


def test_one_pair_has_no_interval_and_none_no_difference():
    three, one = pd.Series({0: 3.0}), pd.Series({0: 1.0})
    assert statistics.difference(three, one) == statistics.Difference(2.0, None, None, 1, 1)
    assert statistics.difference(three, one.set_axis([1])) is None
    assert statistics.spread(three) == statistics.Spread(3.0, None)
    assert statistics.spread(three[[]]) is None


def test_a_run_far_from_the_others_in_one_figure_is_outlying():
    values = np.array([[1.0, 5.0], [1.1, 5.1], [0.9, 4.9], [1.0, 5.0], [1.05, 9.0]])
    assert statistics.outlying(values).tolist() == [False, False, False, False, True]


def test_where_most_runs_are_equal_not_all_others_are_outlying():
    values = np.array([[1.0]] * 6 + [[2.0]] * 5)
    assert not statistics.outlying(values).any()
    assert statistics.outlying(np.array([[1.0]] * 9 + [[2.0]])).tolist() == [False] * 9 + [True]


def test_signs_are_turned_a_group_at_a_time():
    weights = np.array([[-0.7, 0.6, 0.2, 2.4], [0.7, -0.6, -0.2, -2.4], [-0.7, -0.6, 0.2, 2.4]])
    turned = statistics.with_comparable_signs(weights, [[0], [1, 2, 3]])
    np.testing.assert_array_equal(turned[0], [0.7, 0.6, 0.2, 2.4])
    np.testing.assert_array_equal(turned[1], turned[0])
    np.testing.assert_array_equal(turned[2], [0.7, -0.6, 0.2, 2.4])
    np.testing.assert_array_equal(
        statistics.with_comparable_signs(turned, [[0], [1, 2, 3]]), turned
    )


def test_branches_of_equal_channels_share_a_layer():
    """Paper, IV-C: 256 channels after convolution 7, 512 after 9, 11 and 13."""
    shape = (32, 32, 3)
    assert weights.sharing_groups(ij.build("S1", 10), shape) == [[0], [1, 2, 3]]
    separate = weights.sharing_groups(ij.build("S1", 10, fully_connected="separate"), shape)
    assert separate == [[0], [1], [2], [3]]
    deep = (13, 20, 30, 40)  # spread, 128 channels up to 12, 256 up to 21
    spread = ij.build("S1", 10, depth=40, taps=deep)
    assert weights.sharing_groups(spread, shape) == [[0, 1], [2, 3]]
    append = ij.build("S1", 10, depth=40, taps=deep, layout="append")
    assert weights.sharing_groups(append, shape) == [[0, 1, 2, 3]]


def test_turned_signs_are_those_of_an_equal_model():
    """A group's weights and their layer negated together predict the same."""
    model = ij.build("S1", 10, width=1 / 16)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 1))
    variables = model.init(jax.random.key(1), images, train=False)
    params = dict(variables["params"])
    params["fusion"] = {"weights": jnp.array([0.3, -0.2, 0.5, -0.7])}
    variables = {**variables, "params": dict(params)}
    (layer,) = [name for name in params if name.endswith("channels_32")]
    params[layer] = jax.tree.map(jnp.negative, params[layer])
    groups = weights.sharing_groups(model, (32, 32, 3))
    turned = statistics.with_comparable_signs(np.array([0.3, -0.2, 0.5, -0.7]), groups)
    params["fusion"] = {"weights": jnp.asarray(turned, jnp.float32)}
    before = model.apply(variables, images, train=False).logits
    after = model.apply({**variables, "params": params}, images, train=False).logits
    assert turned[-1] > 0
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)
