"""The record of a folder of results: every finished run in one file, OUT/runs.jsonl.

One line per run: `run`, the name of its folder below OUT/runs; the fields of its result.json; and
`history`, its metrics.csv as one dict per epoch. Read it with
`pandas.read_json("results/runs.jsonl", lines=True)`.
"""

import contextlib
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

EXITS, PROBES = "exits_by_fusion", "probes"
"""What tables of these names measure of a run: files in its folder, and fields of its line."""


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
    with _named(f"{file} cannot be read", "restore it, or move it away"):
        text = file.read_text().splitlines() if file.exists() else []
    remedy = "the others are whole: mend that line, or move it to another file"
    for number, line in enumerate(text, start=1):
        with _named(f"{file}, line {number}, is not a run", remedy):
            run = json.loads(line)
            _check(run)
            runs[run["run"]] = run
    return runs


def _folders(runs: Path) -> dict[str, dict[str, Any]]:
    """The finished run folders below RUNS, as lines by run name."""
    lines = {}
    for place, folders, files in os.walk(runs):
        if "result.json" in files:
            folders.clear()
            folder = Path(place)
            lines[str(folder.relative_to(runs))] = _line(folder, runs)
    return lines


def _line(folder: Path, runs: Path) -> dict[str, Any]:
    remedy = "move it away, and the same command makes it again"
    result = read_json(folder / "result.json", remedy)
    with _named(f"{folder / 'result.json'} is not a run's", remedy):
        _check(result)
    metrics, history = folder / "metrics.csv", []
    with _named(f"{metrics} is not a run's", remedy):
        if metrics.exists():
            for row in csv.DictReader(metrics.read_text().splitlines()):
                values = {name: float(value) for name, value in row.items()}
                history.append(values | {"epoch": int(row["epoch"])})
            history[-1]["test_accuracy"]  # it has epochs, and this figure
    line = {"run": str(folder.relative_to(runs)), **result, "history": history}
    for name in (EXITS, PROBES):
        if (folder / f"{name}.json").exists():
            line[name] = read_json(folder / f"{name}.json", "move it away to measure it again")
    return line


FIGURES: dict[str, Any] = {
    "test_accuracy": int | float,
    "branch_accuracy": list | None,
    "branches": list,
    "weights": list,
    "class_names": list,
    "image_shape": list,
    "device": str,
    "versions": dict,
}
"""What tables need of every run, and its types."""


def _check(run: dict[str, Any]) -> None:
    """Raises an error for a run without its figures, or with others than a run records."""
    key(recorded_identity(run))
    for name, kind in FIGURES.items():
        if not isinstance(run[name], kind):
            raise TypeError(f"{name} is {run[name]!r:.100}")
    if not 0 < len(run["branches"]) == len(run["weights"]):
        raise ValueError("branches and weights are not as many")


@contextlib.contextmanager
def _named(wrong: str, remedy: str) -> Iterator[None]:
    """Makes whatever damage the block finds a ValueError that says what is wrong."""
    try:
        yield
    except Exception as error:  # whatever its contents make Python and json raise
        raise ValueError(f"{wrong} ({error!r:.150}); {remedy}") from error
