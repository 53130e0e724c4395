"""The fusion's weights in repeated runs (the paper's Tables IV and V, Figure 4)."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import interflow_jax as ij
from experiments.cli.configuration import Configuration
from experiments.tables import paper, pictures, statistics
from experiments.tables.frame import Frame, Results
from experiments.tables.table import Detail
from interflow_jax.data.preprocessing import initial_key

SIGNS = """\
A branch's weight and its fully connected layer may trade their signs, branches that
share the layer together; *comparable* weights have the deepest of each group positive."""
OUTLYING = """

A run is outlying if its accuracy or a comparable weight is more than 3.5 robust
standard deviations (the median distance from the median, scaled) from the median:
{}. Variances are over one less than the runs. *Grown* is by how much an
absolute weight is above its own at the run's start."""


def at_start(
    flags: Configuration, classes: int, seeds: list[int], image_shape: tuple[int, ...]
) -> np.ndarray:
    """A model's fusion weights before any training: [seeds, ...] as `Fusion` returns them.

    Only the weights' own draws are computed, not those of the layers.

    Args:
      classes: any number if there is one weight per branch, as its draws do not depend on it.
    """
    model = flags.build(classes)
    images = jnp.zeros((1, *image_shape))

    @jax.jit
    def draw(key: jax.Array) -> jax.Array:
        return model.init_with_output(key, images, train=False)[0].weights

    return np.array([draw(initial_key(seed)) for seed in seeds], dtype=float)


def sharing_groups(model: ij.Interflow, image_shape: tuple[int, ...]) -> list[list[int]]:
    """The branches, counted from 0, of every fully connected layer, shallow to deep."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    init = partial(model.backbone.init_with_output, **ij.switch_arguments(model.backbone, False))
    feature_maps, _ = jax.eval_shape(init, jax.random.key(0), images)
    if model.fully_connected == "separate":
        return [[branch] for branch in range(len(feature_maps))]
    by_channels: dict[int, list[int]] = {}
    for branch, feature_map in enumerate(feature_maps):
        by_channels.setdefault(feature_map.shape[-1], []).append(branch)
    return list(by_channels.values())


class Weights(NamedTuple):
    """Weights of repeated runs, [runs, branches] or [runs, branches, classes]."""

    start: np.ndarray  # as the seeds draw them, with this version of JAX
    learned: np.ndarray
    comparable: np.ndarray  # see `statistics.with_comparable_signs`
    # [runs]: by accuracy and comparable weights. With a weight per class, none is: of forty
    # weights, one or another is far from its median in most runs.
    outlying: np.ndarray
    after: list[str]  # the branches in words


def of_runs(flags: Configuration, runs: Frame) -> Weights:
    """The weights of a configuration's runs."""
    learned = np.array(runs["weights"].tolist())
    per_class = learned.ndim == 3
    taps = runs["branches"].iloc[0]
    image_shape = tuple(runs["image_shape"].iloc[0])
    groups = sharing_groups(flags.build(2), image_shape)
    # Branches go last: in `class` fusion, every class is flipped separately.
    turned = statistics.with_comparable_signs(learned.swapaxes(1, -1), groups).swapaxes(1, -1)
    outlying = np.zeros(len(runs), bool)
    if not per_class:
        outlying = statistics.outlying(np.column_stack([runs["test_accuracy"], turned]))
    classes = learned.shape[2] if per_class else 2
    start = at_start(flags, classes, runs["seed"].tolist(), image_shape)
    return Weights(start, learned, turned, outlying, [f"after {tap}" for tap in taps])


def details(results: Results) -> Iterator[Detail]:
    """Per cell: moments by branch (Table IV), or means by branch and class (Table V)."""
    for cell, runs in results.with_runs():
        weights = of_runs(cell.flags, runs)
        names = ("start", "comparable", "outlying")
        kinds = {name: getattr(weights, name).tolist() for name in names}
        by_run: Any = pd.DataFrame({"run": runs["run"].tolist(), **kinds}).to_dict("records")
        title = f"Weights of {cell.row} on {cell.section}"
        yield Detail("weights_by_run", title, by_run, printed=False)
        # The paper's weights are shown only beside those of its own branches.
        printed = cell.paper is not None and runs["branches"].iloc[0] == [7, 9, 11, 13]
        if weights.learned.ndim == 2:
            yield _moments(title, runs, weights, printed)
        else:
            yield from _means(title, weights, printed)


def _moments(title: str, runs: Frame, weights: Weights, printed: bool) -> Detail:
    """Table IV: moments of accuracy and weights, of all runs and without outlying ones."""
    seeds = ", ".join(f"seed {seed}" for seed in runs["seed"][weights.outlying])
    note = SIGNS + OUTLYING.format(seeds or "none")
    columns = ["accuracy", *weights.after]
    rows = []
    if printed:
        doubtful = {(each["row"], each["column"]): each for each in paper.DOUBTFUL}
        for reason in dict.fromkeys(each["reason"] for each in doubtful.values()):
            note += f"\n\nA question mark: {reason}."
        for name, cells in paper.table("4")["cells"].items():
            figures = [
                cells[column] if column in cells else f"{doubtful[name, column]['reads']:.4f}?"
                for column in ("accuracy", "1", "2", "3", "4")
            ]
            rows.append([f"paper, {name.replace('_', ' ')}", *figures])
    accuracy, absolute = runs["test_accuracy"].to_numpy(), np.abs(weights.learned)
    kinds = {
        "at the start": weights.start,
        "as learned": np.column_stack([accuracy, weights.learned]),
        "comparable": np.column_stack([accuracy, weights.comparable]),
        "absolute": absolute,
        "grown": absolute - np.abs(weights.start),
    }
    for kind, every in kinds.items():
        parts = {kind: every}
        if 0 < weights.outlying.sum() < len(every):
            usual = every[~weights.outlying]
            parts = {f"{kind}, all": every, f"{kind}, without outlying": usual}
        for part, some in parts.items():
            moments = {"mean": some.mean(axis=0)}
            if len(some) > 1:
                moments["variance"] = some.var(axis=0, ddof=1)
                moments["mean's 95 % interval, ±"] = statistics.half_interval(some)
            nothing = [None] * (len(columns) - some.shape[1])  # of accuracy
            rows += [[f"{part}, {name}", *nothing, *of.tolist()] for name, of in moments.items()]
    named = [dict(zip(["row", *columns], row, strict=True)) for row in rows]
    return Detail("weights", title, named, note, ".4f")


def _means(title: str, weights: Weights, printed: bool) -> Iterator[Detail]:
    """Table V: means by branch and class, and how large weights are by branch."""
    # [runs, branches]
    start, learned = (np.abs(each).mean(axis=2) for each in (weights.start, weights.learned))
    sizes = {"at the start": start, "as learned": learned, "grown": learned - start}
    rows = [
        {"row": after} | {name: _mean(values[:, branch]) for name, values in sizes.items()}
        for branch, after in enumerate(weights.after)
    ]
    note = "Mean absolute weight over a run's classes, mean over runs and its 95 % interval:"
    yield Detail("weights", title, rows, f"{SIGNS}\n\n{note}")
    means = {
        "as learned": weights.learned.mean(axis=0),
        "comparable": weights.comparable.mean(axis=0),
    }
    if printed:
        cells = paper.table("5")["cells"].values()
        means = {"of the paper, as printed": np.array([[*row.values()] for row in cells])} | means
    for kind, mean in means.items():
        rows = []
        for after, values in zip(weights.after, mean.tolist(), strict=True):
            by_class = {str(label): value for label, value in enumerate(values, start=1)}
            absolute = f"{np.abs(values).mean():.2f}"
            rows.append({"row": after, **by_class, "mean of absolutes": absolute})
        yield Detail("weights", f"{title}: means, {kind}, by class", rows, form="+z.2f")


def _mean(values: np.ndarray) -> str:
    """A mean over runs with its interval, as "0.61 ± 0.05"."""
    half = f" ± {statistics.half_interval(values):.2f}" if len(values) > 1 else ""
    return f"{values.mean():z.2f}{half}"


def figure_4(runs: Frame, weights: Weights) -> Figure:
    """Accuracy and weights by seed, as learned and with comparable signs."""
    chart, every = plt.subplots(3, 1, figsize=(7.5, 7.5), layout="constrained", sharex=True)
    every[0].plot(runs["seed"], runs["test_accuracy"], "k.-")
    every[1].plot(runs["seed"], weights.learned, marker=".", label=weights.after)
    every[2].plot(runs["seed"], weights.comparable, marker=".")
    labels = ("test accuracy (%)", "weight", "comparable weight")
    for axes, label in zip(every, labels, strict=True):
        axes.set(ylabel=label, xlabel="seed")
        for seed in runs["seed"][weights.outlying]:
            axes.axvspan(seed - 0.4, seed + 0.4, color="0.8")
    pictures.whole_numbers(every[0])
    chart.legend(loc="outside upper center", ncols=5)
    return chart


def heatmaps(weights: Weights) -> Figure:
    """Mean weights by branch and class, as learned and with comparable signs."""
    chart, every = plt.subplots(2, 1, figsize=(8.5, 5.6), layout="constrained")
    means = [each.mean(axis=0) for each in (weights.learned, weights.comparable)]
    classes = range(1, means[0].shape[1] + 1)
    for axes, mean, title in zip(every, means, ("as learned", "comparable"), strict=True):
        pictures.heatmap(axes, pd.DataFrame(mean, weights.after, classes), np.abs(means).max())
        axes.set(title=title, xlabel="class")
    return chart
