"""Checks a sweep and works through it: in this process, in several, or on a Ray cluster."""

import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path

import jax

from experiments.cli import console
from experiments.cli.console import duration
from experiments.runs import data, single
from experiments.runs.files import writable
from experiments.runs.folder import LockedError
from experiments.runs.stopping import NonFiniteLossError, OutOfMemoryError, StoppedError
from experiments.sweep import processes, time_left
from experiments.sweep.planning import Failed, Planned
from experiments.sweep.record import Record
from interflow_jax.checkpoints import UnreadableError, UnwritableError
from interflow_jax.data import datasets

FAILURES = (
    *(ValueError, NonFiniteLossError, OutOfMemoryError),
    *(UnreadableError, UnwritableError, OSError),
)
"""Errors that say enough in one line when they end a run; any other is shown with its traceback."""

Workers = int | str | None
"""How many processes train at once; "ray" for a Ray cluster; None for this process alone."""


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Makes Ctrl-C outside training mean what it means there: an end, without a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(signal.SIGINT, training=False) from None


def exit_status(name: str, command: str, body: Callable[[], int]) -> int:
    """Runs a command that trains; returns its exit status, and reports each error in one line."""
    try:
        with _interruptible():
            return body()
    except StoppedError as stopped:
        print(console.stopped(stopped, command), flush=True)
        return 128 + stopped.signal
    except ValueError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except FAILURES as error:
        print(f"{name}: stopped: {error}", file=sys.stderr)
        return 1


@_interruptible()
def carry_out(
    title: str,
    sweep: list[Planned],
    record: Record,
    out: Path,
    workers: Workers = None,
    cpus: int | None = None,
    runs_per_gpu: int = 1,
) -> list[Failed]:
    """Checks a sweep, trains its unfinished runs, adds them to OUT's record, says which failed."""
    make_pool = _pool(workers, cpus, runs_per_gpu)
    check(sweep, record, out)
    todo = record.unfinished(sweep)
    pool = make_pool() if make_pool and todo else None
    print(f"{title}: {len(sweep)} runs, {len(todo)} to do", flush=True)
    say = partial(print, flush=True)
    failed: list[Failed] = []
    try:
        failed = processes.work(todo, say, pool) if pool else _work(sweep, record, say)
    finally:
        for planned, error in failed:
            print(f"failed: {planned.folder.path}: {error}", file=sys.stderr)
        record.finished(sweep)
        try:
            record.write()
        except OSError as error:
            print(f"could not write {out / 'runs.jsonl'} ({error})", file=sys.stderr)
    return failed


def _pool(
    workers: Workers, cpus: int | None, runs_per_gpu: int
) -> Callable[[], processes.Pool] | None:
    """A function that makes the pool, if one is needed; raises ValueError if Ray is missing."""
    if workers is None:
        return None
    if workers != "ray":
        return partial(processes.LocalPool, int(workers))
    try:
        from experiments.sweep.ray_workers import RayPool
    except ImportError as error:
        raise ValueError(f"--workers=ray needs pip install '.[ray]' ({error})") from error
    # Before anything asks for devices: JAX would take most of a GPU's memory for this process,
    # which trains nothing.
    jax.config.update("jax_platforms", "cpu")
    return partial(RayPool, cpus, runs_per_gpu)


def check(sweep: list[Planned], record: Record, out: Path) -> None:
    """Checks all that can be wrong, and that the data of unfinished runs is there and sufficient.

    Whatever needs no data is checked before any is downloaded.
    """

    def before_download() -> None:
        check_without_data(sweep)
        writable(out)

    for planned in sweep:
        single.check(planned.flags)
    sizes = {}
    for flags in (planned.flags for planned in record.unfinished(sweep)):
        place = flags.dataset, flags.data_dir, flags.image_size
        if place not in sizes:
            sizes[place] = len(data.load(*place, before_download=before_download).train)
        single.check_sizes(flags, sizes[place])
    writable(out)


def check_without_data(sweep: Iterable[Planned]) -> None:
    """Like `check`, but opens and downloads nothing: it uses the known sizes of datasets."""
    for planned in sweep:
        flags = planned.flags
        single.check(flags)
        if flags.dataset in datasets.RECIPES:
            single.check_sizes(flags, time_left.examples(flags.dataset)[0])
        else:
            data.check(flags.dataset, flags.data_dir)


def _work(sweep: list[Planned], record: Record, say: Callable[[str], None]) -> list[Failed]:
    """Trains the unfinished runs one after another; runs that differ by seed share programs.

    Returns the runs that failed; the others go on. One that another process is training has failed
    if it is still unfinished in the end.
    """
    failed: list[Failed] = []
    locked: list[Failed] = []
    todo = record.unfinished(sweep)
    seconds = time_left.seconds_left(sweep, record)  # may lack what another sweep has just done
    start = time.monotonic()
    for _, group in groupby(enumerate(todo), lambda item: item[1].but_for_seed()):
        trainer = None
        for done, planned in group:
            flags, folder, command = planned.flags, planned.folder, planned.command()
            if folder.is_finished():  # another sweep has finished it meanwhile
                continue
            line = f"[{done + 1}/{len(todo)}] {planned}"
            left = [seconds.get(run.name) or 0.0 for run in todo[done:]]
            elapsed = time.monotonic() - start
            remaining = sum(left) if all(left) else elapsed / max(1, done) * len(left)
            say(f"{line}; about {duration(remaining)} to go" if done else line)
            try:
                single.claim(flags, {flags.seed: folder}, command)
                trainer = trainer or single.prepare(flags, {flags.seed: folder}, command)
                single.run(flags, trainer, flags.seed, folder, command)
            except StoppedError:
                raise
            except LockedError as error:
                say(f"  left for now: {error}")
                locked.append((planned, str(error)))
            except Exception as error:  # one run's failure does not end the others
                reason = str(error)
                if not isinstance(error, FAILURES):
                    traceback.print_exc()
                    reason = f"{type(error).__name__}: {error}"
                say(f"  failed: {folder.path}: {reason}")
                failed.append((planned, reason))
                trainer = None
        jax.clear_caches()  # this configuration's programs are not needed again
    return failed + [each for each in locked if not each[0].folder.is_finished()]
