"""A run's TensorBoard events, without TensorFlow."""

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar


class Events:
    """A run's TensorBoard events, written afresh in every session.

    A killed run may have written events of an epoch that it then repeats. tensorboardX's
    SummaryWriter is not used: a full disk kills its thread, and its callers then wait forever.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._writer: EventsWriter | None = None
        self._written = 0  # epochs

    def write(self, history: list[dict[str, Any]]) -> None:
        """Adds the epochs that are not yet written."""
        try:
            if self._writer is None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder.mkdir(parents=True, exist_ok=True)
                self._writer = EventsWriter(str(self._folder / "events"))
            for record in history[self._written :]:
                for name, value in flat(record).items():
                    if name != "epoch":
                        facts = {"step": record["epoch"], "wall_time": time.time()}
                        self._writer.write_event(Event(**facts, summary=scalar(name, value)))
            self._writer.flush()
            self._written = len(history)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file; a failure loses nothing, as `write` has flushed."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
        self._writer, self._written = None, 0


def flat(record: dict[str, Any]) -> dict[str, float]:
    """An epoch's figures by name: "weights/7" for tap 7, "weights/7/0" for its class 0."""
    figures: dict[str, float] = {}
    for name, value in record.items():
        parts = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(parts, dict):
            figures |= flat({f"{name}/{key}": part for key, part in parts.items()})
        else:
            figures[name] = parts
    return figures
