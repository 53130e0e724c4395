"""Picture files by their paths: files, folders and globs."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from interflow_jax.data.dataset import printable
from interflow_jax.data.listing import ENDINGS


def find_pictures(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files that paths name, in order.

    Args:
      paths: one or more files, folders, whose pictures in and below are taken by their endings, and
        globs, as "more/*.png" and "more/**/*.jpg". Hidden files in folders are left out.

    Raises:
      ValueError: for a path that names no file, a folder without pictures, or no path.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not paths:
        raise ValueError("paths are []; give one or more files, folders or globs")
    files = []
    for given in paths:
        path = os.path.expanduser(given)
        matches = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        within = [_within(match) if os.path.isdir(match) else [Path(match)] for match in matches]
        if not matches or not any(within):
            why = f"holds no pictures ({', '.join(ENDINGS)})" if matches else "names no file"
            raise ValueError(
                f"{str(given)!r} {why}; give picture files, folders of them, or globs as 'a/*.png'"
            )
        files += [file for part in within for file in part]
    return files


def _within(folder: str) -> list[Path]:
    """The pictures in a folder and below, by path."""
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        shown = [name for name in names if not name.startswith(".")]
        files += [Path(place, name) for name in shown if name.lower().endswith(ENDINGS)]
    return sorted(files)


def class_by_folder(file: Path, class_names: Sequence[str]) -> int | None:
    """The class after which the nearest folder on the file's path is named; None without any."""
    for folder in reversed(file.parent.parts):
        if (name := printable(folder)) in class_names:
            return class_names.index(name)
    return None
