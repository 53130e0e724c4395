"""Checking a set of runs, and working them off."""

import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path

import jax

from experiments.cli import configuration, console
from experiments.cli.console import duration
from experiments.runs import data, single
from experiments.runs.folder import HeldError
from experiments.runs.training import NonFiniteLossError, StoppedError
from experiments.sweep import time_left
from experiments.sweep.planning import Failed, Planned, unfinished
from interflow_jax.checkpoints import UnreadableError, UnwritableError
from interflow_jax.data import datasets, tfds_folders

FAILURES = (ValueError, NonFiniteLossError, UnreadableError, UnwritableError, OSError)
"""What a run may end with and says enough in a line; anything else is shown with its traceback."""


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
            single.check(planned.flags)
        for flags in (planned.flags for planned in unfinished(sweep)):
            place = flags.dataset, flags.data_dir, flags.image_size
            if place not in sizes:
                sizes[place] = len(data.load(*place, before_download=before_download).train)
            single.check_sizes(flags, sizes[place])
        configuration.writable(out)


def check_without_data(sweep: Iterable[Planned]) -> None:
    """As `check`, but opens and downloads nothing: sizes are those that the datasets are known for.

    Raises:
      ValueError: as `check`.
    """
    for planned in sweep:
        flags = planned.flags
        single.check(flags)
        if flags.dataset in datasets.RECIPES:
            single.check_sizes(flags, time_left.examples(flags.dataset)[0])
        else:
            tfds_folders.originals(flags.dataset)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C where nothing is training means what it means there: an end, and no traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(signal.SIGINT) from None


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
    for _, group in groupby(todo, time_left.but_for_seed):
        session = None
        for planned in group:
            if planned.folder.result() is not None:  # another sweep has done it meanwhile
                done += 1
                continue
            said = f"[{done + 1}/{len(todo)}] {planned}"
            say(f"{said}; {_remaining(sweep, todo[done:], start, done)}" if done else said)
            try:
                folders = {planned.flags.seed: planned.folder}
                with _interruptible():
                    single.claim(planned.flags, folders, planned.command())
                    if session is None:
                        session = single.prepare(planned.flags, folders, planned.command())
                    single.run(
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
    print(f"{title}: {len(sweep)} runs, {len(unfinished(sweep))} to do", flush=True)
    failed = work(sweep, lambda line: print(line, flush=True))
    for planned, error in failed:
        print(f"failed: {planned.folder.path}: {error}", file=sys.stderr)
    return failed


def _remaining(sweep: list[Planned], todo: list[Planned], start: float, done: int) -> str:
    """The time left, by the measured estimates where there are some, else by the mean so far."""
    estimated = time_left.seconds_left(sweep)
    seconds = [value for run in todo if (value := estimated.get(run.folder.path)) is not None]
    left = sum(seconds) if seconds else (time.monotonic() - start) / done * len(todo)
    return f"about {duration(left)} to go"
