"""Files that are written whole, folders that can be written to, and a lock on a folder."""

import contextlib
import fcntl
import json
import os
import socket
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interflow_jax.saved_run import reading

_DRAFT = ".draft-"  # how the names of unfinished files begin


class LockedError(ValueError):
    """Another process is at work in the folder."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces a file atomically: whatever happens, it is the old one or the new one, whole.

    Both the content and the new name are on disk when this returns, and survive a loss of power. A
    link stays and its target is replaced; what is no regular file, such as a pipe, is written to.
    """
    content = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path = path.resolve()
    draft = path.with_name(f"{_DRAFT}{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if path.exists():
            os.chmod(draft, path.stat().st_mode & 0o777)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def writable(folder: Path) -> None:
    """Creates a folder and proves that files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"cannot write to {folder} ({error.strerror}); free it, or choose another folder"
        ) from error


def output_file(name: str) -> Path:
    """A file that can be written; raises ValueError for any other. Its folder is not made yet."""
    path = Path(name).expanduser()
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            raise ValueError(f"--out={name} is a folder; give a file")
        if not path.is_file():
            return path  # such as a pipe, beside which nothing is written
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ValueError(
            f"--out={name} cannot be written ({error.strerror}); give another file"
        ) from error
    writable(next(place for place in path.parents if place.exists()))
    return path


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Reads an object; an error names the file, and ends with the remedy."""
    with reading(path, remedy):
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not names and values")
    return content


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from working in a folder; a killed process releases the lock.

    What it was writing, in folders below as well, is deleted.

    Raises:
      LockedError: names the process that holds the lock.
    """
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = " ".join(lock.read(200).split()) or "another process"
            raise LockedError(
                f"{holder} is training in {folder}; wait for it, or stop it first"
            ) from error
        lock.truncate(0)
        with contextlib.suppress(OSError):  # a full disk keeps nobody from training
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
        for draft in folder.rglob(f"{_DRAFT}*"):
            with contextlib.suppress(OSError):
                draft.unlink()
        yield
