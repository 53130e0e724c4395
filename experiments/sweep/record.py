"""The record of a folder of results: every finished run in one file, OUT/runs.jsonl.

One line per run: `run`, the name of its folder below OUT/runs; the fields of its result.json; and
`history`, its metrics.csv as one dict per epoch. Read it with
`pandas.read_json("results/runs.jsonl", lines=True)`.
"""

import csv
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from interflow_jax.cli.config import RunConfig, recorded_identity
from interflow_jax.cli.files import read_json, write_whole
from interflow_jax.data.recipes import recipe

EXITS = "exits_by_fusion"
"""What the table `exits` measures of a run: a file in its folder, and a field of its line."""


def read(out: Path) -> list[dict[str, Any]]:
    """All finished runs: the lines of OUT/runs.jsonl, and newer run folders in OUT/runs."""
    return list((_lines(out / "runs.jsonl") | _folders(out / "runs")).values())


def write(out: Path) -> None:
    """Adds the finished run folders to OUT/runs.jsonl; other lines stay."""
    folders = _folders(out / "runs")
    if not folders:
        return
    with (out / ".runs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs = _lines(out / "runs.jsonl") | folders
        lines = [json.dumps(runs[name]) + "\n" for name in sorted(runs)]
        write_whole(out / "runs.jsonl", "".join(lines))


def key(identity: Mapping[str, Any]) -> str:
    """What two runs have in common exactly if they compute the same, by their `identity`."""
    whole = recipe(identity["dataset"]).train_examples
    size = identity["train_size"]
    return json.dumps({**identity, "train_size": whole if size is None else size}, sort_keys=True)


def unfinished(configs: Iterable[RunConfig], lines: Iterable[dict[str, Any]]) -> list[RunConfig]:
    """The runs that no line is of, each once, in order."""
    known = {key(recorded_identity(line)) for line in lines}
    todo = {key(config.identity()): config for config in configs}
    return [config for name, config in todo.items() if name not in known]


def _lines(file: Path) -> dict[str, dict[str, Any]]:
    """The lines of runs.jsonl by run name; none without the file."""
    runs = {}
    try:
        text = file.read_text().splitlines() if file.exists() else []
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}); restore it, or move it away") from error
    for number, line in enumerate(text, start=1):
        try:
            run = json.loads(line)
            _check(run)
            runs[run["run"]] = run
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{file}, line {number}, is not a run ({error!r:.100}); the others are whole: mend "
                "that line, or move it to another file"
            ) from error
    return runs


_FIGURES: dict[str, Any] = {
    "dataset": str,
    "test_accuracy": int | float,
    "branch_accuracy": list | None,
    "branches": list,
    "weights": list,
    "device": str,
    "versions": dict,
}
"""Types of entries that tables compute with."""


def _check(run: dict[str, Any]) -> None:
    """Raises TypeError or ValueError for entries of other types than a run records."""
    key(recorded_identity(run))
    for name, kind in _FIGURES.items():
        if name in run and not isinstance(run[name], kind):
            raise TypeError(f"{name} is {run[name]!r:.100}")
    if "branches" in run and not 0 < len(run["branches"]) == len(run.get("weights", ())):
        raise ValueError("branches and weights are not as many")


def _folders(runs: Path) -> dict[str, dict[str, Any]]:
    return {str(folder.relative_to(runs)): _line(folder, runs) for folder in _finished(runs)}


def _finished(runs: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(runs):
        if "result.json" in files:
            folders.clear()
            yield Path(place)


def _line(folder: Path, runs: Path) -> dict[str, Any]:
    remedy = "move it away, and the same command makes it again"
    result = read_json(folder / "result.json", remedy)
    try:
        _check(result)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'result.json'} is not a run's ({error!r:.150}); {remedy}"
        ) from error
    metrics = folder / "metrics.csv"
    try:
        rows = list(csv.DictReader(metrics.read_text().splitlines())) if metrics.exists() else []
        if metrics.exists() and not rows:
            raise ValueError("it has no epochs")
        history = [
            {name: float(value) for name, value in row.items()}
            | {"epoch": int(row["epoch"]), "test_accuracy": float(row["test_accuracy"])}
            for row in rows
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(f"{metrics} is not a run's ({error!r:.100}); {remedy}") from error
    line = {"run": str(folder.relative_to(runs)), **result, "history": history}
    if (folder / f"{EXITS}.json").exists():
        line[EXITS] = read_json(folder / f"{EXITS}.json", "move it away to measure it again")
    return line
