"""Predicts with a finished run, by its folder alone.

python -m experiments.predict --run=runs/fashion_mini/S7/seed0 --images photo.jpg sketch.png
python -m experiments.predict --run=runs/fashion_mini/S7/seed0 --dataset=fashion_mini
"""

import contextlib
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

import interflow_jax as ij
from experiments import configuration, data
from experiments.folder import RunFolder
from interflow_jax import pictures
from interflow_jax.checkpoints import Checkpoints, UnreadableError, fingerprint
from interflow_jax.preprocessing import Preprocessing, normalize
from interflow_jax.training import TrainState, make_initializer

BATCH_SIZE = 64


class FinishedRun(NamedTuple):
    """A trained model and what its result.json says."""

    result: dict[str, Any]
    model: ij.Interflow
    state: TrainState
    preprocessing: Preprocessing


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


def load(path: Path) -> FinishedRun:
    """Loads a finished run from its folder.

    Raises:
      ValueError: if the folder holds none, or its last checkpoint is not the one it ended with.
    """
    folder = RunFolder(path)
    if folder.result() is None:
        raise ValueError(f"{path} holds no result.json: give the folder of a finished run")
    result = folder.read_json("result.json")
    model = configuration.of_result(result).build(len(result["class_names"]))
    optimizer = ij.make_optimizer(ij.learning_rate_schedule(1, 1.0))
    initialize = make_initializer(model, optimizer, tuple(result["image_shape"]))
    like = initialize.eval_shape(jax.random.key(0))
    restored = None
    if folder.has_checkpoints():
        checkpoints = Checkpoints(folder.checkpoints)
        with contextlib.suppress(UnreadableError):
            restored = checkpoints.restore(like, lambda line: print(line, file=sys.stderr))
        checkpoints.close()
    if restored is None or fingerprint(restored.state.params) != result["fingerprint"]:
        raise ValueError(
            f"the last checkpoint in {folder.checkpoints} is not the one that the run ended with; "
            f"delete {path if restored is None else path / 'result.json'} and run again: "
            f"{result['command']}"
        )
    preprocessing = Preprocessing(tuple(result["mean"]), tuple(result["deviation"]), augment=False)
    return FinishedRun(result, model, restored.state, preprocessing)


def probabilities(run: FinishedRun, batches: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, fused and of every branch alone (see `ij.Prediction.alone`).

    Args:
      run: from `load`.
      batches: each [at most 64, height, width, channels], uint8, of the run's image shape.

    Returns:
      [images, classes] and [images, branches, classes], float32.
    """

    @jax.jit
    def softmaxes(state: TrainState, images: jax.Array):
        prediction = ij.predict(run.model, state, normalize(run.preprocessing, images))
        return jax.nn.softmax(prediction.logits), jax.nn.softmax(prediction.alone)

    fused, branches = [], []
    for images in batches:
        missing = BATCH_SIZE - len(images)
        padded = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])
        for parts, values in zip((fused, branches), softmaxes(run.state, padded), strict=True):
            parts.append(np.asarray(values)[: len(images)])
    return np.concatenate(fused), np.concatenate(branches)


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
