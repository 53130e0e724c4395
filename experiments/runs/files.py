"""Files that are written whole, and folders that can be written to."""

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces a file atomically: whatever happens, it is the old one or the new one, whole.

    Both the content and the new name are on disk when this returns, and survive a loss of power.
    """
    draft = path.with_name(f"{path.name}.tmp")
    with draft.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def writable(folder: Path) -> None:
    """Creates a folder and proves that files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink(missing_ok=True)  # another process may probe at the same time
    except OSError as error:
        raise ValueError(
            f"cannot write to {folder} ({error.strerror}); give another folder by --out"
        ) from error
