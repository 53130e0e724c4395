"""The attention module: weighs the branches and sums them (paper, III-B)."""

from typing import Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

FusionKind = Literal["fixed", "shared", "class"]
FusionStart = Literal["xavier", "unit"]


class Fusion(nn.Module):
    """Weighs the class logits of several branches and sums them, without bias.

    Paper, III-B and Table II: `fixed` is the hard attention module; `shared` is the soft one, a
    1 x n convolution over the branches; `class` is its pointwise n x n form, in which every class
    weighs the branches for itself (Table V).

    Attributes:
      kind: "fixed" (no parameter), "shared" (one learned weight per branch) or "class" (one per
        branch and class).
      initial_weights: one per branch, shallow to deep; `class` starts every class from them. None
        draws Xavier-uniform weights, for learned kinds.
      start: the fans of those draws. "xavier" takes the n branches for input channels of one output
        (III-A), fans n and 1; "unit" takes them for a 1 x n kernel of one channel, fans n and n, so
        that the squares of a class's weights are expected to sum to one.
    """

    kind: FusionKind
    initial_weights: tuple[float, ...] | None = None
    start: FusionStart = "xavier"

    @nn.compact
    def __call__(self, branch_logits: Array) -> tuple[Array, Array]:
        """Fuses the branches.

        Args:
          branch_logits: [batch, branches, classes], float.

        Returns:
          Logits, [batch, classes], float32; and the weights, float32: [branches] or, for `class`,
          [branches, classes].

        Raises:
          ValueError: for an unknown kind or start, `fixed` without weights, or not one weight per
            branch.
        """
        branches, classes = branch_logits.shape[1:]
        self._check(branches)
        if self.kind == "fixed":
            weights = jnp.asarray(self.initial_weights, jnp.float32)
        elif self.kind == "shared":
            weights = self.param("weights", lambda key: self._initial(key, branches, 1)[:, 0])
        else:
            weights = self.param("weights", self._initial, branches, classes)
        per_class = weights if weights.ndim == 2 else weights[:, None]
        # A sum of float32 products, not a matrix product: accelerators would round its inputs.
        logits = jnp.sum(branch_logits.astype(jnp.float32) * per_class[None], axis=1)
        return logits, weights

    def _initial(self, key: Array, branches: int, columns: int) -> Array:
        if self.initial_weights is not None:
            return jnp.tile(jnp.asarray(self.initial_weights, jnp.float32)[:, None], (1, columns))
        fan_out = 1 if self.start == "xavier" else branches
        bound = (6 / (branches + fan_out)) ** 0.5  # Xavier, uniform
        return nn.initializers.uniform(2 * bound)(key, (branches, columns)) - bound

    def _check(self, branches: int) -> None:
        if self.kind not in get_args(FusionKind):
            raise ValueError(
                f"fusion is {self.kind!r}; choose one of {', '.join(get_args(FusionKind))}"
            )
        if self.start not in get_args(FusionStart):
            raise ValueError(
                f"start is {self.start!r}; choose one of {', '.join(get_args(FusionStart))}"
            )
        if self.initial_weights is None:
            if self.kind == "fixed":
                raise ValueError("a fixed fusion learns nothing: give it initial_weights")
        elif len(self.initial_weights) != branches:
            raise ValueError(
                f"{len(self.initial_weights)} initial fusion weights {self.initial_weights} for "
                f"{branches} branches; give one weight per branch, or None for Xavier"
            )
