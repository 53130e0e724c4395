"""How long unfinished runs will take, by what finished ones took."""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from experiments.cli import configuration
from experiments.cli.configuration import Configuration
from experiments.sweep.planning import Planned, unfinished
from interflow_jax.backbones import forward_flops
from interflow_jax.data import datasets

_EXAMPLES = {  # of the training and of the test split, without reading them
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "svhn": (73_257, 26_032),
    "fashion_mini": (6_000, 1_000),
}
_OTHER_EXAMPLES = (60_000, 10_000)  # MNIST and what was made like it
_EVALUATION = 1 / 3  # of a training step's work: the forward pass


def _known_data(flags: Configuration) -> bool:
    """Whether the number and the size of the images are known without reading them."""
    return flags.dataset in datasets.RECIPES


def seconds_left(sweep: list[Planned]) -> dict[Path, float | None]:
    """Seconds that each unfinished run will take, from what finished ones took.

    A run like it but for the seed counts most; others of the sweep, without any those beside it,
    are scaled by the multiply-adds of their convolutions. None where nothing was measured, or the
    data is none of the paper's. Start, compilation and what an interrupted run has done already are
    not counted.
    """
    alike: dict[Any, list[float]] = {}
    anything = []
    for planned in sweep:
        result = planned.folder.result()
        rate = (result or {}).get("images_per_second", 0)
        if rate > 0 and _known_data(planned.flags):
            alike.setdefault(but_for_seed(planned), []).append(rate)
            anything.append(rate * _flops(planned.flags))
    if not anything:
        anything = _paces({Path(planned.flags.out).parent for planned in sweep})
    seconds: dict[Path, float | None] = {}
    for planned in unfinished(sweep):
        rates = alike.get(but_for_seed(planned))
        if not anything or not _known_data(planned.flags):
            seconds[planned.folder.path] = None
            continue
        rate = median(rates) if rates else median(anything) / _flops(planned.flags)
        seconds[planned.folder.path] = _passes(planned.flags) / rate
    return seconds


def _paces(folders: Iterable[Path]) -> list[float]:
    """Multiply-adds a second of all finished runs in folders of runs."""
    paces = []
    for result in (each for folder in folders for each in folder.glob("*/*/*/seed*/result.json")):
        try:
            found = json.loads(result.read_text())
            rate, flags = found["images_per_second"], configuration.of_result(found)
            if _known_data(flags):
                paces.append(rate * _flops(flags))
        except (OSError, ValueError, LookupError, TypeError):
            continue  # of another version, or broken: it measures nothing
    return [pace for pace in paces if pace > 0]


def but_for_seed(planned: Planned) -> str:
    """What runs that differ by their seeds alone have in common."""
    return str(planned.folder.path.parent)


def _flops(flags: Configuration) -> float:
    size, channels = (32, 3) if flags.dataset in ("cifar10", "cifar100", "svhn") else (28, 1)
    shape = (flags.image_size or size, flags.image_size or size, channels)
    return forward_flops(flags.depth, flags.width, flags.downsample, shape)


def multiply_adds(flags: Configuration) -> float:
    """Of all epochs of a run, in its convolutions: what runs of a sweep are weighed by."""
    return _flops(flags) * _passes(flags)


def examples(dataset: str) -> tuple[int, int]:
    """Of the training and of the test split of one of the paper's datasets, or of the sample."""
    return _EXAMPLES.get(dataset, _OTHER_EXAMPLES)


def _passes(flags: Configuration) -> float:
    """Images trained on, and those of the evaluations as so many trained on."""
    train, test = examples(flags.dataset)
    return flags.resolved_epochs() * ((flags.train_size or train) + _EVALUATION * test)
