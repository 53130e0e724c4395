"""Picture files by their paths: files, folders and globs."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from interflow_jax.data.dataset import printable
from interflow_jax.data.listing import ENDINGS, Unread, not_read, pictures_below


def find_pictures(
    paths: str | Path | Iterable[str | Path], notes: list[str] | None = None
) -> list[Path]:
    """The files that paths name, in order.

    Args:
      paths: one or more files, folders, whose pictures in and below are taken by their endings, and
        globs, as "more/*.png" and "more/**/*.jpg". Hidden files in folders are left out.
      notes: gets a line per folder on what in it is not read.

    Raises:
      ValueError: for a path that names no file, a folder without pictures, or no path.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not paths:
        raise ValueError("paths are []; give one or more files, folders or globs")
    files, unread = [], Unread(list)
    for given in paths:
        path = os.path.expanduser(given)
        matches = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        within = [
            sorted(pictures_below(folder, unread[folder])) if folder.is_dir() else [folder]
            for folder in map(Path, matches)
        ]
        if not matches or not any(within):
            why = f"holds no pictures ({', '.join(ENDINGS)})" if matches else "names no file"
            raise ValueError(
                f"{str(given)!r} {why}; give picture files, folders of them, or globs as 'a/*.png'"
            )
        files += [file for part in within for file in part]
    if notes is not None:
        notes += not_read(unread)
    return files


def class_by_folder(file: Path, class_names: Sequence[str]) -> int | None:
    """The class after which the nearest folder on the file's path is named; None without any."""
    for folder in reversed(file.parent.parts):
        if (name := printable(folder)) in class_names:
            return class_names.index(name)
    return None
