"""How sure is sure enough: confidence and its threshold, chosen on held-out examples."""

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from interflow_jax.data.dataset import check_labels

Measure = Literal["probability", "margin", "entropy"]
MEASURES: tuple[Measure, ...] = get_args(Measure)

_TEMPERATURES = np.geomspace(0.05, 20, 600)  # a step is 1 %
# Prices of all operations between the first and the last exit, in chances of being right.
_PRICES = np.append(np.geomspace(10, 1e-3, 200), 0.0)
_MOST_SWEEPS = 20
_BETWEEN = 32  # thresholds tried between two points of the frontier


def check_measure(measure: str) -> None:
    if measure not in MEASURES:
        raise ValueError(f"measure is {measure!r}; choose one of {', '.join(MEASURES)}")


def confidence(logits: Array, measure: Measure = "probability", temperature: float = 1.0) -> Array:
    """How sure a prediction is, 0 to 1: [..., classes] to [...], float32.

    Args:
      logits: divided by the temperature before their softmax.
      measure: "probability", the largest one; "margin", by which it exceeds the second; or
        "entropy", 1 minus its share of the largest possible.
      temperature: above 0; more than 1 makes it less sure.

    Raises:
      ValueError: for an unknown measure.
    """
    check_measure(measure)
    logits = logits.astype(jnp.float32) / jnp.asarray(temperature, jnp.float32)
    probabilities = jnp.exp(jax.nn.log_softmax(logits))
    if measure == "probability":
        return probabilities.max(-1)
    if measure == "margin":
        largest = jax.lax.top_k(probabilities, 2)[0]
        return largest[..., 0] - largest[..., 1]
    entropy = jnp.sum(jax.scipy.special.entr(probabilities), axis=-1)  # of a class ruled out, 0
    return jnp.maximum(1 - entropy / jnp.log(jnp.float32(logits.shape[-1])), 0)


def fit_temperature(logits: Array, labels: Array | np.ndarray) -> float:
    """The temperature at which logits have the least cross-entropy (Guo et al., 2017).

    Args:
      logits: [examples, classes], of examples that were not trained on.
      labels: [examples], int, from 0 on.

    Raises:
      ValueError: for labels that are no class's, or not one per example, or no example.
    """
    logits = jnp.asarray(logits, jnp.float32)
    if logits.ndim != 2 or np.shape(labels) != logits.shape[:1] or not len(logits):
        raise ValueError(
            f"logits are {logits.shape} and labels {np.shape(labels)}; give [examples, classes] "
            "and [examples], of one or more"
        )
    labels = jnp.asarray(check_labels(np.asarray(labels), logits.shape[1], "labels"))

    def loss(temperature: Array) -> Array:
        chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits / temperature, axis=1) - chosen / temperature)

    losses = jax.lax.map(loss, jnp.asarray(_TEMPERATURES, jnp.float32))
    return float(_TEMPERATURES[np.argmin(losses)])


def failure_ranking(confidence: np.ndarray, correct: np.ndarray) -> float:
    """How well confidence, [examples], tells right from wrong, [examples], bool: 0 to 1.

    The share of pairs of a right and a wrong prediction in which the right one is surer, with ties
    as a half (the area under the ROC curve); 1/2 says nothing, and is also returned without pairs.

    Raises:
      ValueError: for other than one truth value, or 0 or 1, per example.
    """
    confidence, correct = np.asarray(confidence), np.asarray(correct)
    matching = confidence.shape == correct.shape == (correct.size,)
    if not matching or not set(np.unique(correct)) <= {0, 1}:
        raise ValueError(
            f"confidence is {confidence.shape} and correct {correct.shape}, {correct.dtype}; give "
            "[examples] twice, the latter bool"
        )
    correct = correct.astype(bool)
    right, wrong = np.sort(confidence[correct]), confidence[~correct]
    if not len(right) or not len(wrong):
        return 0.5
    less = np.searchsorted(right, wrong, "left") + np.searchsorted(right, wrong, "right")
    return float(1 - less.mean() / 2 / len(right))


def leaving(confidences: np.ndarray, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """The exit, counted from 1, by which each example leaves.

    Args:
      confidences: [examples, exits], float32; the last exit's are ignored.
      thresholds: one per exit but the last.
    """
    sure = confidences[:, :-1] > np.asarray(thresholds, np.float32)
    last = np.ones((len(sure), 1), bool)
    return 1 + np.concatenate([sure, last], axis=1).argmax(1)


class ExitFrontier:
    """The thresholds, one per exit, with the most correct predictions for their operations.

    A single threshold for all exits spends too much: it holds examples back for a deeper exit that
    does no better. Here, for every price of an operation, each exit weighs the chance of being
    right at once against what the later exits, under their own thresholds, would make of it.

    Attributes:
      thresholds: [points, exits - 1], for `EarlyExit`, from the cheapest to the most accurate; the
        first point lets all leave at once, the last none before the last exit.
      operations: [points], the mean over examples.
    """

    def __init__(self, confidences: np.ndarray, chances: np.ndarray, operations: Sequence[float]):
        """Finds the frontier on examples that were not trained on.

        Args:
          confidences: [examples, exits], float32, 0 to 1, by which examples leave.
          chances: [examples, exits], float, of being right: the largest probability at a fitted
            temperature. Hits work, too, but overfit with only a few thousand examples.
          operations: up to each exit, ascending.

        Raises:
          ValueError: for arrays that do not match.
        """
        if not confidences.shape == chances.shape == (len(confidences), len(operations)):
            raise ValueError(
                f"confidences are {confidences.shape}, chances {chances.shape} and operations "
                f"{len(operations)}; give [examples, exits] twice and one per exit"
            )
        exits = len(operations)
        self._confidences, self._chances = confidences, chances
        self._costs = np.asarray(operations, np.float64)
        order = np.argsort(-confidences, axis=0, kind="stable")
        prices = _PRICES / max(self._costs[-1] - self._costs[0], 1e-30)
        found = [np.zeros(exits - 1)]
        found += [_best(confidences, chances - price * self._costs, order) for price in prices]
        spent, right = self._spent_and_mean(np.array(found), chances)
        kept, most = [], -np.inf
        for point in np.lexsort((-right, spent)):
            if right[point] > most:
                kept.append(point)
                most = right[point]
        self.thresholds = np.array([*(found[point] for point in kept), np.ones(exits - 1)])
        self.operations = np.array([*(spent[point] for point in kept), self._costs[-1]])

    def within(self, budget: float) -> list[float]:
        """The thresholds with the most correct predictions within a budget of mean operations.

        Raises:
          ValueError: for a budget below the first exit.
        """
        if budget < self._costs[0]:
            raise ValueError(
                f"the budget is {budget:g} operations; the first exit takes "
                f"{self._costs[0]:g}: choose that or more"
            )
        # The last point is not on the frontier: where others are as good, it only costs more.
        points = self.thresholds[: max(len(self.operations) - 1, 1)]
        last = np.searchsorted(self.operations[: len(points)], budget, "right") - 1
        if last < 0 or last + 1 == len(points):
            # Even the first point costs more if some have no confidence at all, and so stay.
            return points[max(last, 0)].tolist()
        # The rest of the budget goes into thresholds between two points.
        between = np.linspace(0, 1, _BETWEEN, endpoint=False)[:, None]
        mixed = points[last] + between * (points[last + 1] - points[last])
        spent, right = self._spent_and_mean(mixed, self._chances)
        return mixed[np.argmax(np.where(spent <= budget, right, -np.inf))].tolist()

    def reaching(self, correct: np.ndarray, accuracy: float) -> list[float]:
        """The cheapest thresholds of the most expensive stretch that has an accuracy throughout.

        Those that reach it by chance, cheaper than others that do not, are passed over.

        Args:
          correct: [examples, exits], bool, for the examples of the frontier.
          accuracy: as a share.

        Raises:
          ValueError: for an accuracy that no thresholds reach.
        """
        _, accuracies = self._spent_and_mean(self.thresholds, correct)
        enough = accuracies >= accuracy
        if not enough.any():
            raise ValueError(f"accuracy is {accuracy:.2%}; the best is {accuracies.max():.2%}")
        last = np.nonzero(enough)[0][-1]
        short = np.nonzero(~enough[:last])[0]
        return self.thresholds[short[-1] + 1 if len(short) else 0].tolist()

    def _spent_and_mean(
        self, thresholds: np.ndarray, values: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means over examples, [points] each: of operations, and of values, [examples, exits]."""
        leaves = np.stack([leaving(self._confidences, each) - 1 for each in thresholds])
        means = values[np.arange(len(values)), leaves].mean(axis=1)
        return self._costs[leaves].mean(axis=1), means


def _best(confidences: np.ndarray, values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The thresholds with the highest mean of values, [examples, exits], by coordinate ascent.

    From the last exit to the first, each threshold is the best given the others: at first for all
    examples, then, until nothing changes, for those that the earlier exits let through.
    """
    examples, exits = confidences.shape
    thresholds = np.ones(exits - 1)
    reaches = np.ones((examples, exits - 1), bool)
    for _ in range(_MOST_SWEEPS):
        before, later = thresholds.copy(), values[:, -1]
        for number in reversed(range(exits - 1)):
            sure, value = confidences[:, number], values[:, number]
            those = order[reaches[order[:, number], number], number]
            thresholds[number] = _threshold(sure[those], (value - later)[those])
            later = np.where(sure > np.float32(thresholds[number]), value, later)
        stays = confidences[:, :-1] <= thresholds.astype(np.float32)
        reaches[:, 1:] = np.logical_and.accumulate(stays, axis=1)[:, :-1]
        if (thresholds == before).all():
            break
    return thresholds


def _threshold(confidences: np.ndarray, gains: np.ndarray) -> float:
    """The threshold above which leaving gains most, by descending confidences and their gains."""
    if not len(confidences):
        return 1.0
    below = np.append(confidences[1:], 0.0)  # the threshold that lets it and all before it leave
    gained = np.where(confidences > below, np.cumsum(gains), -np.inf)
    best = int(gained.argmax())
    return float(below[best]) if gained[best] > 0 else 1.0
