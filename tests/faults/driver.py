"""Repeats one small run with a failure injected at one point after another.

python -m tests.faults.driver ROOT LIBRARY FIRST EVERY, with LIBRARY in LD_PRELOAD

Imports once, then forks a worker, which shares the compiled programs among its runs, and another
when one is killed. Each point has a folder of its own, where the command runs twice, with a failure
and without. Prints a line of JSON per point.
"""

import ctypes
import json
import multiprocessing
import os
import shutil
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax

from interflow_jax.checkpoints import fingerprint
from interflow_jax.cli import charts, events, single  # noqa: F401 (imported before the forks)
from interflow_jax.cli.commands import run  # noqa: F401
from interflow_jax.cli.main import main
from interflow_jax.saved_run import load_run
from interflow_jax.trainer import Trainer

MODES = ("ENOSPC", "EIO", "kill before", "kill after", "full from")
FLAGS = [
    "--method=S1",
    "--depth=4",
    "--taps=3,4",
    "--width=0.0625",
    "--train_size=128",
    "--epochs=2",
    "--checkpoint_minutes=1000",
]
FOLDER = Path("fashion_mini/S1/seed0")
SAME = ("fingerprint", "train_loss", "test_loss", "test_accuracy", "branch_accuracy", "weights")
SECONDS = 300


class Worker:
    """A fork that does run after run; the programs of its first one serve all."""

    def __init__(self, library: ctypes.CDLL):
        self._library = library
        self._process: multiprocessing.process.BaseProcess | None = None

    def run(self, out: Path, point: int, mode: int) -> tuple[int, str, dict | None]:
        """Does a run; returns its exit status, negative for a signal, what it said, its figures.

        Args:
          point: number of the call that fails, of those that are counted.
          mode: 0 to count them all, 1 on for `MODES`, -1 to leave them alone.
        """
        if self._process is None:
            self._tasks, theirs = multiprocessing.Pipe()
            fork = multiprocessing.get_context("fork")
            self._process = fork.Process(target=self._work, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        self._tasks.send((str(out), point, mode))
        if not (in_time := self._tasks.poll(SECONDS)):
            self._process.kill()
        try:
            status, found = self._tasks.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            status, found = (self._process.exitcode or 0) if in_time else 124, None
            self._process = None
        return status, Path(f"{out}.output{mode}").read_text(errors="replace"), found

    def _work(self, tasks: Connection) -> None:
        while True:
            tasks.send(self._task(*tasks.recv()))

    def _task(self, out: str, point: int, mode: int) -> tuple[int, dict | None]:
        log, said = (
            os.open(f"{out}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            for name in ("calls", f"output{mode}")
        )
        os.dup2(said, 1)
        os.dup2(said, 2)
        if mode >= 0:
            self._library.inject_arm(out.encode(), ctypes.c_long(point), mode, log)
        status, found = 70, None
        try:
            status = main("run", [*FLAGS, f"--out={out}"])
            self._library.inject_arm(b"/nonexistent", ctypes.c_long(0), 0, -1)
            if status == 0 and mode <= 0:
                found = figures(Path(out))
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os.close(log)
        os.close(said)
        return status, found


def figures(out: Path) -> dict:
    """What an undisturbed run also has: its result's figures, its metrics, its pictures."""
    folder = out / FOLDER
    result = json.loads((folder / "result.json").read_text())
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    timed = rows[0].index("images_per_second")
    digest = fingerprint(load_run(folder).variables["params"])
    return {
        **{name: result[name] for name in SAME},
        "saved": digest == result["fingerprint"],
        "metrics": [row[:timed] + row[timed + 1 :] for row in rows],
        "pictures": sorted(file.name for file in (folder / "pictures").iterdir()),
        "files": sorted(
            "events" if "tfevents" in file.name else file.name
            for file in folder.rglob("*")
            if file.is_file() and "checkpoints" not in file.parts and "pictures" not in file.parts
        ),
        "last": max(path.name for path in (folder / "checkpoints").iterdir()),
        "drafts": [path.name for path in folder.rglob("*") if "tmp" in path.name],
    }


def point(root: Path, worker: Worker, number: int, mode: int, expected: dict) -> dict:
    """A run with a failure and the same command again: what is wrong with them."""
    for attempt in range(3):  # a run may have fewer calls than those that were counted
        out = root / f"point{number}mode{mode}attempt{attempt}"
        status, said, _ = worker.run(out, number, mode)
        fired = Path(f"{out}.calls").read_text(errors="replace").splitlines()
        if fired:
            break
    about = {"point": number, "mode": MODES[mode - 1], "status": status}
    about["call"] = fired[0] if fired else None
    problems = [] if fired else ["it did not fire"]
    if status not in ((-9,) if mode in (3, 4) else (0, 1, 2)):
        problems.append(f"status {status}: {said[-600:]}")
    if "Traceback" in said:
        problems.append(f"a traceback: {said[-600:]}")
    status, said, found = worker.run(out, 0, -1)
    if status != 0 or "Traceback" in said or found is None:
        problems.append(f"then status {status}: {said[-600:]}")
    else:
        for name, value in expected.items():
            if found[name] != value:
                problems.append(f"{name} is {found[name]!r}, not {value!r}"[:400])
    if not problems:
        shutil.rmtree(out)
    return {**about, "problems": problems}


def drive(root: Path, library: ctypes.CDLL, first: int, every: int) -> None:
    """Prints the calls of an undisturbed run, then a line per point and mode."""
    worker = Worker(library)
    # The first run also compiles, and how many files a checkpoint has depends on its threads: the
    # shortest of three runs has the calls that every run has.
    counts = []
    for repeat in range(3):
        whole = root / f"whole{first}repeat{repeat}"
        _, said, expected = worker.run(whole, 0, 0)
        assert expected, said
        counts.append((Path(f"{whole}.calls").read_text().splitlines(), whole))
    calls, whole = min(counts, key=lambda count: len(count[0]))
    print(json.dumps({"calls": [line.replace(str(whole), "") for line in calls]}), flush=True)
    pairs = [(number, mode) for number in range(1, len(calls) + 1) for mode in range(1, 6)]
    for number, mode in pairs[first::every]:
        print(json.dumps(point(root, worker, number, mode, expected)), flush=True)


if __name__ == "__main__":
    shared: list[Trainer] = []  # of a worker

    def trainer(*arguments: Any, **options: Any) -> Trainer:
        if not shared:
            shared.append(Trainer(*arguments, **options))
        return shared[0]

    single.Trainer = trainer  # type: ignore[misc]
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    library = ctypes.CDLL(sys.argv[2])
    drive(Path(sys.argv[1]), library, int(sys.argv[3]), int(sys.argv[4]))
