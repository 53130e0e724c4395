"""What the branches of a finished run can do, from their logits alone: cuts, and early exits."""

from dataclasses import dataclass
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import interflow_jax as ij
from experiments.runs import data
from interflow_jax.backbones import StrideVGG, convolutions, forward_flops
from interflow_jax.data import splits
from interflow_jax.data.datasets import Dataset
from interflow_jax.data.splits import Split
from interflow_jax.early_exit import Measure
from interflow_jax.fusion import FusionKind, cut_fusion, fit_fusion

OWN = "own"  # the model's own fusion, cut
KINDS = tuple(kind for kind in get_args(FusionKind) if kind != "fixed")
MEASURES = get_args(Measure)
CHUNK = 1024  # images read at a time


@dataclass
class Examples:
    """Examples of a split, and what the model says of them.

    Attributes:
      images: [examples, height, width, channels], uint8.
      labels: [examples], int32.
      branch_logits: [examples, branches, classes], float32.
    """

    images: np.ndarray
    labels: np.ndarray
    branch_logits: Array

    def of(self, which: slice) -> "Examples":
        return Examples(self.images[which], self.labels[which], self.branch_logits[which])


@dataclass
class Policy:
    """How examples leave: which fusion each exit predicts by, and how sure it is.

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


def held_out(run: ij.TrainedRun, dataset: Dataset, most: int) -> Split:
    """Training examples that the run was not trained on, as many as there are up to `most`."""
    trained = run.result["train_size"]
    rest = len(dataset.train) - trained
    if rest < 2:
        raise ValueError(
            f"the run was trained on all {trained:,} training examples; thresholds are chosen on "
            "examples that it has not seen: train with --train_size"
        )
    return splits.take(dataset.train, min(most, rest), after=trained)


def load(run: ij.TrainedRun, data_dir: str | None) -> Dataset:
    """The dataset of a run."""
    return data.load(run.result["dataset"], data_dir, run.result["image_size"])


def predict(run: ij.TrainedRun, split: Split) -> Examples:
    """Reads a split and predicts it by all branches."""
    parts = []
    for start in range(0, len(split), CHUNK):
        with data.reading(run.result["dataset"]):
            images, labels = splits.read(split, np.arange(start, min(start + CHUNK, len(split))))
        parts.append((images, labels, np.asarray(run.predict(images).branch_logits)))
    images, labels, branch_logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Examples(images, labels, jnp.asarray(branch_logits))


def accuracy(logits: Array, labels: np.ndarray) -> float:
    """In percent: [examples, classes] and [examples]."""
    return 100 * float(np.mean(np.asarray(logits).argmax(-1) == labels))


def logits_of_exits(run: ij.TrainedRun, fusion: str, fit: Examples, examples: Examples) -> Array:
    """What each cut predicts, [examples, exits, classes]; a fusion is fitted to `fit`."""
    counts = range(1, len(run.labels) + 1)
    return jnp.stack([logits_of_cut(run, fusion, fit, examples, k) for k in counts], axis=1)


def logits_of_cut(
    run: ij.TrainedRun, fusion: str, fit: Examples, examples: Examples, branches: int
) -> Array:
    """What the first branches predict, [examples, classes]."""
    if fusion == OWN:
        params = run.variables["params"].get("fusion", {})
        module, params = cut_fusion(run.model.fusion, params, branches)
    else:
        kind = cast(FusionKind, fusion)
        module, params = fit_fusion(fit.branch_logits[:, :branches], fit.labels, kind)
    return module.apply({"params": params}, examples.branch_logits[:, :branches])[0]


def logits_alone(run: ij.TrainedRun, examples: Examples) -> Array:
    """What every branch predicts alone, [examples, branches, classes]."""
    params = {"params": run.variables["params"].get("fusion", {})}
    logits, weights, _ = run.model.fusion.apply(params, examples.branch_logits)
    return run.alone(ij.Prediction(logits, examples.branch_logits, weights))


def choose(run: ij.TrainedRun, fit: Examples, held: Examples) -> Policy:
    """Chooses by held-out examples: fusions and temperatures are fitted to others of them."""
    outputs = {fusion: logits_of_exits(run, fusion, fit, held) for fusion in (OWN, *KINDS)}
    means = {
        fusion: float(np.mean([accuracy(each, held.labels) for each in logits.swapaxes(0, 1)]))
        for fusion, logits in outputs.items()
    }
    fusion = max(means, key=means.__getitem__)
    refit = max(KINDS, key=means.__getitem__)
    of_fit = logits_of_exits(run, fusion, fit, fit)
    temperatures = [ij.fit_temperature(each, fit.labels) for each in of_fit.swapaxes(0, 1)]
    logits = outputs[fusion]
    correct = np.asarray(logits).argmax(-1) == held.labels[:, None]
    ranking = {}
    for measure in MEASURES:
        sure = confidences(logits, measure, temperatures)
        pairs = zip(sure.T, correct.T, strict=True)
        ranking[measure] = float(np.mean([ij.failure_ranking(*each) for each in pairs]))
    measure = max(ranking, key=ranking.__getitem__)
    return Policy(fusion, refit, measure, temperatures, means, ranking)


def confidences(logits: Array, measure: Measure, temperatures: list[float]) -> np.ndarray:
    """[examples, exits, classes] to [examples, exits]."""
    exits = zip(logits.swapaxes(0, 1), temperatures, strict=True)
    return np.stack([np.asarray(ij.confidence(each, measure, t)) for each, t in exits], axis=1)


def leaving_out(run: ij.TrainedRun, fusion: str, fit: Examples, test: Examples) -> list[float]:
    """For each branch, the points of test accuracy that leaving it out of the fusion costs.

    Its logits are zero, in `fit` too: a term of no class, under any fusion.
    """
    branches = len(run.labels)
    whole = accuracy(logits_of_cut(run, fusion, fit, test, branches), test.labels)
    costs = []
    for branch in range(branches):
        without = [
            Examples(each.images, each.labels, each.branch_logits.at[:, branch].set(0.0))
            for each in (fit, test)
        ]
        rest = logits_of_cut(run, fusion, *without, branches)
        costs.append(whole - accuracy(rest, test.labels))
    return costs


def operations(model: ij.Interflow, variables: Any, image_shape: tuple[int, ...]) -> float:
    """For one image, two per multiply-add.

    Of a StrideVGG those of its convolutions, padding counted as data, and fully connected layers;
    of any other what XLA counts in the compiled program.
    """
    backbone = model.backbone
    if isinstance(backbone, StrideVGG):
        layers = convolutions(backbone.depth, backbone.width, backbone.downsample)
        channels = sum(layers[tap - 1][0] for tap in backbone.taps)
        return forward_flops(backbone, image_shape) + 2 * model.num_classes * channels
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    costs: Any = jax.jit(model.apply).lower(variables, image).compile().cost_analysis()
    return float(costs["flops"])


def up_to_exits(model: ij.Interflow, cuts: list[float]) -> list[float]:
    """The operations up to each exit, from those of the cut models (see `ij.EarlyExit`)."""
    if hasattr(model.backbone, "segments"):
        return cuts
    return np.cumsum(cuts).tolist()
