"""BatchNorm's statistics afresh, from one pass over training images."""

from collections.abc import Iterable
from functools import partial
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from interflow_jax.ops.convolution import cpu_compiler_options
from interflow_jax.steps import TrainState
from interflow_jax.switch import apply

State = TypeVar("State", TrainState, dict[str, Any])

_FAR = 2.0**20  # far above statistics, so that their own size rounds no momentum


def recalibrate(
    model: nn.Module, state: State, batches: Iterable[Array], *, key: Array | None = None
) -> State:
    """BatchNorm's statistics by one pass over training images, in place of the running ones.

    Those trail behind the parameters; in deep networks so far that the test accuracy jumps from
    epoch to epoch. These are, of what every layer is given in the pass, the mean and the (biased)
    variance over all images, as of one big batch: the mean of the batches' means, and the mean of
    their variances plus the variance of their means. As in training, a layer is given what the
    layers before it make of one batch, so batches are best as large as those that were trained on,
    and as mixed.

    Args:
      model: any Linen module, called as in `train_step`.
      state: a `TrainState`, or the variables that `model.apply` takes.
      batches: of images as the model takes them, [batch, height, width, channels], float.
      key: for what the model draws in training, as in `train_step`; a batch draws by its number.

    Returns:
      The state, with the averages of `ema` as its parameters (`TrainState.averaged`), or the
      variables, with other `batch_stats`: every `mean`, and every `var` with the `mean` beside it.
      Those of other names stay as they are, as `nn.SpectralNorm`'s, which are no means; so does
      what training does not change, as in a frozen backbone.

    Raises:
      ValueError: for no batches, integer images, or a key that is missing.
    """
    if isinstance(state, TrainState):
        state = state.averaged()
    variables = state.variables if isinstance(state, TrainState) else state
    whole: dict[Any, Any] = flatten_dict(variables.get("batch_stats", {}))
    before = {path: leaf for path, leaf in whole.items() if path[-1] in ("mean", "var")}
    if not before:
        return state
    mutable = [name for name in variables if name != "params"]

    @partial(jax.jit, compiler_options=cpu_compiler_options())
    def step(variables: Any, value: float, images: Array, key: Array | None) -> Any:
        """The collections after a batch, where all statistics were `value` before it."""
        old = whole | {path: jnp.full_like(leaf, value) for path, leaf in before.items()}
        given = {**variables, "batch_stats": unflatten_dict(old)}
        return apply(model, given, images, True, mutable, key)[1]

    def after(value: float, images: Array, key: Array | None) -> dict[Any, np.ndarray]:
        flat = flatten_dict(step(variables, value, images, key)["batch_stats"])
        return {path: np.asarray(flat[path], np.float64) for path in before}

    count, share, sums, squares = 0, {}, {}, {}  # by the paths of statistics
    for number, images in enumerate(batches):
        own_key = None if key is None else jax.random.fold_in(key, number)
        if not count:  # of a step: momentum x what was + (1 - momentum) x the batch's
            high, low = (after(value, images, own_key) for value in (_FAR, -_FAR))
            share = {path: 1 - (high[path] - low[path]) / (2 * _FAR) for path in before}
        count += len(images)
        for path, leaf in after(0.0, images, own_key).items():
            leaf = leaf / np.where(share[path] > 0, share[path], 1)
            sums[path] = sums.get(path, 0) + len(images) * leaf
            squares[path] = squares.get(path, 0) + len(images) * leaf**2
    if not count:
        raise ValueError("batches are empty; give one or more of training images")
    new = {}
    for path, old in before.items():
        value, mean = sums[path] / count, (*path[:-1], "mean")
        if path[-1] == "var" and mean in sums:
            value = value + np.maximum(squares[mean] / count - (sums[mean] / count) ** 2, 0)
        new[path] = jnp.asarray(np.where(share[path] > 0, value, old), old.dtype)
    statistics = unflatten_dict(whole | new)
    if isinstance(state, TrainState):
        return state.replace(batch_stats=statistics)
    return {**state, "batch_stats": statistics}
