"""How long unfinished runs will take, judging by finished ones."""

from dataclasses import replace
from functools import lru_cache
from statistics import median

from experiments.cli.configuration import VGG, Configuration, of_result
from experiments.cli.console import duration
from experiments.sweep.planning import Planned
from experiments.sweep.record import Record
from interflow_jax.backbones import forward_flops
from interflow_jax.data import datasets

_EXAMPLES = {  # of the training and of the test split, without reading them
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "svhn": (73_257, 26_032),
    "fashion_mini": (6_000, 1_000),
}
_OTHER_EXAMPLES = (60_000, 10_000)  # MNIST and the datasets made like it
_EVALUATION = 1 / 3  # of a training step's work: the forward pass


def seconds_left(sweep: list[Planned], record: Record) -> dict[str, float | None]:
    """Seconds that each unfinished run will take, by its name, from what finished ones took.

    Runs that differ only by seed come first; else others of the paper's backbone are scaled by the
    operations of their convolutions. None where nothing was measured, or the data is not one of the
    paper's. Startup, compilation and what an interrupted run has already done are not counted.
    """
    alike: dict[str, list[float]] = {}
    for planned in record.finished(sweep):
        if rate := (record.result(planned) or {}).get("images_per_second"):
            alike.setdefault(planned.but_for_seed(), []).append(rate)
    paces = [
        run["images_per_second"] * _flops(of_result(run))
        for run in record.all()
        if run.get("images_per_second")
        and run["dataset"] in datasets.RECIPES
        and run.get("backbone", VGG) == VGG
    ]
    seconds: dict[str, float | None] = {}
    for planned in record.unfinished(sweep):
        seconds[planned.name] = None
        rates = alike.get(planned.but_for_seed())
        if planned.flags.dataset not in datasets.RECIPES:
            continue
        if rates or (paces and planned.flags.backbone == VGG):
            rate = median(rates) if rates else median(paces) / _flops(planned.flags)
            seconds[planned.name] = _passes(planned.flags) / rate
    return seconds


def listing(sweep: list[Planned], record: Record) -> str:
    """What would run, and how long it will take, judging by what was measured."""
    seconds = seconds_left(sweep, record)
    todo = [planned for planned in sweep if planned.name in seconds]
    lines = []
    for planned in todo:
        expected = seconds[planned.name]
        known = "not measured yet" if expected is None else f"about {duration(expected)}"
        lines.append(f"{planned.command()}  # {known}")
    measured = [value for value in seconds.values() if value is not None]
    total = f", about {duration(sum(measured))}" if measured and len(measured) == len(todo) else ""
    lines.append(f"{len(sweep)} runs, {len(sweep) - len(todo)} finished, {len(todo)} to do{total}")
    return "\n".join(lines)


def operations(flags: Configuration) -> float:
    """Operations of all epochs of a run, by which the runs of a sweep are weighted."""
    return _flops(flags) * _passes(flags)


def examples(dataset: str) -> tuple[int, int]:
    """Sizes of the training and test splits of one of the paper's datasets, or of the sample."""
    return _EXAMPLES.get(dataset, _OTHER_EXAMPLES)


def _flops(flags: Configuration) -> float:
    return _flops_of(replace(flags, seed=0, seeds=None, epochs=None, out=""))


@lru_cache  # for a foreign network XLA counts them, which takes seconds
def _flops_of(flags: Configuration) -> float:
    size, channels = (32, 3) if flags.dataset in ("cifar10", "cifar100", "svhn") else (28, 1)
    shape = (flags.image_size or size, flags.image_size or size, channels)
    return forward_flops(flags.build(num_classes=2).backbone, shape)


def _passes(flags: Configuration) -> float:
    """Images trained on, plus those evaluated, which count as `_EVALUATION` of one trained on."""
    train, test = examples(flags.dataset)
    return flags.resolved_epochs() * ((flags.train_size or train) + _EVALUATION * test)
