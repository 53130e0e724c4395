"""Datasets out of pictures in folders, a folder per class."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from interflow_jax.data import pictures
from interflow_jax.data.datasets import VARYING_SIZE, Dataset

ENDINGS = (".png", ".jpg", ".jpeg")
_HELD_OUT = 10  # without a test folder, every tenth picture of a class is for testing


@dataclass(frozen=True)
class PictureSplit:
    """Examples in picture files, decoded on demand and fitted to `image_shape`."""

    files: tuple[Path, ...]
    labels: np.ndarray  # [examples], int32
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = [_decode(self.files[index], self.image_shape) for index in indices.tolist()]
        return np.stack(images), self.labels[indices]


def from_folder(path: str | Path, image_size: int | None = None) -> Dataset:
    """A dataset of the pictures in PATH/train/CLASS and PATH/test/CLASS.

    Without those two, of PATH/CLASS, where every tenth picture of a class, by name, is held out for
    testing. Pictures are PNG and JPEG. They are grey if all are; else grey ones become coloured.

    Args:
      path: of the folder.
      image_size: height and width to resize every picture to; None keeps the pictures' own, or
        takes 32 if that varies.

    Raises:
      ValueError: for no folder, fewer than two classes, a class without pictures, a class in test
        that train lacks, or a file that is no picture.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; give one with a folder of pictures per class")
    has_test = (root / "train").is_dir() and (root / "test").is_dir()
    train = _files(root / "train" if has_test else root)
    if has_test:
        test, test_name = _files(root / "test"), "test"
        if unknown := sorted(set(test) - set(train)):
            raise ValueError(f"{root / 'test'} has the class {unknown[0]}, which train lacks")
    else:
        test_name = f"every {_HELD_OUT}th picture of a class"
        test = {name: files[_HELD_OUT - 1 :: _HELD_OUT] for name, files in train.items()}
        train = {name: sorted({*files} - {*test[name]}) for name, files in train.items()}
    classes = tuple(train)
    if len(classes) < 2 or not all(train.values()) or not any(test.values()):
        counts = ", ".join(f"{name} {len(train[name])}" for name in classes) or "none"
        raise ValueError(
            f"{root} has classes with training pictures as follows: {counts}; there must be two or "
            f"more, each with some ({', '.join(ENDINGS)}), and test pictures"
        )
    shape = _shape([file for part in (train, test) for files in part.values() for file in files])
    if image_size is not None:
        shape = (image_size, image_size, shape[2])
    train_split, test_split = _split(train, classes, shape), _split(test, classes, shape)
    return Dataset(f"folder:{path}", train_split, test_split, test_name, classes, shape)


def _files(folder: Path) -> dict[str, list[Path]]:
    """The pictures of every class, by name; hidden folders are no classes."""
    return {
        place.name: sorted(file for file in place.iterdir() if file.suffix.lower() in ENDINGS)
        for place in sorted(folder.iterdir())
        if place.is_dir() and not place.name.startswith(".")
    }


def _shape(files: list[Path]) -> tuple[int, int, int]:
    """What all pictures can be: their own size if they share it, colours if any has some."""
    sizes, modes = set(), set()
    for file in files:
        try:
            with Image.open(file) as picture:  # reads the head of the file alone
                sizes.add(picture.size)
                modes.add(picture.mode)
        except OSError as error:
            raise ValueError(f"{file} is no picture ({error}); remove or replace it") from error
    width, height = sizes.pop() if len(sizes) == 1 else (VARYING_SIZE, VARYING_SIZE)
    return height, width, 1 if modes <= {"1", "L"} else 3


def _split(
    files: dict[str, list[Path]], classes: tuple[str, ...], shape: tuple[int, int, int]
) -> PictureSplit:
    labelled = [(file, classes.index(name)) for name in files for file in files[name]]
    labels = np.array([label for _, label in labelled], np.int32)
    return PictureSplit(tuple(file for file, _ in labelled), labels, shape)


def _decode(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        with Image.open(file) as picture:
            return pictures.fit(picture, shape)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be decoded: {error}") from error
