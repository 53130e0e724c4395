"""Datasets from pictures in folders, one folder per class."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from interflow_jax.data import pictures
from interflow_jax.data.dataset import VARYING_SIZE, Dataset, clean_names
from interflow_jax.data.listing import Files, list_pictures
from interflow_jax.data.pictures import LARGEST_SIDE, Resize, check_image_size


@dataclass(frozen=True)
class PictureSplit:
    """Examples in picture files, decoded on demand and fitted to `image_shape`."""

    files: list[Path]
    labels: np.ndarray  # [examples], int32
    image_shape: tuple[int, int, int]
    resize: Resize = "squash"

    def __len__(self) -> int:
        return len(self.files)

    def read(
        self, indices: np.ndarray, draws: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        files = ((self.files[index], None) for index in indices.tolist())
        return pictures.fit_all(files, self.image_shape, draws, self.resize), self.labels[indices]


def from_folder(
    path: str | Path, image_size: int | None = None, resize: Resize = "squash"
) -> Dataset:
    """A dataset of the pictures in and below PATH/train/CLASS and PATH/test/CLASS.

    The folders may be called training, and testing, val, valid or validation, in any capitals.
    Without one, every tenth picture of a class, by name, is for testing, or, where no class has
    ten, each class's last. Without train, the classes are PATH/CLASS. Images are grey if all
    pictures are. Names that begin with "." and __MACOSX are skipped; what else is not read is
    counted in the dataset's notes.

    Args:
      path: the path of the folder.
      image_size: height and width to resize to; None for the pictures' own, or 32 if it varies.
      resize: how (see `pictures.fit`).

    Raises:
      ValueError: if there is no such folder, and for fewer than two classes, a class without
        pictures, a class in test that train lacks, no test pictures, a file that is not a picture
        or is grey with more than 8 bits, a folder of test pictures without one to train on, or
        pictures or a size above `pictures.LARGEST_SIDE`.
    """
    pictures.check_resize(resize)
    check_image_size(image_size)
    root = Path(os.path.expanduser(path))
    if not str(path) or not root.is_dir():
        raise ValueError(
            f"{str(path)!r} is no folder; give one with a folder of pictures per class"
        )
    listing = list_pictures(root)
    classes, renamed = clean_names(tuple(listing.train))
    files = [file for part in listing[:2] for in_class in part.values() for file in in_class]
    shape, resized = _shape(files, image_size, resize)
    train, test = (_split(part, tuple(listing.train), shape, resize) for part in listing[:2])
    return Dataset(
        f"folder:{path}",
        train,
        test,
        listing.test_name,
        classes,
        shape,
        notes=(*resized, *listing.notes, *renamed),
        source=_source(root, train, test),
    )


def _split(
    part: Files, classes: tuple[str, ...], shape: tuple[int, int, int], resize: Resize
) -> PictureSplit:
    examples = [(file, c) for c, name in enumerate(classes) for file in part.get(name, ())]
    files, labels = zip(*examples, strict=True)
    return PictureSplit([*files], np.array(labels, np.int32), shape, resize)


def _shape(
    files: list[Path], image_size: int | None, resize: Resize
) -> tuple[tuple[int, int, int], list[str]]:
    """(height, width, channels) for all pictures, and a note if that resizes them."""
    sizes, modes, errors = set(), set(), []
    for file in files:
        try:
            with pictures.opened(file) as picture:  # reads only the file's header
                sizes.add(pictures.upright_size(picture))
                modes.add(picture.mode)
        except ValueError as error:
            errors.append(error)
    pictures.raise_all(errors)
    side = image_size or VARYING_SIZE
    size = next(iter(sizes)) if image_size is None and len(sizes) == 1 else (side, side)
    width, height = size
    if max(size) > LARGEST_SIDE:
        raise ValueError(
            f"the pictures are {width}x{height}; give an image_size, of at most {LARGEST_SIDE}"
        )
    notes = []
    if sizes != {size}:
        old = f"{len(sizes)} sizes" if len(sizes) > 1 else "x".join(map(str, *sizes))
        notes.append(pictures.resized_note(old, size, resize))
    return (height, width, 1 if modes <= {"1", "L", "LA"} else 3), notes


def _source(root: Path, *splits: PictureSplit) -> str:
    """Changes with the files' names, by which they have their classes, and sizes; reads none."""
    listing = hashlib.sha256()
    for split in splits:
        for file in split.files:
            name = os.fsencode(file.relative_to(root).as_posix())
            listing.update(b"%d %s\0" % (file.stat().st_size, name))
        listing.update(b"\n")
    return f"folder {listing.hexdigest()}"
