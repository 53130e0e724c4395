"""Predicts with a finished run, by its folder alone: files, folders and globs, or a test split.

interflow predict --run=runs/fashion_mini/S7/seed0 photo.jpg pictures/ 'more/*.png'
interflow predict --run=runs/fashion_mini/S7/seed0 --dataset=fashion_mini --out=a/predictions.csv

Pictures are turned upright and resized as the run's own were. Where the truth is known, of a
dataset or of pictures in folders named after the run's classes, they are measured, class by class,
and beside the CSV come confusion.png, mistakes.png and classes.json.
"""

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from interflow_jax.cli import data
from interflow_jax.cli.answers import Answers, draw_mistakes
from interflow_jax.cli.files import output_file, write_whole
from interflow_jax.cli.parser import Parser, add_data_dir, add_run
from interflow_jax.data import pictures, splits
from interflow_jax.data.dataset import printable
from interflow_jax.data.folders import PictureSplit
from interflow_jax.data.listing import is_for_testing
from interflow_jax.data.picture_files import class_by_folder, find_pictures
from interflow_jax.saved_run import TrainedRun, image_weights, load_run

BATCH_SIZE = 64  # read at a time
_BESIDE = ("classes.json", "confusion.png", "mistakes.png")  # of what is measured


class Predictions(NamedTuple):
    """What was predicted, and what is known of it.

    Attributes:
      names: of the pictures: their files, or indices in the split.
      probabilities: [pictures, classes], float32.
      labels: the true classes, [pictures], int; -1 where none is known.
      weights: as of `image_weights`.
      read: gives the pictures at [n] indices, as the model takes them.
      unreadable: how many files were left out, since they cannot be read.
    """

    names: list[str]
    probabilities: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    read: Callable[[np.ndarray], Any]
    unreadable: int = 0


def main(arguments: list[str]) -> int:
    """Runs the command."""
    given = _flags(arguments)
    out = output_file(given.out) if given.out is not None else None
    if out is not None and out.name in _BESIDE:
        raise ValueError(
            f"--out={given.out}: a file of that name is written beside it; choose another"
        )
    if out is not None and (out.parent / "result.json").exists():
        raise ValueError(
            f"--out={given.out} is in the folder of a run, whose own classes.json would be "
            "replaced; choose another folder"
        )
    run = load_run(given.run, given.backbone, given.trust_code)
    predictions = _dataset(run, given) if given.dataset else _files(run, given)
    (known,) = np.nonzero(predictions.labels >= 0)
    labels, probabilities = predictions.labels[known], predictions.probabilities[known]
    answers = Answers(run.class_names, labels, probabilities.argmax(1))
    if len(known):
        print(answers.table())
    status = 1 if predictions.unreadable else 0
    if out is None:
        if len(known):
            print("--out=FILE.csv writes all probabilities, and confusion.png and mistakes.png")
        return status
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(out, run, predictions, bool(len(known)))
    if len(known) and out.is_file():  # beside a pipe there is no place
        answers.write(out.parent, out.parent / "classes.json")
        draw_mistakes(
            out.parent / "mistakes.png",
            run.class_names,
            [printable(predictions.names[at]) for at in known],
            labels,
            probabilities,
            lambda at: predictions.read(known[at]),
        )
        print(f"beside it: {', '.join(_BESIDE)}")
    return status


def _files(run: TrainedRun, given: Any) -> Predictions:
    """Predicts picture files."""
    notes: list[str] = []
    named = find_pictures([*(given.images or []), *given.files], notes)
    files = list({os.path.abspath(file): file for file in reversed(named)}.values())[::-1]
    if repeated := len(named) - len(files):
        notes.append(f"{repeated} file(s) are named more than once, and taken once")
    for note in notes:
        print(note)
    unreadable: list[str] = []
    rows = run.predict_files(files, unreadable)
    if not rows:
        raise ValueError(unreadable[0])
    for reason in unreadable:
        print(printable(reason))
    files = [row["file"] for row in rows]
    _say_changes(run, files)
    truths = [class_by_folder(file, run.class_names) for file in files]
    labels = np.array([-1 if truth is None else truth for truth in truths], np.int32)
    probabilities = np.stack([row["probabilities"] for row in rows])
    for row, label, sure in zip(rows, labels, probabilities, strict=True):
        best = [f"{run.class_names[each]} {sure[each]:.1%}" for each in np.argsort(-sure)[:3]]
        if label not in (-1, sure.argmax()):
            best.append(f"but its folder is {run.class_names[label]}")
        print(f"{printable(str(row['file']))}: {', '.join(best)}")
        if given.branches:
            alone = zip(run.labels, row["branches"], strict=True)
            print(f"  branches alone: {', '.join(f'{a}: {b}' for a, b in alone)}")
        if len(row["weights"]):
            own = zip(run.labels, row["weights"], strict=True)
            print(f"  weights: {', '.join(f'{label}: {weight:.3f}' for label, weight in own)}")
    if (known := labels >= 0).any():
        correct = np.mean(probabilities[known].argmax(1) == labels[known])
        own = {name: number for number, name in enumerate(run.class_names)}
        truths = zip(files, labels, strict=True)
        deeper = sum(
            label >= 0 and own.get(printable(file.parent.name)) != label for file, label in truths
        )
        further = f", {deeper:,} of them in folders below those" if deeper else ""
        print(
            f"{known.sum():,} of {len(files):,} pictures are in folders named after the run's "
            f"classes{further}: {correct:.2%} of them correct"
        )
        _say_seen(run, [file for file, is_known in zip(files, known, strict=True) if is_known])
    if unreadable:
        print(f"{len(unreadable):,} file(s) could not be read, and are left out")
    split = PictureSplit(files, labels, run.image_shape, run.resize)
    weights, names = np.stack([row["weights"] for row in rows]), [*map(str, files)]
    return Predictions(
        names, probabilities, labels, weights, lambda at: split.read(at)[0], len(unreadable)
    )


def _say_seen(run: TrainedRun, files: list[Path]) -> None:
    """Says how many pictures lie in the folder that the run was trained from."""
    _, is_folder, path = run.result["dataset"].partition("folder:")
    root = Path(path).expanduser().resolve()
    inside = [file.resolve() for file in files if is_folder and root in file.resolve().parents]
    trained = [each for each in inside if not is_for_testing(each.relative_to(root))]
    if trained:
        print(
            f"{len(trained):,} of them are in {printable(str(root))}, which the run was trained "
            "from: it has seen most of these, and will do worse on others"
        )


def _say_changes(run: TrainedRun, files: list[Path]) -> None:
    """Says how many pictures are of another size or mode than the model takes."""
    height, width, channels = run.image_shape
    mode, changed = "L" if channels == 1 else "RGB", []
    for file in files:
        with pictures.opened(file) as picture:  # reads only the file's header
            size = pictures.upright_size(picture)
            if (size, picture.mode) != ((width, height), mode):
                changed.append(f"{size[0]}x{size[1]} {picture.mode}")
    if changed:
        old = changed[0] if len({*changed}) == 1 else f"{len({*changed})} sizes and modes"
        note = pictures.resized_note(old, (width, height), run.resize)
        print(f"{len(changed):,} of {len(files):,} {note}, {mode}")


def _dataset(run: TrainedRun, given: Any) -> Predictions:
    """Predicts and measures a test split."""
    height, width, channels = shape = run.image_shape
    # The run's own dataset as the run took it; any other one at the run's size, if that is square.
    own, square = run.result["image_size"], height == width and given.dataset != "fashion_mini"
    size = own if given.dataset == run.result["dataset"] else height if square else None
    dataset = data.load(given.dataset, given.data_dir, size, resize=run.resize)
    if dataset.image_shape != shape or len(dataset.class_names) != len(run.class_names):
        raise ValueError(
            f"{given.dataset} has images of {dataset.image_shape} and {len(dataset.class_names)} "
            f"classes; the run was trained on {shape} and {len(run.class_names)}: "
            f"choose a dataset like {run.result['dataset']}, with {channels} channel(s)"
        )
    if dataset.class_names != run.class_names:
        print(f"{given.dataset} names its classes otherwise than the run: they count by position")
    if given.dataset == run.result["dataset"] and run.differs(dataset):
        print(f"{given.dataset} has changed since the run was trained on it")
    count, parts = len(dataset.test), []

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with data.reading(given.dataset):
            return splits.read(dataset.test, indices)

    for indices in splits.chunks(dataset.test, BATCH_SIZE):
        images, labels = read(indices)
        prediction = run.predict(images)
        alone = run.alone(prediction).argmax(-1) == labels[:, None]
        fused = jax.nn.softmax(prediction.logits)
        parts.append((fused, alone, labels, image_weights(prediction)))
    fused, alone, labels, weights = map(np.concatenate, zip(*parts, strict=True))
    correct = np.mean(fused.argmax(-1) == labels)
    print(f"{given.dataset}, {count:,} images of split {dataset.test_name}: {correct:.2%} correct")
    for label, accuracy in zip(run.labels, alone.mean(0), strict=True):
        print(f"  branch after {label} alone: {accuracy:.2%}")
    names = [*map(str, getattr(dataset.test, "files", range(count)))]
    return Predictions(names, fused, labels, weights, lambda at: read(at)[0])


def _write(out: Path, run: TrainedRun, predictions: Predictions, measured: bool) -> None:
    """Writes file, truth where any is known, class and probability, and those of all classes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    cells = list(map(as_text, run.class_names))
    heads = [f"weight after {label}" for label in run.labels[: predictions.weights.shape[1]]]
    writer.writerow(["file", *["truth"] * measured, "class", "probability", *cells, *heads])
    names, rows, labels, weights, *_ = predictions
    for name, row, label, own in zip(names, rows, labels, weights, strict=True):
        truth = [cells[label] if label >= 0 else ""] * measured
        best, figures = row.argmax(), [f"{value:.6f}" for value in (*row, *own)]
        writer.writerow([as_text(name), *truth, cells[best], figures[best], *figures])
    # The names of files are bytes: those that are no UTF-8 are written as they are.
    write_whole(out, text.getvalue().encode("utf-8", "surrogateescape"))
    print(f"all probabilities are in {out}")


def as_text(cell: str) -> str:
    """A cell that spreadsheets show as it is, and do not take for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _flags(arguments: list[str]) -> Any:
    parser = Parser("predict", __doc__ or "")
    add = parser.add_argument
    add_run(parser, "folder of a finished run")
    add("files", nargs="*", metavar="FILE", help="picture files, folders of them, and globs")
    add("--images", nargs="+", metavar="FILE", help="picture files, as those above")
    add("--dataset", help="predict a dataset's test split, and measure")
    add_data_dir(parser)
    add("--out", help="CSV file for all classes and probabilities")
    about = "of files, print what each branch says alone, too: without a loss of its own (DSN, "
    about += "--auxiliary_mean) a branch learns to add to the others, and may say anything alone"
    add("--branches", action="store_true", help=about)
    given = parser.parse_args(arguments)
    if bool(given.dataset) == bool(given.images or given.files):
        parser.error("give either picture files or --dataset")
    if given.dataset and given.branches:
        parser.error("--branches is for picture files: of a dataset, every branch is measured")
    return given
