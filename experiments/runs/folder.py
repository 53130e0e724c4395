"""A run's folder: which configuration made it, its metrics and its result."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.cli.configuration import Configuration
from experiments.runs.events import flat
from experiments.runs.files import write_whole


class LockedError(ValueError):
    """Another process is training in the folder."""


class RunFolder:
    """The files of one run. Those that a run reads back are replaced whole, never half-written.

    config.json, metrics.csv, events/ (TensorBoard), checkpoints/, pictures/ and result.json.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.pictures = path / "pictures"

    def check(self, identity: dict[str, Any]) -> None:
        """Checks that any work in the folder is of the same configuration."""
        if not self._has_work():
            return
        # A flag newer than the folder had its default value.
        stored = {name: getattr(Configuration, name, None) for name in identity}
        stored |= self.read_json("config.json").get("configuration", {})
        difference = ", ".join(
            f"{name} {value!r} there, {identity.get(name)!r} asked for"
            for name, value in stored.items()
            if value != identity.get(name)
        )
        if difference:
            raise ValueError(
                f"{self.path} was made by another configuration ({difference}); give another "
                "--out, or delete that folder"
            )

    def claim(self, identity: dict[str, Any], facts: dict[str, Any]) -> None:
        """Writes config.json, unless there is work of the same configuration."""
        with self.locked():
            self.check(identity)
            if not self._has_work():
                self.write_json("config.json", {"configuration": identity, **facts})

    def statistics(self) -> dict[str, tuple[float, ...]]:
        """The channels' mean and deviation that the folder's work, if any, began with."""
        facts = self.read_json("config.json") if self._has_work() else {}
        return {name: tuple(values) for name, values in facts.get("statistics", {}).items()}

    def keep_statistics(self, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        """Adds them to config.json, so that a streamed split is not read again for them."""
        statistics = {"statistics": {"mean": list(mean), "deviation": list(deviation)}}
        facts = self.read_json("config.json")
        if facts != facts | statistics:
            self.write_json("config.json", facts | statistics)

    def _has_work(self) -> bool:
        return self.has_checkpoints() or self.is_finished()

    def has_checkpoints(self) -> bool:
        """Whether there are any checkpoints, readable or not."""
        return any(path.name.isdigit() for path in self.checkpoints.glob("*"))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in the folder; a killed process releases the lock."""
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LockedError(
                    f"another process is training in {self.path}; wait for it, or stop it first"
                ) from error
            yield

    def is_finished(self) -> bool:
        return (self.path / "result.json").exists()

    def result(self) -> dict[str, Any] | None:
        """result.json, if the run is finished."""
        return self.read_json("result.json") if self.is_finished() else None

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.path / name} cannot be read ({error}); is {self.path} a run's folder?"
            ) from error

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        write_whole(self.path / name, json.dumps(content, indent=1) + "\n")

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Replaces metrics.csv: a row per epoch, a column per figure (see `flat`)."""
        rows = pd.DataFrame([flat(record) for record in history])
        write_whole(self.path / "metrics.csv", rows.to_csv(index=False))
