"""A run's folder: which configuration made it, its metrics and its result."""

import contextlib
import csv
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


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
        """
        self.check(identity)
        if not self._has_work():
            self.write_json("config.json", {"configuration": identity, **facts})

    def _has_work(self) -> bool:
        saved = self.checkpoints.exists() and any(
            path.name.isdigit() for path in self.checkpoints.iterdir()
        )
        return saved or (self.path / "result.json").exists()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from training in the folder; a killed one lets go of it.

        Raises:
          ValueError: if another process holds it.
        """
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"another process is training in {self.path}; wait for it, or stop it first"
                ) from error
            yield

    def result(self) -> dict[str, Any] | None:
        """result.json, if the run is finished."""
        return self.read_json("result.json") if (self.path / "result.json").exists() else None

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
        self._replace(name, json.dumps(content, indent=1) + "\n")

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Replaces metrics.csv: a row an epoch, a column a figure (see `flat`)."""
        rows = [flat(record) for record in history]
        draft = self.path / "metrics.csv.tmp"
        with draft.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        draft.replace(self.path / "metrics.csv")

    def open_events(self, history: list[dict[str, Any]]) -> SummaryWriter:
        """Starts the TensorBoard events anew with the epochs so far.

        A killed run may have written events of an epoch that it then repeats.
        """
        shutil.rmtree(self.path / "events", ignore_errors=True)
        writer = SummaryWriter(str(self.path / "events"))
        for record in history:
            add_events(writer, record)
        return writer

    def _replace(self, name: str, text: str) -> None:
        draft = self.path / f"{name}.tmp"
        draft.write_text(text)
        draft.replace(self.path / name)


def add_events(writer: SummaryWriter, record: dict[str, Any]) -> None:
    """Adds an epoch's figures to the TensorBoard events."""
    for name, value in flat(record).items():
        if name != "epoch":
            writer.add_scalar(name, value, record["epoch"])
    writer.flush()


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
