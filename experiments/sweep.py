"""A set of runs: which are finished, how long the others will take, and working them off."""

import contextlib
import dataclasses
import shlex
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax

from experiments import data, run
from experiments.configuration import PLACES, Configuration, as_flag
from experiments.console import duration
from experiments.folder import RunFolder
from experiments.training_run import NonFiniteLossError, StoppedError
from interflow_jax.backbones import forward_flops
from interflow_jax.checkpoints import UnreadableError, UnwritableError

FAILURES = (ValueError, NonFiniteLossError, UnreadableError, UnwritableError, OSError)
"""What one run may end with without ending the others."""

_EXAMPLES = {  # of the training and of the test split, without reading them
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "svhn": (73_257, 26_032),
    "fashion_mini": (6_000, 1_000),
}
_OTHER_EXAMPLES = (60_000, 10_000)  # MNIST and what was made like it
_EVALUATION = 1 / 3  # of a training step's work: the forward pass


class Planned(NamedTuple):
    """One run of a sweep: a configuration of one seed, and its folder."""

    flags: Configuration
    folder: RunFolder

    def __str__(self) -> str:
        flags = self.flags
        depth = "" if flags.depth == 13 else f" of depth {flags.depth}"
        return f"{flags.method}{depth} on {flags.dataset}, seed {flags.seed}"

    def command(self) -> str:
        """The command that does this run alone."""
        default = Configuration()
        given = [
            f"--{name}={as_flag(value)}"
            for name, value in dataclasses.asdict(self.flags).items()
            if name in ("method", "dataset", "seed") or value != getattr(default, name)
        ]
        return shlex.join(["python", "-m", "experiments.run", *given])


def plan(flags: Configuration, runs: Path) -> Planned:
    """Places a run where no other configuration's is: RUNS/VARIANT/DATASET/METHOD/seedN."""
    flags = dataclasses.replace(flags, out=str(runs / _variant(flags)), seeds=None)
    folder = RunFolder(Path(flags.out) / flags.dataset / flags.method / f"seed{flags.seed}")
    return Planned(flags, folder)


def _variant(flags: Configuration) -> str:
    """What differs from the main command's defaults, beside dataset, method and seed."""
    default = Configuration()
    different = [
        f"{name}{'.'.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in dataclasses.asdict(flags).items()
        if name not in (*PLACES, "dataset", "method", "seed") and value != getattr(default, name)
    ]
    return "-".join(different) or "paper"


def check(sweep: Iterable[Planned]) -> None:
    """Checks all that can be wrong, and that the data of unfinished runs is there, and enough.

    Raises:
      ValueError: as the main command's checks.
      StoppedError: on Ctrl-C, as from `work`.
    """
    sizes = {}
    with _interruptible():
        for planned in sweep:
            flags = planned.flags
            run.check(flags)
            if planned.folder.result() is None:
                place = flags.dataset, flags.data_dir, flags.image_size
                if place not in sizes:
                    sizes[place] = len(data.load(*place).train)
                run.check_sizes(flags, sizes[place])


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C where nothing is training means what it means there: an end, and no traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(signal.SIGINT) from None


def finished(sweep: Iterable[Planned]) -> list[Planned]:
    """The runs with a result."""
    return [planned for planned in sweep if planned.folder.result() is not None]


def unfinished(sweep: Iterable[Planned]) -> list[Planned]:
    """The runs without a result."""
    return [planned for planned in sweep if planned.folder.result() is None]


def estimate(sweep: list[Planned]) -> dict[Path, float | None]:
    """Seconds that each unfinished run will take, from what finished ones took.

    A run like it but for the seed counts most; others are scaled by the multiply-adds of their
    convolutions. None where nothing was measured. Start, compilation and what an interrupted run
    has done already are not counted.
    """
    finished = [(planned, result) for planned in sweep if (result := planned.folder.result())]
    alike: dict[Any, list[float]] = {}
    anything = []
    for planned, result in finished:
        rate = result["images_per_second"]
        if rate > 0:
            alike.setdefault(_but_for_seed(planned), []).append(rate)
            anything.append(rate * _flops(planned.flags))
    seconds: dict[Path, float | None] = {}
    for planned in unfinished(sweep):
        rates = alike.get(_but_for_seed(planned))
        if not anything:
            seconds[planned.folder.path] = None
            continue
        rate = median(rates) if rates else median(anything) / _flops(planned.flags)
        seconds[planned.folder.path] = _passes(planned.flags) / rate
    return seconds


def _but_for_seed(planned: Planned) -> str:
    return str(planned.folder.path.parent)


def _flops(flags: Configuration) -> float:
    size, channels = (32, 3) if flags.dataset in ("cifar10", "cifar100", "svhn") else (28, 1)
    shape = (flags.image_size or size, flags.image_size or size, channels)
    return forward_flops(flags.depth, flags.width, flags.downsample, shape)


def multiply_adds(flags: Configuration) -> float:
    """Of all epochs of a run, in its convolutions: what runs of a sweep are weighed by."""
    return _flops(flags) * _passes(flags)


def _passes(flags: Configuration) -> float:
    """Images trained on, and those of the evaluations as so many trained on."""
    train, test = _EXAMPLES.get(flags.dataset, _OTHER_EXAMPLES)
    return flags.resolved_epochs() * ((flags.train_size or train) + _EVALUATION * test)


def work(sweep: list[Planned], say: Callable[[str], None]) -> list[tuple[Planned, Exception]]:
    """Does the unfinished runs, one after the other; runs that differ by seed share programs.

    Returns:
      The runs that failed, with their errors; the others go on.

    Raises:
      StoppedError: on a signal, once the run that it met is saved.
    """
    failed: list[tuple[Planned, Exception]] = []
    todo = unfinished(sweep)
    start, done = time.monotonic(), 0
    for _, group in groupby(todo, _but_for_seed):
        session = None
        for planned in group:
            if planned.folder.result() is not None:  # another sweep has done it meanwhile
                done += 1
                continue
            said = f"[{done + 1}/{len(todo)}] {planned}"
            left = f"; {_remaining(estimate(sweep), todo[done:], start, done)}" if done else ""
            say(said + left)
            try:
                folders = {planned.flags.seed: planned.folder}
                with _interruptible():
                    if session is None:
                        session = run.prepare(planned.flags, folders, planned.command())
                    else:
                        run.claim(planned.flags, folders, planned.command())
                    run.run(
                        planned.flags,
                        session,
                        planned.flags.seed,
                        planned.folder,
                        planned.command(),
                    )
            except FAILURES as error:
                say(f"  failed: {planned.folder.path}: {error}")
                failed.append((planned, error))
            done += 1
        jax.clear_caches()  # the programs of a configuration that does not come again
    return failed


def _remaining(
    estimated: dict[Path, float | None], todo: list[Planned], start: float, done: int
) -> str:
    """The time left, by the measured estimates where there are some, else by the mean so far."""
    seconds = [value for run in todo if (value := estimated.get(run.folder.path)) is not None]
    left = sum(seconds) if seconds else (time.monotonic() - start) / done * len(todo)
    return f"about {duration(left)} to go"
