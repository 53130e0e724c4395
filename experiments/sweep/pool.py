"""Works through a sweep: starts command lines, some at once, and starts again what a signal ended.

A run saves, resumes, locks its folder and skips what is finished by itself; what it prints goes to
output.txt in its folder. On Ctrl-C or SIGTERM the driver interrupts every run, which saves and
ends, and waits. A second signal to the driver, or its death, ends them at once; what they trained
after their last checkpoint (`--checkpoint_minutes`) is then trained again.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from interflow_jax.cli.config import RunConfig
from interflow_jax.cli.folder import RunFolder
from interflow_jax.cli.main import LOCKED
from interflow_jax.cli.stopping import StopSignals

DEATHS = 3  # of a run's processes with no new checkpoint in between: then the run has failed
LOCK_SECONDS = 120.0  # NFSv4 releases the locks of a lost machine after 90 by default

Failed = tuple[RunConfig, str]
"""A run that failed, and why, in one line."""


class Pool(Protocol):
    """Where command lines run at once; a handle stands for each of them.

    Attributes:
      slots: how many are handed over before one has ended.
      at_once: how many run at once, as far as is known.
    """

    slots: int
    at_once: int

    def start(self, arguments: list[str], output: Path) -> Any:
        """Starts the main command with these flags."""

    def ended(self, running: list[Any]) -> list[tuple[Any, int]]:
        """Those that end within a second, each with its exit status; negative for a signal."""
        ...

    def interrupt(self, running: list[Any]) -> None:
        """Does to them what Ctrl-C does to this process."""


def work(
    runs: list[RunConfig],
    pool: Pool,
    say: Callable[[str], None],
    to_go: Callable[[list[RunConfig]], str],
) -> list[Failed]:
    """Does runs in a pool, in order; returns those that failed.

    Args:
      to_go: how long runs that are left will take, in words.
    """
    queue = deque(runs)
    running: dict[Any, RunConfig] = {}
    failed: list[Failed] = []
    deaths: Counter[tuple[Path, int]] = Counter()
    locked_since: dict[RunConfig, float] = {}

    def end(run: RunConfig, status: int) -> None:
        """Says how a run ended."""
        if status == 0:
            say(f"{run.folder()}: finished")
        else:
            reason = _reason(run.folder() / "output.txt", status)
            say(f"  failed: {run.folder()}: {reason}")
            failed.append((run, reason))

    with StopSignals() as stop:
        try:
            while queue or running:
                while queue and len(running) < pool.slots:
                    run = queue.popleft()
                    run.folder().mkdir(parents=True, exist_ok=True)
                    running[pool.start(run.arguments(), run.folder() / "output.txt")] = run
                for handle, status in pool.ended(list(running)):
                    run = running.pop(handle)
                    if status == LOCKED:
                        since = locked_since.setdefault(run, time.monotonic())
                        if time.monotonic() - since < LOCK_SECONDS:
                            queue.append(run)
                            time.sleep(1)
                            continue
                    locked_since.pop(run, None)
                    if _is_death(status):
                        place = run.folder(), RunFolder(run.folder()).newest_checkpoint()
                        deaths[place] += 1
                        if deaths[place] < DEATHS:
                            say(f"{run.folder()}: ended by a signal; starting it again")
                            queue.appendleft(run)
                            continue
                    end(run, status)
                    left = [*running.values(), *queue]
                    done = f"[{len(runs) - len(left)}/{len(runs)}]"
                    say(f"{done}; {to_go(left)}" if left else done)
                stop.check()
        finally:
            if running:
                say(f"stopping {len(running)} run(s); those in training save first")
                pool.interrupt(list(running))
            while running:
                for handle, status in pool.ended(list(running)):
                    run = running.pop(handle)
                    if not _is_death(status):
                        end(run, status)
    return failed


def _is_death(status: int) -> bool:
    """Whether a signal ended a process, which it may have told by its exit status."""
    return status < 0 or status > 128


def _reason(output: Path, status: int) -> str:
    """The last line that a run printed, or what ended its processes."""
    if _is_death(status):
        ended = f"signal {-status if status < 0 else status - 128}"
        return f"{DEATHS} of its processes ended by {ended}; see {output}"
    lines = []
    with contextlib.suppress(OSError):
        lines = output.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"it ended with status {status}, without a word"


def start(
    arguments: list[str], output: Path, cores: list[int], environment: dict[str, str]
) -> subprocess.Popen:
    """Starts the main command; what it prints is added to a file."""
    listed = ",".join(map(str, cores))
    with output.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.sweep.child", listed, *arguments],
            stdin=subprocess.PIPE,  # closes when this process ends in any way, and ends the run
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C on a terminal is for the driver, which passes it on
        )


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
        self._cores: dict[subprocess.Popen, list[int]] = {}
        self.slots = self.at_once = workers

    def start(self, arguments: list[str], output: Path) -> subprocess.Popen:
        cores = self._free.pop()
        process = start(arguments, output, cores, {"PJRT_NPROC": str(len(cores))})
        self._cores[process] = cores
        return process

    def ended(self, running: list[Any]) -> list[tuple[Any, int]]:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            if ended := [process for process in running if process.poll() is not None]:
                for process in ended:
                    process.stdin.close()
                    self._free.append(self._cores.pop(process))
                return [(process, process.returncode) for process in ended]
            time.sleep(0.05)
        return []

    def interrupt(self, running: list[Any]) -> None:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
