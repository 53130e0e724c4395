"""What training and evaluation measure: losses in nats, hits, and their sums."""

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


class EvalMetrics(NamedTuple):
    """Like `TrainMetrics`, with the branches.

    Attributes:
      branch_correct: hits of every branch alone (see `eval_step`), [branches], int32.
      weights: the fusion's weights, float32, [branches] or [branches, classes]; their mean over the
        examples where they depend on the image; None for a model without. Not a sum.
    """

    loss_sum: Array
    correct: Array
    count: Array
    branch_correct: Array
    weights: Array | None

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


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy of the softmax in nats: [batch, classes] and [batch] to [batch], float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
