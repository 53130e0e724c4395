"""How sure is sure enough: confidence and its threshold, chosen on held-out examples."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_TEMPERATURES = np.geomspace(0.05, 20, 600)  # a step is 1 %


def fit_temperature(logits: Array, labels: Array | np.ndarray) -> float:
    """The temperature at which logits have the least cross-entropy (Guo et al., 2017).

    Args:
      logits: [examples, classes], of examples that were not trained on.
      labels: [examples], int.
    """
    logits = jnp.asarray(logits, jnp.float32)

    def loss(temperature: Array) -> Array:
        chosen = jnp.take_along_axis(logits, jnp.asarray(labels)[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits / temperature, axis=1) - chosen / temperature)

    losses = jax.lax.map(loss, jnp.asarray(_TEMPERATURES, jnp.float32))
    return float(_TEMPERATURES[np.argmin(losses)])


def failure_ranking(confidence: np.ndarray, correct: np.ndarray) -> float:
    """How well confidence, [examples], tells right from wrong, [examples], bool: 0 to 1.

    The share of pairs of a right and a wrong prediction in which the right one is the surer, ties
    as a half (the area under the ROC curve); 1/2 says nothing, which is also given without pairs.
    """
    right, wrong = np.sort(confidence[correct]), confidence[~correct]
    if not len(right) or not len(wrong):
        return 0.5
    less = np.searchsorted(right, wrong, "left") + np.searchsorted(right, wrong, "right")
    return float(1 - less.mean() / 2 / len(right))


def leaving(confidences: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """The exit, counted from 1, that each example leaves by.

    Args:
      confidences: [examples, exits], float32; the last exit's count for nothing.
      thresholds: one per exit but the last.
    """
    sure = confidences[:, :-1] > np.asarray(thresholds, np.float32)
    last = np.ones((len(sure), 1), bool)
    return 1 + np.concatenate([sure, last], axis=1).argmax(1)


def threshold_for_operations(
    confidences: np.ndarray, operations: Sequence[float], budget: float
) -> float:
    """The highest threshold, one for all exits, that keeps the mean operations within a budget.

    One for all, because confidences at fitted temperatures mean the same at every exit.

    Args:
      confidences: [examples, exits], float32, 0 to 1.
      operations: up to each exit, ascending.
      budget: of the mean over examples, in the same unit.

    Raises:
      ValueError: for a budget below the first exit.
    """
    if budget < operations[0]:
        raise ValueError(
            f"the budget is {budget:g} operations; the first exit takes {operations[0]:g}: "
            "choose that or more"
        )
    costs, exits = np.asarray(operations, np.float64), confidences.shape[1] - 1
    candidates = np.unique(np.append(confidences[:, :-1], [0.0, 1.0]))
    low, high = 0, len(candidates)  # at low within the budget, from high on not
    while high - low > 1:
        middle = (low + high) // 2
        spent = costs[leaving(confidences, [candidates[middle]] * exits) - 1].mean()
        low, high = (middle, high) if spent <= budget else (low, middle)
    return float(candidates[low])


def threshold_for_accuracy(confidences: np.ndarray, correct: np.ndarray, accuracy: float) -> float:
    """Where the highest range of thresholds begins, one for all exits, that has an accuracy.

    Lower ones that reach it by chance, below others that do not, are passed over.

    Args:
      confidences: as of `threshold_for_operations`.
      correct: [examples, exits], bool.
      accuracy: as a share.

    Raises:
      ValueError: for an accuracy that no threshold has.
    """
    shares = np.linspace(0, 1, 1001)
    before_last = confidences[:, :-1]
    quantiles = np.quantile(before_last, shares) if before_last.size else []
    candidates = np.unique(np.append(quantiles, [0.0, 1.0]))
    exits, examples = confidences.shape[1] - 1, np.arange(len(correct))
    leaves = [leaving(confidences, [threshold] * exits) for threshold in candidates]
    accuracies = np.array([correct[examples, each - 1].mean() for each in leaves])
    enough = accuracies >= accuracy
    if not enough.any():
        raise ValueError(f"accuracy is {accuracy:.2%}; the best is {accuracies.max():.2%}")
    last = np.nonzero(enough)[0][-1]
    short = np.nonzero(~enough[:last])[0]
    return float(candidates[short[-1] + 1 if len(short) else 0])
