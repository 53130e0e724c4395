"""The paper's eleven methods (Table II), three baselines, and the models that they name."""

from typing import Any, NamedTuple, get_args

import flax.linen as nn
import jax.numpy as jnp

from interflow_jax.backbones import VGG_DEPTH, Downsample, Layout, StrideVGG
from interflow_jax.fusion import Fusion, FusionKind, FusionStart
from interflow_jax.model import FullyConnected, Interflow, Pool
from interflow_jax.networks import Network
from interflow_jax.nnx_taps import NNXTaps
from interflow_jax.taps import Taps


class Method(NamedTuple):
    """One row of Table II, or a baseline.

    Attributes:
      taps: the convolutions of the 13-layer network that branches follow, counted from 1.
      fusion: how the branches are weighted.
      initial_weights: one per branch, shallow to deep; None for Xavier, or in a fixed fusion for
        the last branch alone, whatever their number.
      summary: the method in one line.
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
# the start: the squares of n Xavier-uniform weights sum to 2n / (n + 1). In the others, branches
# help to train and are left out of the prediction, which II-A argues against. The 0.3 is
# GoogLeNet's (paper, II-A); deeply-supervised nets (Lee et al., 2015) appear here in their plainest
# form, with every branch's cross-entropy at full and constant weight.
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
    from the 20th (from depth 100 on, the 30th), and after the last, which gives the paper's numbers
    of branches (Table VI). `Normal` and `Scaled` predict from the last convolution alone.

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
    layout: Layout = "spread",
    taps: tuple[Any, ...] | None = None,
    fully_connected: FullyConnected = "shared",
    fusion_start: FusionStart = "xavier",
    dtype: Any = jnp.float32,
    *,
    fusion: FusionKind | None = None,
    network: Network | None = None,
    initial_weights: tuple[float, ...] | None = None,
    pool: Pool = "mean",
    frozen: bool = False,
) -> Interflow:
    """Builds the model of one of the paper's methods (Tables I, II and VI) or of a baseline.

    On a network of your own, a method is its fusion, its start and its loss, over any number of
    taps; `Normal` and `Scaled` predict from the last tap alone.

    A model knows nothing of its loss: to train a baseline, give `train_step` its `auxiliary_loss`.

    Args:
      method: a name of `METHODS` or `BASELINES`.
      num_classes: classes to tell apart.
      depth: number of convolutions, 4 to 200; the paper's are 13 (Table III), 4 to 13 (Table I)
        and 40 to 100 (Table VI).
      width: multiplies the channel counts.
      downsample: where the stride-2 convolutions are, "first" or "last" in a block.
      layout: what depth above 13 adds to VGG: "spread" over its blocks, or "append" to the last.
      taps: the convolutions that branches follow; None for `default_taps(method, depth)`.
      fully_connected: "shared" by channel count (paper, IV-C) or "separate".
      fusion_start: start of learned weights that the method does not give, "xavier" or "unit"
        (see `Fusion`).
      dtype: the dtype of the backbone's computation, float32 or bfloat16; all else is float32.
      fusion: how the branches are weighted, starting from the method's initial weights; None for
        the method's own kind.
      network: a Linen module, or a function that makes an NNX module (see `NNXTaps`), in place of
        the paper's: `taps` are then the names of its layers (see `layers`), and depth, width,
        downsample, layout and dtype have no meaning.
      initial_weights: one per tap, in place of those that the method gives.
      pool, frozen: as in `Interflow`.

    Returns:
      A Linen module; call it with images, [batch, height, width, channels], float, and `train=`.

    Raises:
      ValueError: for a value outside those above, or taps that the depth lacks.
    """
    row = _look_up(method)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; there must be 2 or more")
    kind = fusion or row.fusion
    for name, value, allowed in (
        ("fusion", kind, FusionKind),
        ("fully_connected", fully_connected, FullyConnected),
        ("fusion_start", fusion_start, FusionStart),
        ("pool", pool, Pool),
    ):
        if value not in get_args(allowed):
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(get_args(allowed))}")
    if network is None:
        taps = default_taps(method, depth) if taps is None else tuple(taps)
        backbone: nn.Module = StrideVGG(taps, depth, width, downsample, layout, dtype)
        backbone.check()
    else:
        if not taps:
            raise ValueError("a network needs taps, the names of its layers; ij.layers lists them")
        taps = tuple(map(str, taps[-1:] if row.taps == (VGG_DEPTH,) else taps))
        linen = isinstance(network, nn.Module)
        backbone = Taps(network, taps) if linen else NNXTaps(network, taps)
    weights = _weights(method, kind, taps, initial_weights)
    return Interflow(
        backbone,
        num_classes,
        Fusion(kind, weights, fusion_start),
        fully_connected,
        pool=pool,
        frozen=frozen,
    )


def _weights(
    method: str, kind: FusionKind, taps: tuple, given: tuple[float, ...] | None
) -> tuple[float, ...] | None:
    """The initial weights of the branches, or None for the fusion's own."""
    weights = _look_up(method).initial_weights
    gives = [name for name, other in METHODS.items() if len(other.initial_weights or ()) > 1]
    if given is not None:
        if method not in gives:
            raise ValueError(
                f"initial_weights are {given}, but {method} does not take any; leave them out, or "
                f"choose one of {', '.join(gives)}"
            )
        weights = given
    elif weights is None and kind == "fixed":
        weights = (0.0,) * (len(taps) - 1) + (1.0,)
    if weights is not None and len(weights) != len(taps):
        learned = [name for name, other in METHODS.items() if other.initial_weights is None]
        own = f"{method} gives {len(weights)} branch weights"
        advice = "give initial_weights, one per tap, or " if method in gives else ""
        raise ValueError(
            f"{own if given is None else f'initial_weights are {given}'}, but there are "
            f"{len(taps)} taps {taps}; {advice}choose as many taps, or one of {', '.join(learned)}"
        )
    return weights


def _look_up(method: str) -> Method:
    known = METHODS | BASELINES
    if method not in known:
        raise ValueError(f"method is {method!r}; choose one of {', '.join(known)}")
    return known[method]
