"""Temperatures, rankings and thresholds, by hand and by what they promise."""

import jax
import numpy as np
import pytest

import interflow_jax as ij


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_labels_drawn_from_the_probabilities_is_found(key, temperature):
    keys = jax.random.split(key)
    logits = 2 * jax.random.normal(keys[0], (20_000, 5))
    labels = jax.random.categorical(keys[1], logits)
    assert ij.fit_temperature(temperature * logits, labels) == pytest.approx(temperature, rel=0.05)


def test_ranking_is_the_share_of_pairs():
    confidence = np.array([0.9, 0.4, 0.4, 0.2], np.float32)
    correct = np.array([True, True, False, False])
    # Pairs: 0.9 beats both; 0.4 ties one and beats the other.
    assert ij.failure_ranking(confidence, correct) == pytest.approx(3.5 / 4)
    assert ij.failure_ranking(confidence, ~correct) == pytest.approx(0.5 / 4)
    assert ij.failure_ranking(confidence, np.full(4, True)) == 0.5


def test_an_example_leaves_by_the_first_exit_above_its_threshold():
    confidences = np.array([[0.9, 0.1, 0.1], [0.5, 0.6, 0.0], [0.5, 0.5, 0.0]], np.float32)
    np.testing.assert_array_equal(ij.leaving(confidences, [0.5, 0.5]), [1, 2, 3])
    np.testing.assert_array_equal(ij.leaving(confidences, [0.0, 0.0]), [1, 1, 1])
    np.testing.assert_array_equal(ij.leaving(confidences, [1.0, 1.0]), [3, 3, 3])


@pytest.fixture
def confidences():
    return np.random.default_rng(0).random((500, 3), np.float32)


OPERATIONS = (1.0, 4.0, 9.0)


@pytest.mark.parametrize("budget", [1.0, 2.5, 5.0, 9.0, 20.0])
def test_the_highest_threshold_within_a_budget_of_operations(confidences, budget):
    def spent(threshold):
        exits = ij.leaving(confidences, [threshold] * 2)
        return np.array(OPERATIONS)[exits - 1].mean()

    threshold = ij.threshold_for_operations(confidences, OPERATIONS, budget)
    assert 0 <= threshold <= 1
    assert spent(threshold) <= budget
    higher = confidences[:, :-1][confidences[:, :-1] > threshold]
    assert not len(higher) or threshold == 1 or spent(higher.min()) > budget
    if budget >= 9:
        assert threshold == 1


def test_a_budget_below_the_first_exit_is_refused(confidences):
    with pytest.raises(ValueError, match=r"0\.5 operations; the first exit takes 1: choose"):
        ij.threshold_for_operations(confidences, OPERATIONS, 0.5)


def test_the_lowest_threshold_of_an_accuracy(confidences):
    # Right where sure, and always right at the end: accuracy grows with the threshold.
    correct = confidences > 0.4
    correct[:, -1] = True

    def accuracy(threshold):
        exits = ij.leaving(confidences, [threshold] * 2)
        return correct[np.arange(500), exits - 1].mean()

    assert accuracy(0.0) < 0.9
    threshold = ij.threshold_for_accuracy(confidences, correct, 0.9)
    assert accuracy(threshold) >= 0.9
    assert accuracy(threshold - 0.02) < 0.9
    with pytest.raises(ValueError, match=r"accuracy is 101\.00%; the best is 100"):
        ij.threshold_for_accuracy(confidences, correct, 1.01)
