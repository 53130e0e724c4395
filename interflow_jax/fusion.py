"""The attention module: weighs the branches and sums them (paper, III-B), and two others."""

from functools import partial
from typing import Any, Literal, cast, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

FusionKind = Literal["fixed", "shared", "class", "softmax", "geometric"]
FusionStart = Literal["xavier", "unit"]

_FIT_STEPS = 200  # of L-BFGS; most fits need fewer than 50
_FIT_TOLERANCE = 1e-5  # of the gradient's norm, in nats: what float32 resolves


class Fusion(nn.Module):
    """Weighs the class logits of several branches and sums them.

    Paper, III-B and Table II: `fixed` is the hard attention module; `shared` is the soft one, a
    1 x n convolution over the branches; `class` is its pointwise n x n form, in which every class
    has its own weights for the branches (Table V). None has a bias.

    Two more, not the paper's, give positive weights to log-probabilities, which have the same scale
    in all branches. `softmax` is ELMo's scalar mix (Peters et al., 2018): weights that sum to one,
    times a learned scale. `geometric` is that of Zero Time Waste (Wołczyk et al., 2021): for every
    k, the first k branches have their own weights and a bias per class, so that the prediction
    after branch k uses all k.

    Attributes:
      kind: "fixed" (no parameter), "shared" (one learned weight per branch), "class" (one per
        branch and class), "softmax" (one per branch, and a scale) or "geometric" (k for every k,
        and a bias per class).
      initial_weights: one per branch, shallow to deep; `class` starts every class from them, and
        `geometric` every k from the first k of them, divided by their sum. None draws
        Xavier-uniform weights for `shared` and `class`; `softmax` and `geometric` start from the
        mean of the log-probabilities.
      start: the fans of those draws. "xavier" takes the n branches as input channels of one output
        (III-A), fans n and 1; "unit" takes them as a 1 x n kernel of one channel, fans n and n, so
        that the squares of a class's weights are expected to sum to one.
    """

    kind: FusionKind
    initial_weights: tuple[float, ...] | None = None
    start: FusionStart = "xavier"

    @nn.compact
    def __call__(self, branch_logits: Array) -> tuple[Array, Array, Array | None]:
        """Fuses the branches.

        Args:
          branch_logits: [batch, branches, classes], float.

        Returns:
          Logits, [batch, classes], float32; the weights, float32: [branches] or, for `class`,
          [branches, classes]; and for `geometric` the logits of the first 1, 2, ... branches,
          [batch, branches, classes], float32, the last of which are the first output, else None.

        Raises:
          ValueError: for an unknown kind or start, `fixed` without weights, other than one weight
            per branch, or a weight that is not positive where all must be.
        """
        branches, classes = branch_logits.shape[1:]
        self._check(branches)
        branch_logits = branch_logits.astype(jnp.float32)
        if self.kind == "softmax":
            return *self._softmax(branch_logits), None
        if self.kind == "geometric":
            return self._geometric(branch_logits)
        if self.kind == "fixed":
            weights = jnp.asarray(self.initial_weights, jnp.float32)
        elif self.kind == "shared":
            weights = self.param("weights", lambda key: self._initial(key, branches, 1)[:, 0])
        else:
            weights = self.param("weights", self._initial, branches, classes)
        per_class = weights if weights.ndim == 2 else weights[:, None]
        # A sum of float32 products, not a matrix product: accelerators would round its inputs.
        return jnp.sum(branch_logits * per_class[None], axis=1), weights, None

    def _softmax(self, branch_logits: Array) -> tuple[Array, Array]:
        # Logarithms, which weight decay pulls towards equal weights and a scale of one.
        start = jnp.log(jnp.asarray(self._positive(branch_logits.shape[1]), jnp.float32))
        log_weights = self.param("log_weights", lambda _: start - jax.nn.logsumexp(start))
        log_scale = self.param("log_scale", lambda _: jax.nn.logsumexp(start))
        weights = jax.nn.softmax(log_weights)
        terms = jax.nn.log_softmax(branch_logits) * weights[None, :, None]
        return jnp.exp(log_scale) * jnp.sum(terms, axis=1), weights

    def _geometric(self, branch_logits: Array) -> tuple[Array, Array, Array]:
        branches, classes = branch_logits.shape[1:]
        first = jnp.tril(jnp.ones((branches, branches), bool))  # row k: the first k branches
        counts = jnp.arange(1, branches + 1, dtype=jnp.float32)[:, None]
        start = jnp.where(first, jnp.asarray(self._positive(branches), jnp.float32)[None], 0.0)
        start = jnp.where(first, jnp.log(counts * start / start.sum(1, keepdims=True)), 0.0)
        log_weights = self.param("log_weights", lambda _: start)
        bias = self.param("bias", nn.initializers.zeros, (branches, classes))
        weights = jnp.where(first, jnp.exp(log_weights) / counts, 0.0)
        terms = jax.nn.log_softmax(branch_logits)[:, None] * weights[None, :, :, None]
        logits = jnp.sum(terms, axis=2) + bias[None]
        return logits[:, -1], weights[-1], logits

    def _positive(self, branches: int) -> tuple[float, ...]:
        weights = self.initial_weights or (1 / branches,) * branches
        if min(weights) <= 0:
            raise ValueError(
                f"initial fusion weights are {weights}; {self.kind} takes positive ones, or None "
                "for equal ones"
            )
        return weights

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


def cut_fusion(fusion: Fusion, params: Any, branches: int) -> tuple[Fusion, Any]:
    """The fusion of the first branches, and its parameters, with the weights as they are.

    Its terms are those of the whole. `geometric` has an ensemble of that many branches, which is
    used. A fixed fusion whose first weights are all zero, as where the last branch alone predicts,
    gives the last remaining branch the weight one.

    Args:
      params: the whole fusion's, {} for `fixed`.
      branches: how many remain, from 1 on.
    """
    initial = fusion.initial_weights and tuple(fusion.initial_weights[:branches])
    if fusion.kind == "fixed" and not any(initial or ()):
        initial = (0.0,) * (branches - 1) + (1.0,)
    if fusion.kind == "softmax":
        log_weights = params["log_weights"]
        share = jax.nn.logsumexp(log_weights[:branches]) - jax.nn.logsumexp(log_weights)
        scale = params["log_scale"] + share
        return Fusion("softmax", initial), {
            "log_weights": log_weights[:branches],
            "log_scale": scale,
        }
    if fusion.kind == "geometric":
        ensembles = params["log_weights"][:branches, :branches]
        cut = {"log_weights": ensembles, "bias": params["bias"][:branches]}
        return Fusion("geometric", initial), cut
    return Fusion(fusion.kind, initial), {name: each[:branches] for name, each in params.items()}


def fit_fusion(
    branch_logits: Array | np.ndarray, labels: Array | np.ndarray, kind: FusionKind
) -> tuple[Fusion, dict[str, Array]]:
    """Fits a fusion to the branches of a network that is no longer trained.

    Minimises the mean cross-entropy, for `geometric` the mean over its numbers of branches, by
    L-BFGS from equal weights. It is convex in the weights and biases (for `softmax`, in scale times
    weights), so the start does not matter. Fit it to examples that the network was not trained on:
    on those that it was, the deepest branch is better than it will ever be again.

    Args:
      branch_logits: [examples, branches, classes], float.
      labels: [examples], int.
      kind: a learned one.

    Returns:
      The fusion and its parameters: `fusion.apply({"params": params}, branch_logits)`.

    Raises:
      ValueError: for `fixed` or an unknown kind, or other than one label per example.
    """
    if kind == "fixed" or kind not in get_args(FusionKind):
        learned = ", ".join(name for name in get_args(FusionKind) if name != "fixed")
        raise ValueError(f"kind is {kind!r}; choose one that is learned: {learned}")
    if branch_logits.ndim != 3 or labels.shape != branch_logits.shape[:1]:
        raise ValueError(
            f"branch_logits are {branch_logits.shape} and labels {labels.shape}; give "
            "[examples, branches, classes] and [examples]"
        )
    branches = branch_logits.shape[1]
    fusion = Fusion(kind, (1 / branches,) * branches)
    params = fusion.init(jax.random.key(0), branch_logits[:1])["params"]
    params = _minimize(fusion, params, jnp.asarray(branch_logits), jnp.asarray(labels))
    return Fusion(kind), params


@partial(jax.jit, static_argnums=0)
def _minimize(fusion: Fusion, params: Any, branch_logits: Array, labels: Array) -> Any:
    optimizer = optax.lbfgs()

    def loss(params: Any) -> Array:
        logits, _, ensembles = cast(tuple, fusion.apply({"params": params}, branch_logits))
        each = logits[:, None] if ensembles is None else ensembles
        targets = jnp.broadcast_to(labels[:, None], each.shape[:2])
        return optax.softmax_cross_entropy_with_integer_labels(each, targets).mean()

    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: tuple) -> tuple:
        params, state, _, number = carry
        value, gradient = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=loss
        )
        return optax.apply_updates(params, updates), state, gradient, number + 1

    def unfinished(carry: tuple) -> Array:
        steep = optax.tree.norm(carry[2]) > _FIT_TOLERANCE
        return (carry[3] < _FIT_STEPS) & ((carry[3] == 0) | steep)

    start = (params, optimizer.init(params), params, 0)
    return jax.lax.while_loop(unfinished, step, start)[0]
