"""How images leave a finished run early: chosen on held-out images, measured on test images."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import interflow_jax as ij
from experiments.runs import exits
from experiments.runs.exits import KINDS, OWN, Examples, accuracy, logits_of_exits
from interflow_jax.early_exit import MEASURES, Measure

CURVE_POINTS = 25  # of the curve of accuracy by operations
HELD_OUT = 4000  # training examples, at most, to fit and to choose with
SHARES = (0.25, 0.5, 0.75, 1.0)  # of a model's operations


@dataclass
class Policy:
    """How images leave: which fusion each exit predicts with, and how sure it is.

    Attributes:
      fusion: "own", or the kind that is fitted to every exit.
      refit: the best of the kinds that are fitted; "own" if there are none.
      measure: the measure of confidence.
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


def choose(
    run: ij.TrainedRun,
    fit: Examples,
    held: Examples,
    fusions: tuple[str, ...] = (OWN, *KINDS),
) -> Policy:
    """Chooses by `held`; fusions and temperatures are fitted to `fit`, other held-out examples."""
    outputs = {fusion: logits_of_exits(run, fusion, fit, held) for fusion in fusions}
    means = {
        fusion: float(np.mean([accuracy(each, held.labels) for each in logits.swapaxes(0, 1)]))
        for fusion, logits in outputs.items()
    }
    fusion = max(means, key=means.__getitem__)
    fitted = [kind for kind in fusions if kind != OWN]
    refit = max(fitted, key=means.__getitem__, default=OWN)
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


def by_fusion(run: ij.TrainedRun, data_dir: str | None) -> dict[str, Any]:
    """What the depths of a run can do under its own fusion and every fitted one.

    Returns:
      `operations` of every cut; and for each of `fusions` its `held_out_accuracy` (the
      mean over cuts), test accuracy by cut (`cuts`), what leaving out each branch costs
      (`left_out`), early exits at `SHARES` of the whole model's operations as `budgets`
      (None below the first exit's), and as a `curve`. A single branch has operations only.

    Raises:
      ValueError: for a run that was trained on all examples.
    """
    numbers = range(1, len(run.labels) + 1)
    image = jax.ShapeDtypeStruct((1, *run.image_shape), jnp.float32)
    cuts = [ij.truncate(run.model, run.variables, number, image) for number in numbers]
    operations = [exits.operations(cut, run.image_shape) for cut in cuts]
    if len(cuts) == 1:
        return {"operations": operations, "fusions": {}}
    dataset = exits.load(run, data_dir)
    fit, held = exits.predict(run, exits.held_out(run, dataset, HELD_OUT)).halves()
    test = exits.predict(run, dataset.test)
    up_to = exits.up_to_exits(run.model, operations)
    fusions = {}
    for fusion in (OWN, *KINDS):
        policy = choose(run, fit, held, (fusion,))
        thresholds = Thresholds(run, policy, up_to, fit, held, test)
        predicted = logits_of_exits(run, fusion, fit, test).swapaxes(0, 1)
        fusions[fusion] = {
            "held_out_accuracy": policy.held_out_accuracy[fusion],
            "cuts": [accuracy(logits, test.labels) for logits in predicted],
            "left_out": exits.leaving_out(run, fusion, fit, test),
            "budgets": [
                thresholds.within(share * up_to[-1]) if share * up_to[-1] >= up_to[0] else None
                for share in SHARES
            ],
            "curve": [_point(figures) for figures in thresholds.curve()],
        }
    return {"operations": operations, "fusions": fusions}


def _point(figures: dict[str, Any]) -> dict[str, float]:
    return {name: figures[name] for name in ("operations", "accuracy")}


class Thresholds:
    """Thresholds within budgets, chosen on held-out examples and evaluated on test examples."""

    def __init__(
        self,
        run: ij.TrainedRun,
        policy: Policy,
        operations: list[float],
        fit: Examples,
        held: Examples,
        test: Examples,
    ):
        """`operations` are those up to each exit."""
        self._operations = operations
        logits = [logits_of_exits(run, policy.fusion, fit, each) for each in (held, test)]
        sure, self._test_sure = map(policy.confidences, logits)
        self._correct, self._test_correct = map(_correct, logits, (held, test))
        chances = _confidences(logits[0], "probability", policy.temperatures)
        self._frontier = ij.ExitFrontier(sure, chances, operations)

    def within(self, operations: float) -> dict[str, Any]:
        """The figures of a budget of mean operations."""
        return self._figures(self._frontier.within(operations))

    def losing(self, points: float) -> dict[str, Any]:
        """The figures of thresholds that lose at most so many points against the last exit."""
        least = self._correct[:, -1].mean() - points / 100
        return self._figures(self._frontier.reaching(self._correct, least))

    def curve(self) -> list[dict[str, Any]]:
        """The figures of budgets from the first exit to the last."""
        ends = self._operations[0], self._operations[-1]
        return [self.within(budget) for budget in np.linspace(*ends, CURVE_POINTS)]

    def _figures(self, thresholds: list[float]) -> dict[str, Any]:
        exits = len(self._operations)
        leaves = ij.leaving(self._test_sure, thresholds)
        correct = self._test_correct[np.arange(len(leaves)), leaves - 1]
        return {
            "thresholds": thresholds,
            "accuracy": 100 * float(correct.mean()),
            "operations": float(np.array(self._operations)[leaves - 1].mean()),
            "exits": (np.bincount(leaves, minlength=exits + 1)[1:] / len(leaves)).tolist(),
        }


def _confidences(logits: Array, measure: Measure, temperatures: list[float]) -> np.ndarray:
    exits = zip(logits.swapaxes(0, 1), temperatures, strict=True)
    return np.stack([np.asarray(ij.confidence(each, measure, t)) for each, t in exits], axis=1)


def _correct(logits: Array, examples: Examples) -> np.ndarray:
    return np.asarray(logits).argmax(-1) == examples.labels[:, None]
