"""Predicts with a finished run, by its folder alone.

interflow predict --run=runs/fashion_mini/S7/seed0 --images photo.jpg sketch.png
interflow predict --run=runs/fashion_mini/S7/seed0 --dataset=fashion_mini
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from interflow_jax.cli import data
from interflow_jax.cli.files import output_file, write_whole
from interflow_jax.cli.flags import Parser, add_run
from interflow_jax.data import pictures, splits
from interflow_jax.data.dataset import printable
from interflow_jax.model import Prediction
from interflow_jax.saved_run import TrainedRun, load_run

BATCH_SIZE = 64  # read at a time

# Names of images, fused probabilities, [images, classes], and weights (see `_weights`).
Predicted = tuple[Iterable[Any], np.ndarray, np.ndarray]


def main(arguments: list[str]) -> int:
    """Runs the command."""
    given = _flags(arguments)
    out = output_file(given.out) if given.out is not None else None
    run = load_run(given.run, given.backbone, given.trust_code)
    predicted = _dataset(run, given) if given.dataset else _files(run, given)
    if out is not None:
        _write(out, run, *predicted)
    return 0


def _files(run: TrainedRun, given: Any) -> Predicted:
    """Predicts image files."""
    height, width, channels = run.image_shape
    mode = "L" if channels == 1 else "RGB"
    images, names = [], [*(given.images or []), *given.files]
    for name in names:
        with pictures.opened(name) as picture:
            images.append(pictures.fit(picture, run.image_shape, resize=run.resize))
            size = pictures.upright_size(picture)
            if (size, picture.mode) != ((width, height), mode):
                old = f"{size[0]}x{size[1]} {picture.mode}"
                print(f"{printable(str(name))}: {old} turned to {width}x{height} {mode}")
    prediction = run.predict(np.stack(images))
    fused = np.asarray(jax.nn.softmax(prediction.logits))
    alone = run.alone(prediction).argmax(-1)
    weights = _weights(prediction)
    for name, row, classes, of_image in zip(names, fused, alone, weights, strict=True):
        best = (f"{run.class_names[label]} {row[label]:.1%}" for label in np.argsort(-row)[:3])
        branches = (f"{a}: {run.class_names[b]}" for a, b in zip(run.labels, classes, strict=True))
        print(f"{printable(str(name))}: {', '.join(best)}\n  branches: {', '.join(branches)}")
        if of_image.size:
            pairs = zip(run.labels, of_image, strict=True)
            print(f"  weights: {', '.join(f'{label}: {weight:.3f}' for label, weight in pairs)}")
    return names, fused, weights


def _weights(prediction: Prediction) -> np.ndarray:
    """Every image's fusion weights, [images, branches]; none, [images, 0], where all have equal."""
    weights = np.asarray(prediction.weights)
    if weights.ndim == 3:
        return weights[..., 0]
    return np.zeros((len(prediction.logits), 0))


def _dataset(run: TrainedRun, given: Any) -> Predicted:
    """Evaluates a test split, whose images are named by their indices."""
    height, width, channels = shape = run.image_shape
    # The run's own dataset as the run took it; any other one at the run's size, if that is square.
    same = given.dataset in (run.result["dataset"], "fashion_mini") or height != width
    size = run.result["image_size"] if same else height
    dataset = data.load(given.dataset, given.data_dir, size, resize=run.resize)
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
        parts.append((jax.nn.softmax(prediction.logits), alone, labels, _weights(prediction)))
    fused, alone, labels, weights = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    correct = np.mean(fused.argmax(-1) == labels)
    print(f"{given.dataset}, {count:,} images of split {dataset.test_name}: {correct:.2%} correct")
    for label, accuracy in zip(run.labels, alone.mean(0), strict=True):
        print(f"  branch after {label} alone: {accuracy:.2%}")
    return range(count), fused, weights


def _write(
    out: Path, run: TrainedRun, names: Iterable[Any], fused: np.ndarray, weights: np.ndarray
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    cells = list(map(as_text, run.class_names))
    heads = [f"weight after {label}" for label in run.labels[: weights.shape[1]]]
    writer.writerow(["image", "class", *cells, *heads])
    for name, row, of_image in zip(names, fused, weights, strict=True):
        figures = [f"{value:.6f}" for value in (*row, *of_image)]
        writer.writerow([as_text(str(name)), cells[row.argmax()], *figures])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, text.getvalue())
    print(f"all probabilities are in {out}")


def as_text(cell: str) -> str:
    """A cell that spreadsheets show as it is, and do not take for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _flags(arguments: list[str]) -> Any:
    parser = Parser("predict", __doc__ or "")
    add = parser.add_argument
    add_run(parser, "folder of a finished run")
    add("--images", nargs="+", metavar="FILE", help="image files of any size")
    add("files", nargs="*", metavar="FILE", help="more of them")
    add("--dataset", help="predict a dataset's test split, and measure")
    add("--data_dir", help="default: $TFDS_DATA_DIR, then ~/tensorflow_datasets")
    add("--out", help="CSV file for all classes and probabilities")
    given = parser.parse_args(arguments)
    if bool(given.dataset) == bool(given.images or given.files):
        parser.error("give either --images or --dataset")
    return given
