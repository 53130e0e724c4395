"""Training as pure functions: state, optimiser, schedule and steps (paper, IV-B)."""

from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from interflow_jax.model import Prediction

LEARNING_RATE = 1e-3  # paper, IV-B, as are the four below
LEARNING_RATE_DROP = 0.1
MOMENTUM = 0.95
WEIGHT_DECAY = 5e-4
BATCH_SIZE = 64


class TrainState(struct.PyTreeNode):
    """All that training changes.

    Attributes:
      step: optimiser steps taken, int32 scalar.
      params: the model's parameters, float32.
      batch_stats: BatchNorm's running statistics, float32; empty without BatchNorm.
      opt_state: the optimiser's.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState


class TrainMetrics(NamedTuple):
    """Sums over a batch: of the cross-entropy (nats, float32), of hits, of examples (int32)."""

    loss_sum: Array
    correct: Array
    count: Array


class EvalMetrics(NamedTuple):
    """As `TrainMetrics`, and the hits of every branch alone, [branches], int32.

    What a branch predicts alone is `Prediction.alone`.
    """

    loss_sum: Array
    correct: Array
    count: Array
    branch_correct: Array


def learning_rate_schedule(total_steps: int, drop_after: float) -> optax.Schedule:
    """1e-3, then 1e-4 (paper, IV-B).

    Args:
      total_steps: optimiser steps of the whole training.
      drop_after: the fraction of them before the drop. The paper drops for the last 20 epochs:
        4/5 of the 100 on CIFAR, 1/2 of the 40 on the others.
    """
    boundary = round(total_steps * drop_after)
    return optax.piecewise_constant_schedule(LEARNING_RATE, {boundary: LEARNING_RATE_DROP})


def make_optimizer(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """SGD with momentum 0.95 (not Nesterov's) and weight decay 5e-4 on every parameter.

    The decay is added to the gradient before the momentum, as the frameworks of 2021 did
    (paper, IV-B, gives the numbers and not the order).
    """
    return optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(learning_rate, MOMENTUM))


def make_initializer(
    model: nn.Module, optimizer: optax.GradientTransformation, image_shape: tuple
) -> Any:
    """Jits the creation of states, for many keys; `create_state` says what it makes.

    Args:
      model: called as `model(images, train=...)`.
      optimizer: from `make_optimizer`, or any other.
      image_shape: (height, width, channels).

    Returns:
      A jitted function of the key of all initial values; its `eval_shape` gives the shapes alone,
      at once.
    """

    # Optimising the code of so many draws takes longer than all else of a start.
    options = {"xla_backend_optimization_level": "0"} if jax.default_backend() == "cpu" else None

    @partial(jax.jit, compiler_options=options)
    def create(key: Array) -> TrainState:
        variables = model.init(key, jnp.zeros((1, *image_shape), jnp.float32), train=False)
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(params),
        )

    return create


def create_state(
    model: nn.Module, optimizer: optax.GradientTransformation, key: Array, image_shape: tuple
) -> TrainState:
    """Initialises parameters, BatchNorm statistics and optimiser, under jit.

    Args:
      model: called as `model(images, train=...)`.
      optimizer: from `make_optimizer`, or any other.
      key: of all initial values.
      image_shape: (height, width, channels).
    """
    return make_initializer(model, optimizer, image_shape)(key)


def train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    images: Array,
    labels: Array,
    auxiliary_loss: float = 0.0,
) -> tuple[TrainState, TrainMetrics]:
    """One step on the cross-entropy of the fused logits (paper, IV-B).

    With `auxiliary_loss` the step minimises that cross-entropy plus the weighted sum of those of
    all branches but the last, as GoogLeNet's auxiliary classifiers do (paper, II-A; not the
    paper's method).

    Args:
      model: returns a `Prediction`; called as `model(images, train=True)`.
      optimizer: the one that `state` was created with.
      state: before the step.
      images: [batch, height, width, channels], float, normalised.
      labels: [batch], int.
      auxiliary_loss: the weight of the cross-entropy of every branch but the last, a Python number
        (bind it before jit); with 0.0 the program has no such losses.

    Returns:
      The state after the step, and the metrics of the batch before it. Their `loss_sum` is that of
      the fused logits alone, comparable with `eval_step`'s.
    """

    def loss_of(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        prediction, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        minimised, loss = mean_losses(prediction, labels, auxiliary_loss)
        return minimised, (loss, prediction.logits, updates.get("batch_stats", {}))

    gradients, (loss, logits, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    metrics = TrainMetrics(
        loss_sum=loss * len(labels),
        correct=jnp.sum(logits.argmax(-1) == labels),
        count=jnp.asarray(len(labels)),
    )
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, batch_stats, opt_state), metrics


def mean_losses(
    prediction: Prediction, labels: Array, auxiliary_loss: float = 0.0
) -> tuple[Array, Array]:
    """The batch's mean losses in nats: the one that training minimises, and the fused logits' own.

    Args:
      prediction: of the batch.
      labels: [batch], int.
      auxiliary_loss: as in `train_step`.
    """
    loss = cross_entropy(prediction.logits, labels).mean()
    if not auxiliary_loss:
        return loss, loss
    others = prediction.branch_logits[:, :-1]
    losses = jax.vmap(cross_entropy, in_axes=(1, None))(others, labels)
    return loss + auxiliary_loss * losses.mean(axis=1).sum(), loss


def eval_step(
    model: nn.Module, state: TrainState, images: Array, labels: Array, mask: Array
) -> EvalMetrics:
    """Measures a batch in evaluation mode.

    Args:
      model: as in `train_step`.
      state: its parameters and BatchNorm statistics are used.
      images: [batch, height, width, channels], float, normalised.
      labels: [batch], int.
      mask: [batch], bool; False for examples that only fill up the batch.
    """
    prediction = predict(model, state, images)
    loss = cross_entropy(prediction.logits, labels)
    branch_hits = prediction.alone.argmax(-1) == labels[:, None]
    return EvalMetrics(
        loss_sum=jnp.sum(jnp.where(mask, loss, 0.0)),
        correct=jnp.sum(mask & (prediction.logits.argmax(-1) == labels)),
        count=jnp.sum(mask),
        branch_correct=jnp.sum(mask[:, None] & branch_hits, axis=0),
    )


def predict(model: nn.Module, state: TrainState, images: Array) -> Prediction:
    """The model's prediction in evaluation mode; softmax of `logits` gives probabilities.

    Args:
      model: as in `train_step`.
      state: its parameters and BatchNorm statistics are used.
      images: [batch, height, width, channels], float, normalised.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return cast(Prediction, model.apply(variables, images, train=False))


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy of the softmax in nats: [batch, classes] and [batch] to [batch], float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
