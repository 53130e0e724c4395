"""The paper's eleven methods (Table II), two baselines, and the models that they name."""

from typing import Any, NamedTuple, get_args

import jax.numpy as jnp

from interflow_jax.backbones import VGG_DEPTH, Downsample, StrideVGG
from interflow_jax.fusion import Fusion, FusionKind
from interflow_jax.model import FullyConnected, Interflow


class Method(NamedTuple):
    """One row of Table II, or a baseline.

    Attributes:
      taps: the convolutions of the 13-layer network that branches follow, counted from 1.
      fusion: how the branches are weighed.
      initial_weights: of the branches, shallow to deep; None for Xavier, or in a fixed fusion for
        the last branch alone, whatever their number.
      summary: the method in a line.
      auxiliary_loss: the weight in training of the loss of every branch but the last (see
        `train_step`); 0.0 for the paper's methods, whose loss is that of the fused logits alone.
    """

    taps: tuple[int, ...]
    fusion: FusionKind
    initial_weights: tuple[float, ...] | None
    summary: str
    auxiliary_loss: float = 0.0


_FOUR = (7, 9, 11, 13)  # paper, III-D: the first stage ends at 7; IV-E: the third at 11
_SEVEN = (7, 8, 9, 10, 11, 12, 13)
_FOUR_WEIGHTS = (0.1, 0.2, 0.3, 0.4)  # paper, IV-C
_SEVEN_WEIGHTS = (0.1, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2)

METHODS: dict[str, Method] = {
    "Normal": Method((VGG_DEPTH,), "fixed", (1.0,), "the backbone alone, no Interflow"),
    "S0": Method(_FOUR, "fixed", _FOUR_WEIGHTS, "4 branches, fixed weights 0.1 to 0.4"),
    "S1": Method(_FOUR, "shared", None, "4 branches, a learned weight each, Xavier start"),
    "S2": Method(_FOUR, "shared", _FOUR_WEIGHTS, "4 branches, a learned weight each, 0.1 to 0.4"),
    "S3": Method(_FOUR, "class", None, "4 branches, a learned weight per class, Xavier start"),
    "S4": Method(
        _FOUR, "class", _FOUR_WEIGHTS, "4 branches, a learned weight per class, 0.1 to 0.4"
    ),
    "S5": Method(_SEVEN, "fixed", _SEVEN_WEIGHTS, "7 branches, fixed weights 0.1 and 0.2"),
    "S6": Method(_SEVEN, "shared", None, "7 branches, a learned weight each, Xavier start"),
    "S7": Method(_SEVEN, "shared", _SEVEN_WEIGHTS, "7 branches, a learned weight each, 0.1, 0.2"),
    "S8": Method(_SEVEN, "class", None, "7 branches, a learned weight per class, Xavier start"),
    "S9": Method(
        _SEVEN, "class", _SEVEN_WEIGHTS, "7 branches, a learned weight per class, 0.1, 0.2"
    ),
}

# Not the paper's methods. `Scaled` is Normal with its output as large as S1's is expected to be at
# the start: of n Xavier-uniform weights the squares sum up to 2n / (n + 1). In the others, branches
# help to train and are left out of the prediction, which II-A argues against. GoogLeNet (paper,
# II-A) gives 0.3; deeply-supervised nets (Lee et al., 2015) stand here in their plainest form,
# every branch's cross-entropy at full and constant weight.
BASELINES: dict[str, Method] = {
    "Scaled": Method(
        (VGG_DEPTH,),
        "fixed",
        ((2 * len(_FOUR) / (len(_FOUR) + 1)) ** 0.5,),
        "the backbone alone, its output times 1.26, as large as S1's at the start",
    ),
    "Aux": Method(
        _FOUR,
        "fixed",
        None,
        "4 branches, the last predicts, losses of the others x 0.3",
        auxiliary_loss=0.3,
    ),
    "DSN": Method(
        _FOUR,
        "fixed",
        None,
        "4 branches, the last predicts, losses of the others x 1",
        auxiliary_loss=1.0,
    ),
}


def default_taps(method: str, depth: int = VGG_DEPTH) -> tuple[int, ...]:
    """The convolutions that the method's branches follow at a depth.

    Up to depth 13 they are the method's own. Deeper networks branch after every fifth convolution
    from the 20th, from depth 100 on from the 30th, and after the last, which gives the paper's
    numbers of branches (Table VI). `Normal` and `Scaled` predict from the last convolution alone.

    Raises:
      ValueError: for an unknown method, or depth 14 to 19, which has no 20th convolution.
    """
    row = _look_up(method)
    if row.taps == (VGG_DEPTH,):
        return (depth,)
    if depth <= VGG_DEPTH:
        return row.taps
    if depth < 20:
        raise ValueError(
            f"depth {depth} has no branches by default (they start after convolution 20); "
            f"give taps from 1 to {depth}, or a depth of 4 to 13 or from 20"
        )
    fifths = tuple(range(20 if depth < 100 else 30, depth + 1, 5))
    return fifths if fifths[-1] == depth else (*fifths, depth)


def build(
    method: str,
    num_classes: int,
    depth: int = VGG_DEPTH,
    width: float = 1.0,
    downsample: Downsample = "first",
    taps: tuple[int, ...] | None = None,
    fully_connected: FullyConnected = "shared",
    dtype: Any = jnp.float32,
    fusion: FusionKind | None = None,
) -> Interflow:
    """Builds the model of one of the paper's methods (Tables I, II and VI) or of a baseline.

    A model knows nothing of its loss: to train a baseline, give `train_step` its `auxiliary_loss`.

    Args:
      method: a name of `METHODS` or `BASELINES`.
      num_classes: classes to tell apart.
      depth: number of convolutions, 4 to 200; the paper's are 13 (Table III), 4 to 13 (Table I)
        and 40 to 100 (Table VI).
      width: multiplies the channel counts.
      downsample: where the stride-2 convolutions are, "first" or "last" in a block.
      taps: the convolutions that branches follow; None for `default_taps(method, depth)`.
      fully_connected: "shared" by channel count (paper, IV-C) or "separate".
      dtype: of the backbone's computation, float32 or bfloat16; all else is float32.
      fusion: how the branches are weighed, from the method's initial weights on; None for the
        method's own kind.

    Returns:
      A Linen module; call it with images, [batch, height, width, channels], float, and `train=`.

    Raises:
      ValueError: for a value outside those above, or taps that the depth lacks.
    """
    row = _look_up(method)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; there must be 2 or more")
    if taps is None:
        taps = default_taps(method, depth)
    weights, kind = row.initial_weights, fusion or row.fusion
    if weights is None and kind == "fixed":
        weights = (0.0,) * (len(taps) - 1) + (1.0,)
    if weights is not None and len(weights) != len(taps):
        learned = [name for name, other in METHODS.items() if other.initial_weights is None]
        raise ValueError(
            f"{method} gives {len(weights)} branch weights, but there are {len(taps)} "
            f"taps {taps}; choose as many taps, or one of {', '.join(learned)}"
        )
    backbone = StrideVGG(tuple(taps), depth, width, downsample, dtype)
    backbone.check()
    if kind not in get_args(FusionKind):
        raise ValueError(f"fusion is {kind!r}; choose one of {', '.join(get_args(FusionKind))}")
    return Interflow(backbone, num_classes, Fusion(kind, weights), fully_connected)


def _look_up(method: str) -> Method:
    known = METHODS | BASELINES
    if method not in known:
        raise ValueError(f"method is {method!r}; choose one of {', '.join(known)}")
    return known[method]
