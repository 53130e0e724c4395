"""Not in the paper: which recipe trains pictures of one's own best, by held-out images.

The candidates were fixed before any was trained. The best mean held-out accuracy over the three
sets is `--recipe=modern`.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from experiments.tables import pictures
from experiments.tables.compare import compare
from experiments.tables.report import Section
from interflow_jax.data.recipes import load
from interflow_jax.data.splits import take

TITLE = "Not in the paper: recipes for pictures of one's own"
SEEDS = (0, 1, 2)
FOLDER = "folder:runs/fashion_300"
DATASETS = (FOLDER, "fashion_mini", "cifar10")
NOTE = """\
Candidates were fixed beforehand; the best mean of the held-out accuracies of the three sets
(training images that no run trains on) chooses, and the test split is reported: both are measured
once, after the last epoch. Sets: 300 pictures of fashion_mini in folders (240 trained on),
fashion_mini (5,400 of 6,000), and 5,000 images of CIFAR-10. The row of sgd is the paper's defaults
(which crop and flip CIFAR alone); all others have a cosine after a warm-up over a tenth of the
epochs, and random crops and flips."""

_SIZES = {FOLDER: (240, 40), "fashion_mini": (5_400, 10), "cifar10": (5_000, 10)}
_NESTEROV = {"optimizer": "nesterov", "momentum": 0.9, "learning_rate": 0.03}
_ADAMW = {"optimizer": "adamw", "weight_decay": 0.05, "learning_rate": 3e-3}
_SMOOTH = {"label_smoothing": 0.1, "ema": 0.98}
CANDIDATES = (
    {},
    _NESTEROV,
    _NESTEROV | _SMOOTH,
    _NESTEROV | _SMOOTH | {"batch_size": 16, "learning_rate": 0.0075},
    _ADAMW,
    _ADAMW | _SMOOTH,
    _ADAMW | _SMOOTH | {"batch_size": 16, "learning_rate": 1.5e-3},
)
_ROWS = ("optimizer", "batch_size", "label_smoothing", "ema")


def recipes(base):
    size, epochs = _SIZES.get(base.data.dataset, (base.data.train_size, base.epochs()))
    base = base.replace(method="S1", train_size=size, epochs=epochs, evaluate_every=epochs)
    modern = {"schedule": "cosine", "warmup_epochs": epochs / 10, "augment": "crop_flip"}
    return [base.replace(**(candidate and modern | candidate)) for candidate in CANDIDATES]


def prepare(datasets):
    """Writes 300 training pictures of fashion_mini, and its test pictures, into folders."""
    folder = Path(FOLDER.removeprefix("folder:"))
    if FOLDER not in datasets or folder.exists():
        return
    sample, draft = load("fashion_mini"), folder.with_name(f"{folder.name}.draft")
    for name, split in (("train", take(sample.train, 300)), ("test", sample.test)):
        images, labels = split.read(np.arange(len(split)))
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            place = draft / name / sample.class_names[label].replace("/", "-")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.squeeze(-1)).save(place / f"{number:04}.png")
    draft.rename(folder)  # at once, so that a part of them is never taken for all


def report(runs):
    held_out = runs.groupby(["dataset", *_ROWS], sort=False)["held_out_accuracy"].transform("mean")
    chosen = [{"held-out accuracy": None if mean != mean else mean} for mean in held_out]
    sections = list(compare(runs.assign(chosen=chosen), _ROWS, to="sgd"))
    yield from sections
    yield _over_sets(sections)
    yield from pictures.differences(sections, runs, "recipes")


def _over_sets(sections):
    """By candidate, the held-out accuracy on each set and their mean, by which one is chosen."""
    names = list(dict.fromkeys(row["row"] for section in sections for row in section.rows))
    rows = []
    for name in names:
        told = {
            section.title.split(",")[0]: row["held-out accuracy"]
            for section in sections
            for row in section.rows
            if row["row"] == name
        }
        whole = len(told) == len(sections) and None not in told.values()
        rows.append(
            {"row": name, **told, "mean": float(np.mean([*told.values()])) if whole else None}
        )
    best = max(rows, key=lambda row: row["mean"] or 0.0)
    note = f"Chosen, by the best mean: {best['row']}." if best["mean"] else ""
    return Section("Held-out accuracy on all sets", rows, "chosen", note)
