"""Working off a set of runs on a Ray cluster, each in a worker process of its own.

The driver, which is the command, hands out the runs and trains nothing. Every machine needs the
same Python environment and, under the same paths, this checkout, the run folders and the data: a
shared filesystem. What a run prints goes to output.txt in its folder.

On Ctrl-C or SIGTERM the driver lets Ray interrupt every worker, and waits. A run in training takes
that as Ctrl-C: it saves and ends. One that still prepares has nothing to save. A second signal to
the driver, its death, or a SIGKILL ends workers at once; what they trained after their last
checkpoint (`--checkpoint_minutes`) is then trained again.
"""

import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from ray.exceptions import (  # pyright: ignore[reportMissingImports]
    RayError,
    RayTaskError,
    TaskCancelledError,
)

from experiments.cli.console import SECONDS_BETWEEN_LINES, duration
from experiments.runs import single
from experiments.runs.folder import RunFolder
from experiments.runs.training import StoppedError, StopSignals
from experiments.sweep import planning, time_left
from experiments.sweep.planning import Failed, Planned
from experiments.sweep.work import FAILURES
from interflow_jax.ops import memory

CPUS = 4  # of a run without a GPU; more make it faster, but less than in proportion
CPUS_BESIDE_GPU = 1
DEATHS = 3  # of a run's workers with no checkpoint between them: then the run has failed
_LOCK_SECONDS = 120.0  # NFSv4 gives what a lost machine has locked free after 90 by default
_FORWARDED = ("JAX_", "XLA_", "TFDS_")  # what of the driver's environment runs depend on


def connect() -> None:
    """Joins the cluster of $RAY_ADDRESS or the one running here, else starts one on this machine.

    Raises:
      ValueError: without a cluster at that address.
    """
    forwarded = {name: os.environ[name] for name in os.environ if name.startswith(_FORWARDED)}
    try:
        ray.init(runtime_env={"env_vars": forwarded}, log_to_driver=False, logging_level="warning")
    except (ConnectionError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS", "not set")
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"no Ray cluster, with RAY_ADDRESS {address}: {reason}") from error


def share(nodes: list[dict[str, float]], cpus: int | None) -> dict[str, int]:
    """What a run takes of a machine, as Ray's options: one GPU where there are some, and CPUs.

    Args:
      nodes: the resources of each machine of the cluster, by Ray's names.
      cpus: that are asked for; default: CPUS, or CPUS_BESIDE_GPU. At most what a machine has: Ray
        would wait for a larger one.
    """
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    asked = cpus or (CPUS_BESIDE_GPU if with_gpus else CPUS)
    most = max(int(node.get("CPU", 0)) for node in with_gpus or nodes)
    return {"num_gpus": 1 if with_gpus else 0, "num_cpus": min(asked, most or asked)}


def work(
    planned_runs: list[Planned], say: Callable[[str], None], cpus: int | None = None
) -> list[Failed]:
    """As `sweep.work`, on the cluster that `connect` joined, and the largest runs first.

    A run whose worker dies goes on from its checkpoint in another.

    Args:
      planned_runs: the sweep.
      say: told of it, in lines.
      cpus: see `share`.

    Returns:
      The runs that failed; the others go on.

    Raises:
      StoppedError: on a signal, once the runs that it met are saved.
    """
    todo = list({each.folder.path: each for each in planning.unfinished(planned_runs)}.values())
    todo.sort(key=lambda planned: time_left.multiply_adds(planned.flags), reverse=True)
    if not todo:
        return []
    start = _starter(cpus, say)
    running = {start(planned): planned for planned in todo}
    progress = _Progress(todo)
    failed: list[Failed] = []
    deaths: Counter[tuple[Path, int]] = Counter()
    with StopSignals() as stop:
        try:
            while running:
                for planned, error in _ended(running):
                    if isinstance(error, RayError | StoppedError):
                        place = (planned.folder.path, _newest_checkpoint(planned.folder))
                        deaths[place] += 1
                        if deaths[place] < DEATHS:
                            say(f"{planned}: its worker died; another takes up its checkpoint")
                            running[start(planned, _LOCK_SECONDS)] = planned
                            continue
                        error = RuntimeError(f"{DEATHS} of its workers died, the last of: {error}")
                    if error is None:
                        say(f"{planned}: finished")
                    else:
                        say(f"  failed: {planned.folder.path}: {error}")
                        failed.append((planned, str(error)))
                    say(progress.line(running.values()))
                if progress.due():
                    say(progress.line(running.values()))
                stop.check()
        finally:
            _stop(running, say)
    return failed


def _starter(cpus: int | None, say: Callable[[str], None]) -> Callable[..., Any]:
    """A function that hands a run to the cluster: (planned, seconds to wait for its lock)."""
    taken = share([node["Resources"] for node in ray.nodes() if node["Alive"]], cpus)
    gpu = "a GPU and " if taken["num_gpus"] else ""
    say(f"on Ray; a run takes {gpu}{taken['num_cpus']} CPU(s) and prints to its output.txt")
    # On a CPU, XLA would start a thread for every core of the machine in each of its runs.
    threads = {} if gpu else {"PJRT_NPROC": str(taken["num_cpus"])}
    # A process takes one run: memory of a GPU and compiled programs go when it ends. Ray's own
    # retries would not tell of a death, and would repeat for ever what dies of its memory.
    task = ray.remote(max_calls=1, max_retries=0)(_train)
    task = task.options(**taken, runtime_env={"env_vars": threads})
    return lambda planned, wait=0.0: task.remote(planned, Path.cwd(), wait)


def _train(planned: Planned, directory: Path, wait: float) -> Exception | None:
    """Does a run in a worker process; returns what it ended with, if not with a result."""
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
            wait_for_lock(folder, wait)
            if folder.result() is None:
                session = single.prepare(planned.flags, {planned.flags.seed: folder}, command)
                single.run(planned.flags, session, planned.flags.seed, folder, command)
    except (*FAILURES, StoppedError) as error:
        return error
    return None


def wait_for_lock(folder: RunFolder, seconds: float) -> None:
    """Waits until no process holds the folder, or the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with folder.held():
                return
        except ValueError:
            time.sleep(1)


def _ended(running: dict[Any, Planned]) -> list[tuple[Planned, Exception | None]]:
    """Takes out the runs that end within a second, each with what it ended with."""
    references = ray.wait(list(running), num_returns=len(running), timeout=1.0)[0]
    return [(running.pop(reference), _outcome(reference)) for reference in references]


def _outcome(reference: Any) -> Exception | None:
    """What `_train` returned, or raised, or how its worker died."""
    try:
        return ray.get(reference)
    except RayTaskError as raised:  # out of memory, say; in words, with its traceback
        return RuntimeError(str(raised))
    except RayError as death:
        return death


def _stop(running: dict[Any, Planned], say: Callable[[str], None]) -> None:
    """Interrupts the workers, and waits until they have saved."""
    if not running:
        return
    say(f"stopping {len(running)} run(s); those in training save first")
    for reference in running:
        ray.cancel(reference)
    ray.wait(list(running), num_returns=len(running))
    for reference, planned in running.items():
        error = _outcome(reference)
        if isinstance(error, StoppedError):
            error = error.unsaved
        if error and not isinstance(error, TaskCancelledError):
            say(f"  failed: {planned.folder.path}: {error}")


def _newest_checkpoint(folder: RunFolder) -> int:
    numbers = [path.name for path in folder.checkpoints.glob("*") if path.name.isdigit()]
    return max(map(int, numbers), default=-1)


class _Progress:
    """How far a sweep is, by the multiply-adds of the epochs that its runs have finished."""

    def __init__(self, todo: list[Planned]):
        self._todo = todo
        self._before = sum(map(_trained, todo))
        self._start = self._last_line = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for a line."""
        return time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES

    def line(self, running: Collection[Planned]) -> str:
        """The share that is done, and the time left at the pace since the start."""
        self._last_line = time.monotonic()
        total = sum(time_left.multiply_adds(planned.flags) for planned in self._todo)
        trained = sum(map(_trained, self._todo))
        left = sum(time_left.multiply_adds(each.flags) - _trained(each) for each in running)
        share_done = f"[{len(self._todo) - len(running)}/{len(self._todo)}] {trained / total:.1%}"
        if not running:
            return share_done
        if trained == self._before:
            return f"{share_done}; time to go unknown before an epoch ends"
        seconds = left / (trained - self._before) * (self._last_line - self._start)
        return f"{share_done}; about {duration(seconds)} to go"


def _trained(planned: Planned) -> float:
    """Multiply-adds of the run's finished epochs, a row of metrics.csv each."""
    metrics = planned.folder.path / "metrics.csv"
    epochs = len(metrics.read_text().splitlines()) - 1 if metrics.exists() else 0
    of = planned.flags.identity(planned.flags.seed)["epochs"]
    return time_left.multiply_adds(planned.flags) * epochs / of
