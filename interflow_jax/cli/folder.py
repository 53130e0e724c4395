"""A run's folder: which configuration made it, its metrics and its result."""

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interflow_jax.cli.config import recorded_identity
from interflow_jax.cli.events import flat
from interflow_jax.cli.files import locked, read_json, writable, write_whole
from interflow_jax.saved_run import reading

_APART = "give another --out, or move that folder away"


class RunFolder:
    """The files of one run. Those that a run reads back are replaced whole, never half-written.

    config.json, metrics.csv, events/ (TensorBoard), checkpoints/, pictures/ and result.json; of a
    run that keeps its best epoch, best/.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.best = path / "best"
        self.pictures = path / "pictures"

    def check(self, identity: dict[str, Any]) -> None:
        """Checks that any work in the folder is of the same configuration."""
        if not self.has_work():
            return
        stored = self.fact("configuration")
        with reading(self.path / "config.json", _APART):
            stored["method"]  # every run recorded one; a list or a word has none
            stored = recorded_identity(stored)
        difference = ", ".join(
            f"{name} {stored.get(name)!r} there, {identity.get(name)!r} asked for"
            for name in sorted({*stored, *identity})
            if stored.get(name) != identity.get(name)
        )
        if difference:
            raise ValueError(
                f"{self.path} was made by another configuration ({difference}); {_APART}"
            )

    def claim(self, identity: dict[str, Any], facts: dict[str, Any]) -> None:
        """Writes config.json, unless there is work of the same configuration."""
        writable(self.path)
        with locked(self.path):
            self.check(identity)
            if not self.has_work():
                self.write_json("config.json", {"configuration": identity, **facts})

    @contextlib.contextmanager
    def provisional(self) -> Iterator[None]:
        """Takes back folders that the block made, if it fails before there is any work in them."""
        made = [place for place in (self.path, *self.path.parents) if not place.exists()]
        try:
            yield
        except BaseException:
            if made and not self.has_work():
                with contextlib.suppress(OSError):  # something else is in it by now
                    for name in ("config.json", ".lock"):
                        (self.path / name).unlink(missing_ok=True)
                    for place in made:
                        place.rmdir()
            raise

    def statistics(self) -> dict[str, tuple[float, ...]]:
        """The channels' mean and deviation that the folder's work, if any, began with."""
        stored = self.fact("statistics") if self.has_work() else None
        if not stored:
            return {}
        with reading(self.path / "config.json", f"restore it, or {_APART}"):
            return {name: tuple(map(float, stored[name])) for name in ("mean", "deviation")}

    def keep(self, **facts: Any) -> None:
        """Adds facts to config.json, unless it has them."""
        config = self._config()
        if config != config | facts:
            self.write_json("config.json", config | facts)

    def claim_data(self, digest: str) -> None:
        """Notes what the work is done on; raises ValueError if it was begun on other data."""
        stored = self.fact("data")
        if stored is None and self.has_work():
            print(f"{self.path} does not say what data it was trained on; taken as the same")
        elif stored not in (None, digest):
            raise ValueError(
                f"{self.path} was trained on other data of the same name (digest {stored}, now "
                f"{digest}: files, labels, classes or their versions differ); {_APART}"
            )
        self.keep(data=digest)

    def fact(self, name: str) -> Any:
        """What config.json says under a name; None if it does not."""
        return self._config().get(name)

    def _config(self) -> dict[str, Any]:
        return read_json(self.path / "config.json", f"restore it, or {_APART}")

    def has_work(self) -> bool:
        """Whether a run began here: there are checkpoints, or its result."""
        return self.has_checkpoints() or self.is_finished()

    def has_checkpoints(self) -> bool:
        """Whether there are any checkpoints, readable or not."""
        return self.newest_checkpoint() >= 0

    def newest_checkpoint(self) -> int:
        """The number of the newest checkpoint, readable or not; -1 without any."""
        try:
            names = [path.name for path in self.checkpoints.iterdir()]
        except OSError:
            return -1
        return max((int(name) for name in names if name.isdigit()), default=-1)

    def is_finished(self) -> bool:
        return (self.path / "result.json").exists()

    def result(self) -> dict[str, Any] | None:
        """result.json, if the run is finished."""
        if not self.is_finished():
            return None
        remedy = "move it away, and the same command makes it again from the last checkpoint"
        return read_json(self.path / "result.json", remedy)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        write_whole(self.path / name, json.dumps(content, indent=1) + "\n")

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Replaces metrics.csv: a row per epoch, a column per figure (see `flat`)."""
        rows = [flat(record) for record in history]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path / "metrics.csv", text.getvalue())
