"""Interflow over any backbone: a branch a feature map, and their fusion (paper, III-A)."""

from typing import Literal, NamedTuple, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from interflow_jax.fusion import Fusion

FullyConnected = Literal["shared", "separate"]


class Prediction(NamedTuple):
    """What Interflow computes; jit drops what goes unused.

    Attributes:
      logits: [batch, classes], float32; softmax comes after (paper, III-A).
      branch_logits: [batch, branches, classes], float32, shallow to deep.
      weights: the fusion's, float32, [branches] or [branches, classes].
    """

    logits: Array
    branch_logits: Array
    weights: Array

    @property
    def alone(self) -> Array:
        """The scores by which each branch predicts alone: [batch, branches, classes], float32.

        They are what the fusion adds up, so a branch that learned its scores turned, with a
        negative weight, predicts rightly. A branch of weight zero has its scores as they are.
        """
        weights = self.weights if self.weights.ndim == 2 else self.weights[:, None]
        return self.branch_logits * jnp.where(weights == 0, 1.0, weights)[None]


class Interflow(nn.Module):
    """Predicts from every feature map of a backbone and fuses the predictions.

    Each map goes through global average pooling and a fully connected layer to class scores, its
    branch (paper, III-A; Fig. 1). Maps of equal channel count share their fully connected layer
    (IV-C); give `fully_connected="separate"` for one a branch.

    Attributes:
      backbone: any Linen module that returns a sequence of feature maps, shallow to deep, each
        [batch, height, width, channels] of any size.
      num_classes: classes to tell apart.
      fusion: the attention module.
      fully_connected: "shared" by channel count, or "separate".
    """

    backbone: nn.Module
    num_classes: int
    fusion: Fusion
    fully_connected: FullyConnected = "shared"

    @nn.compact
    def __call__(self, images: Array, **backbone_arguments) -> Prediction:
        """Predicts class scores.

        Args:
          images: whatever the backbone takes, usually [batch, height, width, channels], float.
          **backbone_arguments: passed on to the backbone (`train=` for most).

        Returns:
          The fused scores, those of each branch, and the fusion's weights.

        Raises:
          ValueError: for a backbone that returns no feature map or one without 4 dimensions, an
            unknown `fully_connected`, or a fusion that does not fit the branches.
        """
        if self.fully_connected not in get_args(FullyConnected):
            raise ValueError(
                f"fully_connected is {self.fully_connected!r}; choose one of "
                f"{', '.join(get_args(FullyConnected))}"
            )
        feature_maps = list(self.backbone(images, **backbone_arguments))
        shapes = [feature_map.shape for feature_map in feature_maps]
        if not shapes or any(len(shape) != 4 for shape in shapes):
            raise ValueError(
                f"the backbone returned feature maps of shapes {shapes}; Interflow takes one or "
                "more of [batch, height, width, channels]"
            )
        layers: dict[str, nn.Dense] = {}
        branches = []
        for number, feature_map in enumerate(feature_maps, start=1):
            separate = self.fully_connected == "separate"
            name = f"branch_{number}" if separate else f"channels_{feature_map.shape[-1]}"
            if name not in layers:
                layers[name] = nn.Dense(
                    self.num_classes,
                    kernel_init=nn.initializers.xavier_uniform(),
                    name=f"fully_connected_{name}",
                )
            pooled = jnp.mean(feature_map.astype(jnp.float32), axis=(1, 2))
            branches.append(layers[name](pooled))
        branch_logits = jnp.stack(branches, axis=1)
        logits, weights = self.fusion(branch_logits)
        return Prediction(logits, branch_logits, weights)
