"""How long cut models, early exits and other networks take on the same images."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import interflow_jax as ij
from experiments.runs.exits import Model
from experiments.timing import latency

BATCH_SIZE = 64  # of whole models; exits are packed up to this size


def milliseconds(models: list[Model], images: np.ndarray) -> list[dict[str, float]]:
    """Milliseconds per model for batches of one and of `BATCH_SIZE`, of images as it takes them.

    Args:
      images: [images, height, width, channels], float32, already on the host.
    """
    calls = {}
    for number, program in enumerate(map(_program, models)):
        for size in (1, BATCH_SIZE):
            calls[number, size] = partial(program, images[:size])
    times = latency.seconds(calls)
    return [
        {f"ms_{size}": 1000 * times[number, size] for size in (1, BATCH_SIZE)}
        for number in range(len(models))
    ]


def images_per_second(
    models: list[Model], exits: ij.EarlyExit, thresholds: list[list[float]], images: np.ndarray
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
    times = latency.seconds(dict(enumerate(calls)))
    return [len(images) / times[number] for number in range(len(calls))]


def _program(model: Model) -> Callable[[np.ndarray], np.ndarray]:
    apply = jax.jit(model[0].apply, compiler_options=ij.cpu_compiler_options())
    return lambda images: np.asarray(apply(model[1], jnp.asarray(images)).logits)
