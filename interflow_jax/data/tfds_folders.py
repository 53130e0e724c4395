"""Prepared folders of tensorflow-datasets: looked up, opened and, where missing, prepared.

Nothing here imports TensorFlow: what needs it runs in a child process (`with_tensorflow`).
"""

import difflib
import hashlib
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

try:
    import tensorflow_datasets as tfds
except ImportError as error:
    raise ImportError("datasets of tfds need pip install 'interflow_jax[data]'") from error

from interflow_jax.data.datasets import RECIPES, VARYING_SIZE
from interflow_jax.data.splits import ArraySplit, RecordSplit, Split


class NotPreparedError(FileNotFoundError):
    """No folder holds the dataset in a prepared form."""


class PreparationError(RuntimeError):
    """tfds could not download or prepare the dataset."""


class Original(NamedTuple):
    """An original file that tfds has registered for a dataset."""

    url: str
    file_name: str
    size: int  # bytes


def places(data_dir: str | Path | None) -> list[Path]:
    """The folders where prepared datasets are looked for, in order."""
    defaults = [os.environ.get("TFDS_DATA_DIR"), "~/tensorflow_datasets"]
    chosen = defaults if data_dir is None else [data_dir]
    return [Path(place).expanduser() for place in chosen if place]


def find(tfds_name: str, data_dir: str | Path | None) -> Path:
    """The folder of the newest prepared version of a dataset, "name[/config][:version]".

    Raises:
      NotPreparedError: if there is none in `places(data_dir)`.
      ValueError: for a name that no dataset of tfds has.
    """
    name, _, version = tfds_name.partition(":")
    for place in places(data_dir):
        prepared = [
            info.parent
            for info in (place / name).glob("*/dataset_info.json")
            if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)
            and version in ("", info.parent.name)
        ]
        if prepared:
            return max(prepared, key=lambda path: [int(part) for part in path.name.split(".")])
    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0] not in known:
        close = difflib.get_close_matches(name, {*RECIPES, *known}, n=3)
        raise ValueError(
            f"there is no dataset {name!r} (close: {', '.join(close) or 'none'}); choose one of "
            f"{', '.join(RECIPES)}, folder:PATH, or one that `tfds.list_builders()` lists"
        )
    if "/" not in name and (configurations := tfds.builder_cls(name).BUILDER_CONFIGS):
        # tfds takes the first of its configurations for a dataset named without one.
        return find(tfds_name.replace(name, f"{name}/{configurations[0].name}", 1), data_dir)
    raise NotPreparedError(f"no prepared {tfds_name} in {', '.join(map(str, places(data_dir)))}")


def originals(tfds_name: str) -> list[Original]:
    """The files that tfds downloads, if registered; ValueError for an unknown version."""
    try:
        builder = tfds.builder(tfds_name, data_dir="/nonexistent", try_gcs=False)
    except Exception as error:  # for an unknown version an AssertionError, among others
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"tfds cannot build {tfds_name}: {reason}") from error
    return [
        Original(url, information.filename, int(information.size))
        for url, information in (builder.url_infos or {}).items()
    ]


def download_dir(tfds_name: str, data_dir: Path) -> Path:
    """Where a dataset's downloads go, and, in its `manual/`, original files brought by hand."""
    # One folder per dataset, since MNIST, KMNIST and Fashion-MNIST name their files alike.
    return data_dir / "downloads" / re.sub(r"\W", "_", tfds_name)


def prepare(tfds_name: str, data_dir: Path) -> None:
    """Downloads and prepares a dataset as array_record; raises PreparationError with the reason."""
    downloads = download_dir(tfds_name, data_dir)
    for original in originals(tfds_name):
        if not (downloads / "manual" / original.file_name).exists():
            _reach(original.url)
            break
    _with_tensorflow("prepare", tfds_name, data_dir, downloads)


def _reach(url: str) -> None:
    """Raises PreparationError at once without a network; tfds itself tries for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=30).close()
    except urllib.error.HTTPError:
        pass  # the server is there; tfds explains better what it refuses
    except OSError as error:
        raise PreparationError(f"{url} cannot be reached: {error}") from error


def open_prepared(
    tfds_name: str, data_dir: str | Path | None, image_size: int | None
) -> tuple[Split, Split, str, tuple[str, ...], tuple[int, int, int]]:
    """Opens a prepared dataset, as `datasets.load` says.

    Returns:
      Training split, test split, what the test split is called, class names, image shape.
    """
    folder = find(tfds_name, data_dir)
    builder: Any = tfds.builder_from_directory(folder)
    features: dict[str, Any] = dict(builder.info.features)
    needed = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(isinstance(features.get(name), kind) for name, kind in needed.items()):
        raise ValueError(
            f"{tfds_name} has features {', '.join(features)}; a dataset to classify needs an image "
            "'image' and a class 'label'"
        )
    dtype = np.dtype(features["image"].np_dtype)
    if dtype != np.uint8:
        raise ValueError(f"{tfds_name} has images of {dtype}; only uint8 is read")
    height, width, channels = features["image"].shape
    if image_size is not None or None in (height, width):
        height = width = image_size or VARYING_SIZE
    shape = (height, width, 1 if channels == 1 else 3)
    splits = builder.info.splits
    if "train" not in splits:
        raise ValueError(f"{tfds_name} has splits {', '.join(splits)}; training needs 'train'")
    held_out = [name for name in ("test", "validation") if name in splits]
    train_name, test_name = ("train", held_out[0]) if held_out else ("train[:90%]", "train[90%:]")
    train, test = (_open_split(folder, builder, name, shape) for name in (train_name, test_name))
    return train, test, test_name, tuple(features["label"].names), shape


def _open_split(folder: Path, builder: Any, split: str, shape: tuple[int, int, int]) -> Split:
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        # Pillow decodes to a picture, from which boxes are cut; tfds would decode to an array.
        encoded = {"image": tfds.decode.SkipDecoding()}
        return RecordSplit(builder.as_data_source(split=split, decoders=encoded), shape)
    prepared_at = (folder / "dataset_info.json").stat().st_mtime_ns
    identity = f"{folder.resolve()} {prepared_at} {split} {shape}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "interflow_jax"
    decoded = cache / f"{folder.parent.name}-{digest}"
    if not decoded.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _with_tensorflow("decode", folder, split, *shape, decoded)
    arrays = (np.load(decoded / f"{part}.npy", mmap_mode="r") for part in ("images", "labels"))
    return ArraySplit(*arrays)


def _with_tensorflow(*arguments: object) -> None:
    """Runs a job of `with_tensorflow` in a child; its progress bars go to our standard error."""
    child = subprocess.run(
        [sys.executable, "-m", "interflow_jax.data.with_tensorflow", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if child.returncode:
        lines = child.stdout.splitlines() or [f"the child ended with {child.returncode}"]
        raise PreparationError(lines[-1])  # tfds prints before the reason
