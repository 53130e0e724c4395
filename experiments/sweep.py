"""A set of runs: which are finished, how long the others will take, and working them off."""

import contextlib
import dataclasses
import json
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax

from experiments import configuration, console, data, run
from experiments.configuration import PLACES, Configuration, as_flag
from experiments.console import duration
from experiments.folder import HeldError, RunFolder
from experiments.training_run import NonFiniteLossError, StoppedError
from interflow_jax import datasets, tfds_folders
from interflow_jax.backbones import forward_flops
from interflow_jax.checkpoints import UnreadableError, UnwritableError

FAILURES = (ValueError, NonFiniteLossError, UnreadableError, UnwritableError, OSError)
"""What a run may end with and says enough in a line; anything else is shown with its traceback."""

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


Failed = tuple[Planned, str]
"""A run that failed, and why, in a line."""


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


def exit_status(name: str, command: str, body: Callable[[], int]) -> int:
    """What a command that does a sweep exits with, each error told in a line."""
    try:
        return body()
    except StoppedError as stopped:
        print(console.stopped(stopped, command))
        return 128 + stopped.signal
    except ValueError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{name}: stopped: {error}", file=sys.stderr)
        return 1


def check(sweep: list[Planned], out: Path) -> None:
    """Checks all that can be wrong, and that the data of unfinished runs is there, and enough.

    What needs no data is checked before any is downloaded.

    Raises:
      ValueError: as the main command's checks, or for a folder that cannot be written.
      StoppedError: on Ctrl-C, as from `work`.
    """

    def before_download() -> None:
        check_without_data(sweep)
        configuration.writable(out)

    sizes = {}
    with _interruptible():
        for planned in sweep:
            run.check(planned.flags)
        for flags in (planned.flags for planned in unfinished(sweep)):
            place = flags.dataset, flags.data_dir, flags.image_size
            if place not in sizes:
                sizes[place] = len(data.load(*place, before_download=before_download).train)
            run.check_sizes(flags, sizes[place])
        configuration.writable(out)


def check_without_data(sweep: Iterable[Planned]) -> None:
    """As `check`, but opens and downloads nothing: sizes are those that the datasets are known for.

    Raises:
      ValueError: as `check`.
    """
    for planned in sweep:
        flags = planned.flags
        run.check(flags)
        if flags.dataset in datasets.RECIPES:
            run.check_sizes(flags, _examples(flags.dataset)[0])
        else:
            tfds_folders.originals(flags.dataset)


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


def _known_data(flags: Configuration) -> bool:
    """Whether the number and the size of the images are known without reading them."""
    return flags.dataset in datasets.RECIPES


def estimate(sweep: list[Planned]) -> dict[Path, float | None]:
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
            alike.setdefault(_but_for_seed(planned), []).append(rate)
            anything.append(rate * _flops(planned.flags))
    if not anything:
        anything = _paces({Path(planned.flags.out).parent for planned in sweep})
    seconds: dict[Path, float | None] = {}
    for planned in unfinished(sweep):
        rates = alike.get(_but_for_seed(planned))
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


def _but_for_seed(planned: Planned) -> str:
    return str(planned.folder.path.parent)


def _flops(flags: Configuration) -> float:
    size, channels = (32, 3) if flags.dataset in ("cifar10", "cifar100", "svhn") else (28, 1)
    shape = (flags.image_size or size, flags.image_size or size, channels)
    return forward_flops(flags.depth, flags.width, flags.downsample, shape)


def multiply_adds(flags: Configuration) -> float:
    """Of all epochs of a run, in its convolutions: what runs of a sweep are weighed by."""
    return _flops(flags) * _passes(flags)


def _examples(dataset: str) -> tuple[int, int]:
    return _EXAMPLES.get(dataset, _OTHER_EXAMPLES)


def _passes(flags: Configuration) -> float:
    """Images trained on, and those of the evaluations as so many trained on."""
    train, test = _examples(flags.dataset)
    return flags.resolved_epochs() * ((flags.train_size or train) + _EVALUATION * test)


def work(sweep: list[Planned], say: Callable[[str], None]) -> list[Failed]:
    """Does the unfinished runs, one after the other; runs that differ by seed share programs.

    Returns:
      The runs that failed; the others go on. One that another process trains has failed if that
      is still so in the end.

    Raises:
      StoppedError: on a signal, once the run that it met is saved.
    """
    failed: list[Failed] = []
    held: list[Failed] = []
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
                    run.claim(planned.flags, folders, planned.command())
                    if session is None:
                        session = run.prepare(planned.flags, folders, planned.command())
                    run.run(
                        planned.flags,
                        session,
                        planned.flags.seed,
                        planned.folder,
                        planned.command(),
                    )
            except StoppedError:
                raise
            except HeldError as error:
                say(f"  left for now: {error}")
                held.append((planned, str(error)))
            except Exception as error:  # out of memory, say: the others may fit
                reason = str(error)
                if not isinstance(error, FAILURES):
                    traceback.print_exc()
                    reason = f"{type(error).__name__}: {error}"
                say(f"  failed: {planned.folder.path}: {reason}")
                failed.append((planned, reason))
                session = None
            done += 1
        jax.clear_caches()  # the programs of a configuration that does not come again
    return failed + [(planned, reason) for planned, reason in held if not planned.folder.result()]


def carry_out(
    title: str,
    sweep: list[Planned],
    out: Path,
    connect: Callable[[], None] = lambda: None,
    work: Callable[..., list[Failed]] = work,
) -> list[Failed]:
    """Checks a sweep, does its unfinished runs, and says which failed.

    Args:
      title: of what is made of the runs.
      sweep: the runs.
      out: folder of what is made of them.
      connect, work: of `ray_workers`, for the runs on a cluster.

    Returns, raises: as `check` and `work`.
    """
    check(sweep, out)
    connect()
    print(f"{title}: {len(sweep)} runs, {len(unfinished(sweep))} to do")
    failed = work(sweep, lambda line: print(line, flush=True))
    for planned, error in failed:
        print(f"failed: {planned.folder.path}: {error}", file=sys.stderr)
    return failed


def _remaining(
    estimated: dict[Path, float | None], todo: list[Planned], start: float, done: int
) -> str:
    """The time left, by the measured estimates where there are some, else by the mean so far."""
    seconds = [value for run in todo if (value := estimated.get(run.folder.path)) is not None]
    left = sum(seconds) if seconds else (time.monotonic() - start) / done * len(todo)
    return f"about {duration(left)} to go"
