"""How long and how wide the runs behind the paper's tables are."""

import itertools
from collections.abc import Iterable
from typing import Any

from interflow_jax.cli.config import RunConfig
from interflow_jax.config import VGG

PRESETS: dict[str, dict[str, Any]] = {
    # Paper, IV-B: full width, all training examples, 100 epochs on CIFAR and 40 on the others.
    "paper": {},
    # Past the learning rate's drop, in minutes per run; CIFAR trains for `_CIFAR_EPOCHS`.
    "end": {"width": 0.125, "train_size": 10_000},
    # For trials and tests: the first minutes of training, where the initial size of the logits
    # matters most.
    "quick": {"width": 0.125, "train_size": 20_000, "epochs": 3},
}

_CIFAR_EPOCHS = {"end": 60}  # of the paper's 100, to save time; others have the paper's 40

DEFAULT = "end"


def base(preset: str, dataset: str, **given: Any) -> RunConfig:
    """A preset's run on a dataset, with given fields of `RunConfig` in place of its own."""
    values = {"dataset": dataset, **PRESETS[preset]}
    if dataset.startswith("cifar") and preset in _CIFAR_EPOCHS:
        values["epochs"] = _CIFAR_EPOCHS[preset]
    if dataset == "fashion_mini":
        values.pop("train_size", None)  # it has 6,000 training examples
    if given.get("backbone", VGG) != VGG:
        values.pop("width", None)  # it has no meaning there
    return RunConfig().replace(**{**values, **given})


def grid(base: RunConfig, **axes: Iterable[Any]) -> list[RunConfig]:
    """A run for every combination of some fields' values, the last field's varying fastest."""
    places = itertools.product(*axes.values())
    return [base.replace(**dict(zip(axes, place, strict=True))) for place in places]


def in_flags(preset: str) -> str:
    """The preset in words."""
    given = " ".join(f"--{name}={value}" for name, value in PRESETS[preset].items())
    if preset in _CIFAR_EPOCHS:
        given += f", CIFAR --epochs={_CIFAR_EPOCHS[preset]}"
    return given or "the paper's, IV-B"
