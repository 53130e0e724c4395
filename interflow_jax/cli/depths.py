"""What every depth of a finished run can do: cuts, and early exits, from its branches' logits.

Fusions, temperatures, the measure of confidence and thresholds are chosen on training images that
the run has not seen; the figures are of its test images.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from interflow_jax.budget import (
    MEASURES,
    ExitFrontier,
    Measure,
    confidence,
    failure_ranking,
    fit_temperature,
    leaving,
)
from interflow_jax.cli import data
from interflow_jax.data.dataset import Dataset
from interflow_jax.data.splits import Split
from interflow_jax.depth import truncate
from interflow_jax.fusion import KINDS as FUSIONS
from interflow_jax.fusion import Fusion, FusionKind, cut_fusion, fit_fusion
from interflow_jax.model import Interflow, Prediction
from interflow_jax.saved_run import HELD_OUT, TrainedRun, held_out
from interflow_jax.vgg import StrideVGG, convolutions, forward_flops

OWN = "own"  # the model's own fusion, cut
KINDS = tuple(name for name, kind in FUSIONS.items() if kind.learned)
CURVE_POINTS = 25  # of the curve of accuracy by operations
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the whole model's operations
COARSEST = 5.0  # points of accuracy lost that any choice must tell from none


@dataclass(frozen=True)
class Examples:
    """Labels, [examples], int32, the branches' logits, [examples, branches, classes], and features.

    The latter are a tuple of [examples, channels_i].
    """

    labels: np.ndarray
    branch_logits: Array
    features: tuple[Array, ...]

    def halves(self) -> tuple["Examples", "Examples"]:
        """Splits held-out examples into those to fit to and those to choose by."""
        half = len(self.labels) // 2
        return self._rows(slice(half)), self._rows(slice(half, None))

    def _rows(self, rows: slice) -> "Examples":
        features = tuple(x[rows] for x in self.features)
        return Examples(self.labels[rows], self.branch_logits[rows], features)

    def first(self, count: int) -> tuple[Array, tuple[Array, ...]]:
        """Logits and features of so many branches."""
        return self.branch_logits[:, :count], self.features[:count]

    def without(self, branch: int) -> "Examples":
        """With the branch's logits zero, so that it favours no class under any fusion."""
        return replace(self, branch_logits=self.branch_logits.at[:, branch].set(0.0))

    def accuracy(self, logits: Array) -> float:
        """Accuracy in percent of logits, [examples, classes]."""
        return 100 * float(np.mean(np.asarray(logits).argmax(-1) == self.labels))


@partial(jax.jit, static_argnums=0)
def _fused(fusion: Fusion, params: Any, given: tuple[Array, tuple[Array, ...]]) -> Array:
    return cast(tuple, fusion.apply({"params": params}, *given))[0]


class Depths:
    """A run's cuts and exits.

    Attributes:
      run: the finished run.
      models: its cuts, from one branch to all, each with its variables.
      operations: of each cut, for one image (see `operations`).
      spent: up to each exit, for one image (see `EarlyExit`).
    """

    def __init__(self, run: TrainedRun):
        self.run = run
        image = jax.ShapeDtypeStruct((1, *run.image_shape), jnp.float32)
        counts = range(1, len(run.labels) + 1)
        self.models = [truncate(run.model, run.variables, count, image) for count in counts]
        self.operations = [operations(*model, run.image_shape) for model in self.models]
        # A backbone without parts computes the cut models one after another, each from the images.
        segmented = callable(getattr(run.model.backbone, "segments", None))
        self.spent = self.operations if segmented else np.cumsum(self.operations).tolist()
        self.logits = lru_cache(self._uncached_logits)
        self._fitted = lru_cache(lambda fusion, count: self._fusion(fusion, self.fit, count))

    def predict(self, dataset: Dataset, most: int = HELD_OUT, points: float = COARSEST) -> None:
        """Predicts up to `most` held-out images, and the test images; raises as `unseen` does."""
        examples = _predicted(self.run, unseen(self.run, dataset, most, points))
        self.fit, self.held = examples.halves()
        self.predict_test(dataset)

    def predict_test(self, dataset: Dataset) -> None:
        """Predicts the test images alone, which the run's own fusion needs."""
        self.test = _predicted(self.run, dataset.test)

    def kinds(self) -> tuple[str, ...]:
        """The kinds that are fitted; of those that see the image, for minutes, the run's alone."""
        own = self.run.model.fusion.kind
        return tuple(kind for kind in KINDS if kind == own or not FUSIONS[kind].of_features)

    def _fusion(self, fusion: str, fit: Examples, count: int) -> tuple[Fusion, Any]:
        """The fusion of the first `count` branches, and its parameters."""
        if fusion == OWN:
            params = self.run.variables["params"].get("fusion", {})
            return cut_fusion(self.run.model.fusion, params, count)
        kind = cast(FusionKind, fusion)
        branch_logits, features = fit.first(count)
        return fit_fusion(branch_logits, fit.labels, kind, features)

    def _uncached_logits(self, fusion: str, of: str) -> Array:
        """What each cut predicts for "fit", "held" or "test": [examples, exits, classes]."""
        counts, examples = range(1, len(self.models) + 1), getattr(self, of)
        cuts = [_fused(*self._fitted(fusion, count), examples.first(count)) for count in counts]
        return jnp.stack(cuts, axis=1)

    def correct(self, fusion: str, of: str = "test") -> np.ndarray:
        """Which examples each cut gets right under a fusion: [examples, exits], bool."""
        labels = getattr(self, of).labels
        return np.asarray(self.logits(fusion, of)).argmax(-1) == labels[:, None]

    def accuracies(self, fusion: str, of: str = "test") -> list[float]:
        """The accuracy of each cut under a fusion."""
        return (100 * self.correct(fusion, of).mean(0)).tolist()

    def alone(self) -> list[float]:
        """The accuracy of each branch alone."""
        params = {"params": self.run.variables["params"].get("fusion", {})}
        branch_logits, fusion = self.test.branch_logits, self.run.model.fusion
        logits, weights, _ = cast(tuple, fusion.apply(params, branch_logits, self.test.features))
        alone = self.run.alone(Prediction(logits, branch_logits, weights))
        return [self.test.accuracy(each) for each in alone.swapaxes(0, 1)]

    def left_out(self, fusion: str) -> list[float]:
        """For each branch, the points of test accuracy that leaving it out of the fusion costs."""
        count = len(self.models)
        whole = self.accuracies(fusion)[-1]
        costs = []
        for branch in range(count):
            fit, test = self.fit.without(branch), self.test.without(branch)
            fitted = self._fusion(fusion, fit, count)
            costs.append(whole - test.accuracy(_fused(*fitted, test.first(count))))
        return costs

    def cuts(self, kind: str) -> list[dict[str, Any]]:
        """A row per branch: the model that ends there, and the branch in the whole.

        A fusion of the kind is fitted for `refit_accuracy` and `refit_left_out`.
        """
        own = self.correct(OWN)
        minus_whole, error = zip(*(difference(each, own[:, -1]) for each in own.T), strict=True)
        columns = {
            "after": list(self.run.labels),
            "accuracy": self.accuracies(OWN),
            "minus_whole": minus_whole,
            "minus_whole_error": error,
            "refit_accuracy": self.accuracies(kind),
            "alone": self.alone(),
            "left_out": self.left_out(OWN),
            "refit_left_out": self.left_out(kind),
            "parameters": [parameters(variables) for _, variables in self.models],
            "operations": self.operations,
        }
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def by_fusion(self) -> dict[str, Any]:
        """What the depths can do under the model's own fusion and every fitted one.

        Returns:
          By fusion: its `held_out_accuracy` (the mean over cuts), test accuracy by cut (`cuts`),
          what leaving out each branch costs (`left_out`), early exits at `SHARES` of the whole
          model's operations as `budgets` (None below the first exit's), and as a `curve`.
        """
        fusions = {}
        for fusion in (OWN, *self.kinds()):
            exits = Exits(self, (fusion,))
            budgets = [share * self.operations[-1] for share in SHARES]
            fusions[fusion] = {
                "held_out_accuracy": exits.policy["held_out_accuracy"][fusion],
                "cuts": self.accuracies(fusion),
                "left_out": self.left_out(fusion),
                "budgets": [
                    exits.within(budget) if budget >= self.spent[0] else None for budget in budgets
                ],
                "curve": [
                    {name: figures[name] for name in ("operations", "accuracy")}
                    for figures in exits.curve()
                ],
            }
        return fusions


class Exits:
    """How images leave early, chosen on held-out images, and what comes of it on test images.

    Attributes:
      policy: what was chosen, and by what: `fusion`, "own" or the kind that is fitted to every
        exit, by the greatest mean of `held_out_accuracy` over exits, in percent; `refit`, the best
        of the kinds that are fitted, "own" if there are none; the `measure` of confidence, by the
        greatest mean of `ranking` over exits (see `failure_ranking`); `temperatures`, one per exit.
      confidences: of "held" and "test" examples, by that measure: [examples, exits], float32.
    """

    def __init__(self, depths: Depths, fusions: tuple[str, ...] = ()):
        fusions = fusions or (OWN, *depths.kinds())
        means = {fusion: float(np.mean(depths.accuracies(fusion, "held"))) for fusion in fusions}
        fusion = max(means, key=means.__getitem__)
        fitted = [kind for kind in fusions if kind != OWN]
        fit_logits = depths.logits(fusion, "fit").swapaxes(0, 1)
        temperatures = [fit_temperature(logits, depths.fit.labels) for logits in fit_logits]

        def sure(of: str, measure: Measure) -> np.ndarray:
            exits = zip(depths.logits(fusion, of).swapaxes(0, 1), temperatures, strict=True)
            return np.stack([np.asarray(confidence(x, measure, t)) for x, t in exits], axis=1)

        self._spent = depths.spent
        self._correct = {of: depths.correct(fusion, of) for of in ("held", "test")}
        self._whole = {of: depths.correct(OWN, of)[:, -1] for of in self._correct}
        ranking = {}
        for measure in MEASURES:
            pairs = zip(sure("held", measure).T, self._correct["held"].T, strict=True)
            ranking[measure] = float(np.mean([failure_ranking(*pair) for pair in pairs]))
        measure = max(MEASURES, key=ranking.__getitem__)
        self.policy: dict[str, Any] = {
            "fusion": fusion,
            "refit": max(fitted, key=means.__getitem__, default=OWN),
            "measure": measure,
            "temperatures": temperatures,
            "held_out_accuracy": means,
            "ranking": ranking,
        }
        self.confidences = {of: sure(of, measure) for of in self._correct}
        chances = sure("held", "probability")
        self._frontier = ExitFrontier(self.confidences["held"], chances, depths.spent)

    def within(self, operations: float) -> dict[str, Any]:
        """The figures of a budget of mean operations."""
        return self._figures(self._frontier.within(operations))

    def losing(self, points: float) -> dict[str, Any]:
        """The figures of thresholds that lose at most so many points against the last exit."""
        correct = self._correct["held"]
        least = correct[:, -1].mean() - points / 100
        return self._figures(self._frontier.reaching(correct, least))

    def curve(self) -> list[dict[str, Any]]:
        """The figures of budgets from the first exit to the last."""
        ends = self._spent[0], self._spent[-1]
        return [self.within(budget) for budget in np.linspace(*ends, CURVE_POINTS)]

    def _figures(self, thresholds: list[float]) -> dict[str, Any]:
        figures: dict[str, Any] = {"thresholds": thresholds}
        leaves = {of: leaving(sure, thresholds) for of, sure in self.confidences.items()}
        for of, prefix in (("held", "held_out_"), ("test", "")):
            correct = self._correct[of][np.arange(len(leaves[of])), leaves[of] - 1]
            minus_whole, error = difference(correct, self._whole[of])
            figures[f"{prefix}accuracy"] = 100 * float(correct.mean())
            figures |= {f"{prefix}minus_whole": minus_whole, f"{prefix}minus_whole_error": error}
        counts = np.bincount(leaves["test"], minlength=len(self._spent) + 1)[1:]
        operations = float(np.array(self._spent)[leaves["test"] - 1].mean())
        return figures | {"operations": operations, "exits": (counts / counts.sum()).tolist()}


def unseen(run: TrainedRun, dataset: Dataset, most: int, points: float = COARSEST) -> Split:
    """Up to `most` training examples that the run was not trained on, as many as there are.

    Half of them choose, and must be enough to tell a loss of so many points from none: where p
    points are lost, a share of p / 100 of n examples is wrong that was right, known to 1.96 sqrt(p
    (100 - p) / n) points (binomial, 95 %). For that to be p or less, n is 1.96^2 (100 - p) / p: 73
    for 5 points, 381 for 1, 765 for 0.5 (`enough`).

    Raises:
      ValueError: for fewer, or none, as of a run that was trained on all training images.
    """
    examples, total = held_out(run, dataset, most), len(dataset.train)
    rest = total - run.seen_size
    least = 2 * enough(COARSEST)
    again = f"train again with --train_size={total - max(least, total // 10)} or less"
    again = again if total > 2 * least else f"get more images: it takes {least} apart from training"
    if examples is None:
        raise ValueError(
            f"the run was trained on all {total:,} training examples, and thresholds are chosen on "
            f"examples that it has not seen: {again}"
        )
    needed, have = 2 * enough(points), len(examples)
    if have < needed:
        if rest >= needed:
            again = f"raise --held_out to {needed:,}"
        elif have >= least:
            coarser = 100 * 1.96**2 / (have // 2 + 1.96**2)
            again = f"give --points={math.ceil(10 * coarser) / 10:g} or more, or leave it out"
        raise ValueError(
            f"{have:,} held-out images do not tell a loss of {points:g} points from none "
            f"(binomial error, 95 %): it takes {needed:,}, half to fit and half to choose; {again}"
        )
    return examples


def enough(points: float) -> int:
    """How many images tell a loss of so many points from none (see `unseen`)."""
    return math.ceil(1.96**2 * (100 - points) / points)


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Points of accuracy of one prediction minus another's, and their error (±, 95 %).

    The error is that of pairs, with half an example more in each of the four cells (Agresti and
    Min, 2005), so that a few examples without a difference are no certainty.

    Args:
      ours, theirs: which examples are right, [examples], bool.
    """
    gained, lost, count = int(np.sum(ours > theirs)), int(np.sum(theirs > ours)), len(ours) + 2
    variance = (gained + lost + 1) / count - ((gained - lost) / count) ** 2
    return 100 * (gained - lost) / len(ours), 196 * math.sqrt(variance / count)


def load(run: TrainedRun, data_dir: str | None) -> Dataset:
    """The dataset of a run; raises ValueError where that has changed."""
    given = run.result
    dataset = data.load(given["dataset"], data_dir, given["image_size"], resize=run.resize)
    run.check_data(dataset)
    return dataset


def _predicted(run: TrainedRun, split: Split) -> Examples:
    with data.reading(run.result["dataset"]):
        _, branch_logits, labels, features = run.predict_split(split)
    return Examples(labels, jnp.asarray(branch_logits), tuple(map(jnp.asarray, features)))


def parameters(variables: dict[str, Any]) -> int:
    """How many parameters a model has."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def operations(
    model: Interflow, variables: dict[str, Any], image_shape: tuple[int, int, int]
) -> float:
    """Operations for one image, two per multiply-add.

    For a StrideVGG, those of its convolutions, with padding counted as data, and fully connected
    layers; for any other backbone, what XLA counts in the compiled program.
    """
    backbone = model.backbone
    if isinstance(backbone, StrideVGG):
        layers = convolutions(backbone.depth, backbone.width, backbone.downsample, backbone.layout)
        channels = sum(layers[tap - 1][0] for tap in backbone.taps)
        return forward_flops(backbone, image_shape) + 2 * model.num_classes * channels
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    costs: Any = jax.jit(model.apply).lower(variables, image).compile().cost_analysis()
    return float(costs["flops"])
