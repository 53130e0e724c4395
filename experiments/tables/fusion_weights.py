"""The fusion's weights in repeated runs (the paper's Tables IV and V, Figure 4)."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.tables import paper, pictures, statistics
from experiments.tables.compare import compare, labelled
from experiments.tables.report import Picture, Section
from experiments.tables.runs import Frame
from interflow_jax.cli import charts
from interflow_jax.cli.config import RunConfig
from interflow_jax.data.preprocessing import initial_key
from interflow_jax.model import Interflow
from interflow_jax.switch import switch_arguments

_NOTE = """\
A branch's weight and its fully connected layer may trade their signs, branches that share the layer
together; *comparable* weights have the deepest of each group positive."""


def at_start(
    config: RunConfig, classes: int, seeds: list[int], image_shape: tuple[int, ...]
) -> np.ndarray:
    """A model's fusion weights before any training: [seeds, ...] as `Fusion` returns them.

    Only the weights' own draws are computed, not those of the layers.

    Args:
      classes: any number if there is one weight per branch, as its draws do not depend on it.
    """
    model = config.model.build(classes)
    images = jnp.zeros((1, *image_shape))

    @jax.jit
    def draw(key: jax.Array) -> jax.Array:
        return model.init_with_output(key, images, train=False)[0].weights

    return np.array([draw(initial_key(seed)) for seed in seeds], dtype=float)


def sharing_groups(model: Interflow, image_shape: tuple[int, ...]) -> list[list[int]]:
    """The branches, counted from 0, of every fully connected layer, shallow to deep."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    init = partial(model.backbone.init_with_output, **switch_arguments(model.backbone, False))
    feature_maps, _ = jax.eval_shape(init, jax.random.key(0), images)
    groups: dict[int, list[int]] = {}
    for branch, feature_map in enumerate(feature_maps):
        shared = model.fully_connected == "shared"
        groups.setdefault(feature_map.shape[-1] if shared else branch, []).append(branch)
    return list(groups.values())


def report(runs: Frame, picture: str) -> Iterator[Section | Picture]:
    """Accuracies; per row, moments by branch (Table IV) or by class too (Table V), pictured."""
    yield from compare(runs, paper=paper.repeated)
    cells = list(labelled(runs).groupby(["section", "row"], sort=False))
    for (section, row), inside in cells:
        title = f"Weights of {row} on {section}"
        config, shape = inside["config"].iloc[0], tuple(inside["image_shape"].iloc[0])
        learned = np.array(inside["weights"].tolist())  # [runs, branches] or [..., classes]
        groups = sharing_groups(config.model.build(2), shape)
        # Branches go last: in `class` fusion, every class is flipped separately.
        turned = statistics.with_comparable_signs(learned.swapaxes(1, -1), groups)
        classes = learned.shape[2] if learned.ndim == 3 else 2
        kinds = {
            "at the start": at_start(config, classes, inside["seed"].tolist(), shape),
            "as learned": learned,
            "comparable": turned.swapaxes(1, -1),
        }
        show = _by_branch if learned.ndim == 2 else _by_class
        name = picture if len(cells) == 1 else pictures.stem(picture, section, row)
        yield from show(title, name, inside, kinds)


def _by_branch(title: str, name: str, runs: Frame, kinds: dict[str, np.ndarray]) -> Iterator:
    """Table IV and Figure 4."""
    after = [f"after {tap}" for tap in runs["branches"].iloc[0]]
    accuracy = runs["test_accuracy"].to_numpy()
    rows: list[list] = []
    if runs["method"].iloc[0] == "S1" and paper.repeated(runs["config"].iloc[0]):
        rows += [
            [f"paper, {name.replace('_', ' ')}", *map(cells.get, ("accuracy", "1", "2", "3", "4"))]
            for name, cells in paper.CELLS["4"].items()
        ]
    with_accuracy = {
        kind: np.column_stack([accuracy, kinds[kind]]) for kind in ("as learned", "comparable")
    }
    kept = np.mean(np.sign(kinds["as learned"]) == np.sign(kinds["at the start"]), axis=0)
    rows.append(["share of signs as at the start", None, *kept.tolist()])
    for kind, values in (kinds | with_accuracy).items():
        moments = {"mean": values.mean(axis=0)}
        if len(values) > 1:
            moments["variance"] = values.var(axis=0, ddof=1)
            moments["mean's 95 % interval, ±"] = statistics.half_interval(values)
        for moment, figures in moments.items():
            without = [None] * (len(after) + 1 - figures.size)
            rows.append([f"{kind}, {moment}", *without, *figures.tolist()])
    named = [dict(zip(["row", "accuracy", *after], row, strict=True)) for row in rows]
    note = f"{_NOTE} Variances are over one less than the runs."
    yield Section(title, named, "weights", note, ".4f")
    chart, panels = plt.subplots(3, 1, figsize=(7.5, 7.5), layout="constrained", sharex=True)
    panels[0].plot(runs["seed"], accuracy, "k.-")
    panels[1].plot(runs["seed"], kinds["as learned"], marker=".", label=after)
    panels[2].plot(runs["seed"], kinds["comparable"], marker=".")
    panels[1].legend(ncols=4, fontsize=8)
    labels = ("test accuracy (%)", "weight", "comparable weight")
    for axes, label in zip(panels, labels, strict=True):
        axes.set(ylabel=label, xlabel="seed")
    pictures.whole_numbers(panels[0])
    pictures.entitle(chart, "Accuracy and weights", runs)
    shows = "By seed: test accuracy; every branch's weight as learned; the same with comparable "
    yield Picture(name, f"{title}. {shows}signs", chart)


def _by_class(title: str, name: str, runs: Frame, kinds: dict[str, np.ndarray]) -> Iterator:
    """Table V."""
    after = [f"after {tap}" for tap in runs["branches"].iloc[0]]
    start, learned = (np.abs(kinds[kind]).mean(axis=2) for kind in ("at the start", "as learned"))
    sizes = {"at the start": start, "as learned": learned}
    rows = [
        {"row": each} | {kind: _mean(values[:, branch]) for kind, values in sizes.items()}
        for branch, each in enumerate(after)
    ]
    note = f"Mean absolute weight over a run's classes, with its 95 % interval over runs. {_NOTE}"
    yield Section(title, rows, "weights", note)
    means = {kind: kinds[kind].mean(axis=0) for kind in ("as learned", "comparable")}
    if runs["method"].iloc[0] == "S3" and paper.repeated(runs["config"].iloc[0]):
        cells = paper.CELLS["5"].values()
        means |= {"the paper's, as printed": np.array([[*row.values()] for row in cells])}
    size = (8.5, 2.8 * len(means))  # inches
    chart, panels = plt.subplots(len(means), 1, figsize=size, layout="constrained")
    for axes, (kind, mean) in zip(panels, means.items(), strict=True):
        classes = [str(label) for label in range(1, mean.shape[1] + 1)]
        charts.heatmap(axes, mean, after, classes)
        axes.set(title=kind, xlabel="class")
    pictures.entitle(chart, "Mean weights", runs)
    yield Picture(name, f"{title}: heat maps of their means by branch and class", chart)


def _mean(values: np.ndarray) -> str:
    """A mean over runs with its interval, as "0.61 ± 0.05"."""
    half = f" ± {statistics.half_interval(values):.2f}" if len(values) > 1 else ""
    return f"{values.mean():z.2f}{half}"
