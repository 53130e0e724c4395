"""How modules are called: whether they train, what they draw from, and what becomes state."""

import inspect
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError
from jax import Array

# The names that Flax's own modules and common networks use.
_SWITCHES = ("train", "training", "is_training", "deterministic", "use_running_average")
_INVERTED = _SWITCHES[3:]


def switch_arguments(module: nn.Module, train: bool, switch: str | None = None) -> dict[str, Any]:
    """The keyword argument that tells a module whether it trains, {} for one without a switch.

    Args:
      module: any Linen module.
      train: whether it trains.
      switch: `train`, `training`, `is_training`, `deterministic`, `use_running_average` or "none";
        None for the first that the signature of `__call__` names (`**kwargs` names none).

    Raises:
      ValueError: for another switch, or one that the signature does not have.
    """
    parameters = inspect.signature(type(module).__call__).parameters
    if switch is None:
        switch = next((name for name in _SWITCHES if name in parameters), "none")
    elif switch not in (*_SWITCHES, "none"):
        raise ValueError(
            f"switch is {switch!r}; choose one of {', '.join(_SWITCHES)} or none, or wrap the "
            "network in a module whose call takes one of these"
        )
    elif switch != "none" and switch not in parameters:
        kinds = {parameter.kind for parameter in parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            known = [name for name in _SWITCHES if name in parameters]
            raise ValueError(
                f"switch is {switch!r}, but {type(module).__name__} takes "
                f"{', '.join(list(parameters)[1:])}; choose {' or '.join([*known, 'none'])}"
            )
    return {} if switch == "none" else {switch: train != (switch in _INVERTED)}


def apply(
    model: nn.Module,
    variables: dict[str, Any],
    images: Array,
    train: bool,
    mutable: Sequence[str] = (),
    key: Array | None = None,
) -> tuple[Any, dict[str, Any]]:
    """What a model computes, and its mutable collections after it.

    The key makes a random stream for every name that the model draws from, "dropout" from itself.
    Raises ValueError for integer images, or a model that draws without a key.
    """
    check_images(images)
    arguments = switch_arguments(model, train)
    rngs = {} if key is None else {"dropout": key}
    while True:
        try:
            with nn.intercept_methods(without_sowing):
                result = model.apply(
                    variables, images, **arguments, rngs=rngs, mutable=list(mutable)
                )
            return cast(tuple[Any, dict[str, Any]], result)
        except InvalidRngError as error:  # only a call tells which streams a model draws from
            missing = re.search(r'needs PRNG for "(.*)"', str(error))
            if missing is None or missing[1] in rngs:
                raise
            if key is None:
                advice = "give a key" if train else "its training switch is to turn that off"
                raise ValueError(
                    f"{type(model).__name__} draws from the random stream {missing[1]!r} in "
                    f"{'training' if train else 'evaluation'}; {advice}"
                ) from error
            rngs[missing[1]] = jax.random.fold_in(key, zlib.crc32(missing[1].encode()))


def without_sowing(function: Callable, arguments: tuple, named: dict, context: Any) -> Any:
    """An interceptor of methods: what modules sow does not become state, as variables do."""
    module = context.module

    def sow(collection: str, *arguments: Any, **named: Any) -> bool:
        taken_out_again = collection in ("intermediates", "interflow_taps")
        return taken_out_again and type(module).sow(module, collection, *arguments, **named)

    object.__setattr__(module, "sow", sow)
    return function(*arguments, **named)


def check_images(images: Any) -> None:
    """Raises ValueError for pixels where a model takes normalised images."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images are {images.dtype}; the model takes floats: normalize them as in training"
        )
