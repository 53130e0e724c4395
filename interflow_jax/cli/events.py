"""A run's TensorBoard events, without TensorFlow."""

import contextlib
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import hparams, scalar


class Events:
    """A run's TensorBoard events, written afresh in every session.

    A killed run may have written events of an epoch that it then repeats. tensorboardX's
    SummaryWriter is not used: a full disk kills its thread, and its callers then wait forever.
    """

    def __init__(self, folder: Path, options: dict[str, Any], class_names: Sequence[str]):
        self._folder, self._options, self._class_names = folder, options, class_names
        # As tensorboardX writes a tag; where two classes would share one, their numbers are told.
        if len({re.sub(r"[^-/\w.]", "_", name) for name in class_names}) < len(class_names):
            self._class_names = ()
        self._writer: EventsWriter | None = None
        self._written = 0  # epochs

    def write(self, history: list[dict[str, Any]]) -> None:
        """Adds the epochs that are not yet written."""
        try:
            if self._writer is None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder.mkdir(parents=True, exist_ok=True)
                self._writer = EventsWriter(str(self._folder / "events"))
                for summary in hparams(self._options, {"test_accuracy": None}):
                    self._add(0, summary)
            for record in history[self._written :]:
                for name, value in flat(record, self._class_names).items():
                    if name != "epoch":
                        self._add(record["epoch"], scalar(name, value))
            self._writer.flush()
            self._written = len(history)
        except OSError:
            self.close()
            raise

    def write_pictures(self, epoch: int, pictures: Path) -> None:
        """Adds the PNG files of a folder, after the epochs; a failure is the caller's to tell."""
        for file in sorted(pictures.glob("*.png")):
            with Image.open(file) as picture:
                width, height = picture.size
            image = Summary.Image(
                height=height, width=width, colorspace=4, encoded_image_string=file.read_bytes()
            )
            value = Summary.Value(tag=f"pictures/{file.stem}", image=image)
            self._add(epoch, Summary(value=[value]))

    def _add(self, epoch: int, summary: Any) -> None:
        if self._writer is not None:
            self._writer.write_event(Event(step=epoch, wall_time=time.time(), summary=summary))

    def close(self) -> None:
        """Closes the file; a failure loses nothing, as `write` has flushed."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
        self._writer, self._written = None, 0


def flat(record: dict[str, Any], class_names: Sequence[str] = ()) -> dict[str, float]:
    """An epoch's figures by name: "weights/7" for tap 7, "weights/7/0" for its class 0 or name."""
    figures: dict[str, float] = {}
    for name, value in record.items():
        parts = value
        if isinstance(value, list):
            by_class = class_names if len(class_names) == len(value) else range(len(value))
            parts = dict(zip(by_class, value, strict=True))
        if isinstance(parts, dict):
            inside = {f"{name}/{key}": part for key, part in parts.items()}
            figures |= flat(inside, class_names)
        else:
            figures[name] = parts
    return figures
