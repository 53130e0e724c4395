"""Checkpoints of a run: written whole or not at all, verified before they are read."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

KEPT = 2  # the newest: if the last is damaged, the one before is used
OVERHEAD = 1_000_000  # bytes: more than a checkpoint's files take beyond their arrays


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
            max_to_keep=KEPT,
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process, active_processes={process}
            ),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self.close = self._manager.close  # ends orbax's threads

    def save(self, number: int, state: Any, notes: dict) -> None:
        """Saves a pytree of arrays and JSON-able notes; raises UnwritableError with the reason."""
        arrays = jax.tree.map(np.asarray, serialization.to_state_dict(state))
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)) + OVERHEAD
        parts = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), notes=ocp.args.JsonSave(notes)
        )
        try:
            # Orbax reports a full disk in hundreds of lines on stderr.
            free = shutil.disk_usage(self._folder).free
            if free < needed:
                raise OSError(f"it needs {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free")
            self._manager.save(number, args=parts, force=True)
            draft = self._folder / "digests.tmp"
            draft.write_text(json.dumps(self._digests(number)))
            draft.replace(self._digests_file(number))
        except Exception as error:  # orbax and tensorstore raise errors of any type
            self.remove_drafts()
            raise UnwritableError(_first_line(error)) from error
        for old in self._folder.glob("*.sha256.json"):
            if not (self._folder / old.name.partition(".")[0]).exists():
                old.unlink()

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
                return self._read(number, like)
            except Exception as error:  # a broken file surfaces as any of a dozen types
                report(f"checkpoint {number} cannot be read: {_first_line(error)}")
        if numbers:
            none = f"none of the checkpoints in {self._folder} can be read"
            raise UnreadableError(f"{none}; move that folder away to begin anew")
        return None

    def remove_drafts(self) -> None:
        """Deletes what is left of checkpoints that a kill or a failure interrupted."""
        for draft in self._folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(draft, ignore_errors=True)

    def discard_after(self, number: int) -> None:
        """Deletes the checkpoints after `number`: those that `restore` could not read."""
        for newer in [step for step in self._manager.all_steps() if step > number]:
            self._manager.delete(newer)
            self._digests_file(newer).unlink(missing_ok=True)

    def _read(self, number: int, like: Any) -> Checkpoint:
        # A process killed between orbax's rename and ours leaves a whole one without digests.
        if self._digests_file(number).exists():
            saved = json.loads(self._digests_file(number).read_text())
            altered = sorted(dict(saved.items() - self._digests(number).items()))
            if altered:
                raise ValueError(f"{len(altered)} file(s) altered or missing, as {altered[0]}")
        template = like and jax.tree.map(
            lambda leaf: np.empty(leaf.shape, leaf.dtype), serialization.to_state_dict(like)
        )
        parts = ocp.args.Composite(
            state=ocp.args.StandardRestore(template), notes=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(number, args=parts)
        state = restored["state"]
        if like is not None:
            state = serialization.from_state_dict(like, state)
        return Checkpoint(number, state, dict(restored["notes"]))

    def _digests_file(self, number: int) -> Path:
        return self._folder / f"{number}.sha256.json"

    def _digests(self, number: int) -> dict[str, str]:
        folder = self._folder / str(number)
        return {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob("*")
            if file.is_file()
        }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def fingerprint(arrays: Any) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of a pytree's arrays: equal bit for bit."""
    hasher = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(serialization.to_state_dict(arrays)):
        array = np.asarray(leaf, order="C")
        hasher.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        hasher.update(array.tobytes())  # bfloat16 has no buffer
    return hasher.hexdigest()
