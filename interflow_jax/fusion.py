"""The attention module: weighs the branches and sums them (paper, III-B), and other kinds.

A kind of fusion is its place in `FusionKind` and its line in `KINDS`, at the end of this file.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, cast, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from interflow_jax.data.dataset import check_labels

FusionKind = Literal["fixed", "shared", "class", "softmax", "geometric", "attention"]
FusionStart = Literal["xavier", "unit"]

_KEY_SIZE = 64  # channels of an `attention` fusion's keys, VGG's fewest
_FIT_STEPS = 200  # of L-BFGS; most fits need fewer than 50
_FIT_TOLERANCE = 1e-5  # of the gradient's norm, in nats: what float32 resolves

Fused = tuple[Array, Array, Array | None]  # logits, weights, ensembles (see `Fusion.__call__`)
Features = Sequence[Array]  # per branch, [batch, channels]


class Fusion(nn.Module):
    """Weighs the class logits of several branches and sums them.

    Paper, III-B and Table II: `fixed` is the hard attention module; `shared` is the soft one, a
    1 x n convolution over the branches; `class` is its pointwise n x n form, in which every class
    has its own weights for the branches (Table V). None has a bias.

    Two more, not the paper's, give positive weights to log-probabilities, which have the same scale
    in all branches: `softmax` is ELMo's scalar mix (Peters et al., 2018): weights that sum to one,
    times a learned scale; `geometric` is that of Zero Time Waste (Wołczyk et al., 2021): for every
    k, the first k branches have their own weights and a bias per class, so that the prediction
    after branch k uses all k.

    The weights of `attention`, not the paper's either, depend on the image: a softmax over the
    branches of the scaled dot products of a learned query with a key per branch, times a learned
    scale. A key is a linear map of the branch's pooled features, layer-normalised. The query starts
    at zero and the scale at one, so that the fusion starts as the mean of the branches' logits.

    Attributes:
      kind: "fixed" (no parameter), "shared" (one learned weight per branch), "class" (one per
        branch and class), "softmax" (one per branch, and a scale), "geometric" (k for every k, and
        a bias per class) or "attention" (one per image and branch).
      initial_weights: one number per branch, shallow to deep; `class` starts every class from
        them, and `geometric` every k from the first k of them, divided by their sum. None draws
        Xavier-uniform weights for `shared` and `class`; `softmax` and `geometric` start from the
        mean of the log-probabilities. `attention` takes none.
      start: the fans of those draws. "xavier" takes the n branches as input channels of one output
        (III-A), fans n and 1; "unit" takes them as a 1 x n kernel of one channel, fans n and n, so
        that the squares of a class's weights are expected to sum to one.
    """

    kind: FusionKind
    initial_weights: Sequence[float] | np.ndarray | None = None
    start: FusionStart = "xavier"

    def __post_init__(self):
        if self.initial_weights is not None:  # hashable, as modules are
            self.initial_weights = _numbers(self.initial_weights)
            if self.kind in KINDS and KINDS[self.kind].of_features:
                raise ValueError(
                    f"initial_weights are {self.initial_weights}, but {self.kind} takes none: it "
                    "starts from the mean; leave them out, or choose a method that gives none"
                )
        super().__post_init__()

    @nn.compact
    def __call__(self, branch_logits: Array, features: Features | None = None) -> Fused:
        """Fuses the branches.

        Args:
          branch_logits: [batch, branches, classes], float.
          features: the branches' pooled features, [batch, channels_i] each, float; `attention`
            alone uses them.

        Returns:
          Logits, [batch, classes], float32; the weights, float32: [branches], [branches, classes]
          for `class`, or [batch, branches, 1] for `attention`; and for `geometric` the logits of
          the first 1, 2, ... branches, [batch, branches, classes], float32, the last of which are
          the first output, else None.

        Raises:
          ValueError: for an unknown kind or start, `fixed` without weights, other than one weight
            per branch, a weight that is not positive where all must be, or features that are
            missing or not one per branch.
        """
        for name, choices in (("kind", FusionKind), ("start", FusionStart)):
            if (value := getattr(self, name)) not in get_args(choices):
                allowed = ", ".join(get_args(choices))
                raise ValueError(f"the fusion's {name} is {value!r}; choose one of {allowed}")
        branches, kind, initial = branch_logits.shape[1], KINDS[self.kind], self.initial_weights
        if initial is None and not kind.learned:
            raise ValueError(f"a {self.kind} fusion learns nothing: give it initial_weights")
        if initial is not None and len(initial) != branches:
            raise ValueError(
                f"initial_weights are {initial} for {branches} branches; give one per branch, or "
                "None for Xavier"
            )
        low, high = kind.bounds
        if initial is not None and not all(low < weight < high for weight in initial):
            below = "" if high == math.inf else f" and below {high:g}"
            raise ValueError(
                f"initial_weights are {initial}; {self.kind} takes ones above {low:g}{below}: give "
                "such, or none, or choose a method that gives none"
            )
        branch_logits = branch_logits.astype(jnp.float32)
        if not kind.of_features:
            return kind.fuse(self, branch_logits)
        if features is None or len(features) != branches:
            given = "missing" if features is None else len(features)
            raise ValueError(
                f"features are {given} for {branches} branches, which {self.kind} weighs by them: "
                "give every branch's pooled features, [batch, channels] each"
            )
        return kind.fuse(self, branch_logits, [x.astype(jnp.float32) for x in features])


def _numbers(weights: Any) -> tuple[float, ...]:
    try:
        numbers = np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        numbers = np.zeros(())
    if numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise ValueError(f"initial_weights are {weights!r}; give one finite number per branch")
    return tuple(map(float, numbers))


def _fixed(fusion: Fusion, branch_logits: Array) -> Fused:
    return _weighted_sum(branch_logits, jnp.asarray(fusion.initial_weights, jnp.float32))


def _shared(fusion: Fusion, branch_logits: Array) -> Fused:
    branches = branch_logits.shape[1]
    weights = fusion.param("weights", lambda key: _initial(fusion, key, branches, 1)[:, 0])
    return _weighted_sum(branch_logits, weights)


def _class(fusion: Fusion, branch_logits: Array) -> Fused:
    weights = fusion.param("weights", partial(_initial, fusion), *branch_logits.shape[1:])
    return _weighted_sum(branch_logits, weights)


def _initial(fusion: Fusion, key: Array, branches: int, columns: int) -> Array:
    if fusion.initial_weights is not None:
        return jnp.tile(jnp.asarray(fusion.initial_weights, jnp.float32)[:, None], (1, columns))
    fan_out = 1 if fusion.start == "xavier" else branches
    bound = (6 / (branches + fan_out)) ** 0.5  # Xavier, uniform
    return nn.initializers.uniform(2 * bound)(key, (branches, columns), jnp.float32) - bound


def _weighted_sum(branch_logits: Array, weights: Array) -> Fused:
    per_class = weights if weights.ndim == 2 else weights[:, None]
    # A sum of float32 products, not a matrix product: accelerators would round its inputs.
    return jnp.sum(branch_logits * per_class[None], axis=1), weights, None


def _cut_weights(params: Any, branches: int) -> Any:
    return jax.tree.map(lambda weights: weights[:branches], params)


def _softmax(fusion: Fusion, branch_logits: Array) -> Fused:
    # Logarithms, which weight decay pulls towards equal weights and a scale of one.
    start = jnp.log(_positive(fusion, branch_logits.shape[1]))
    log_weights = fusion.param("log_weights", lambda _: start - jax.nn.logsumexp(start))
    log_scale = fusion.param("log_scale", lambda _: jax.nn.logsumexp(start))
    weights = jax.nn.softmax(log_weights)
    terms = jax.nn.log_softmax(branch_logits) * weights[None, :, None]
    return jnp.exp(log_scale) * jnp.sum(terms, axis=1), weights, None


def _cut_softmax(params: Any, branches: int) -> Any:
    log_weights = params["log_weights"]
    share = jax.nn.logsumexp(log_weights[:branches]) - jax.nn.logsumexp(log_weights)
    return {"log_weights": log_weights[:branches], "log_scale": params["log_scale"] + share}


def _geometric(fusion: Fusion, branch_logits: Array) -> Fused:
    branches, classes = branch_logits.shape[1:]
    first = jnp.tril(jnp.ones((branches, branches), bool))  # row k: the first k branches
    counts = jnp.arange(1, branches + 1, dtype=jnp.float32)[:, None]
    start = jnp.where(first, _positive(fusion, branches)[None], 0.0)
    start = jnp.where(first, jnp.log(counts * start / start.sum(1, keepdims=True)), 0.0)
    log_weights = fusion.param("log_weights", lambda _: start)
    bias = fusion.param("bias", nn.initializers.zeros, (branches, classes), jnp.float32)
    weights = jnp.where(first, jnp.exp(log_weights) / counts, 0.0)
    terms = jax.nn.log_softmax(branch_logits)[:, None] * weights[None, :, :, None]
    logits = jnp.sum(terms, axis=2) + bias[None]
    return logits[:, -1], weights[-1], logits


def _cut_geometric(params: Any, branches: int) -> Any:
    log_weights = params["log_weights"][:branches, :branches]
    return {"log_weights": log_weights, "bias": params["bias"][:branches]}


def _positive(fusion: Fusion, branches: int) -> Array:
    return jnp.asarray(fusion.initial_weights or (1 / branches,) * branches, jnp.float32)


def _attention(fusion: Fusion, branch_logits: Array, features: Features) -> Fused:
    query = fusion.param("query", nn.initializers.zeros, (_KEY_SIZE,), jnp.float32)
    # A logarithm, which weight decay pulls towards a scale of one.
    log_scale = fusion.param("log_scale", nn.initializers.zeros, (), jnp.float32)
    xavier = nn.initializers.xavier_uniform()
    keys = []
    for number, pooled in enumerate(features, start=1):
        key = nn.Dense(_KEY_SIZE, kernel_init=xavier, name=f"key_{number}")(pooled)
        keys.append(nn.LayerNorm(use_bias=False, use_scale=False)(key))
    scores = jnp.sum(jnp.stack(keys, axis=1) * query[None, None], axis=-1) / _KEY_SIZE**0.5
    weights = jnp.exp(log_scale) * jax.nn.softmax(scores, axis=1)[..., None]
    return jnp.sum(branch_logits * weights, axis=1), weights, None


def _cut_attention(params: Any, branches: int) -> Any:
    gone = {f"key_{number}" for number in range(branches + 1, len(params) + 1)}
    return {name: part for name, part in params.items() if name not in gone}


class Kind(NamedTuple):
    """A kind of fusion.

    Attributes:
      fuse: what `Fusion.__call__` computes, of float32 branch logits and, if it is `of_features`,
        of these; makes its parameters.
      cut: the parameters of the first branches, from those of all and the number that remain.
      learned: whether it has parameters, so that it can be fitted.
      drawn: whether it draws its weights where no initial ones are given; others then start from
        equal ones of their own accord.
      bounds: below and above any initial weight.
      of_features: whether its weights depend on the image, by the branches' features; it then
        takes no initial weights.
    """

    fuse: Callable[..., Fused]
    cut: Callable[[Any, int], Any]
    learned: bool = True
    drawn: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)
    of_features: bool = False


KINDS: dict[str, Kind] = {
    "fixed": Kind(_fixed, _cut_weights, learned=False),
    "shared": Kind(_shared, _cut_weights, drawn=True),
    "class": Kind(_class, _cut_weights, drawn=True),
    "softmax": Kind(_softmax, _cut_softmax, bounds=(0.0, math.inf)),
    "geometric": Kind(_geometric, _cut_geometric, bounds=(0.0, math.inf)),
    "attention": Kind(_attention, _cut_attention, of_features=True),
}


def cut_fusion(fusion: Fusion, params: Any, branches: int) -> tuple[Fusion, Any]:
    """The fusion of the first branches, and its parameters, with the weights as they are.

    Its terms are those of the whole. `geometric` has an ensemble of that many branches, which is
    used; the weights of `attention`, a softmax over the remaining keys, keep their sum. A fixed
    fusion whose first weights are all zero, as where the last branch alone predicts, gives the last
    remaining branch the weight one. The parameters of `fixed` are {}.
    """
    kind = KINDS[fusion.kind]
    initial = fusion.initial_weights and tuple(fusion.initial_weights[:branches])
    if not kind.learned and not any(initial or ()):
        initial = (0.0,) * (branches - 1) + (1.0,)
    return Fusion(fusion.kind, initial, fusion.start), kind.cut(params, branches)


def fit_fusion(
    branch_logits: Array | np.ndarray,
    labels: Array | np.ndarray,
    kind: FusionKind,
    features: Sequence[Array | np.ndarray] | None = None,
) -> tuple[Fusion, dict[str, Array]]:
    """Fits a fusion to the branches of a network that is no longer trained.

    Minimises the mean cross-entropy, for `geometric` the mean over its numbers of branches, by
    L-BFGS from equal weights. It is convex in the weights and biases (for `softmax`, in scale times
    weights), so the start does not matter; that of `attention` is not convex, and its keys start as
    drawn from one fixed key, so that a better minimum may exist. Fit to examples that the network
    was not trained on: on those that it was, the deepest branch is better than it will ever be
    again.

    Args:
      branch_logits: [examples, branches, classes], float.
      labels: [examples], int, from 0 on.
      kind: a learned one.
      features: the branches' pooled features, [examples, channels_i] each, for `attention`.

    Returns:
      The fusion and its parameters: `fusion.apply({"params": params}, branch_logits, features)`.

    Raises:
      ValueError: for `fixed` or an unknown kind, no example, other than one label per example,
        labels that are no class's, or features that are missing.
    """
    learned = [name for name in KINDS if KINDS[name].learned]
    if kind not in learned:
        raise ValueError(f"kind is {kind!r}; choose one that is learned: {', '.join(learned)}")
    shape = np.shape(branch_logits)
    if len(shape) != 3 or np.shape(labels) != shape[:1] or not shape[0]:
        raise ValueError(
            f"branch_logits are {shape} and labels {np.shape(labels)}; give [examples, branches, "
            "classes] and [examples], of one or more"
        )
    branch_logits = jnp.asarray(branch_logits, jnp.float32)
    labels = check_labels(np.asarray(labels), branch_logits.shape[2], "labels")
    branches = branch_logits.shape[1]
    fusion = Fusion(kind, (1 / branches,) * branches if KINDS[kind].drawn else None)
    given: tuple[Any, ...] = (branch_logits,)
    if KINDS[kind].of_features and features is not None:
        given = branch_logits, tuple(jnp.asarray(x, jnp.float32) for x in features)
    return Fusion(kind), _minimize(fusion, given, jnp.asarray(labels))


@partial(jax.jit, static_argnums=0)
def _minimize(fusion: Fusion, given: tuple[Any, ...], labels: Array) -> Any:
    optimizer = optax.lbfgs()
    params = fusion.init(jax.random.key(0), *given)["params"]

    def loss(params: Any) -> Array:
        logits, _, ensembles = cast(tuple, fusion.apply({"params": params}, *given))
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
