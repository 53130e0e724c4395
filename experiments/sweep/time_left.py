"""How long unfinished runs will take, judging by finished ones."""

from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from experiments.sweep.commands import command
from experiments.sweep.record import read, unfinished
from interflow_jax.cli.config import RunConfig, recorded
from interflow_jax.cli.console import duration
from interflow_jax.config import VGG, ModelConfig
from interflow_jax.data.recipes import recipe
from interflow_jax.vgg import forward_flops

_EVALUATION = 1 / 3  # of a training step's work: the forward pass


class Paces:
    """What finished runs tell of how long others take.

    Runs that differ only by seed come first; else others of the paper's backbone are scaled by the
    operations of their convolutions.
    """

    def __init__(self, lines: list[dict[str, Any]]):
        self._alike: dict[RunConfig, list[float]] = {}
        self._by_operations = []
        for line in lines:
            rate, config = line.get("images_per_second"), recorded(line)
            if rate:
                self._alike.setdefault(_kind(config), []).append(rate)
                if config.model.backbone == VGG and recipe(config.data.dataset).image_shape:
                    self._by_operations.append(rate * _flops(config))

    def seconds(self, config: RunConfig) -> float | None:
        """Seconds of a run; None where nothing was measured, or its dataset's size is not known.

        Startup, compilation and what an interrupted run has already done are not counted.
        """
        known = recipe(config.data.dataset)
        if known.train_examples is None or known.test_examples is None:
            return None
        train = config.data.train_size or known.train_examples
        images = train + _EVALUATION * known.test_examples
        if rates := self._alike.get(_kind(config)):
            rate = median(rates)
        elif self._by_operations and config.model.backbone == VGG:
            rate = median(self._by_operations) / _flops(config)
        else:
            return None
        return config.epochs() * images / rate

    def to_go(self, runs: list[RunConfig], workers: int) -> str:
        """How long runs will take on so many workers, in words."""
        seconds = [self.seconds(run) for run in runs]
        known = [value for value in seconds if value is not None]
        if not known:
            return f"{len(runs)} to go, for an unknown time"
        mean = sum(known) / len(known)
        total = sum(mean if value is None else value for value in seconds)
        return f"about {duration(total / min(workers, len(runs)))} to go"


def listing(configs: list[RunConfig], out: Path) -> str:
    """What would run, and how long it will take on one worker."""
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


def _kind(config: RunConfig) -> RunConfig:
    """What runs that differ only by seed have in common."""
    size = config.data.train_size or recipe(config.data.dataset).train_examples
    taps = config.model.resolved_taps()
    places = RunConfig().places
    kind = config.replace(seed=0, epochs=None, taps=taps, train_size=size)
    return RunConfig(kind.model, kind.data, kind.training, places)


def _flops(config: RunConfig) -> float:
    height, width, channels = recipe(config.data.dataset).image_shape or (32, 32, 3)
    size = config.data.image_size
    return _backbone_flops(config.model, (size or height, size or width, channels))


@lru_cache
def _backbone_flops(model: ModelConfig, image_shape: tuple[int, int, int]) -> float:
    return forward_flops(model.build(num_classes=2).backbone, image_shape)
