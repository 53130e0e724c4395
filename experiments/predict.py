"""Predicts with a finished run, by its folder alone.

python -m experiments.predict --run=runs/fashion_mini/S7/seed0 --images photo.jpg sketch.png
python -m experiments.predict --run=runs/fashion_mini/S7/seed0 --dataset=fashion_mini
"""

import csv
import io
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

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
        names, fused = _dataset(run, given) if given.dataset else _files(run, given)
        if given.out is not None:
            _write(given.out, names, run.class_names, fused)
        return 0
    except (ValueError, OSError) as error:
        print(f"predict: error: {error}", file=sys.stderr)
        return 2


def _files(run: ij.TrainedRun, given: Any) -> tuple[Any, np.ndarray]:
    """Predicts image files; returns their names and fused probabilities, [files, classes]."""
    height, width, channels = run.image_shape
    mode = "L" if channels == 1 else "RGB"
    images, names = [], [*(given.images or []), *given.files]
    for name in names:
        with pictures.opened(name) as picture:
            images.append(pictures.fit(picture, run.image_shape))
            if (picture.size, picture.mode) != ((width, height), mode):
                size = f"{picture.width}x{picture.height}"
                print(f"{name}: {size} {picture.mode} turned to {width}x{height} {mode}")
    prediction = run.predict(np.stack(images))
    fused = np.asarray(jax.nn.softmax(prediction.logits))
    alone = run.alone(prediction).argmax(-1)
    for name, row, classes in zip(names, fused, alone, strict=True):
        best = (f"{run.class_names[label]} {row[label]:.1%}" for label in np.argsort(-row)[:3])
        branches = (f"{a}: {run.class_names[b]}" for a, b in zip(run.labels, classes, strict=True))
        print(f"{name}: {', '.join(best)}\n  branches: {', '.join(branches)}")
    return names, fused


def _dataset(run: ij.TrainedRun, given: Any) -> tuple[Any, np.ndarray]:
    """Evaluates a test split; returns its indices and fused probabilities, [images, classes]."""
    height, width, channels = shape = run.image_shape
    # The run's own dataset as the run took it; any other one at the run's size, if that is square.
    same = given.dataset in (run.result["dataset"], "fashion_mini") or height != width
    size = run.result["image_size"] if same else height
    dataset = data.load(given.dataset, given.data_dir, size)
    if dataset.image_shape != shape or len(dataset.class_names) != len(run.class_names):
        raise ValueError(
            f"{given.dataset} has images of {dataset.image_shape} and {len(dataset.class_names)} "
            f"classes; the run was trained on {shape} and {len(run.class_names)}: "
            f"choose a dataset like {run.result['dataset']}, with {channels} channel(s)"
        )
    count, parts = len(dataset.test), []
    for start in range(0, count, BATCH_SIZE):
        with data.reading(given.dataset):
            indices = np.arange(start, min(start + BATCH_SIZE, count))
            images, labels = splits.read(dataset.test, indices)
        prediction = run.predict(images)
        alone = run.alone(prediction).argmax(-1) == labels[:, None]
        parts.append((jax.nn.softmax(prediction.logits), alone, labels))
    fused, alone, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    correct = np.mean(fused.argmax(-1) == labels)
    print(f"{given.dataset}, {count:,} images of split {dataset.test_name}: {correct:.2%} correct")
    for label, accuracy in zip(run.labels, alone.mean(0), strict=True):
        print(f"  branch after {label} alone: {accuracy:.2%}")
    return range(count), fused


def _write(out: str, names: Any, classes: tuple[str, ...], fused: np.ndarray) -> None:
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
