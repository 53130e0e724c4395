"""Works through a sweep in several processes at once, one run in each.

The driver, which is the command, hands out the runs and trains nothing. What a run prints goes to
output.txt in its folder. On Ctrl-C or SIGTERM the driver interrupts every worker, and waits. A run
in training treats that as Ctrl-C: it saves and ends. One still preparing has nothing to save. A
second signal to the driver, its death, or a SIGKILL ends workers at once; what they trained after
their last checkpoint (`--checkpoint_minutes`) is then trained again.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from experiments.cli.console import SECONDS_BETWEEN_LINES, duration
from experiments.runs import single
from experiments.runs.folder import RunFolder
from experiments.runs.stopping import StoppedError, StopSignals
from experiments.sweep import time_left
from experiments.sweep.planning import Failed, Planned
from interflow_jax.ops import memory

DEATHS = 3  # of a run's workers with no new checkpoint in between: then the run has failed
_LOCK_SECONDS = 120.0  # NFSv4 releases the locks of a lost machine after 90 by default


class WorkerDiedError(RuntimeError):
    """A worker ended without a word."""


class Pool(Protocol):
    """Where up to `slots` runs are trained at once; a handle stands for each of them."""

    slots: int

    def start(self, planned: Planned, wait: float) -> Any:
        """Hands a run to a worker, which waits up to `wait` seconds for the folder's lock."""

    def ended(self, running: list[Any]) -> list[tuple[Any, Exception | None]]:
        """Those that end within a second, each with what `train` returned or how it died."""
        ...

    def interrupt(self, running: list[Any]) -> None:
        """Does to workers what Ctrl-C does to this process."""


def work(todo: list[Planned], say: Callable[[str], None], pool: Pool) -> list[Failed]:
    """Trains unfinished runs in a pool, the largest first; returns those that failed.

    A run whose worker dies goes on from its checkpoint in another.
    """
    todo = list({planned.name: planned for planned in todo}.values())
    todo.sort(key=lambda planned: time_left.operations(planned.flags), reverse=True)
    queue = deque((planned, 0.0) for planned in todo)
    running: dict[Any, Planned] = {}
    failed: list[Failed] = []
    deaths: Counter[tuple[str, int]] = Counter()
    trained_before, start = sum(map(_trained, todo)), time.monotonic()
    last_line = start
    with StopSignals() as stop:
        try:
            while queue or running:
                while queue and len(running) < pool.slots:
                    planned, seconds = queue.popleft()
                    running[pool.start(planned, seconds)] = planned
                ended = pool.ended(list(running))
                for handle, error in ended:
                    planned = running.pop(handle)
                    if isinstance(error, WorkerDiedError | StoppedError):
                        place = planned.name, _newest_checkpoint(planned.folder)
                        deaths[place] += 1
                        if deaths[place] < DEATHS:
                            say(f"{planned}: its worker died; another takes up its checkpoint")
                            queue.appendleft((planned, _LOCK_SECONDS))
                            continue
                        error = RuntimeError(f"{DEATHS} of its workers died, the last of: {error}")
                    if error is None:
                        say(f"{planned}: finished")
                    else:
                        say(f"  failed: {planned.folder.path}: {error}")
                        failed.append((planned, str(error)))
                if ended or time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
                    last_line = time.monotonic()
                    left = [*running.values(), *(planned for planned, _ in queue)]
                    say(_progress(todo, left, last_line - start, trained_before))
                stop.check()
        finally:
            if running:
                say(f"stopping {len(running)} run(s); those in training save first")
                pool.interrupt(list(running))
            while running:
                for handle, error in pool.ended(list(running)):
                    planned = running.pop(handle)
                    if isinstance(error, StoppedError):
                        error = error.unsaved
                    if error:
                        say(f"  failed: {planned.folder.path}: {error}")
    return failed


def train(planned: Planned, directory: Path, seconds: float) -> Exception | None:
    """Trains a run in a worker process; returns the error that ended it, None with a result."""
    memory.keep_freed_memory()
    folder, command = planned.folder, planned.command()
    try:
        os.chdir(directory)  # the folders' paths may be relative
        folder.path.mkdir(parents=True, exist_ok=True)
        with (
            (folder.path / "output.txt").open("a", buffering=1) as output,
            contextlib.redirect_stdout(output),
        ):
            print(f"worker {os.getpid()} on {socket.gethostname()}")
            wait_for_lock(folder, seconds)
            if not folder.is_finished():
                trainer = single.prepare(planned.flags, {planned.flags.seed: folder}, command)
                single.run(planned.flags, trainer, planned.flags.seed, folder, command)
    except KeyboardInterrupt:
        return StoppedError(signal.SIGINT, training=False)
    except (ValueError, RuntimeError, OSError, StoppedError) as error:
        return error
    return None


def wait_for_lock(folder: RunFolder, seconds: float) -> None:
    """Waits until no process holds the folder, or the time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with folder.locked():
                return
        except ValueError:
            time.sleep(1)


class LocalPool:
    """Processes on this machine, which share its cores evenly."""

    def __init__(self, workers: int):
        cores = sorted(os.sched_getaffinity(0))
        if not 1 <= workers <= len(cores):
            raise ValueError(
                f"--workers={workers}: this machine has {len(cores)} core(s); choose 1 to that, "
                "or ray"
            )
        share = len(cores) // workers
        self._free = [cores[i * share : (i + 1) * share] for i in range(workers)]
        self._workers: dict[Connection, tuple[Any, list[int]]] = {}
        self.slots = workers

    def start(self, planned: Planned, wait: float) -> Connection:
        cores = self._free.pop()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(theirs, planned, Path.cwd(), wait, cores))
        process.start()
        theirs.close()
        self._workers[ours] = process, cores
        return ours

    def ended(self, running: list[Any]) -> list[tuple[Any, Exception | None]]:
        return [(pipe, self._outcome(pipe)) for pipe in wait(running, 1.0)]

    def interrupt(self, running: list[Any]) -> None:
        for process in (self._workers[pipe][0] for pipe in running):
            if process.is_alive():
                os.kill(process.pid, signal.SIGINT)

    def _outcome(self, pipe: Any) -> Exception | None:
        process, cores = self._workers.pop(pipe)
        try:
            outcome = pipe.recv()
        except EOFError:
            outcome = WorkerDiedError("its process ended without a result")
        process.join()
        self._free.append(cores)
        return outcome


def _serve(
    pipe: Connection, planned: Planned, directory: Path, seconds: float, cores: list[int]
) -> None:
    """A worker's process: sends what `train` returns."""
    os.setpgrp()  # Ctrl-C on a terminal is for the driver, which passes it on once
    threading.Thread(target=_end_with_driver, daemon=True).start()
    os.sched_setaffinity(0, cores)  # before XLA starts its threads
    os.environ["PJRT_NPROC"] = str(len(cores))
    try:
        pipe.send(train(planned, directory, seconds))
    except Exception as error:  # whatever else a run may raise, with its traceback as text
        pipe.send(RuntimeError("".join(traceback.format_exception(error))))


def _end_with_driver() -> None:
    """Ends this process when the driver ends in any way; in a group of its own it would live on."""
    if (driver := multiprocessing.parent_process()) is not None:
        driver.join()
        os._exit(1)


def _newest_checkpoint(folder: RunFolder) -> int:
    numbers = [path.name for path in folder.checkpoints.glob("*") if path.name.isdigit()]
    return max(map(int, numbers), default=-1)


def _progress(
    todo: list[Planned], left: list[Planned], seconds: float, trained_before: float
) -> str:
    """The share that is done, and the time left at the pace since the start."""
    trained = sum(map(_trained, todo))
    share = trained / sum(time_left.operations(planned.flags) for planned in todo)
    done = f"[{len(todo) - len(left)}/{len(todo)}] {share:.1%}"
    if not left:
        return done
    if trained == trained_before:
        return f"{done}; time to go unknown before an epoch ends"
    to_train = sum(time_left.operations(planned.flags) - _trained(planned) for planned in left)
    return f"{done}; about {duration(to_train / (trained - trained_before) * seconds)} to go"


def _trained(planned: Planned) -> float:
    """Operations of the run's finished epochs, each of which has a row in metrics.csv."""
    metrics = planned.folder.path / "metrics.csv"
    epochs = len(metrics.read_text().splitlines()) - 1 if metrics.exists() else 0
    return time_left.operations(planned.flags) * epochs / planned.flags.resolved_epochs()
