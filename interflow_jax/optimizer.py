"""The optimiser and its learning rate; the paper's by default (IV-B)."""

from collections.abc import Hashable, Sequence
from typing import Any, Literal, get_args

import jax
import optax

LEARNING_RATE = 1e-3  # paper, IV-B, as are the three below
LEARNING_RATE_DROP = 0.1
MOMENTUM = 0.95
WEIGHT_DECAY = 5e-4

Optimizer = Literal["sgd", "nesterov", "adamw"]
Schedule = Literal["step", "cosine"]


def learning_rate_schedule(
    total_steps: int,
    drop_after: float,
    learning_rate: float = LEARNING_RATE,
    kind: Schedule = "step",
    warmup_steps: int = 0,
) -> optax.Schedule:
    """The learning rate by step: 1e-3, then 1e-4 (paper, IV-B).

    Args:
      total_steps: optimiser steps of the whole training.
      drop_after: the fraction of them before a "step" schedule drops to a tenth. The paper drops
        for the last 20 epochs: after 4/5 of the 100 on CIFAR, 1/2 of the 40 on the others.
      learning_rate: at the start, or after the warmup.
      kind: "step", or "cosine" for half a cosine down to zero.
      warmup_steps: the steps over which the rate rises linearly from zero.

    Raises:
      ValueError: for another kind.
    """
    if kind not in get_args(Schedule):
        raise ValueError(f"schedule is {kind!r}; choose one of {', '.join(get_args(Schedule))}")
    if kind == "cosine":
        schedule = optax.cosine_decay_schedule(learning_rate, max(1, total_steps - warmup_steps))
    else:
        boundary = max(0, round(total_steps * drop_after) - warmup_steps)
        schedule = optax.piecewise_constant_schedule(learning_rate, {boundary: LEARNING_RATE_DROP})
    if not warmup_steps:
        return schedule
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, schedule], [warmup_steps])


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    name: Optimizer = "sgd",
    momentum: float | None = None,
    weight_decay: float = WEIGHT_DECAY,
    frozen: str | Sequence[str] = (),
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """SGD with momentum 0.95 (not Nesterov's) and weight decay 5e-4 on every parameter.

    The decay is added to the gradient before the momentum, as the frameworks of 2021 did
    (paper, IV-B, gives the numbers but not the order).

    Args:
      learning_rate: a number, or a schedule of steps.
      name: "sgd", or (not the paper's) "nesterov" for its other momentum, or "adamw" with its
        decoupled weight decay.
      momentum: for all but "adamw"; None for 0.95.
      weight_decay: for every parameter.
      frozen: the parameters that stay as they are, by the beginnings of their paths: "backbone" or
        ("backbone/network/stem", ...). `Interflow.frozen` keeps BatchNorm's statistics, too.
      clip_norm: scales a gradient, of all that is trained, down to this norm before all else.

    Raises:
      ValueError: for another name, or a momentum for "adamw"; when the optimizer is initialised,
        for a frozen path that no parameter has.
    """
    frozen = (frozen,) if isinstance(frozen, str) else tuple(frozen)
    if frozen:
        trained = make_optimizer(learning_rate, name, momentum, weight_decay, (), clip_norm)
        parts: dict[Hashable, optax.GradientTransformation] = {
            True: optax.set_to_zero(),
            False: trained,
        }
        return optax.multi_transform(parts, lambda params: _is_frozen(params, frozen))
    if name not in get_args(Optimizer):
        raise ValueError(f"optimizer is {name!r}; choose one of {', '.join(get_args(Optimizer))}")
    if clip_norm is not None:
        clip = optax.clip_by_global_norm(clip_norm)
        return optax.chain(clip, make_optimizer(learning_rate, name, momentum, weight_decay))
    if name == "adamw":
        if momentum is not None:
            raise ValueError(
                f"momentum is {momentum}, but adamw has none; leave it out, or use sgd"
            )
        return optax.adamw(learning_rate, weight_decay=weight_decay)
    momentum = MOMENTUM if momentum is None else momentum
    sgd = optax.sgd(learning_rate, momentum, nesterov=name == "nesterov")
    return optax.chain(optax.add_decayed_weights(weight_decay), sgd)


def check_optimizer(optimizer: Any) -> None:
    """Raises ValueError for what is no optax optimiser."""
    methods = (getattr(optimizer, name, None) for name in ("init", "update"))
    if isinstance(optimizer, type) or not all(map(callable, methods)):
        raise ValueError(
            f"optimizer is {optimizer!r:.60}; give an optax optimiser, such as optax.adam(1e-3)"
        )


def _is_frozen(params: Any, frozen: tuple[str, ...]) -> Any:
    """Whether each parameter's path begins with one of `frozen`, as a tree like `params`."""
    paths = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )
    named = jax.tree.leaves(paths)
    for part in frozen:
        if not any(f"{path}/".startswith(f"{part}/") for path in named):
            raise ValueError(
                f"frozen is {part!r}, but no parameter is below it; they begin with "
                f"{', '.join(sorted({path.partition('/')[0] for path in named}))}"
            )
    return jax.tree.map(lambda path: any(f"{path}/".startswith(f"{p}/") for p in frozen), paths)
