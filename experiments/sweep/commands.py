"""The runs of a sweep as command lines: what to start, in which folder, and for how long."""

import hashlib
import re
import shlex
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from experiments.sweep.record import read, unfinished
from interflow_jax.cli.config import RunConfig, as_flag, fields, recorded
from interflow_jax.cli.console import duration
from interflow_jax.data.recipes import recipe
from interflow_jax.methods import look_up

_NOT_OF_FILES = r"[^\w.=+-]"  # characters to avoid in a file's name
_LONGEST = 200  # characters of a file's name, which may have 255 bytes


def placed(config: RunConfig, runs: Path) -> RunConfig:
    """With a folder apart from other configurations': RUNS/VARIANT/DATASET/METHOD/seedN.

    VARIANT is what differs from the main command's defaults.
    """
    variant = "-".join(
        f"{name}{re.sub(_NOT_OF_FILES, '.', as_flag(value))}"
        for name, value in config.changes().items()
        if name not in {"dataset", "method", "seed"} | fields("places")
    )
    if len(variant) > _LONGEST:
        digest = hashlib.sha256(variant.encode()).hexdigest()[:8]
        variant = f"{variant[:_LONGEST]}-{digest}"
    return config.replace(out=str(runs / (variant or "paper")))


def command(config: RunConfig) -> str:
    """The command that does a run."""
    return shlex.join(["python", "-m", "interflow_jax", "run", *config.arguments()])


class Paces:
    """What finished runs tell of how long others of the same model, data and batch size train."""

    def __init__(self, lines: list[dict[str, Any]]):
        self._per_epoch: dict[object, list[float]] = {}
        for line in lines:
            if seconds := line.get("train_seconds"):
                config = recorded(line)
                paces = self._per_epoch.setdefault(_kind(config), [])
                paces.append(seconds / config.epochs())

    def seconds(self, config: RunConfig) -> float | None:
        """Seconds that a run trains, without startup and evaluation; None where none is alike."""
        paces = self._per_epoch.get(_kind(config))
        return median(paces) * config.epochs() if paces else None

    def to_go(self, runs: list[RunConfig], workers: int) -> str:
        """How long runs will train on so many workers, in words."""
        seconds = [self.seconds(run) for run in runs]
        known = [value for value in seconds if value is not None]
        if not known:
            return f"{len(runs)} to go, for an unknown time"
        mean = sum(known) / len(known)
        total = sum(mean if value is None else value for value in seconds)
        return f"about {duration(total / min(workers, len(runs)))} of training to go"


def listing(configs: list[RunConfig], out: Path) -> str:
    """What would run, and how long it will train on one worker."""
    lines = read(out)
    paces, todo = Paces(lines), unfinished(configs, lines)
    text = []
    for config in todo:
        expected = paces.seconds(config)
        known = "not measured yet" if expected is None else f"about {duration(expected)}"
        text.append(f"{command(config)}  # {known}")
    count = len(set(configs))
    left = f", {paces.to_go(todo, 1)}" if todo else ""
    text.append(f"{count} runs, {count - len(todo)} finished, {len(todo)} to do{left}")
    return "\n".join(text)


def _kind(config: RunConfig) -> tuple[object, ...]:
    size = config.data.train_size or recipe(config.data.dataset).train_examples
    model, decided = config.model, look_up(config.model.method).options
    model = replace(model, taps=model.resolved_taps(), **decided)
    return model, replace(config.data, train_size=size), config.training.batch_size
