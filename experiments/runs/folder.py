"""A run's folder: which configuration made it, its metrics and its result."""

import contextlib
import csv
import fcntl
import importlib.metadata
import io
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


class HeldError(ValueError):
    """Another process is training in the folder."""


class RunFolder:
    """The files of one run. What a run reads again is replaced whole, never half written.

    config.json, metrics.csv, events/ (TensorBoard), checkpoints/, pictures/ and result.json.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.pictures = path / "pictures"

    def check(self, identity: dict[str, Any]) -> None:
        """Checks that what the folder holds, if anything, was made by the same configuration.

        Raises:
          ValueError: with the difference, if it was not, or config.json cannot be read.
        """
        if not self._has_work():
            return
        there = self.read_json("config.json").get("configuration", {})
        different = [key for key in {**there, **identity} if there.get(key) != identity.get(key)]
        if different:
            difference = ", ".join(
                f"{key} {there.get(key)!r} there, {identity.get(key)!r} asked for"
                for key in different
            )
            raise ValueError(
                f"{self.path} was made by another configuration ({difference}); give another "
                "--out, or delete that folder"
            )

    def claim(self, identity: dict[str, Any], facts: dict[str, Any]) -> None:
        """Writes config.json, unless there is work of the same configuration.

        Raises:
          ValueError: as `check`.
          HeldError: as `held`.
        """
        with self.held():
            self.check(identity)
            if not self._has_work():
                self.write_json("config.json", {"configuration": identity, **facts})

    def _has_work(self) -> bool:
        return self.has_checkpoints() or (self.path / "result.json").exists()

    def has_checkpoints(self) -> bool:
        """Whether there are some, readable or not."""
        return any(path.name.isdigit() for path in self.checkpoints.glob("*"))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from training in the folder; a killed one lets go of it.

        Raises:
          HeldError: if another process holds it.
        """
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise HeldError(
                    f"another process is training in {self.path}; wait for it, or stop it first"
                ) from error
            yield

    def is_finished(self) -> bool:
        """Whether the run has its result."""
        return (self.path / "result.json").exists()

    def result(self) -> dict[str, Any] | None:
        """result.json, if the run is finished."""
        return self.read_json("result.json") if self.is_finished() else None

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a file of the folder.

        Raises:
          ValueError: if it is missing or not JSON.
        """
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.path / name} cannot be read ({error}); is {self.path} a run's folder?"
            ) from error

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Replaces a file of the folder."""
        write_whole(self.path / name, json.dumps(content, indent=1) + "\n")

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Replaces metrics.csv: a row an epoch, a column a figure (see `flat`)."""
        rows = [flat(record) for record in history]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path / "metrics.csv", text.getvalue())


class Events:
    """A run's TensorBoard events, begun anew in every sitting.

    A killed run may have written events of an epoch that it then repeats. tensorboardX's
    SummaryWriter is not used: its thread dies of a full disk, and its callers then wait for ever.
    """

    def __init__(self, folder: RunFolder):
        self._folder = folder.path / "events"
        self._writer: EventsWriter | None = None
        self._written = 0  # epochs

    def write(self, history: list[dict[str, Any]]) -> None:
        """Adds the epochs that are not written yet.

        Raises:
          OSError: as of a full disk; the next call then begins anew.
        """
        try:
            if self._writer is None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder.mkdir(parents=True, exist_ok=True)
                self._writer = EventsWriter(str(self._folder / "events"))
            for record in history[self._written :]:
                for name, value in flat(record).items():
                    if name != "epoch":
                        event = Event(step=record["epoch"], summary=scalar(name, value))
                        event.wall_time = time.time()
                        self._writer.write_event(event)
            self._writer.flush()
            self._written = len(history)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file; a failure costs nothing, for `write` has flushed."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
        self._writer, self._written = None, 0


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces a file at once: whatever happens, it is the old one or the new one, whole."""
    draft = path.with_name(f"{path.name}.tmp")
    draft.write_bytes(content.encode() if isinstance(content, str) else content)
    draft.replace(path)


def flat(record: dict[str, Any]) -> dict[str, float]:
    """An epoch's figures with a name each: "weights/7" of tap 7, "weights/7/0" of its class 0."""
    figures: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            figures |= flat({f"{name}/{key}": part for key, part in value.items()})
        elif isinstance(value, list):
            figures |= {f"{name}/{index}": part for index, part in enumerate(value)}
        else:
            figures[name] = value
    return figures


def versions() -> dict[str, str]:
    """Versions of Python and of what the figures depend on."""
    packages = {name: importlib.metadata.version(name) for name in VERSIONED}
    return {"python": platform.python_version(), **packages}


def device() -> str:
    """The devices in words."""
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}"
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line for line in information.read_text().splitlines() if "model name" in line]
        model = names[0].partition(":")[2].strip() if names else model
    shared = f" as {len(devices)} devices" if len(devices) > 1 else ""
    return f"CPU, {os.cpu_count()} cores{shared}, {model}"
