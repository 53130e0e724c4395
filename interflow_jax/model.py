"""Interflow over any backbone: a branch per feature map, and their fusion (paper, III-A)."""

import inspect
from typing import Any, Literal, NamedTuple, cast, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from interflow_jax.fusion import Fusion
from interflow_jax.switch import switch_arguments

FullyConnected = Literal["shared", "separate"]
Pool = Literal["mean", "first"]


class Prediction(NamedTuple):
    """What a model computes; jit drops what is unused.

    Attributes:
      logits: [batch, classes], float32; softmax comes after (paper, III-A).
      branch_logits: [batch, branches, classes], float32, shallow to deep.
      weights: the fusion's weights, float32: [branches], [branches, classes], or, where they
        depend on the image, [batch, branches, 1]; a model of one's own may give a scalar or None.
      ensembles: where the fusion learns how to fuse every number of branches (`geometric`), their
        logits, [batch, branches, classes], float32; the last are `logits`.
      features: what the branches' layers take, [batch, channels_i] each, float32; a model of one's
        own may give None.
    """

    logits: Array
    branch_logits: Array
    weights: Array | None
    ensembles: Array | None = None
    features: tuple[Array, ...] | None = None

    @property
    def alone(self) -> Array:
        """The logits by which each branch predicts alone: [batch, branches, classes], float32.

        They are the fusion's terms, so that a branch with a negative weight, whose own logits have
        the opposite sign, predicts correctly. A weight of zero counts as one. A branch that was
        trained with a loss of its own predicts by its `branch_logits`, whatever its weight.
        """
        if self.weights is None:
            return self.branch_logits
        # The rank tells which weights they are, not sizes, which may coincide; vmap adds to both.
        missing = self.branch_logits.ndim - jnp.ndim(self.weights)
        axes = {0: (), 1: (-3,), 2: (-3, -1), 3: (-3, -2, -1)}.get(missing)
        if axes is None:
            raise ValueError(
                f"weights are {jnp.shape(self.weights)} for branch_logits "
                f"{self.branch_logits.shape}; give [branches], [branches, classes] or "
                "[batch, branches, 1]"
            )
        weights = jnp.expand_dims(self.weights, axes)
        return self.branch_logits * jnp.where(weights == 0, 1.0, weights)


class Interflow(nn.Module):
    """Predicts from every feature map of a backbone and fuses the predictions.

    A branch is global average pooling and a fully connected layer to class logits (paper, III-A;
    Fig. 1). Maps of equal channel count share that layer (IV-C).

    Attributes:
      backbone: any Linen module that returns a list or tuple of feature maps, shallow to deep, each
        [batch, height, width, channels], [batch, tokens, channels] or [batch, channels]. It may
        offer `labels`, one per map.
      num_classes: classes to tell apart.
      fusion: the attention module; a kind's name stands for a `Fusion` of that kind. A module of
        one's own takes branch logits and, if its call names them, `features`.
      fully_connected: "shared" by channel count, or "separate" for one layer per branch.
      switch: the backbone's training switch, where its signature does not tell (see
        `switch_arguments`).
      pool: what represents [batch, tokens, channels]: the "mean" over the tokens, or the "first", a
        class token. Other maps are averaged over their positions.
      frozen: whether the backbone is kept as it is: it runs in evaluation mode, gets no gradient,
        and `train_step` leaves its variables alone, whatever the optimiser.
      detached: whether the backbone gets no gradient from any branch but the last: fusion without
        the short cut to the shallower layers (III-C).

    Raises:
      ValueError: for a backbone or a fusion that is no Linen module, when it is made.
    """

    backbone: nn.Module
    num_classes: int
    fusion: Fusion
    fully_connected: FullyConnected = "shared"
    switch: str | None = None
    pool: Pool = "mean"
    frozen: bool = False
    detached: bool = False

    def __post_init__(self):
        if isinstance(self.fusion, str):
            self.fusion = Fusion(cast(Any, self.fusion))
        for name in ("backbone", "fusion"):
            if not isinstance(value := getattr(self, name), nn.Module):
                raise ValueError(
                    f"{name} is {value!r:.60}; give an instance of a flax.linen.Module"
                )
        super().__post_init__()

    @property
    def labels(self) -> tuple[Any, ...] | None:
        """The branches' labels, shallow to deep, if the backbone has any."""
        labels = getattr(self.backbone, "labels", None)
        return tuple(labels) if isinstance(labels, list | tuple) else None

    @nn.nowrap
    def layer_name(self, branch: int, channels: int) -> str:
        """Names a branch's fully connected layer over so many channels; branches count from 1."""
        separate = self.fully_connected == "separate"
        return f"fully_connected_{f'branch_{branch}' if separate else f'channels_{channels}'}"

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Prediction:
        """Predicts class logits.

        Args:
          images: whatever the backbone takes, usually [batch, height, width, channels], float.
          train: whether the backbone trains, if its call makes that distinction.

        Raises:
          ValueError: for feature maps, `num_classes`, `fully_connected`, `pool` or a switch other
            than those above, or a fusion that does not fit the branches.
        """
        whole = isinstance(self.num_classes, int | np.integer)
        if not whole or isinstance(self.num_classes, bool) or self.num_classes < 1:
            raise ValueError(f"num_classes is {self.num_classes!r}; give a whole number above 0")
        for name, kinds in (("fully_connected", FullyConnected), ("pool", Pool)):
            if (value := getattr(self, name)) not in get_args(kinds):
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(get_args(kinds))}")
        arguments = switch_arguments(self.backbone, train and not self.frozen, self.switch)
        feature_maps = self.backbone(images, **arguments)
        takes = (
            "Interflow takes a list or tuple of one or more [batch, height, width, channels], "
            "[batch, tokens, channels] or [batch, channels]"
        )
        if not isinstance(feature_maps, list | tuple):
            raise ValueError(f"the backbone returned a {type(feature_maps).__name__}; {takes}")
        if self.frozen:
            feature_maps = jax.lax.stop_gradient(feature_maps)
        shapes = [jnp.shape(feature_map) for feature_map in feature_maps]
        if not shapes or any(len(shape) not in (2, 3, 4) for shape in shapes):
            raise ValueError(f"the backbone returned feature maps of shapes {shapes}; {takes}")
        if self.detached:
            feature_maps = [*jax.lax.stop_gradient(feature_maps[:-1]), feature_maps[-1]]
        features = tuple(pool(feature_map, self.pool) for feature_map in feature_maps)
        layers: dict[str, nn.Dense] = {}
        branches = []
        for number, pooled in enumerate(features, start=1):
            name = self.layer_name(number, pooled.shape[-1])
            if name not in layers:
                layers[name] = nn.Dense(
                    self.num_classes, kernel_init=nn.initializers.xavier_uniform(), name=name
                )
            branches.append(layers[name](pooled))
        branch_logits = jnp.stack(branches, axis=1)
        takes_features = "features" in inspect.signature(type(self.fusion).__call__).parameters
        given = {"features": features} if takes_features else {}
        logits, weights, ensembles = self.fusion(branch_logits, **given)
        return Prediction(logits, branch_logits, weights, ensembles, features)


def pool(feature_map: Array, kind: Pool = "mean") -> Array:
    """Pools a feature map (see `Interflow.pool`) to [batch, channels], float32."""
    feature_map = feature_map.astype(jnp.float32)
    if kind == "first" and feature_map.ndim == 3:
        return feature_map[:, 0]
    return jnp.mean(feature_map, axis=tuple(range(1, feature_map.ndim - 1)))
