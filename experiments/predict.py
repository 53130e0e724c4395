"""Predicts with a finished run, by its folder alone.

python -m experiments.predict --run=runs/fashion_mini/S7/seed0 --images photo.jpg sketch.png
python -m experiments.predict --run=runs/fashion_mini/S7/seed0 --dataset=fashion_mini
"""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.cli import configuration
from experiments.runs import data
from experiments.runs.trained import BATCH_SIZE, FinishedRun, load, probabilities
from interflow_jax.data import pictures


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    given = _flags(arguments)
    try:
        if given.out is not None:
            Path(given.out).touch()
        run = load(Path(given.run))
        if given.dataset:
            _predict_dataset(run, given)
        else:
            _predict_files(run, given)
        return 0
    except (ValueError, OSError) as error:
        print(f"predict: error: {error}", file=sys.stderr)
        return 2


def _predict_files(run: FinishedRun, given: Any) -> None:
    shape = tuple(run.result["image_shape"])
    images, names = [], [*(given.images or []), *given.files]
    for name in names:
        try:
            with Image.open(name) as picture:
                picture.load()
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"{name} cannot be read as an image ({error})") from error
        images.append(pictures.fit(picture, shape))
        width, height = picture.size
        wanted = "L" if shape[2] == 1 else "RGB"
        if (height, width) != shape[:2] or picture.mode != wanted:
            print(
                f"{name}: {width}x{height} {picture.mode} turned to {shape[1]}x{shape[0]} {wanted}"
            )
    batches = (np.stack(images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE))
    fused, branches = probabilities(run, batches)
    classes = run.result["class_names"]
    for name, image_fused, image_branches in zip(names, fused, branches, strict=True):
        best = np.argsort(-image_fused)[:3]
        print(
            f"{name}: " + ", ".join(f"{classes[label]} {image_fused[label]:.1%}" for label in best)
        )
        alone = zip(run.result["branches"], image_branches, strict=True)
        print("  branches: " + ", ".join(f"{tap}: {classes[b.argmax()]}" for tap, b in alone))
    _write(given.out, names, classes, fused)


def _predict_dataset(run: FinishedRun, given: Any) -> None:
    height, width, channels = shape = tuple(run.result["image_shape"])
    # The run's own dataset as the run took it; another one at the run's size, if that is square.
    same = given.dataset in (run.result["dataset"], "fashion_mini") or height != width
    size = run.result["image_size"] if same else height
    dataset = data.load(given.dataset, given.data_dir, size)
    if dataset.image_shape != shape or len(dataset.class_names) != len(run.result["class_names"]):
        raise ValueError(
            f"{given.dataset} has images of {dataset.image_shape} and {len(dataset.class_names)} "
            f"classes; the run was trained on {shape} and {len(run.result['class_names'])}: "
            f"choose a dataset like {run.result['dataset']}, with {channels} channel(s)"
        )
    count = len(dataset.test)
    starts = range(0, count, BATCH_SIZE)
    chunks = [np.arange(start, min(start + BATCH_SIZE, count)) for start in starts]
    labels = np.concatenate([dataset.test.read(chunk)[1] for chunk in chunks])
    fused, branches = probabilities(run, (dataset.test.read(chunk)[0] for chunk in chunks))
    correct = np.mean(fused.argmax(-1) == labels)
    print(f"{given.dataset}, {count:,} images of split {dataset.test_name}: {correct:.2%} correct")
    alone = np.mean(branches.argmax(-1) == labels[:, None], axis=0)
    for tap, accuracy in zip(run.result["branches"], alone, strict=True):
        print(f"  branch after convolution {tap} alone: {accuracy:.2%}")
    _write(given.out, range(count), run.result["class_names"], fused)


def _write(out: str | None, names: Any, classes: list[str], fused: np.ndarray) -> None:
    """Writes a CSV of every image's class and probabilities."""
    if out is None:
        return
    with open(out, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "class", *classes])
        for name, row in zip(names, fused, strict=True):
            writer.writerow([name, classes[row.argmax()], *(f"{value:.6f}" for value in row)])
    print(f"all probabilities are in {out}")


def _flags(arguments: list[str] | None) -> Any:
    flags = configuration.parser("predict", __doc__ or "")
    flags.add_argument("--run", required=True, help="folder of a finished run")
    flags.add_argument("--images", nargs="+", metavar="FILE", help="image files of any size")
    flags.add_argument("files", nargs="*", metavar="FILE", help="more of them")
    flags.add_argument("--dataset", help="predict a dataset's test split, and measure")
    flags.add_argument("--data_dir", help="default: $TFDS_DATA_DIR, then ~/tensorflow_datasets")
    flags.add_argument("--out", help="CSV file for all classes and probabilities")
    given = flags.parse_args(arguments)
    if bool(given.dataset) == bool(given.images or given.files):
        flags.error("give either --images or --dataset")
    return given


if __name__ == "__main__":
    sys.exit(main())
