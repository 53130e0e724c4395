"""Training as pure functions: state and steps (paper, IV-B)."""

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.traverse_util import flatten_dict
from jax import Array
from jax.core import Tracer

from interflow_jax.metrics import (
    EvalMetrics,
    TrainMetrics,
    WeightSums,
    cross_entropy,
    mean_losses,
    soft_targets,
)
from interflow_jax.model import Interflow, Prediction
from interflow_jax.optimizer import check_optimizer
from interflow_jax.switch import apply, check_images, switch_arguments, without_sowing

BATCH_SIZE = 64  # paper, IV-B


class TrainState(struct.PyTreeNode):
    """Everything that training changes.

    Attributes:
      step: optimiser steps taken, int32 scalar.
      params: the model's parameters, float32.
      batch_stats: BatchNorm's running statistics, float32; empty without BatchNorm.
      opt_state: the optimiser's state.
      collections: the model's other collections of variables, by name, such as constants, caches
        and moving averages; not what it only sows.
      average: of the parameters and statistics over the steps, by the names of their collections;
        empty without `ema`.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    collections: dict[str, Any] = struct.field(default_factory=dict)
    average: dict[str, Any] = struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats, **self.collections}

    def averaged(self) -> "TrainState":
        """With the averages, if it has any, as its parameters and statistics: to predict with."""
        return self.replace(**self.average, average={}) if self.average else self

    def with_average(self) -> "TrainState":
        """With averages, of which this is the first, for `train_step` to go on with."""
        first = {"params": self.params, "batch_stats": self.batch_stats}
        return self.replace(average=jax.tree.map(jnp.copy, first))  # training consumes both


def create_state(
    model: nn.Module, optimizer: optax.GradientTransformation, key: Array, image_shape: tuple
) -> TrainState:
    """Initialises parameters, statistics, other variables and the optimiser, under jit.

    Args:
      model: as in `train_step`.
      optimizer: any optax optimiser.
      key: for all initial values.
      image_shape: (height, width, channels).

    Raises:
      ValueError: for what is no optimiser.
    """
    return make_initializer(model, optimizer, image_shape)(key)


def make_initializer(
    model: nn.Module, optimizer: optax.GradientTransformation, image_shape: tuple
) -> Any:
    """`create_state` as a jitted function of the key, for many keys."""

    def create(key: Array) -> TrainState:
        check_optimizer(optimizer)
        images = jnp.zeros((1, *image_shape), jnp.float32)
        with nn.intercept_methods(without_sowing):
            others = dict(model.init(key, images, **switch_arguments(model, False)))
        params, batch_stats = others.pop("params", {}), others.pop("batch_stats", {})
        state = optimizer.init(params)
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, state, others)

    options = None
    inside_jit = isinstance(jnp.zeros(()), Tracer)
    if jax.default_backend() == "cpu" and not inside_jit:  # there are no options inside
        # Optimising the code of so many draws takes longer than the rest of the startup.
        options = {"xla_backend_optimization_level": "0"}
    return jax.jit(create, compiler_options=options)


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
    distillation: float = 0.0,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    class_weights: Sequence[float] = (),
    ema: float = 0.0,
) -> tuple[TrainState, TrainMetrics]:
    """One step on the cross-entropy of the fused logits (paper, IV-B).

    The branches' own losses are not the paper's method: `auxiliary_loss` adds them as GoogLeNet's
    auxiliary classifiers do (II-A), `auxiliary_mean` with a weight independent of their number. For
    a fusion with an ensemble for every number of branches (`geometric`), the loss is the mean over
    all ensembles, not the last one's: each is to predict, and more of them make no larger step.

    Args:
      model: any Linen module that returns a `Prediction` (see `switch_arguments`).
      optimizer: the one that `state` was created with. One that asks for them gets `value`, `grad`
        and `value_fn`: the batch's loss, its gradient, and the loss as a function of parameters.
      state: before the step.
      images: [batch, height, width, channels], float, normalised.
      labels: [batch], int.
      key: for what the model draws, from streams of any names; other models need none.
      auxiliary_loss: the weight of the cross-entropy of every branch but the last, a Python number
        (bind it before jit); with 0.0 the program has no such losses.
      auxiliary_mean: likewise, the weight of the mean cross-entropy of all branches.
      distillation: likewise, the weight of the mean over all branches of the divergence
        KL(fused || branch) of their probabilities; the fused ones, the teacher's, get no gradient
        from it.
      label_smoothing: likewise, the share of a label that goes to all classes alike, in every loss.
      mixup: likewise, alpha of the Beta distribution from which a step draws a share; images and
        targets are mixed by it with those of the batch in reverse (Zhang et al., 2018).
      class_weights: likewise, factors of the classes' terms in every loss, one per class; () for 1.
      ema: likewise, the decay of `TrainState.average`, which the state must have: after t steps it
        is their mean, weighted by the decay to the power of the steps since.

    Returns:
      The state after the step, and the metrics before it, of the fused logits alone, as in
      `eval_step`; the loss is by what was trained on, mixed, smoothed and weighted.

    Raises:
      ValueError: for integer images, labels that are not one class number per image, options out
        of their bounds, a key that is missing, a model that makes variables in training that it
        does not make when it is initialised, or a state whose average `ema` would not go on with.
    """
    check_images(images)
    _check_labels(labels, images)
    if not (0 <= ema < 1 and 0 <= label_smoothing < 1 and mixup >= 0):
        raise ValueError(
            f"ema is {ema:g}, label_smoothing {label_smoothing:g} and mixup {mixup:g}; the first "
            "two are from 0 to below 1, and mixup is 0 or more"
        )
    if bool(ema) != bool(state.average):
        has = "an average" if state.average else "no average"
        raise ValueError(
            f"the state has {has} and ema is {ema:g}: begin from state.averaged(), which has none, "
            "or state.with_average()"
        )
    share: Array | None = None
    if mixup:
        if key is None:
            raise ValueError(f"mixup is {mixup}, which draws; give a key")
        own_key = jax.random.fold_in(key, zlib.crc32(b"mixup"))
        share = jax.random.beta(own_key, mixup, mixup, dtype=jnp.float32)
        images = (share * images + (1 - share) * images[::-1]).astype(images.dtype)

    def loss_of(params: Any) -> tuple[Array, tuple]:
        variables = {**state.variables, "params": params}
        mutable = ["batch_stats", *state.collections]
        prediction, changed = apply(model, variables, images, True, mutable, key)
        targets = labels
        if label_smoothing or len(class_weights) or mixup:
            classes = prediction.logits.shape[-1]
            targets = soft_targets(labels, classes, label_smoothing, class_weights)
        if share is not None:
            targets = share * targets + (1 - share) * targets[::-1]
        minimised, loss = mean_losses(
            prediction, targets, auxiliary_loss, auxiliary_mean, distillation
        )
        return minimised, (loss, prediction.logits, changed)

    results, gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    minimised, (loss, logits, changed) = results
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        gradients,
        state.opt_state,
        state.params,
        value=minimised,
        grad=gradients,
        value_fn=lambda params: loss_of(params)[0],
    )
    changed = {**changed, "params": optax.apply_updates(state.params, updates)}
    metrics = TrainMetrics(
        loss_sum=loss * len(labels),
        correct=jnp.sum(logits.argmax(-1) == labels, dtype=jnp.int32),
        count=jnp.asarray(len(labels), jnp.int32),
    )
    frozen = isinstance(model, Interflow) and model.frozen
    after = {name: _updated(state, name, tree, frozen) for name, tree in changed.items()}
    others = {**state.variables, **after}
    params, batch_stats = others.pop("params"), others.pop("batch_stats")
    average = state.average
    if ema:
        weight = (1 - ema) / -jnp.expm1((state.step + 1) * math.log(ema))
        average = jax.tree.map(
            lambda mean, new: (mean + weight * (new - mean)).astype(mean.dtype),
            average,
            {"params": params, "batch_stats": batch_stats},
        )
    return TrainState(state.step + 1, params, batch_stats, opt_state, others, average), metrics


def _updated(state: TrainState, collection: str, after: Any, frozen: bool) -> Any:
    """A collection after a step; a frozen model's backbone stays as it was."""
    before = state.variables[collection]
    if new := set(flatten_dict(after)) - set(flatten_dict(before)):
        path = "/".join(map(str, (collection, *new.pop())))
        raise ValueError(f"the model makes {path} in training; let it do so at initialisation, too")
    if frozen and "backbone" in before:
        return {**after, "backbone": before["backbone"]}
    return after


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
      supervised: whether training minimised losses of the branches' own (`auxiliary_loss`,
        `auxiliary_mean` or `distillation`); a branch alone then predicts by its own logits, else
        by its term of the fusion (see `Prediction.alone`).

    Raises:
      ValueError: as `predict` does, and for labels that are not one class number per image.
    """
    _check_labels(labels, images)
    prediction = predict(model, state, images)
    loss = cross_entropy(prediction.logits, labels)
    alone = prediction.branch_logits if supervised else prediction.alone
    branch_hits = alone.argmax(-1) == labels[:, None]
    predicted = prediction.logits.argmax(-1)
    answers = jnp.stack([labels, predicted], axis=1).astype(jnp.int32)
    hits = mask & (predicted == labels)
    count, weights = jnp.sum(mask, dtype=jnp.int32), prediction.weights
    weight_sums = None
    if weights is not None and jnp.ndim(weights) == prediction.branch_logits.ndim:
        weight_sums = WeightSums.of(weights, labels, mask, prediction.logits.shape[-1])
        weights = jnp.sum(jnp.where(mask[:, None, None], weights, 0.0), axis=0)
        weights = weights.squeeze(-1) / jnp.maximum(count, 1)
    return EvalMetrics(
        loss_sum=jnp.sum(jnp.where(mask, loss, 0.0)),
        correct=jnp.sum(hits, dtype=jnp.int32),
        count=count,
        branch_correct=jnp.sum(mask[:, None] & branch_hits, axis=0, dtype=jnp.int32),
        weights=weights,
        weight_sums=weight_sums,
        answers=jnp.where(mask[:, None], answers, -1),
    )


def _check_labels(labels: Array, images: Array) -> None:
    """Raises ValueError for labels that would be taken for soft targets, or broadcast."""
    shape, dtype = jnp.shape(labels), jnp.result_type(labels)
    if shape != images.shape[:1] or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"labels are {dtype} of shape {shape} for {len(images)} images; give one class number "
            "per image, [batch], int"
        )


def predict(model: nn.Module, state: TrainState, images: Array) -> Prediction:
    """The model's prediction in evaluation mode, with arguments as in `train_step`.

    By the state's averages, if it has any. Softmax of `logits` gives probabilities.

    Raises:
      ValueError: for integer images, or a model that draws from a random stream to predict.
    """
    return apply(model, state.averaged().variables, images, False)[0]


def predict_in_batches(
    program: Callable[[np.ndarray], Prediction],
    images: np.ndarray,
    image_shape: tuple[int, int, int],
    batch_size: int,
) -> Prediction:
    """Predicts [images, *image_shape], uint8, by a program for batches; zeros fill up the last one.

    Raises ValueError for images of another shape or type, or none.
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
    weights = parts[-1].weights
    if weights is None or jnp.ndim(weights) < parts[-1].branch_logits.ndim:  # not one per image
        parts = [part._replace(weights=None) for part in parts]
    whole = jax.tree.map(lambda *arrays: jnp.concatenate(arrays)[: len(images)], *parts)
    return whole if whole.weights is not None else whole._replace(weights=weights)
