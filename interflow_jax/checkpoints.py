"""Checkpoints of a run: written whole or not at all, verified before they are read."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

KEPT = 2  # the newest: if the last is damaged, the one before is used
_PATTERN = "*?[]{}"
_DRAFT = "digests.tmp"
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)


class Checkpoint(NamedTuple):
    """A restored checkpoint: the number it was saved under, its state, and its notes."""

    number: int
    state: Any
    notes: dict


class UnreadableError(RuntimeError):
    """There are checkpoints, but none can be read."""


class UnwritableError(RuntimeError):
    """A checkpoint could not be written; those before it are as they were."""


class Checkpoints:
    """The checkpoints in one folder.

    Orbax writes each to a temporary folder and renames it when complete, so that a process killed
    at any moment leaves the one before. It may miss that a file was altered, so the digest of every
    file is kept beside the checkpoint and compared before reading. Of several processes, only one
    saves and restores, and only states of which it has every array whole.
    """

    def __init__(self, folder: Path):
        self._folder = folder.resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        process = jax.process_index()
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process, active_processes={process}
            ),
        )
        self._closing = contextlib.ExitStack()
        self._failed = False  # whether a save has; threads may go on writing its draft for a while
        place = self._folder
        if set(_PATTERN) & set(str(place)):
            # Orbax takes a path for a pattern when it merges its database, and would save nothing
            # in a folder named so. It is given a link without such characters.
            links = self._closing.enter_context(tempfile.TemporaryDirectory(prefix="interflow_"))
            place = Path(links) / "checkpoints"
            place.symlink_to(self._folder)
        with _quiet():
            self._manager = ocp.CheckpointManager(place, options=options)
        self._closing.callback(self._manager.close)

    def close(self) -> None:
        """Ends orbax's threads."""
        self._closing.close()
        if self._failed:
            self.remove_drafts()

    def save(self, number: int, state: Any, notes: dict) -> None:
        """Saves a pytree of arrays and JSON-able notes; raises UnwritableError with the reason."""
        arrays = jax.tree.map(np.asarray, _nested(state))
        parts = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), notes=ocp.args.JsonSave(notes)
        )
        _leave_out_echoes()
        if self._failed:
            self.remove_drafts()
        try:
            with _quiet():
                self._manager.save(number, args=parts, force=True)
                self._manager.item_metadata(number)  # reads its index back
            self._write_digests(number)
        except Exception as error:  # orbax and tensorstore raise errors of any type
            self._failed = True
            self.remove_drafts()
            shutil.rmtree(self._folder / str(number), ignore_errors=True)
            self._manager.reload()
            raise UnwritableError(_first_line(error)) from error
        for old in sorted(self._manager.all_steps())[:-KEPT]:
            self._delete(old)

    def restore(
        self, like: Any = None, report: Callable[[str], None] = lambda line: None
    ) -> Checkpoint | None:
        """Restores the newest readable checkpoint; None if there are no checkpoints.

        Args:
          like: a pytree of arrays or of `jax.ShapeDtypeStruct`; None for nested dicts as saved.
          report: called with a line about each checkpoint that cannot be read.

        Raises:
          UnreadableError: if there are checkpoints, but none can be read.
        """
        numbers = sorted(self._manager.all_steps(), reverse=True)
        for number in numbers:
            try:
                with _quiet():
                    return self._read(number, like)
            except Exception as error:  # a broken file surfaces as any of a dozen types
                report(f"checkpoint {number} cannot be read: {_first_line(error)}")
        if numbers:
            none = f"none of the checkpoints in {self._folder} can be read"
            raise UnreadableError(f"{none}; move that folder away to begin anew")
        return None

    def complete(self, number: int) -> None:
        """Writes the digests of a checkpoint that was read, where a kill came before they were."""
        with contextlib.suppress(OSError):
            if not self._digests_file(number).exists():
                self._write_digests(number)

    def remove_drafts(self) -> None:
        """Deletes what is left of checkpoints that a kill or a failure interrupted."""
        (self._folder / _DRAFT).unlink(missing_ok=True)
        for path in self._folder.iterdir():
            if ".orbax-checkpoint-tmp" in path.name:
                shutil.rmtree(path, ignore_errors=True)
            number, ending, _ = path.name.partition(".sha256.json")
            if ending and not (self._folder / number).exists():
                path.unlink(missing_ok=True)

    def discard_after(self, number: int) -> None:
        """Deletes the checkpoints after `number`: those that `restore` could not read."""
        for newer in [step for step in self._manager.all_steps() if step > number]:
            self._delete(newer)

    def _delete(self, number: int) -> None:
        with contextlib.suppress(OSError), _quiet():  # what stays does no harm
            self._manager.delete(number)
            self._digests_file(number).unlink(missing_ok=True)

    def _read(self, number: int, like: Any) -> Checkpoint:
        # A process killed between orbax's rename and ours leaves a whole one without digests.
        if self._digests_file(number).exists():
            saved = json.loads(self._digests_file(number).read_text())
            altered = sorted(dict(saved.items() - self._digests(number).items()))
            if altered:
                raise ValueError(f"{len(altered)} file(s) altered or missing, as {altered[0]}")
        template = like and jax.tree.map(
            lambda leaf: np.empty(leaf.shape, leaf.dtype), _nested(like)
        )
        parts = ocp.args.Composite(
            state=ocp.args.StandardRestore(template), notes=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(number, args=parts)
        state = restored["state"]
        if like is not None:
            state = serialization.from_state_dict(like, serialization.to_state_dict(like) | state)
        return Checkpoint(number, state, dict(restored["notes"]))

    def _write_digests(self, number: int) -> None:
        draft = self._folder / _DRAFT
        draft.write_text(json.dumps(self._digests(number)))
        draft.replace(self._digests_file(number))

    def _digests_file(self, number: int) -> Path:
        return self._folder / f"{number}.sha256.json"

    def _digests(self, number: int) -> dict[str, str]:
        folder = self._folder / str(number)
        return {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob("*")
            if file.is_file()
        }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps orbax from logging what it raises: that says enough, a full disk in a word."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@cache
def _leave_out_echoes() -> None:
    """Keeps tensorstore, asyncio and orbax from printing how the other writes of a failed save end.

    For the rest of the process: they end later, tell the event loop of that save, which orbax has
    closed, and are collected as tasks that nobody asked.
    """
    hook = sys.unraisablehook

    def without(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = without
    echoes = {"asyncio": "exception was never retrieved", "absl": "_SignalingThread.run() raised"}
    for name, echo in echoes.items():
        logger = logging.getLogger(name)
        logger.addFilter(lambda record, echo=echo: echo not in record.getMessage())


def _nested(state: Any) -> dict[str, Any]:
    """A pytree as nested dicts, without empty fields that older checkpoints lack."""
    parts, younger = serialization.to_state_dict(state), ("collections", "average")
    return {name: part for name, part in parts.items() if name not in younger or part}


def _first_line(error: Exception) -> str:
    for number in _OF_DISKS:  # said after hundreds of characters of tensorstore's
        if os.strerror(number) in str(error):
            return os.strerror(number)
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def fingerprint(arrays: Any) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of a pytree's arrays: equal bit for bit."""
    hasher = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(serialization.to_state_dict(arrays)):
        array = np.asarray(leaf, order="C")
        hasher.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        hasher.update(array.tobytes())  # bfloat16 has no buffer
    return hasher.hexdigest()
