"""What repeated runs say of the fusion's weights, and of the branches alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.configuration import Configuration
from experiments.tables import statistics
from experiments.tables.cells import Cell
from interflow_jax.data.preprocessing import initial_key

ANY_CLASSES = 2
"""For one weight a branch, whose draws do not depend on the number of classes."""


def over_runs(cell: Cell, ran: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What repeated runs say of the fusion's weights (paper, Tables IV and V; Figure 4).

    Returns:
      as_learned, comparable (see `statistics.with_comparable_signs`) and at_start (what the seeds
      draw, with this version of JAX): the weights by run, [runs][branches] or
      [runs][branches][classes]; seeds; and, of one weight a branch, outlying:
      the seeds of outlying runs by accuracy and comparable weights. (Of forty weights, one or
      another is far from its median in most runs.) None without a run.
    """
    if not ran:
        return None
    learned = np.array([run["weights"] for run in ran])
    flags = cell.flags
    groups = statistics.sharing_groups(
        tuple(ran[0]["branches"]), flags.depth, flags.width, flags.downsample, flags.fc == "shared"
    )
    per_class = learned.ndim == 3
    classes = learned.shape[2] if per_class else ANY_CLASSES
    seeds = [run["seed"] for run in ran]
    if per_class:
        turned = statistics.with_comparable_signs(learned.swapaxes(1, 2), groups).swapaxes(1, 2)
    else:
        turned = statistics.with_comparable_signs(learned, groups)
    found = {
        "as_learned": learned.tolist(),
        "comparable": turned.tolist(),
        "at_start": at_start(flags, classes, seeds).tolist(),
        "seeds": seeds,
    }
    if not per_class:
        accuracy = np.array([[run["test_accuracy"]] for run in ran])
        marks = statistics.outlying(np.hstack([accuracy, turned]))
        found["outlying"] = [seed for seed, mark in zip(seeds, marks, strict=True) if mark]
    return found


def at_start(flags: Configuration, classes: int, seeds: list[int]) -> np.ndarray:
    """What a model's fusion weighs before any training: [seeds, ...] as `Fusion` returns them.

    Only the weights' own draws are computed, none of the layers'.
    """
    model = flags.build(classes)
    images = jnp.zeros((1, 32, 32, 1))  # their size and channels do not matter to the weights

    @jax.jit
    def draw(key: jax.Array) -> jax.Array:
        return model.init_with_output(key, images, train=False)[0].weights

    return np.array([draw(initial_key(seed)) for seed in seeds], dtype=float)


def branches_alone(ran: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How well every branch predicts by itself, beside the fusion of all.

    Returns:
      A dict a branch, shallow to deep: after (the convolution), mean and deviation of its accuracy
      in percent, and difference, in points, to that of the fusion in the same runs.
    """
    fused = {run["seed"]: run["test_accuracy"] for run in ran}
    made = []
    for branch, after in enumerate(ran[0]["branches"] if ran else ()):
        alone = {run["seed"]: run["branch_accuracy"][branch] for run in ran}
        values = list(alone.values())
        found = statistics.difference(alone, fused)
        assert found is not None  # the runs are the same
        made.append(
            {
                "after": after,
                "mean": float(np.mean(values)),
                "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "difference": found._asdict(),
            }
        )
    return made
