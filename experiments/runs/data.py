"""Datasets by name for the commands: opened, after download and preparation if needed."""

import contextlib
import logging
from collections.abc import Callable, Iterator

from interflow_jax.data import datasets, tfds_folders
from interflow_jax.data.datasets import Dataset
from interflow_jax.data.splits import UnreadableExamplesError

# tfds recommends OpenCV on every start; this project comes with Pillow.
logging.getLogger("absl").setLevel(logging.ERROR)


def load(
    name: str,
    data_dir: str | None,
    image_size: int | None,
    before_download: Callable[[], None] = lambda: None,
) -> Dataset:
    """Opens a dataset like `datasets.load`; tfds downloads and prepares one that no folder has.

    Whatever else can be wrong is checked by `before_download`.
    """
    try:
        return _open(name, data_dir, image_size)
    except tfds_folders.NotPreparedError:
        before_download()
        prepare(name, data_dir)
        return _open(name, data_dir, image_size)


def check(name: str, data_dir: str | None) -> None:
    """Checks a name without opening or downloading anything."""
    if name.startswith("folder:"):
        datasets.load(name)
        return
    try:
        tfds_folders.find(datasets.recipe(name).tfds_name, data_dir)
    except tfds_folders.NotPreparedError:
        tfds_folders.originals(name)


def _open(name: str, data_dir: str | None, image_size: int | None) -> Dataset:
    try:
        return datasets.load(name, data_dir, image_size)
    except (ValueError, MemoryError, tfds_folders.NotPreparedError):
        raise
    except tfds_folders.PreparationError as error:
        raise ValueError(f"{name} could not be decoded to the cache: {error}") from error
    except Exception as error:  # tfds, array_record and TensorFlow raise errors of any type
        raise _unreadable(name, error) from error


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns a failure to read or decode a dataset's prepared files into a ValueError."""
    try:
        yield
    except UnreadableExamplesError as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if name.startswith("folder:"):
        return ValueError(f"{name} cannot be read: {reason}")
    return ValueError(
        f"{name} cannot be read ({reason}); delete its folder of prepared files and run "
        f"python -m experiments.prepare --dataset={name}"
    )


def prepare(name: str, data_dir: str | None) -> None:
    """Says how much there is to download, and lets tfds download and prepare a dataset."""
    tfds_name = datasets.recipe(name).tfds_name
    folder = tfds_folders.places(data_dir)[0]
    originals = tfds_folders.originals(tfds_name)
    total = sum(original.size for original in originals)
    size = f"{total / 1e9:.2f} GB" if total >= 1e9 else f"{total / 1e6:.1f} MB"
    if not originals:
        size = "of a size that tfds has not registered"
    manual = tfds_folders.download_dir(tfds_name, folder) / "manual"
    print(f"{name} is not prepared in {folder}: downloading {size}", flush=True)
    try:
        tfds_folders.prepare(tfds_name, folder)
    except tfds_folders.PreparationError as error:
        looked_in = ", ".join(map(str, tfds_folders.places(data_dir)))
        by_hand = ", ".join(original.url for original in originals)
        raise ValueError(
            f"no {name} in {looked_in}, and tfds could not prepare it ({error}). With a network: "
            f"python -m experiments.prepare --dataset={name} --data_dir={folder} downloads {size}. "
            + (f"Without: put {by_hand} as they are into {manual} and run it. " if by_hand else "")
            + "Or train on the sample that ships here: --dataset=fashion_mini"
        ) from error
