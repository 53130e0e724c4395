"""Datasets by name for the commands: opened, after download and preparation if needed."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator

from interflow_jax.data import recipes
from interflow_jax.data.dataset import Dataset, NotPreparedError, PreparationError, prepare_again
from interflow_jax.data.pictures import Resize
from interflow_jax.data.splits import UnreadableExamplesError

# tfds recommends OpenCV on every start; this project comes with Pillow.
logging.getLogger("absl").setLevel(logging.ERROR)


def load(
    name: str,
    data_dir: str | None,
    image_size: int | None,
    before_download: Callable[[], None] = lambda: None,
    resize: Resize = "squash",
) -> Dataset:
    """Opens a dataset like `recipes.load`; tfds downloads and prepares one that no folder has.

    Whatever else can be wrong is checked by `before_download`. Prints the dataset's notes.
    """
    try:
        dataset = _open(name, data_dir, image_size, resize)
    except NotPreparedError:
        check(name, data_dir)
        before_download()
        prepare(name, data_dir)
        dataset = _open(name, data_dir, image_size, resize)
    for note in dataset.notes:
        print(note, flush=True)
    return dataset


def check(name: str, data_dir: str | None) -> None:
    """Checks a name without downloading anything; raises ValueError."""
    with _folders_told(name):
        try:
            if name == "fashion_mini" or name.startswith("folder:"):
                _open(name, data_dir, None, "squash")
            else:
                recipes.find(name, data_dir)
        except ImportError as error:
            raise ValueError(str(error)) from error
        except NotPreparedError:
            from interflow_jax.data import tfds  # what else is trained on needs no tfds

            try:
                tfds.originals(recipes.recipe(name).tfds_name)
            except ValueError as error:
                raise ValueError(f"{error}; choose another version, or leave it out") from error


@contextlib.contextmanager
def _folders_told(name: str) -> Iterator[None]:
    """Adds to what is wrong with a name that a folder has it, and how that is trained on."""
    try:
        yield
    except (ValueError, ImportError) as error:
        told = name in recipes.RECIPES or "folder:" in str(error).partition("choose one of")[0]
        if told or not os.path.isdir(os.path.expanduser(name)):
            raise
        hint = f"for the pictures in the folder {name}: --dataset=folder:{name}"
        raise ValueError(f"{error}; {hint}") from error


def _open(name: str, data_dir: str | None, image_size: int | None, resize: Resize) -> Dataset:
    try:
        with _folders_told(name):
            return recipes.load(name, data_dir, image_size, resize)
    except NotPreparedError:
        raise
    except ImportError as error:
        raise ValueError(str(error)) from error
    except PreparationError as error:
        raise ValueError(f"{name} could not be decoded to the cache: {error}") from error
    except OSError as error:
        raise ValueError(
            f"{name} cannot be read: {error}; restore it, or choose another dataset"
        ) from error


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns a failure to read or decode a dataset's examples into a ValueError."""
    try:
        yield
    except UnreadableExamplesError as error:
        advice = "" if name.startswith("folder:") else f"; {prepare_again(name)}"
        raise ValueError(f"{name} cannot be read: {error}{advice}") from error


def prepare(name: str, data_dir: str | None) -> None:
    """Says how much there is to download, and lets tfds download and prepare a dataset."""
    from interflow_jax.data import tfds

    tfds_name = recipes.recipe(name).tfds_name
    folder = tfds.places(data_dir)[0]
    originals = tfds.originals(tfds_name)
    total = sum(original.size for original in originals)
    size = f"{total / 1e9:.2f} GB" if total >= 1e9 else f"{total / 1e6:.1f} MB"
    if not originals:
        size = "files of a size that tfds has not registered"
    manual = tfds.download_dir(tfds_name, folder) / "manual"
    print(f"{name} is not prepared in {folder}: downloading {size}", flush=True)
    try:
        tfds.prepare(tfds_name, folder)
    except PreparationError as error:
        looked_in = ", ".join(map(str, tfds.places(data_dir)))
        by_hand = ", ".join(original.url for original in originals)
        raise ValueError(
            f"no {name} in {looked_in}, and tfds could not prepare it ({error}). With a network: "
            f"interflow prepare --dataset={name} --data_dir={folder} downloads {size}. "
            + (f"Without: put {by_hand} as they are into {manual} and run it. " if by_hand else "")
            + "Or train on the sample that ships here: --dataset=fashion_mini"
        ) from error
