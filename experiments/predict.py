"""Predicts with a finished run, by its folder alone.

python -m experiments.predict --run=runs/fashion_mini/S7/seed0 --images photo.jpg sketch.png
python -m experiments.predict --run=runs/fashion_mini/S7/seed0 --dataset=fashion_mini
"""

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

import interflow_jax as ij
from experiments.cli import configuration
from experiments.runs import data
from experiments.runs.files import writable, write_whole
from interflow_jax.data import pictures, splits

BATCH_SIZE = 64  # read at a time


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    given = _flags(arguments)
    try:
        if given.out is not None:
            if Path(given.out).is_dir():
                raise ValueError(f"--out={given.out} is a folder; give a file")
            writable(Path(given.out).parent)
        run = ij.load_run(given.run)
        if given.dataset:
            _predict_dataset(run, given)
        else:
            _predict_files(run, given)
        return 0
    except (ValueError, OSError) as error:
        print(f"predict: error: {error}", file=sys.stderr)
        return 2


def probabilities(
    run: ij.TrainedRun, batches: Iterator[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, fused and of every branch alone (see `ij.Prediction.alone`).

    Args:
      run: from `ij.load_run`.
      batches: each [images, height, width, channels], uint8, of the run's image shape.

    Returns:
      [images, classes] and [images, branches, classes], float32.
    """
    predictions = [run.predict(images) for images in batches]
    fused = [np.asarray(jax.nn.softmax(each.logits)) for each in predictions]
    alone = [np.asarray(jax.nn.softmax(each.alone)) for each in predictions]
    return np.concatenate(fused), np.concatenate(alone)


def _predict_files(run: ij.TrainedRun, given: Any) -> None:
    shape = run.image_shape
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
    fused, branches = probabilities(run, iter([np.stack(images)]))
    for name, image_fused, image_branches in zip(names, fused, branches, strict=True):
        best = np.argsort(-image_fused)[:3]
        print(
            f"{name}: "
            + ", ".join(f"{run.class_names[label]} {image_fused[label]:.1%}" for label in best)
        )
        alone = zip(run.labels, image_branches, strict=True)
        print(
            "  branches: " + ", ".join(f"{tap}: {run.class_names[b.argmax()]}" for tap, b in alone)
        )
    _write(given.out, names, run.class_names, fused)


def _predict_dataset(run: ij.TrainedRun, given: Any) -> None:
    height, width, channels = shape = run.image_shape
    # The run's own dataset as the run took it; another one at the run's size, if that is square.
    same = given.dataset in (run.result["dataset"], "fashion_mini") or height != width
    size = run.result["image_size"] if same else height
    dataset = data.load(given.dataset, given.data_dir, size)
    if dataset.image_shape != shape or len(dataset.class_names) != len(run.class_names):
        raise ValueError(
            f"{given.dataset} has images of {dataset.image_shape} and {len(dataset.class_names)} "
            f"classes; the run was trained on {shape} and {len(run.class_names)}: "
            f"choose a dataset like {run.result['dataset']}, with {channels} channel(s)"
        )
    count, labels = len(dataset.test), []

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, count, BATCH_SIZE):
            indices = np.arange(start, min(start + BATCH_SIZE, count))
            images, batch_labels = splits.read(dataset.test, indices)
            labels.append(batch_labels)
            yield images

    with data.reading(given.dataset):
        fused, branches = probabilities(run, batches())
    truth = np.concatenate(labels)
    correct = np.mean(fused.argmax(-1) == truth)
    print(f"{given.dataset}, {count:,} images of split {dataset.test_name}: {correct:.2%} correct")
    alone = np.mean(branches.argmax(-1) == truth[:, None], axis=0)
    for label, accuracy in zip(run.labels, alone, strict=True):
        print(f"  branch after {label} alone: {accuracy:.2%}")
    _write(given.out, range(count), run.class_names, fused)


def _write(out: str | None, names: Any, classes: tuple[str, ...], fused: np.ndarray) -> None:
    """Writes a CSV of every image's class and probabilities."""
    if out is None:
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image", "class", *classes])
    for name, row in zip(names, fused, strict=True):
        writer.writerow([name, classes[row.argmax()], *(f"{value:.6f}" for value in row)])
    write_whole(Path(out), text.getvalue())
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
