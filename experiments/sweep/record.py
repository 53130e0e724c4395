"""The record of a folder of results: every finished run in one file, runs.jsonl.

One line per run: `run`, the name of its folder below OUT/runs; the fields of its result.json; and
`history`, its metrics.csv as one dict per epoch. Read it with
`pandas.read_json("results/runs.jsonl", lines=True)`.
"""

import csv
import fcntl
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.runs.files import write_whole
from experiments.sweep.planning import Planned

EXITS = "exits_by_fusion"
"""What the table `exits` measures of a run: a file in its folder, and a field of its line."""


class Record:
    """What is known of the runs of a sweep: OUT/runs.jsonl, and newer run folders beside it.

    A run folder is read once, when its result is first asked for.
    """

    def __init__(self, out: Path):
        self._file = out / "runs.jsonl"
        self._runs = _read(self._file)
        self._from_folders: set[str] = set()

    def result(self, planned: Planned) -> dict[str, Any] | None:
        """The run's line, or None while it is unfinished."""
        if planned.name not in self._from_folders and planned.folder.is_finished():
            self._from_folders.add(planned.name)
            self._runs[planned.name] = _line(planned)
        return self._runs.get(planned.name)

    def finished(self, sweep: Iterable[Planned]) -> list[Planned]:
        return [planned for planned in sweep if self.result(planned) is not None]

    def unfinished(self, sweep: Iterable[Planned]) -> list[Planned]:
        return [planned for planned in sweep if self.result(planned) is None]

    def all(self) -> Iterable[dict[str, Any]]:
        """All known finished runs, of any sweep."""
        return self._runs.values()

    def write(self) -> None:
        """Adds the runs read from folders to runs.jsonl; lines of other sweeps stay."""
        if not self._from_folders:
            return
        with self._file.with_name(".runs.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            runs = _read(self._file) | {name: self._runs[name] for name in self._from_folders}
            lines = [json.dumps(runs[name]) + "\n" for name in sorted(runs)]
            write_whole(self._file, "".join(lines))


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """The lines of runs.jsonl by run name; none without the file."""
    runs = {}
    for number, line in enumerate(file.read_text().splitlines() if file.exists() else (), start=1):
        try:
            run = json.loads(line)
            runs[run["run"]] = run
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{file}, line {number}, is not a run ({error!r}); delete that line"
            ) from error
    return runs


def _line(planned: Planned) -> dict[str, Any]:
    metrics = planned.folder.path / "metrics.csv"
    rows = csv.DictReader(metrics.read_text().splitlines()) if metrics.exists() else ()
    history = [
        {name: float(value) for name, value in row.items()} | {"epoch": int(row["epoch"])}
        for row in rows
    ]
    line = {"run": planned.name, **planned.folder.read_json("result.json"), "history": history}
    if (planned.folder.path / f"{EXITS}.json").exists():
        line[EXITS] = planned.folder.read_json(f"{EXITS}.json")
    return line
