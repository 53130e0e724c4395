"""How a module's call is told whether it trains."""

import inspect
from typing import Any

import flax.linen as nn

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
        raise ValueError(f"switch is {switch!r}; choose one of {', '.join(_SWITCHES)} or none")
    elif switch != "none" and switch not in parameters:
        kinds = {parameter.kind for parameter in parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            known = [name for name in _SWITCHES if name in parameters]
            raise ValueError(
                f"switch is {switch!r}, but {type(module).__name__} takes "
                f"{', '.join(list(parameters)[1:])}; choose {' or '.join([*known, 'none'])}"
            )
    return {} if switch == "none" else {switch: train != (switch in _INVERTED)}
