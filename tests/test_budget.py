"""Confidence, temperatures, rankings and thresholds, by hand and by what they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interflow_jax as ij

OPERATIONS = (1.0, 4.0, 9.0)
CONFIDENCES = np.random.default_rng(0).random((500, 3), np.float32)


@pytest.fixture(scope="module")
def frontier():
    return ij.ExitFrontier(CONFIDENCES, CONFIDENCES, OPERATIONS)


def test_confidence_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [1.0, 1.0, 1.0]]))
    entropy = -sum(p * np.log(p) for p in (0.5, 0.3, 0.2))
    expected = {
        "probability": [0.5, 1 / 3],
        "margin": [0.2, 0],
        "entropy": [1 - entropy / np.log(3), 0],
    }
    for measure, values in expected.items():
        np.testing.assert_allclose(ij.confidence(logits, measure), values, rtol=1e-5, atol=1e-6)
        certain = ij.confidence(jnp.array([[1000.0, 0.0, 0.0]]), measure)
        assert certain[0] == 1  # never above a threshold of one
    ruled_out = ij.confidence(jnp.array([[0.0, 0.0, -jnp.inf, -jnp.inf]]), "entropy")
    np.testing.assert_allclose(ruled_out, 0.5, rtol=1e-5)
    cooler = np.array([0.5, 0.3, 0.2]) ** 2
    sure = ij.confidence(logits, temperature=0.5)
    np.testing.assert_allclose(sure[0], cooler[0] / cooler.sum(), rtol=1e-5)
    with pytest.raises(ValueError, match="'max'; choose one of probability, margin, entropy"):
        ij.confidence(logits, "max")  # pyright: ignore


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_labels_drawn_from_the_probabilities_is_found(key, temperature):
    keys = jax.random.split(key)
    logits = 2 * jax.random.normal(keys[0], (20_000, 5))
    labels = jax.random.categorical(keys[1], logits)
    assert ij.fit_temperature(temperature * logits, labels) == pytest.approx(temperature, rel=0.05)


def test_ranking_is_the_share_of_pairs():
    confidence = np.array([0.9, 0.4, 0.4, 0.2], np.float32)
    # Pairs: 0.9 beats both; 0.4 ties one and beats the other.
    for kind in (bool, int, np.float32):
        correct = np.array([1, 1, 0, 0], kind)
        assert ij.failure_ranking(confidence, correct) == pytest.approx(3.5 / 4)
        assert ij.failure_ranking(confidence, 1 - correct.astype(int)) == pytest.approx(0.5 / 4)
    assert ij.failure_ranking(confidence, np.full(4, True)) == 0.5


def test_an_example_leaves_by_the_first_exit_above_its_threshold():
    confidences = np.array([[0.9, 0.1, 0.1], [0.5, 0.6, 0.0], [0.5, 0.5, 0.0]], np.float32)
    np.testing.assert_array_equal(ij.leaving(confidences, [0.5, 0.5]), [1, 2, 3])
    np.testing.assert_array_equal(ij.leaving(confidences, [0.0, 0.0]), [1, 1, 1])
    np.testing.assert_array_equal(ij.leaving(confidences, [1.0, 1.0]), [3, 3, 3])


def spent_and_right(values, thresholds):
    exits = ij.leaving(CONFIDENCES, thresholds) - 1
    return np.array(OPERATIONS)[exits].mean(), values[np.arange(len(values)), exits].mean()


@pytest.mark.parametrize("budget", [1.0, 2.5, 5.0, 9.0, 20.0])
def test_thresholds_within_a_budget_are_the_best_of_all_on_the_frontier(frontier, budget):
    """Of all pairs of thresholds on a grid, none within the budget's operations does better.

    But for the hundredth of a chance that lies between two points of the frontier.
    """
    spent, right = spent_and_right(CONFIDENCES, frontier.within(budget))
    assert spent <= budget
    grid = np.linspace(0, 1, 41)
    for pair in [(first, second) for first in grid for second in grid]:
        others, theirs = spent_and_right(CONFIDENCES, pair)
        assert others > min(budget, spent + 0.05) or theirs <= right + 0.01


def test_a_deeper_exit_that_does_no_better_is_not_waited_for():
    """One threshold for all keeps unsure examples in; the last exit knows no more than the second.

    By hand: the second exit lets all out, whatever its confidence.
    """
    chances = CONFIDENCES.copy()
    chances[:, 2] = chances[:, 1]
    thresholds = ij.ExitFrontier(CONFIDENCES, chances, OPERATIONS).within(9.0)
    assert set(ij.leaving(CONFIDENCES, thresholds)) == {1, 2}
    _, right = spent_and_right(chances, thresholds)
    assert right == pytest.approx(chances[:, :2].max(axis=1).mean(), abs=0.1)


def test_the_frontier_goes_from_the_first_exit_to_the_last(frontier):
    assert set(ij.leaving(CONFIDENCES, frontier.thresholds[0])) == {1}
    assert set(ij.leaving(CONFIDENCES, frontier.thresholds[-1])) == {3}
    assert len(frontier.operations) == len(frontier.thresholds) > 10
    assert (np.diff(frontier.operations) >= 0).all()
    for thresholds, operations in zip(frontier.thresholds, frontier.operations, strict=True):
        assert spent_and_right(CONFIDENCES, thresholds)[0] == operations


def test_who_has_no_confidence_at_all_stays_even_within_the_least_budget():
    confidences = CONFIDENCES.copy()
    confidences[0, 0] = 0.0
    thresholds = ij.ExitFrontier(confidences, confidences, OPERATIONS).within(1.0)
    leaves = ij.leaving(confidences, thresholds)
    assert leaves[0] > 1
    assert set(leaves[1:]) == {1}


def test_the_cheapest_thresholds_of_an_accuracy():
    # Right where sure, and always right at the end: accuracy grows along the frontier.
    correct = CONFIDENCES > 0.4
    correct[:, -1] = True
    frontier = ij.ExitFrontier(CONFIDENCES, correct.astype(float), OPERATIONS)
    thresholds = frontier.reaching(correct, 0.9)
    assert spent_and_right(correct, thresholds)[1] >= 0.9
    cheaper = frontier.thresholds[frontier.thresholds.tolist().index(thresholds) - 1]
    assert spent_and_right(correct, cheaper)[1] < 0.9
    with pytest.raises(ValueError, match=r"accuracy is 101\.00%; the best is 100"):
        frontier.reaching(correct, 1.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.within(0.5), r"0\.5 operations; the first exit takes 1: choose"),
        (
            lambda f: ij.ExitFrontier(CONFIDENCES, CONFIDENCES[:, :2], OPERATIONS),
            r"chances \(500, 2\) and operations 3; give",
        ),
        (lambda f: ij.fit_temperature(jnp.zeros((2, 3)), np.array([0, 3])), "labels go to 3"),
        (lambda f: ij.fit_temperature(jnp.zeros((2, 3)), np.array([0])), r"labels \(1,\); give"),
        (lambda f: ij.fit_temperature(jnp.zeros((0, 3)), np.zeros(0, int)), "of one or more"),
        (lambda f: ij.failure_ranking(np.ones(2), np.array([2, 0])), "the latter bool"),
        (lambda f: ij.failure_ranking(np.ones(3), np.array([1, 0])), r"correct \(2,\)"),
    ],
)
def test_what_does_not_fit_is_named(frontier, call, message):
    with pytest.raises(ValueError, match=message):
        call(frontier)
