"""Intervals a second way, verdicts and signs by hand."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import interflow_jax as ij
from experiments.tables import fusion_weights, statistics
from experiments.tables.runs import load
from experiments.tables.statistics import Difference, Family

RESULTS = Path(__file__).parents[3] / "results"


@pytest.fixture(scope="module")
def cifar():
    """The committed runs of 60 epochs on CIFAR-10, of VGG's 13 layers and the methods' own taps."""
    runs = load(RESULTS)
    own = runs["taps"].isin([(13,), (7, 9, 11, 13)]) & (runs["depth"] == 13)
    place = (runs["dataset"] == "cifar10") & (runs["epochs"] == 60) & (runs["backbone"] == "vgg")
    plain = runs["fusion"].isna() & (runs["distillation"] == 0)
    return runs[own & place & plain]


def family(runs, outcome="late_accuracy", methods=("Normal", "Scaled", "S0", "S1", "DSN")):
    rows = {
        method: runs[(runs["method"] == method) & (runs["auxiliary_mean"] == 0)][outcome]
        for method in methods
    }
    with_losses = (runs["method"] == "S1") & (runs["auxiliary_mean"] == 1)
    return Family(rows | {"S1 with losses": runs[with_losses][outcome]})


def test_the_last_epoch_at_the_paper_s_rate_is_that_of_an_independent_computation(cifar):
    runs = cifar[(cifar["learning_rate"] == 1e-3) & (cifar["seed"] < 3)]
    difference = family(runs, "test_accuracy").to("Normal")["DSN"]
    figures = (difference.mean, difference.low, difference.high)
    assert figures == pytest.approx((6.25, 3.93, 8.58), abs=0.02)


@pytest.mark.parametrize("rate", [1e-3, 1e-2, 3e-2])
def test_intervals_are_those_of_the_multivariate_t(cifar, rate):
    """Dunnett, 1955: contrasts' correlations are l_i l_j, with l_i = sqrt(n_i / (n_i + n_0))."""
    compared = family(cifar[cifar["learning_rate"] == rate])
    control, *others = compared.rows.values()
    counts = np.array([values.size for values in others])
    loads = np.sqrt(counts / (counts + control.size))
    squares = [np.sum((values - values.mean()) ** 2) for values in compared.rows.values()]
    freedom = counts.sum() + control.size - len(compared.rows)
    deviation = np.sqrt(sum(squares) / freedom)
    assert compared.deviation == pytest.approx(deviation)
    rng = np.random.default_rng(1)
    common, own = rng.normal(size=(200_000, 1)), rng.normal(size=(200_000, len(others)))
    scale = np.sqrt(rng.chisquare(freedom, (200_000, 1)) / freedom)
    draws = (loads * common + np.sqrt(1 - loads**2) * own) / scale
    quantile = np.quantile(np.abs(draws).max(axis=1), statistics.CONFIDENCE)
    for values, each in zip(others, compared.to("Normal").values(), strict=True):
        half = quantile * deviation * np.sqrt(1 / values.size + 1 / control.size)
        mean = values.mean() - control.mean()
        assert (each.low, each.high) == pytest.approx((mean - half, mean + half), abs=0.03)


def test_other_pairs_have_tukey_s_intervals():
    samples = np.random.default_rng(0).normal(size=(4, 5)) + np.arange(4)[:, None]
    ends = stats.tukey_hsd(*samples).confidence_interval(statistics.CONFIDENCE)
    compared = Family(dict(enumerate(samples))).between([(2, 1), (3, 0), (1, 9)])
    assert compared.keys() == {2, 3}
    for first, second in ((2, 1), (3, 0)):
        assert compared[first].low == pytest.approx(ends.low[first, second], abs=0.006)
        assert compared[first].high == pytest.approx(ends.high[first, second], abs=0.006)


def test_of_unequal_variances_they_are_games_and_howell_s():
    """By Welch's degrees of freedom for each pair, and the studentized range of all rows."""
    rng = np.random.default_rng(0)
    rows = {"a": rng.normal(0, 0.1, 8), "b": rng.normal(1, 4, 6), "c": rng.normal(0, 1, 7)}
    compared = Family(rows)
    assert compared.bartlett == pytest.approx(stats.bartlett(*rows.values()).pvalue)
    assert compared.bartlett < 0.05
    assert "Games and Howell" in str(compared)
    parts = [rows[name].var(ddof=1) / rows[name].size for name in "ba"]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 5 + parts[1] ** 2 / 7)
    half = stats.studentized_range.ppf(0.95, 3, freedom) * np.sqrt(sum(parts) / 2)
    mean = rows["b"].mean() - rows["a"].mean()
    for found in (compared.to("a")["b"], compared.between([("b", "a")])["b"]):
        assert (found.low, found.high) == pytest.approx((mean - half, mean + half), abs=0.006)
    single = Family({**rows, "d": [1.0]}).to("a")["d"]
    assert (single.low, single.verdict) == (None, "undecided")


@pytest.mark.parametrize(
    ("shift", "spread", "verdict"),
    [
        (2.0, 0.5, "ahead"),
        (-2.0, 0.5, "behind"),
        (0.02, 0.05, "no different"),
        (0.2, 1.0, "undecided"),
        (0.2, 0.01, "ahead"),  # small as it is
    ],
)
def test_verdicts(shift, spread, verdict):
    around = np.array([-1.0, 0.0, 1.0, 0.5, -0.5])
    found = Family({"a": spread * around, "b": spread * around + shift}).to("a")["b"]
    assert found.verdict == verdict
    assert (found.needed is None) == (verdict != "undecided")
    assert str(found).startswith(f"{shift:+.2f} (")


@pytest.mark.parametrize("others", [1, 5])
def test_with_the_runs_that_an_undecided_verdict_names_the_half_width_is_the_margin(others):
    rng = np.random.default_rng(2)
    rows = {name: rng.normal(size=4) for name in range(others + 1)}
    compared = Family(rows)
    needed = next(each.needed for each in compared.to(0).values() if each.needed)
    values = np.resize([-1.0, 1.0], needed)
    values *= compared.deviation / values.std(ddof=1)
    wide = Family({name: values - values.mean() for name in range(others + 1)}).to(0)[1]
    assert wide.high == pytest.approx(statistics.MARGIN, abs=0.02)


def test_of_a_narrow_undecided_interval_the_runs_are_those_at_which_the_difference_decides():
    around = np.resize([-1.0, 1.0], 6) / 3
    compared = Family({"a": around, "b": around + 0.2})
    found = compared.to("a")["b"]
    assert found.verdict == "undecided"
    assert found.high - found.low < 2 * statistics.MARGIN
    # 0.3 to either side of 0.2 is within the margin; with fewer runs it is not.
    verdicts = []
    for runs in (found.needed - 2, found.needed):
        values = np.resize([-1.0, 1.0], runs)
        values = compared.deviation * (values - values.mean()) / values.std(ddof=1)
        verdicts.append(Family({"a": values, "b": values + 0.195}).to("a")["b"].verdict)
    assert verdicts == ["undecided", "no different"]


def test_where_deviations_differ_the_runs_are_by_those_of_the_two():
    around = np.resize([-1.0, 1.0], 10)
    rows = {"a": around, "b": 0.1 * around + 0.1, "c": 0.1 * around}
    found = Family(rows).to("a")["b"]
    assert (found.verdict, found.high - found.low > 2 * statistics.MARGIN) == ("undecided", True)
    assert found.needed > 10
    around = np.resize([-1.0, 1.0], found.needed)
    around /= around.std(ddof=1) / rows["a"].std(ddof=1)
    enough = Family({"a": around, "b": 0.1 * around, "c": 0.1 * around}).to("a")["b"]
    assert enough.high == pytest.approx(statistics.MARGIN, abs=0.02)


def test_nothing_tells_the_deviation_of_single_runs():
    found = Family({"a": [1.0], "b": [2.0], "c": []}).to("a")
    assert found == {"b": Difference(1.0, None, None, "undecided", None)}
    assert Family({"a": [1.0, 2.0]}).to("b") == {}
    equal = Family({"a": [1.0, 1.0], "b": [2.0, 2.0]}).to("a")["b"]
    assert (equal.low, equal.high, equal.verdict) == (1.0, 1.0, "ahead")


def test_a_run_without_a_figure_is_none_of_the_runs():
    assert statistics.spread([1.0, None, 3.0]) == statistics.Spread(2.0, 2**0.5)
    assert statistics.spread([1.0, np.nan]) == statistics.Spread(1.0, None)
    assert statistics.spread([None]) is None
    assert Family({"a": [1.0, np.nan, 2.0]}).rows["a"].tolist() == [1.0, 2.0]


def test_the_interval_of_a_share_is_the_exact_binomial_one():
    """Clopper and Pearson, by the beta distribution."""
    low, high = stats.beta.ppf(0.025, 2, 2), stats.beta.ppf(0.975, 3, 1)
    assert str(statistics.Share(2, 3)) == f"2 of 3 ({100 * low:.0f} to {100 * high:.0f} %)"
    assert str(statistics.Share(0, 3)) == f"0 of 3 (0 to {100 * (1 - 0.025 ** (1 / 3)):.0f} %)"


def test_a_run_has_begun_to_learn_that_is_right_thrice_as_often_as_chance():
    runs = pd.DataFrame({"test_accuracy": [29.0, 31.0, 2.0, 4.0]})
    runs["class_names"] = [["class"] * classes for classes in (10, 10, 100, 100)]
    assert statistics.has_begun(runs).tolist() == [False, True, False, True]


def test_signs_are_turned_a_group_at_a_time():
    weights = np.array([[-0.7, 0.6, 0.2, 2.4], [0.7, -0.6, -0.2, -2.4], [-0.7, -0.6, 0.2, 2.4]])
    turned = statistics.with_comparable_signs(weights, [[0], [1, 2, 3]])
    np.testing.assert_array_equal(turned[0], [0.7, 0.6, 0.2, 2.4])
    np.testing.assert_array_equal(turned[1], turned[0])
    np.testing.assert_array_equal(turned[2], [0.7, -0.6, 0.2, 2.4])


def test_branches_of_equal_channels_share_a_layer():
    """Paper, IV-C: 256 channels after convolution 7, 512 after 9, 11 and 13."""
    shape = (32, 32, 3)
    assert fusion_weights.sharing_groups(ij.build("S1", 10), shape) == [[0], [1, 2, 3]]
    separate = fusion_weights.sharing_groups(ij.build("S1", 10, fully_connected="separate"), shape)
    assert separate == [[0], [1], [2], [3]]
    deep = (13, 20, 30, 40)  # spread, 128 channels up to 12, 256 up to 21
    spread = ij.build("S1", 10, depth=40, taps=deep)
    assert fusion_weights.sharing_groups(spread, shape) == [[0, 1], [2, 3]]
    append = ij.build("S1", 10, depth=40, taps=deep, layout="append")
    assert fusion_weights.sharing_groups(append, shape) == [[0, 1, 2, 3]]


def test_turned_signs_are_those_of_an_equal_model():
    """A group's weights and their layer negated together predict the same."""
    model = ij.build("S1", 10, width=1 / 16, depth=4, taps=(1, 2, 3, 4))
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), images)
    learned = np.array([0.3, -0.2, 0.5, -0.7])
    params = {**variables["params"], "fusion": {"weights": jnp.asarray(learned, jnp.float32)}}
    turned = statistics.with_comparable_signs(
        learned, fusion_weights.sharing_groups(model, (8, 8, 1))
    )
    assert turned.tolist() == [-0.3, 0.2, -0.5, 0.7]
    equal = params | {"fusion": {"weights": jnp.asarray(turned, jnp.float32)}}
    for layer in ("fully_connected_channels_4", "fully_connected_channels_8"):
        equal[layer] = jax.tree.map(jnp.negative, params[layer])
    predict = jax.jit(partial(model.apply, train=False))
    before, after = (predict({**variables, "params": each}, images) for each in (params, equal))
    np.testing.assert_allclose(before.logits, after.logits, rtol=1e-5, atol=1e-6)
