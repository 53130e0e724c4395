"""The paper's eleven methods (Table II), and five baselines."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from interflow_jax.fusion import FusionKind
from interflow_jax.vgg import VGG_DEPTH


class Method(NamedTuple):
    """One row of Table II, or a baseline.

    Attributes:
      taps: the convolutions of the 13-layer network that branches follow, counted from 1.
      fusion: how the branches are weighted.
      initial_weights: one per branch, shallow to deep, or a number for each, however many they
        are; None for Xavier, or in a fixed fusion for the last branch alone.
      summary: the method in one line.
      auxiliary_loss: the weight in training of the loss of every branch but the last (see
        `train_step`); 0.0 for the paper's methods, whose loss is that of the fused logits alone.
      options: the fields of `ModelConfig` that the method decides.
    """

    taps: tuple[int, ...]
    fusion: FusionKind
    initial_weights: tuple[float, ...] | float | None
    summary: str
    auxiliary_loss: float = 0.0
    options: Mapping[str, Any] = MappingProxyType({})

    @property
    def predicts_from_last(self) -> bool:
        """Whether there is one branch, after the last convolution or tap."""
        return self.taps == (VGG_DEPTH,)


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
# the start: the squares of n Xavier-uniform weights sum to 2n / (n + 1). In `Aux` and `DSN`,
# branches help to train and are left out of the prediction, which II-A argues against. The 0.3 is
# GoogLeNet's (paper, II-A); deeply-supervised nets (Lee et al., 2015) appear here in their plainest
# form, with every branch's cross-entropy at full and constant weight. `Concat` is one linear layer
# on all pooled features, times 1/2, so that four branches of equal variance sum to that of one: S1
# is this layer with its blocks tied up to a factor. `Detached` is fusion without what III-C
# explains its gain by, the gradient's short cut to the shallower layers.
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
    "Concat": Method(
        _FOUR,
        "fixed",
        0.5,
        "4 branches, a fully connected layer each, fixed weights 0.5",
        options={"fully_connected": "separate"},
    ),
    "Detached": Method(
        _FOUR,
        "shared",
        None,
        "S1, only the last branch sends the backbone a gradient",
        options={"detached": True},
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
    row = look_up(method)
    if row.predicts_from_last:
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


def look_up(method: str) -> Method:
    """A method or baseline by name; raises ValueError for an unknown one."""
    known = METHODS | BASELINES
    if method not in known:
        raise ValueError(f"method is {method!r}; choose one of {', '.join(known)}")
    return known[method]


def losses(method: str, auxiliary_mean: float, distillation: float) -> dict[str, float]:
    """The branches' own losses in training, as `train_step` takes them.

    A mean takes the place of the method's sum. Branches that have a loss of their own, that is
    where any of them is above zero, are supervised (see `eval_step`).
    """
    means = {"auxiliary_mean": auxiliary_mean, "distillation": distillation}
    return {"auxiliary_loss": 0.0 if auxiliary_mean else look_up(method).auxiliary_loss, **means}


def initial_weights(
    method: str, kind: FusionKind, taps: tuple, given: tuple[float, ...] | None
) -> tuple[float, ...] | None:
    """The initial weights of the branches; None for the fusion's own.

    Raises:
      ValueError: for given ones that the method does not take, or other than one per tap.
    """
    weights = look_up(method).initial_weights
    if isinstance(weights, int | float):
        weights = (weights,) * len(taps)
    rows = METHODS.items()
    takes = [name for name, row in rows if row.initial_weights and len(row.taps) > 1]
    if given is not None:
        if method not in takes:
            raise ValueError(
                f"initial_weights are {given}, but {method} does not take any; leave them out, or "
                f"choose one of {', '.join(takes)}"
            )
        weights = given
    elif weights is None and kind == "fixed":
        weights = (0.0,) * (len(taps) - 1) + (1.0,)
    if weights is not None and len(weights) != len(taps):
        drawn = [name for name, row in METHODS.items() if row.initial_weights is None]
        own = f"{method} gives {len(weights)} branch weights"
        advice = "give initial_weights, one per tap, or " if method in takes else ""
        raise ValueError(
            f"{own if given is None else f'initial_weights are {given}'}, but there are "
            f"{len(taps)} taps {taps}; {advice}choose as many taps, or one of {', '.join(drawn)}"
        )
    return weights
