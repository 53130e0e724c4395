"""Opens what tfds has prepared in a folder."""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interflow_jax.data import pictures
from interflow_jax.data.dataset import (
    VARYING_SIZE,
    Dataset,
    PreparationError,
    check_labels,
    clean_names,
    prepare_again,
)
from interflow_jax.data.pictures import Resize
from interflow_jax.data.splits import ArraySplit, Split, one_line
from interflow_jax.data.tfds import run_with_tensorflow, tfds


@dataclass(frozen=True)
class RecordSplit:
    """Examples in a tfds data source that leaves images encoded; decoded when they are read."""

    source: Any
    image_shape: tuple[int, int, int]
    classes: int
    resize: Resize

    def __len__(self) -> int:
        return len(self.source)

    def read(
        self, indices: np.ndarray, draws: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        examples = self.source.__getitems__(indices.tolist())
        files = (
            (io.BytesIO(example["image"]), f"example {index}")
            for index, example in zip(indices, examples, strict=True)
        )
        images = pictures.fit_all(files, self.image_shape, draws, self.resize)
        labels = np.array([example["label"] for example in examples])
        return images, check_labels(labels, self.classes, "labels")


def open_prepared(name: str, folder: Path, image_size: int | None, resize: Resize) -> Dataset:
    """Opens a dataset by the folder of its version; raises as `recipes.load` does."""
    with _opening(name, folder):
        for file in ("dataset_info.json", "features.json"):
            _check_json(folder / file)
        builder: Any = tfds.builder_from_directory(folder)
        splits, features = builder.info.splits, dict(builder.info.features)
    needed = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(isinstance(features.get(key), kind) for key, kind in needed.items()):
        raise ValueError(
            f"{name} has features {', '.join(features)}; a dataset to classify needs an image "
            "'image' and a class 'label'"
        )
    dtype = np.dtype(features["image"].np_dtype)
    if dtype != np.uint8:
        raise ValueError(f"{name} has images of {dtype}; only uint8 is read")
    if "train" not in splits:
        raise ValueError(f"{name} has splits {', '.join(splits)}; training needs 'train'")
    height, width, channels = features["image"].shape
    old = "sizes that vary" if None in (height, width) else f"{width}x{height}"
    if image_size is not None or None in (height, width):
        height = width = image_size or VARYING_SIZE
    size, shape = (width, height), (height, width, 1 if channels == 1 else 3)
    resized = () if old == f"{width}x{height}" else (pictures.resized_note(old, size, resize),)
    # Pillow decodes to a picture, from which boxes are cut; tfds would decode to an array.
    encoded = {"image": tfds.decode.SkipDecoding()}
    in_records = builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD

    def source_of(part: str) -> Any:
        return builder.as_data_source(split=part, decoders=encoded)

    held_out = [part for part in ("test", "validation") if part in splits]
    unlabelled = []
    with _opening(name, folder):  # -1 is tfds's label where there is none, as of ImageNet's test
        while in_records and held_out and splits[held_out[0]].num_examples:
            if source_of(held_out[0])[0]["label"] != -1:
                break
            unlabelled.append(held_out.pop(0))
    parts = ("train", held_out[0]) if held_out else ("train[:90%]", "train[90%:]")
    untold = tuple(f"{part} has no labels: {parts[1]} is to test on" for part in unlabelled)
    with _opening(name, folder):
        classes, renamed = clean_names(features["label"].names)
        sizes = [splits[part].num_examples for part in parts]
    if not all(sizes):
        raise ValueError(f"{name} has too few examples: {' and '.join(map(str, sizes))}")
    if in_records:
        with _opening(name, folder):
            sources = [*map(source_of, parts)]
        train, test = (RecordSplit(source, shape, len(classes), resize) for source in sources)
    else:
        train, test = _decoded(folder, parts, shape, len(classes), resize)
    return Dataset(
        name,
        train,
        test,
        parts[1],
        classes,
        shape,
        notes=(*resized, *renamed, *untold),
        source=f"tfds {builder.info.full_name}: {parts[0]} {sizes[0]}, {parts[1]} {sizes[1]}",
    )


@contextlib.contextmanager
def _opening(name: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except (MemoryError, PreparationError):
        raise
    except Exception as error:  # tfds and array_record raise errors of any type
        raise ValueError(
            f"{name} cannot be read in {folder} ({one_line(error)}); {prepare_again(name)}"
        ) from error


def _check_json(file: Path) -> None:
    """Raises ValueError that names the file; tfds takes what is in it for what it expects."""
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=_check_names)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} holds a {type(content).__name__}, not an object")


def _check_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses classes of others: tfds imports any module that features.json names."""
    for key, value in pairs:
        if not isinstance(value, str):
            continue
        names_class = key in ("pythonClassName", "python_class_name", "type")
        if names_class and not value.startswith("tensorflow_datasets."):
            raise ValueError(f"it names {value!r}, and only classes of tfds are imported")
        with contextlib.suppress(json.JSONDecodeError):  # it may hold more JSON in a string
            json.loads(value, object_pairs_hook=_check_names)
    return dict(pairs)


def _decoded(
    folder: Path,
    parts: tuple[str, str],
    shape: tuple[int, int, int],
    classes: int,
    resize: Resize,
) -> Iterator[Split]:
    """Splits in other formats than array_record, decoded once to a cache."""
    prepared_at = (folder / "dataset_info.json").stat().st_mtime_ns
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "interflow_jax"
    for part in parts:
        identity = f"{folder.resolve()} {prepared_at} {part} {shape}"
        if resize != "squash":
            identity += f" {resize}"
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        place = cache / f"{folder.parent.name}-{digest}"
        if not place.exists():
            cache.mkdir(parents=True, exist_ok=True)
            run_with_tensorflow("decode", folder, part, place, resize, *shape)
        try:
            images = np.load(place / "images.npy", mmap_mode="r")
            labels = check_labels(np.load(place / "labels.npy"), classes, "labels")
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{place} cannot be read ({error}); delete this cache") from error
        yield ArraySplit(images, labels)
