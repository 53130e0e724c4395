"""What training and evaluation measure: losses in nats, hits, and their sums."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from interflow_jax.model import Prediction


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

    def __repr__(self) -> str:
        try:
            figures = f"loss {self.loss:.4f}, accuracy {self.accuracy:.2f} %"
            return f"<{type(self).__name__}: {figures}, {int(np.sum(self.count)):,} examples>"
        except (TypeError, ZeroDivisionError):  # under jit, or of no example
            return tuple.__repr__(self)


class WeightSums(NamedTuple):
    """Weights that depend on the image, summed over the images of every class.

    Attributes:
      count: images, [classes], int32.
      total: their weights, [branches, classes], float.
      squares: the squares of their distances from equal weights, likewise: those of the weights
        themselves would lose small deviations to float32's rounding.
    """

    count: Array
    total: Array
    squares: Array

    @classmethod
    def of(cls, weights: Array, labels: Array, mask: Array, classes: int) -> "WeightSums":
        """Of weights, [batch, branches, 1], and labels, [batch], where the mask, [batch], is."""
        images = jnp.where(mask[:, None], jax.nn.one_hot(labels, classes), 0.0)
        squares = (weights - 1 / weights.shape[1]) ** 2
        powers = (jnp.sum(power * images[:, None], axis=0) for power in (weights, squares))
        return cls(images.sum(0).astype(jnp.int32), *powers)

    @property
    def deviation(self) -> np.ndarray:
        """The standard deviation over all images, [branches]."""
        sums = (np.asarray(each, np.float64).sum(-1) for each in (self.total, self.squares))
        total, squares = sums
        count = np.sum(self.count)
        distance = total / count - 1 / len(total)
        return np.sqrt(np.maximum(squares / count - distance**2, 0))

    @property
    def by_class(self) -> np.ndarray:
        """The mean over the images of every class, [branches, classes]; 0 where there are none."""
        return np.asarray(self.total) / np.maximum(self.count, 1)


class EvalMetrics(NamedTuple):
    """Like `TrainMetrics`, with the branches.

    Attributes:
      branch_correct: hits of every branch alone (see `eval_step`), [branches], int32.
      weights: the fusion's weights, float32, [branches] or [branches, classes]; their mean over the
        examples where they depend on the image; None for a model without. Not a sum.
      answers: the true and the predicted class of every example, [batch, 2], int32, -1 for those
        that only pad; of a whole split [examples, 2]; None where only sums are known. Not a sum.
      weight_sums: their sums, where they depend on the image, else None.
    """

    loss_sum: Array
    correct: Array
    count: Array
    branch_correct: Array
    weights: Array | None
    answers: Array | None = None
    weight_sums: WeightSums | None = None

    loss = TrainMetrics.loss
    accuracy = TrainMetrics.accuracy
    __repr__ = TrainMetrics.__repr__

    @property
    def branch_accuracy(self) -> list[float]:
        """Like `accuracy`, for every branch alone, shallow to deep."""
        hits = np.asarray(self.branch_correct)
        hits = hits.reshape(-1, hits.shape[-1]).sum(0)
        return [100 * branch_hits / int(np.sum(self.count)) for branch_hits in hits.tolist()]


def mean_losses(
    prediction: Prediction,
    labels: Array,
    auxiliary_loss: float = 0.0,
    auxiliary_mean: float = 0.0,
    distillation: float = 0.0,
) -> tuple[Array, Array]:
    """A batch's mean losses in nats: the one `train_step` minimises, and the fused logits' own.

    Labels are as in `cross_entropy`.
    """
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
    if distillation:
        teacher = jax.nn.log_softmax(jax.lax.stop_gradient(prediction.logits))[:, None]
        students = jax.nn.log_softmax(prediction.branch_logits)
        divergences = jnp.sum(jnp.exp(teacher) * (teacher - students), axis=-1)
        minimised += distillation * divergences.mean()
    return minimised, loss


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy of the softmax in nats: [batch, classes] and labels to [batch], float32.

    Labels are integers, [batch], or `soft_targets`, [batch, classes].
    """
    logits = logits.astype(jnp.float32)
    if labels.ndim == logits.ndim:
        return optax.softmax_cross_entropy(logits, labels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def soft_targets(
    labels: Array, classes: int, smoothing: float = 0.0, class_weights: Sequence[float] = ()
) -> Array:
    """Labels as what `cross_entropy` multiplies log-probabilities by: [batch, classes], float32.

    Smoothing and weights are those of `train_step`; raises ValueError for other than one weight per
    class, or none.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, classes, dtype=jnp.float32), smoothing)
    if not np.size(class_weights):
        return targets
    if np.shape(class_weights) != (classes,):  # indexing would take the last for what lies beyond
        raise ValueError(
            f"class_weights are {np.shape(class_weights)} for {classes} classes; give one per class"
        )
    return targets * jnp.asarray(class_weights, jnp.float32)[labels, None]
