"""What the branches of a finished run can do, from their logits alone: cuts, and early exits."""

from dataclasses import dataclass
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import interflow_jax as ij
from experiments.cli import configuration
from experiments.runs import data
from interflow_jax.backbones import StrideVGG, convolutions, forward_flops
from interflow_jax.data import splits
from interflow_jax.data.datasets import Dataset
from interflow_jax.data.splits import Split
from interflow_jax.fusion import FusionKind, cut_fusion, fit_fusion

OWN = "own"  # the model's own fusion, cut
KINDS = tuple(kind for kind in get_args(FusionKind) if kind != "fixed")
Model = tuple[ij.Interflow, Any]  # and its variables
CHUNK = 1024  # images read at a time


@dataclass
class Examples:
    """Examples of a split, and the model's predictions for them.

    Attributes:
      images: [examples, height, width, channels], uint8.
      labels: [examples], int32.
      branch_logits: [examples, branches, classes], float32.
    """

    images: np.ndarray
    labels: np.ndarray
    branch_logits: Array

    def halves(self) -> tuple["Examples", "Examples"]:
        """Splits held-out examples into those to fit to and those to choose by."""
        half = len(self.labels) // 2
        return self._of(slice(half)), self._of(slice(half, None))

    def _of(self, which: slice) -> "Examples":
        return Examples(self.images[which], self.labels[which], self.branch_logits[which])


def held_out(run: ij.TrainedRun, dataset: Dataset, most: int) -> Split:
    """Up to `most` training examples that the run was not trained on, as many as there are."""
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
    """Reads a split and predicts it with all branches."""
    parts = []
    for start in range(0, len(split), CHUNK):
        with data.reading(run.result["dataset"]):
            images, labels = splits.read(split, np.arange(start, min(start + CHUNK, len(split))))
        parts.append((images, labels, np.asarray(run.predict(images).branch_logits)))
    images, labels, branch_logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Examples(images, labels, jnp.asarray(branch_logits))


def accuracy(logits: Array, labels: np.ndarray) -> float:
    """Accuracy in percent of logits, [examples, classes], for labels, [examples]."""
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
    logits, weights, _ = cast(tuple, run.model.fusion.apply(params, examples.branch_logits))
    return run.alone(ij.Prediction(logits, examples.branch_logits, weights))


def cuts(
    run: ij.TrainedRun, models: list[Model], kind: str, fit: Examples, test: Examples
) -> list[dict[str, Any]]:
    """A row per branch: the model that ends there, and the branch in the whole.

    Args:
      models: the cut models, from one branch to all.
      kind: the kind of fusion fitted to `fit` for `refit_accuracy` and `refit_left_out`.
    """
    own, refit = (logits_of_exits(run, fusion, fit, test) for fusion in (OWN, kind))
    alone = logits_alone(run, test)
    left_out = [leaving_out(run, fusion, fit, test) for fusion in (OWN, kind)]
    return [
        {
            "after": label,
            "accuracy": accuracy(own[:, number], test.labels),
            "refit_accuracy": accuracy(refit[:, number], test.labels),
            "alone": accuracy(alone[:, number], test.labels),
            "left_out": left_out[0][number],
            "refit_left_out": left_out[1][number],
            **size(models[number], run.image_shape),
        }
        for number, label in enumerate(run.labels)
    ]


def baseline(run: ij.TrainedRun) -> dict[str, Any]:
    """A run to compare with, named by how it differs from the paper's network."""
    changes = configuration.of_result(run.result).changes()
    named = {name: changes[name] for name in ("depth", "width", "fc", "fusion") if name in changes}
    return {
        "name": ", ".join([run.result["method"], *(f"{k} {v}" for k, v in named.items())]),
        "accuracy": run.result["test_accuracy"],
        **{name: run.result[name] for name in ("seed", "command")},
        **size((run.model, run.variables), run.image_shape),
    }


def size(model: Model, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """The number of parameters, and of operations for one image."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model[1]["params"]))
    return {"parameters": parameters, "operations": operations(model, image_shape)}


def leaving_out(run: ij.TrainedRun, fusion: str, fit: Examples, test: Examples) -> list[float]:
    """For each branch, the points of test accuracy that leaving it out of the fusion costs.

    Its logits are set to zero, in `fit` too, so that it favours no class under any fusion.
    """
    branches = len(run.labels)
    whole = accuracy(logits_of_cut(run, fusion, fit, test, branches), test.labels)
    costs = []
    for branch in range(branches):
        of_fit, of_test = (
            Examples(each.images, each.labels, each.branch_logits.at[:, branch].set(0.0))
            for each in (fit, test)
        )
        rest = logits_of_cut(run, fusion, of_fit, of_test, branches)
        costs.append(whole - accuracy(rest, test.labels))
    return costs


def operations(model: Model, image_shape: tuple[int, ...]) -> float:
    """Operations for one image, two per multiply-add.

    For a StrideVGG, those of its convolutions, with padding counted as data, and fully connected
    layers; for any other backbone, what XLA counts in the compiled program.
    """
    network, variables = model
    backbone = network.backbone
    if isinstance(backbone, StrideVGG):
        layers = convolutions(backbone.depth, backbone.width, backbone.downsample)
        channels = sum(layers[tap - 1][0] for tap in backbone.taps)
        return forward_flops(backbone, image_shape) + 2 * network.num_classes * channels
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    costs: Any = jax.jit(network.apply).lower(variables, image).compile().cost_analysis()
    return float(costs["flops"])


def up_to_exits(model: ij.Interflow, cuts: list[float]) -> list[float]:
    """The operations up to each exit, from those of the cut models (see `ij.EarlyExit`)."""
    if hasattr(model.backbone, "segments"):
        return cuts
    return np.cumsum(cuts).tolist()
