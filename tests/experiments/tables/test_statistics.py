"""Intervals, verdicts, outlying runs and signs, by hand or by scipy's own tests."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import interflow_jax as ij
from experiments import reproduce
from experiments.tables import statistics, weights

RESULTS = Path(__file__).parents[3] / "results"


def test_interval_of_paired_seeds():
    """Differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.3027, divided by sqrt(3)."""
    ours = pd.Series({0: 11.0, 1: 22.0, 2: 33.0, 7: 1.0})
    difference = statistics.difference(ours, pd.Series({2: 30.0, 1: 20.0, 0: 10.0, 8: 0.0}))
    assert difference.pairs == 3
    assert difference.mean == pytest.approx(2.0)
    assert difference.low == pytest.approx(2 - 4.302653 / 3**0.5)
    assert difference.high == pytest.approx(2 + 4.302653 / 3**0.5)
    assert str(difference) == "+2.00 (-0.48 to +4.48), 3 pairs"  # ours has a run more


def test_a_seed_without_a_figure_is_none_of_the_runs():
    ours = pd.Series({0: 11.0, 1: 22.0, 2: np.nan})
    difference = statistics.difference(ours, pd.Series({0: 10.0, 1: 20.0, 2: 30.0, 3: np.nan}))
    assert (difference.pairs, difference.runs, difference.mean) == (2, 2, 1.5)
    assert difference.welch.mean == pytest.approx(16.5 - 20)


def test_one_pair_has_no_interval_and_none_no_difference():
    three, one = pd.Series({0: 3.0}), pd.Series({0: 1.0})
    assert statistics.difference(three, one) == statistics.Difference(2.0, None, None, 1, 1)
    assert str(statistics.difference(three, one)) == "+2.00"
    assert statistics.difference(three, one.set_axis([1])) is None
    assert statistics.spread(three) == statistics.Spread(3.0, None)
    assert statistics.spread(three[[]]) is None


@pytest.fixture(scope="module")
def accuracies():
    """The test accuracies of the committed runs of every configuration, by seed."""
    by_configuration: dict[str, dict[int, float]] = {}
    for line in (RESULTS / "runs.jsonl").read_text().splitlines():
        run = json.loads(line)
        configuration = run["run"].rpartition("/")[0]
        by_configuration.setdefault(configuration, {})[run["seed"]] = run["test_accuracy"]
    return {name: pd.Series(runs) for name, runs in by_configuration.items()}


def test_intervals_of_all_committed_runs_are_scipy_s(accuracies):
    compared = 0
    for name, ours in accuracies.items():
        variant, method = name.rsplit("/", 1)
        reference = accuracies.get(f"{variant}/Normal")
        if method == "Normal" or reference is None:
            continue
        difference = statistics.difference(ours, reference)
        seeds = sorted(set(ours.index) & set(reference.index))
        if difference is None or len(seeds) < 2:
            continue
        compared += 1
        paired = stats.ttest_rel(ours[seeds], reference[seeds])
        ends = paired.confidence_interval(statistics.CONFIDENCE)
        assert (difference.low, difference.high) == pytest.approx((ends.low, ends.high))
        assert difference.p == pytest.approx(paired.pvalue)
        unpaired = stats.ttest_ind(ours, reference, equal_var=False)
        ends = unpaired.confidence_interval(statistics.CONFIDENCE)
        assert difference.welch.mean == pytest.approx(ours.mean() - reference.mean())
        assert (difference.welch.low, difference.welch.high) == pytest.approx((ends.low, ends.high))
        mean = stats.t.interval(0.95, len(ours) - 1, ours.mean(), stats.sem(ours))
        assert statistics.interval(ours.to_numpy()) == pytest.approx(mean)
    assert compared >= 30


def test_the_differences_of_reports_are_those_of_the_committed_runs(tmp_path):
    """Of every cell whose reference stands in the same report, committed or written anew."""
    (tmp_path / "runs.jsonl").write_bytes((RESULTS / "runs.jsonl").read_bytes())
    for table in (
        "--table=1 --datasets=cifar10",
        "--table=3 --datasets=cifar10,fashion_mnist",
        "--table=6 --datasets=fashion_mnist",
        "--table=branches",
    ):
        command = [*table.split(), "--preset=quick", "--report", f"--out={tmp_path}"]
        assert reproduce.main(command) == 0
    lines = map(json.loads, (RESULTS / "runs.jsonl").read_text().splitlines())
    runs = {run["run"]: run for run in lines}
    compared = 0
    for file in [*RESULTS.glob("*.json"), *tmp_path.glob("*.json")]:
        cells = json.loads(file.read_text()).get("cells", ())
        rows = {(cell["section"], cell["row"]): cell for cell in cells}
        for cell in cells:
            reference = rows.get((cell["section"], cell["to"]))
            if reference is None or cell["difference"]["low"] is None:
                continue
            compared += 1
            ours, other = (
                {runs[name]["seed"]: runs[name]["test_accuracy"] for name in each["runs"]}
                for each in (cell, reference)
            )
            seeds = sorted(ours.keys() & other.keys())
            paired = stats.ttest_rel([ours[seed] for seed in seeds], [other[s] for s in seeds])
            ends = paired.confidence_interval(statistics.CONFIDENCE)
            written = cell["difference"]
            assert (written["low"], written["high"]) == pytest.approx((ends.low, ends.high))
    assert compared >= 50


def test_equal_runs_have_intervals_without_width():
    equal = pd.Series([5.0, 5.0])
    difference = statistics.difference(equal, equal - 1)
    assert (difference.low, difference.high, difference.p) == (1.0, 1.0, 0.0)
    assert difference.welch == statistics.Interval(1.0, 1.0, 1.0)
    assert statistics.difference(equal, equal).p == 1.0


@pytest.mark.parametrize(("count", "runs"), [(0, 3), (1, 3), (2, 3), (5, 5), (7, 30)])
def test_the_interval_of_a_share_is_the_exact_binomial_one(count, runs):
    ends = stats.binomtest(count, runs).proportion_ci(statistics.CONFIDENCE, method="exact")
    share = statistics.Share(count, runs)
    assert share.interval == pytest.approx((ends.low, ends.high))
    assert str(share) == f"{count} of {runs} ({100 * ends.low:.0f} to {100 * ends.high:.0f} %)"


def test_a_run_has_begun_to_learn_that_is_right_thrice_as_often_as_chance():
    runs = pd.DataFrame({"test_accuracy": [29.0, 31.0, 2.0, 4.0]})
    runs["class_names"] = [["class"] * classes for classes in (10, 10, 100, 100)]
    runs["image_shape"] = [[32, 32, 3]] * 4
    assert statistics.learned(runs).tolist() == [False, True, False, True]


def difference_of(mean, half, p):
    return statistics.Difference(mean, mean - half, mean + half, 5, 5, None, p)


def test_holm_rejects_what_his_steps_reject():
    """Holm, 1979: from the smallest p on, p <= level / (how many are left), to the first miss."""
    p_values = np.random.default_rng(0).uniform(0, 0.2, 12) ** 2
    differences = [difference_of(9.0, 1.0, float(p)) for p in p_values]
    statistics.judge(differences)
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for place, index in enumerate(np.argsort(p_values)):
            if p_values[index] > level / (len(p_values) - place):
                break
            rejected.add(int(index))
        assert {i for i, each in enumerate(differences) if each.holm <= level} == rejected
    assert 0 < sum(each.verdict == "ahead" for each in differences) < len(differences)


def test_verdicts():
    ahead, behind = difference_of(2.0, 1.0, 0.001), difference_of(-2.0, 1.0, 0.002)
    small, wide = difference_of(0.2, 0.05, 1e-4), difference_of(0.0, 0.5, 1.0)
    alone = statistics.Difference(5.0, None, None, 1, 1)
    statistics.judge([ahead, behind, small, wide, alone])
    verdicts = [each.verdict for each in (ahead, behind, small, wide, alone)]
    assert verdicts == ["ahead", "behind", "equal", "undecided", "undecided"]
    assert str(ahead) == "+2.00 (+1.00 to +3.00), ahead"


def test_what_one_difference_decides_several_may_not():
    alone, among = difference_of(2.0, 1.9, 0.04), difference_of(2.0, 1.9, 0.04)
    statistics.judge([alone])
    statistics.judge([among, difference_of(0.0, 9.0, 0.9)])
    assert (alone.verdict, among.verdict) == ("ahead", "undecided")


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
