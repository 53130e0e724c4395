"""How long cut models, early exits and other networks take on the same images, in turns."""

import statistics
import timeit
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from interflow_jax.early_exit import EarlyExit
from interflow_jax.model import Interflow
from interflow_jax.ops.convolution import cpu_compiler_options

BATCH_SIZE = 64  # of whole models; exits are packed up to this size
TURNS = 5
SECONDS_PER_TURN = 0.2  # a call is repeated as often as fits, at least once

Model = tuple[Interflow, Any]  # and its variables


def measure(
    models: list[Model], exits: EarlyExit, thresholds: list[list[float]], images: np.ndarray
) -> tuple[list[dict[str, float]], list[float]]:
    """Times models, and exits by each list of thresholds, in turns on the same images.

    Args:
      images: [images, height, width, channels], float32, as the models take them, on the host;
        repeated, from the first on, until they fill a batch.

    Returns:
      Per model `ms_1` and `ms_64`, milliseconds for batches of one and of `BATCH_SIZE`, and
      `images_per_second` in the latter; per list of thresholds images per second.
    """
    images = np.resize(images, (max(len(images), BATCH_SIZE), *images.shape[1:]))
    images = images[: len(images) // BATCH_SIZE * BATCH_SIZE]
    batches = {1: [images[:1]], BATCH_SIZE: np.split(images, len(images) // BATCH_SIZE)}
    calls: dict[Any, Callable[[], Any]] = {}
    for number, (model, variables) in enumerate(models):
        program = jax.jit(model.apply, compiler_options=cpu_compiler_options())
        for size, parts in batches.items():
            calls[number, size] = partial(_through, partial(program, variables), parts)
    for number, each in enumerate(thresholds):
        calls["exits", number] = partial(exits, images, each)
    times = seconds(calls)
    rows = []
    for number in range(len(models)):
        row = {f"ms_{n}": 1000 * times[number, n] / len(batches[n]) for n in batches}
        rows.append(row | {"images_per_second": len(images) / times[number, BATCH_SIZE]})
    return rows, [len(images) / times["exits", number] for number in range(len(thresholds))]


def _through(program: Callable, batches: list[np.ndarray]) -> None:
    for batch in batches:
        np.asarray(program(jnp.asarray(batch)).logits)


def seconds(calls: dict[Any, Callable[[], Any]]) -> dict[Any, float]:
    """The median over turns of each call's mean seconds, without its first call, which compiles.

    Args:
      calls: each returns when everything is computed.
    """
    counts = {}
    for name, call in calls.items():
        call()
        counts[name] = max(1, int(SECONDS_PER_TURN / timeit.timeit(call, number=1)))
    turns = [
        {name: timeit.timeit(call, number=counts[name]) for name, call in calls.items()}
        for _ in range(TURNS)
    ]
    return {name: statistics.median(turn[name] for turn in turns) / counts[name] for name in calls}
