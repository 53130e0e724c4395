"""How images leave a finished run early: chosen on held-out images, measured on the test's."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jax import Array

import interflow_jax as ij
from experiments.runs.exits import KINDS, OWN, Examples, accuracy, logits_of_exits
from interflow_jax.early_exit import MEASURES, Measure

CURVE_POINTS = 25  # of accuracy by operations


@dataclass
class Policy:
    """How images leave: which fusion each exit predicts by, and how sure it is.

    Attributes:
      fusion: "own", or the kind that is fitted to every exit.
      refit: the kind that is the best of those that are fitted.
      measure: of confidence.
      temperatures: one per exit.
      held_out_accuracy: by fusion, the mean over exits, in percent.
      ranking: by measure, how well it ranks failures, the mean over exits (see
        `ij.failure_ranking`).
    """

    fusion: str
    refit: str
    measure: Measure
    temperatures: list[float]
    held_out_accuracy: dict[str, float]
    ranking: dict[str, float]

    def confidences(self, logits: Array) -> np.ndarray:
        """[examples, exits, classes] to [examples, exits]."""
        return _confidences(logits, self.measure, self.temperatures)


def choose(run: ij.TrainedRun, fit: Examples, held: Examples) -> Policy:
    """Chooses by held-out examples; fusions and temperatures are fitted to others of them."""
    outputs = {fusion: logits_of_exits(run, fusion, fit, held) for fusion in (OWN, *KINDS)}
    means = {
        fusion: float(np.mean([accuracy(each, held.labels) for each in logits.swapaxes(0, 1)]))
        for fusion, logits in outputs.items()
    }
    fusion = max(means, key=means.__getitem__)
    refit = max(KINDS, key=means.__getitem__)
    of_fit = logits_of_exits(run, fusion, fit, fit)
    temperatures = [ij.fit_temperature(each, fit.labels) for each in of_fit.swapaxes(0, 1)]
    correct = _correct(outputs[fusion], held)
    ranking = {}
    for measure in MEASURES:
        sure = _confidences(outputs[fusion], measure, temperatures)
        pairs = zip(sure.T, correct.T, strict=True)
        ranking[measure] = float(np.mean([ij.failure_ranking(*each) for each in pairs]))
    measure = max(MEASURES, key=ranking.__getitem__)
    return Policy(fusion, refit, measure, temperatures, means, ranking)


class Thresholds:
    """Thresholds within budgets, chosen on held-out examples, and what they make of the test's."""

    def __init__(
        self,
        run: ij.TrainedRun,
        policy: Policy,
        operations: list[float],
        fit: Examples,
        held: Examples,
        test: Examples,
    ):
        """Operations are those up to each exit."""
        self._operations = operations
        logits = [logits_of_exits(run, policy.fusion, fit, each) for each in (held, test)]
        self._sure, self._test_sure = map(policy.confidences, logits)
        self._correct, self._test_correct = map(_correct, logits, (held, test))

    def within(self, operations: float) -> dict[str, Any]:
        """The figures of a budget of mean operations."""
        return self._figures(ij.threshold_for_operations(self._sure, self._operations, operations))

    def losing(self, points: float) -> dict[str, Any]:
        """The figures of a threshold that loses no more points of accuracy to the last exit."""
        least = self._correct[:, -1].mean() - points / 100
        return self._figures(ij.threshold_for_accuracy(self._sure, self._correct, least))

    def curve(self) -> list[dict[str, Any]]:
        """The figures of budgets from the first exit to the last."""
        ends = self._operations[0], self._operations[-1]
        return [self.within(budget) for budget in np.linspace(*ends, CURVE_POINTS)]

    def _figures(self, threshold: float) -> dict[str, Any]:
        exits = len(self._operations)
        leaves = ij.leaving(self._test_sure, [threshold] * (exits - 1))
        correct = self._test_correct[np.arange(len(leaves)), leaves - 1]
        return {
            "threshold": threshold,
            "accuracy": 100 * float(correct.mean()),
            "operations": float(np.array(self._operations)[leaves - 1].mean()),
            "exits": (np.bincount(leaves, minlength=exits + 1)[1:] / len(leaves)).tolist(),
        }


def _confidences(logits: Array, measure: Measure, temperatures: list[float]) -> np.ndarray:
    exits = zip(logits.swapaxes(0, 1), temperatures, strict=True)
    return np.stack([np.asarray(ij.confidence(each, measure, t)) for each, t in exits], axis=1)


def _correct(logits: Array, examples: Examples) -> np.ndarray:
    return np.asarray(logits).argmax(-1) == examples.labels[:, None]
