"""How long and how wide the runs behind the paper's tables are."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # Paper, IV-B: full width, all training examples, 100 epochs on CIFAR and 40 on the others.
    "paper": {},
    # Past the learning rate's drop, in minutes per run; CIFAR trains for `_CIFAR_EPOCHS`.
    "end": {"width": 0.125, "train_size": 10_000},
    # For trials and tests: the first minutes of training, where the initial size of the logits
    # matters most; chosen by `python -m experiments.reproduce --table=study`.
    "quick": {"width": 0.125, "train_size": 20_000, "epochs": 3},
}


_CIFAR_EPOCHS = {"end": 60}  # of the paper's 100, to save time; others have the paper's 40

DEFAULT = "end"

DECIDED = {name: "the preset's" for values in PRESETS.values() for name in values}
"""What decides the flags that a preset may set, in words."""


def flags(preset: str, dataset: str) -> dict[str, Any]:
    """The preset's values for a dataset, as fields of `Configuration`."""
    chosen = dict(PRESETS[preset])
    if dataset.startswith("cifar") and preset in _CIFAR_EPOCHS:
        chosen["epochs"] = _CIFAR_EPOCHS[preset]
    if dataset == "fashion_mini":
        chosen.pop("train_size", None)  # it has 6,000 training examples
    return chosen


def in_flags(preset: str) -> str:
    """The preset in words."""
    given = " ".join(f"--{name}={value}" for name, value in PRESETS[preset].items())
    if preset in _CIFAR_EPOCHS:
        given += f", CIFAR --epochs={_CIFAR_EPOCHS[preset]}"
    return given or "the paper's, IV-B"
