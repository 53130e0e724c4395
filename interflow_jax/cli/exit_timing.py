"""How long cut models, early exits and other networks take on the same images, in turns."""

import statistics
import time
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


def milliseconds(models: list[Model], images: np.ndarray) -> list[dict[str, float]]:
    """Milliseconds per model for batches of one and of `BATCH_SIZE`, of images as it takes them.

    Args:
      images: [images, height, width, channels], float32, already on the host.
    """
    calls = {}
    for number, program in enumerate(map(_program, models)):
        for size in (1, BATCH_SIZE):
            calls[number, size] = partial(program, images[:size])
    times = seconds(calls)
    return [
        {f"ms_{size}": 1000 * times[number, size] for size in (1, BATCH_SIZE)}
        for number in range(len(models))
    ]


def images_per_second(
    models: list[Model], exits: EarlyExit, thresholds: list[list[float]], images: np.ndarray
) -> list[float]:
    """Rates of models in batches of `BATCH_SIZE`, then of exits by list of thresholds, in turns.

    Images are repeated, from the first on, until they fill a batch.
    """
    images = np.resize(images, (max(len(images), BATCH_SIZE), *images.shape[1:]))
    images = images[: len(images) // BATCH_SIZE * BATCH_SIZE]
    batches = np.split(images, len(images) // BATCH_SIZE)

    def through(program: Callable) -> None:
        for batch in batches:
            program(batch)

    calls: list[Callable] = [partial(through, _program(model)) for model in models]
    calls += [partial(exits, images, each) for each in thresholds]
    times = seconds(dict(enumerate(calls)))
    return [len(images) / times[number] for number in range(len(calls))]


def _program(model: Model) -> Callable[[np.ndarray], np.ndarray]:
    apply = jax.jit(model[0].apply, compiler_options=cpu_compiler_options())
    return lambda images: np.asarray(apply(model[1], jnp.asarray(images)).logits)


def seconds(calls: dict[Any, Callable[[], Any]]) -> dict[Any, float]:
    """The median over turns of each call's mean seconds, without its first call, which compiles.

    Args:
      calls: each returns when everything is computed.
    """
    counts = {}
    for name, call in calls.items():
        call()
        counts[name] = max(1, int(SECONDS_PER_TURN / _mean(call, 1)))
    turns = [
        {name: _mean(call, counts[name]) for name, call in calls.items()} for _ in range(TURNS)
    ]
    return {name: statistics.median(turn[name] for turn in turns) for name in calls}


def _mean(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count
