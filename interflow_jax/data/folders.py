"""Datasets from pictures in folders, one folder per class."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from interflow_jax.data import pictures
from interflow_jax.data.datasets import VARYING_SIZE, Dataset
from interflow_jax.data.splits import each

ENDINGS = (".png", ".jpg", ".jpeg")
_HELD_OUT = 10  # without a test folder, every tenth picture of a class is for testing


@dataclass(frozen=True)
class PictureSplit:
    """Examples in picture files, decoded on demand and fitted to `image_shape`."""

    files: list[Path]
    labels: np.ndarray  # [examples], int32
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.files)

    def read(
        self, indices: np.ndarray, draws: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        images = []
        for index, draw in zip(indices.tolist(), each(draws, indices), strict=True):
            with pictures.opened(self.files[index]) as picture:
                images.append(pictures.fit(picture, self.image_shape, draw))
        return np.stack(images), self.labels[indices]


def from_folder(path: str | Path, image_size: int | None = None) -> Dataset:
    """A dataset of the pictures (PNG, JPEG) in PATH/train/CLASS and PATH/test/CLASS.

    Without those two, of PATH/CLASS, where every tenth picture of a class, by name, is for testing.
    Images are grey if all pictures are.

    Args:
      path: the path of the folder.
      image_size: height and width to resize to; None for the pictures' own, or 32 if it varies.

    Raises:
      ValueError: if there is no such folder, and for fewer than two classes, a class without
        pictures, a class in test that train lacks, or a file that is not a picture or is grey with
        more than 8 bits.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; give one with a folder of pictures per class")
    if (root / "train").is_dir() and (root / "test").is_dir():
        train, test, test_name = _files(root / "train"), _files(root / "test"), "test"
        if unknown := sorted(set(test) - set(train)):
            raise ValueError(f"{root / 'test'} has the class {unknown[0]}, which train lacks")
    else:
        train, test_name = _files(root), f"every {_HELD_OUT}th picture of a class"
        test = {name: files[_HELD_OUT - 1 :: _HELD_OUT] for name, files in train.items()}
        train = {name: sorted({*files} - {*test[name]}) for name, files in train.items()}
    if len(train) < 2 or not all(train.values()) or not any(test.values()):
        counts = ", ".join(f"{name} {len(files)}" for name, files in train.items()) or "none"
        raise ValueError(
            f"{root} has classes with training pictures as follows: {counts}; there must be two or "
            f"more, each with some ({', '.join(ENDINGS)}), and test pictures"
        )
    classes = tuple(train)
    parts = [
        [(file, label) for label, name in enumerate(classes) for file in part.get(name, ())]
        for part in (train, test)
    ]
    shape = _shape([file for part in parts for file, _ in part], image_size)
    train_split, test_split = (
        PictureSplit([file for file, _ in part], np.array([c for _, c in part], np.int32), shape)
        for part in parts
    )
    return Dataset(f"folder:{path}", train_split, test_split, test_name, classes, shape)


def _files(folder: Path) -> dict[str, list[Path]]:
    """The pictures of every class, by name; hidden folders are not classes."""
    return {
        place.name: sorted(file for file in place.iterdir() if file.suffix.lower() in ENDINGS)
        for place in sorted(folder.iterdir())
        if place.is_dir() and not place.name.startswith(".")
    }


def _shape(files: list[Path], image_size: int | None) -> tuple[int, int, int]:
    sizes, modes = set(), set()
    for file in files:
        with pictures.opened(file) as picture:  # reads only the file's header
            sizes.add(picture.size)
            modes.add(picture.mode)
    side = image_size or VARYING_SIZE
    width, height = sizes.pop() if image_size is None and len(sizes) == 1 else (side, side)
    return height, width, 1 if modes <= {"1", "L", "LA"} else 3
