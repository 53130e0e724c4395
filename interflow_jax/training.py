"""Training as pure functions: state and steps (paper, IV-B)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array

from interflow_jax.model import Prediction
from interflow_jax.switch import switch_arguments

BATCH_SIZE = 64  # paper, IV-B


class TrainState(struct.PyTreeNode):
    """Everything that training changes.

    Attributes:
      step: optimiser steps taken, int32 scalar.
      params: the model's parameters, float32.
      batch_stats: BatchNorm's running statistics, float32; empty without BatchNorm.
      opt_state: the optimiser's state.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState


class TrainMetrics(NamedTuple):
    """Sums over examples: cross-entropy (nats, float32), hits and number of examples (int32).

    Scalars, or [batches] each.
    """

    loss_sum: Array
    correct: Array
    count: Array

    @property
    def loss(self) -> float:
        """Mean cross-entropy per example, in nats."""
        return float(np.sum(self.loss_sum)) / int(np.sum(self.count))

    @property
    def accuracy(self) -> float:
        """Hits in percent."""
        return 100 * int(np.sum(self.correct)) / int(np.sum(self.count))


class EvalMetrics(NamedTuple):
    """Like `TrainMetrics`, with the branches.

    Attributes:
      branch_correct: hits of every branch alone (see `eval_step`), [branches], int32.
      weights: the fusion's weights, float32, [branches] or [branches, classes]; not a sum.
    """

    loss_sum: Array
    correct: Array
    count: Array
    branch_correct: Array
    weights: Array

    loss = TrainMetrics.loss
    accuracy = TrainMetrics.accuracy

    @property
    def branch_accuracy(self) -> list[float]:
        """Like `accuracy`, for every branch alone, shallow to deep."""
        return [100 * hits / int(self.count) for hits in np.asarray(self.branch_correct).tolist()]


def make_initializer(
    model: nn.Module, optimizer: optax.GradientTransformation, image_shape: tuple
) -> Any:
    """`create_state` as a jitted function of the key, for many keys.

    Its `eval_shape` gives only the shapes, at once.
    """

    # Optimising the code of so many draws takes longer than the rest of the startup.
    options = {"xla_backend_optimization_level": "0"} if jax.default_backend() == "cpu" else None

    @partial(jax.jit, compiler_options=options)
    def create(key: Array) -> TrainState:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = model.init(key, images, **switch_arguments(model, False))
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))

    return create


def create_state(
    model: nn.Module, optimizer: optax.GradientTransformation, key: Array, image_shape: tuple
) -> TrainState:
    """Initialises parameters, BatchNorm statistics and optimiser, under jit.

    Args:
      model: as in `train_step`.
      optimizer: any optax optimiser.
      key: for all initial values.
      image_shape: (height, width, channels).
    """
    return make_initializer(model, optimizer, image_shape)(key)


def train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    images: Array,
    labels: Array,
    *,
    key: Array | None = None,
    auxiliary_loss: float = 0.0,
    auxiliary_mean: float = 0.0,
) -> tuple[TrainState, TrainMetrics]:
    """One step on the cross-entropy of the fused logits (paper, IV-B).

    The branches' own losses are not the paper's method: `auxiliary_loss` adds them as GoogLeNet's
    auxiliary classifiers do (II-A), `auxiliary_mean` with a weight independent of their number. For
    a fusion with an ensemble for every number of branches (`geometric`), the loss is the mean over
    all ensembles, not the last one's: each is to predict, and more of them make no larger step.

    Args:
      model: any Linen module that returns a `Prediction` (see `switch_arguments`).
      optimizer: the one that `state` was created with.
      state: before the step.
      images: [batch, height, width, channels], float, normalised.
      labels: [batch], int.
      key: for what `nn.Dropout` draws; other models need none.
      auxiliary_loss: the weight of the cross-entropy of every branch but the last, a Python number
        (bind it before jit); with 0.0 the program has no such losses.
      auxiliary_mean: likewise, the weight of the mean cross-entropy of all branches.

    Returns:
      The state after the step, and the metrics before it, of the fused logits alone, as in
      `eval_step`.
    """

    def loss_of(params):
        prediction, updates = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            **switch_arguments(model, True),
            mutable=["batch_stats"],
            rngs=None if key is None else {"dropout": key},
        )
        minimised, loss = mean_losses(prediction, labels, auxiliary_loss, auxiliary_mean)
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
    prediction: Prediction,
    labels: Array,
    auxiliary_loss: float = 0.0,
    auxiliary_mean: float = 0.0,
) -> tuple[Array, Array]:
    """A batch's mean losses in nats: the one `train_step` minimises, and the fused logits' own."""
    loss = cross_entropy(prediction.logits, labels).mean()
    minimised = loss
    by_branch = jax.vmap(cross_entropy, in_axes=(1, None))  # to [branches, batch]
    if prediction.ensembles is not None:
        minimised = by_branch(prediction.ensembles, labels).mean()
    if auxiliary_loss:
        losses = by_branch(prediction.branch_logits[:, :-1], labels)
        minimised += auxiliary_loss * losses.mean(axis=1).sum()
    if auxiliary_mean:
        minimised += auxiliary_mean * by_branch(prediction.branch_logits, labels).mean()
    return minimised, loss


def eval_step(
    model: nn.Module,
    state: TrainState,
    images: Array,
    labels: Array,
    mask: Array,
    *,
    supervised: bool = False,
) -> EvalMetrics:
    """Computes a batch's metrics in evaluation mode.

    Args:
      model, state, images, labels: as in `train_step`.
      mask: [batch], bool; False for examples that only pad the batch.
      supervised: whether training minimised the branches' own losses (`auxiliary_loss` or
        `auxiliary_mean`); a branch alone then predicts by its own logits, else by its term of the
        fusion (see `Prediction.alone`).
    """
    prediction = predict(model, state, images)
    loss = cross_entropy(prediction.logits, labels)
    alone = prediction.branch_logits if supervised else prediction.alone
    branch_hits = alone.argmax(-1) == labels[:, None]
    return EvalMetrics(
        loss_sum=jnp.sum(jnp.where(mask, loss, 0.0)),
        correct=jnp.sum(mask & (prediction.logits.argmax(-1) == labels)),
        count=jnp.sum(mask),
        branch_correct=jnp.sum(mask[:, None] & branch_hits, axis=0),
        weights=prediction.weights,
    )


def predict(model: nn.Module, state: TrainState, images: Array) -> Prediction:
    """The model's prediction in evaluation mode, with arguments as in `train_step`.

    Softmax of `logits` gives probabilities.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return cast(Prediction, model.apply(variables, images, **switch_arguments(model, False)))


def predict_in_batches(
    program: Callable[[np.ndarray], Prediction],
    images: np.ndarray,
    image_shape: tuple[int, int, int],
    batch_size: int,
) -> Prediction:
    """Predicts any number of images by a program for batches; zeros fill up the last one.

    Args:
      program: predicts [batch_size, *image_shape], uint8.
      images: [images, *image_shape], uint8.

    Raises:
      ValueError: for images of another shape or type, or none.
    """
    if images.shape[1:] != image_shape or images.dtype != np.uint8 or not len(images):
        raise ValueError(
            f"images have shape {images.shape} and type {images.dtype}; give one or more, uint8 of "
            f"[images, {', '.join(map(str, image_shape))}]"
        )
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        padding = [(0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)]
        parts.append(program(np.pad(batch, padding)))
    whole = jax.tree.map(lambda *arrays: jnp.concatenate(arrays)[: len(images)], *parts)
    return whole._replace(weights=parts[-1].weights)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy of the softmax in nats: [batch, classes] and [batch] to [batch], float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
