"""Whole dispatches, a few steps each, as compiled programs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from interflow_jax import steps as pure
from interflow_jax.data import batches
from interflow_jax.data.batches import Resident, Window
from interflow_jax.data.preprocessing import (
    EpochKeys,
    Preprocessing,
    dropout_key,
    for_training,
    normalize,
)
from interflow_jax.model import Prediction
from interflow_jax.ops.convolution import cpu_compiler_options
from interflow_jax.steps import TrainState


def compiled(
    model: nn.Module,
    train_step: Any,
    eval_step: Any,
    preprocessing: Preprocessing,
    mesh: Mesh,
    batch_size: int,
) -> tuple[Any, Any, Any, Any]:
    """Jits a Trainer's training, evaluation, prediction and batches of normalised images.

    The batch is sharded over the mesh; results are on every device.
    """
    sharded = NamedSharding(mesh, PartitionSpec("batch"))
    replicated = batches.replicated(mesh)
    jit = partial(jax.jit, out_shardings=replicated, compiler_options=cpu_compiler_options())

    def batch_of(source: Resident | Window, step: Array) -> tuple[Array, Array]:
        return jax.lax.with_sharding_constraint(source.batch(step, batch_size), sharded)

    @partial(jit, donate_argnums=0)
    def train(state: TrainState, source: Resident | Window, keys: EpochKeys, steps: Array):
        def step_once(state: TrainState, step: Array):
            images, labels = batch_of(source, step)
            images = for_training(preprocessing, images, keys, step)
            return train_step(state, images, labels, key=dropout_key(keys, step))

        return _scan(step_once, state, steps)

    @jit
    def evaluate(state: TrainState, source: Resident | Window, steps: Array, examples: Array):
        def step_once(carry: None, step: Array):
            images, labels = batch_of(source, step)
            mask = step * batch_size + jnp.arange(batch_size) < examples
            images = normalize(preprocessing, images)
            return carry, eval_step(state, images, labels, mask)

        return _scan(step_once, None, steps)[1]

    @jit
    def predict(state: TrainState, images: Array) -> Prediction:
        images = jax.lax.with_sharding_constraint(images, sharded)
        return pure.predict(model, state, normalize(preprocessing, images))

    @jit
    def images_of(source: Resident | Window, step: Array) -> Array:
        return normalize(preprocessing, batch_of(source, step)[0])

    return train, evaluate, predict, images_of


def _scan(body: Callable, carry: Any, steps: Array) -> Any:
    """`lax.scan`, without a loop for a single step (see `batches.steps_per_dispatch`)."""
    if len(steps) > 1:
        return jax.lax.scan(body, carry, steps)
    carry, result = body(carry, steps[0])
    return carry, jax.tree.map(lambda leaf: leaf[None], result)
