"""What the user sees during a run: progress with an ETA, a line per epoch, a summary."""

import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from tqdm import tqdm

from interflow_jax.cli.stopping import StoppedError
from interflow_jax.data.dataset import printable

SECONDS_BETWEEN_LINES = 30.0  # of progress, where there is no terminal to redraw


class Progress:
    """Progress of a run in images: a bar on a terminal, else a plain line now and then.

    `done` of the `total` images are from earlier sessions.
    """

    def __init__(self, total: int, done: int):
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        self._done, self._total = done, total
        self._timed_from: tuple[float, int] | None = None  # when, and with how many images done
        self._last_line = time.monotonic()
        self.close = self._bar.close

    def add(self, images: int, epoch: str) -> None:
        """Counts images of an epoch, which is named like "2/40"."""
        self._done += images
        self._bar.set_description(f"epoch {epoch}", refresh=False)
        self._bar.update(images)
        now = time.monotonic()
        if self._timed_from is None:  # most of these images' time went into compilation
            self._timed_from = now, self._done
        elif self._bar.disable and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            start, first = self._timed_from
            rate = (self._done - first) / (now - start)
            eta = duration((self._total - self._done) / rate)
            share = self._done / self._total
            print(f"  epoch {epoch}  {share:6.1%}  {rate:,.0f} images/s  ETA {eta}", flush=True)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        tqdm.write(line)
        sys.stdout.flush()


def reading(chunks: list, words: str) -> Iterable:
    """Wraps the list of a split's chunks in a progress bar, on a terminal."""
    return tqdm(chunks, desc=f"reading {words}", leave=False, disable=not sys.stderr.isatty())


def duration(seconds: float) -> str:
    """Formats seconds as "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def epoch_line(record: dict[str, Any], epochs: int) -> str:
    """An epoch's figures in one line (percent; for `class` weights, the mean over the classes)."""
    branches = " ".join(f"{tap}:{value:.2f}" for tap, value in record["branch_accuracy"].items())
    weights = " ".join(f"{np.mean(value):+.3f}" for value in record["weights"].values())
    return (
        f"epoch {record['epoch']}/{epochs}  loss {record['train_loss']:.4f}  "
        f"test {record['test_accuracy']:.2f}%  branches {branches}  weights {weights}  "
        f"{_speed(record['images_per_second'])}"
    )


def _speed(rate: float) -> str:
    """In words; a dash where every step was one that compiled."""
    return f"{rate:,.0f} images/s" if rate else "- images/s"


def summary(result: dict[str, Any], folder: Any) -> str:
    """A human-readable summary of a finished run."""
    part = "" if result["test_split"] == "test" else f" ({result['test_split']})"
    labels = [str(label) for label in result["branches"]]
    width = max(12, *map(len, labels))
    rows = [f"  {'branch after':<{width}}    accuracy alone    weight"]
    columns = labels, result["branch_accuracy"], result["weights"]
    for label, accuracy, weight in zip(*columns, strict=True):
        row = f"  {label:<{width}}{accuracy:>17.2f}%{np.mean(weight):>+10.3f}"
        if isinstance(weight, list):
            row += f" (mean of {len(weight)} classes: {min(weight):+.3f} to {max(weight):+.3f})"
        rows.append(row)
    for number, deviation in enumerate(result.get("weight_deviation", ()), start=1):
        rows[number] += f" ± {deviation:.3f} between images"
    branches = "\n".join(rows)
    return (
        f"{result['method']} on {printable(result['dataset'])}, seed {result['seed']}: "
        f"{result['test_accuracy']:.2f}% of {result['test_examples']:,} test images{part} "
        f"after {_epochs(result)} of {result['train_size']:,} images\n\n{branches}\n\n"
        f"  {result['parameters']:,} parameters, {_speed(result['images_per_second'])}, "
        f"{duration(result['train_seconds'])} of training on {result['device']}\n"
        f"  figures, pictures and checkpoints in {folder}"
    )


def _epochs(result: dict[str, Any]) -> str:
    """How long it was trained, and which epoch was kept."""
    trained = result.get("trained_epochs", result["epochs"])
    epochs, kept = f"{trained} epoch(s)", result.get("kept_epoch", trained)
    if trained < result["epochs"]:
        epochs += f" (of {result['epochs']}; the last were no better on held-out images)"
    if result.get("keep") != "best":
        return epochs
    return f"epoch {kept}, the best on held-out images, of {epochs}"


def stopped(error: StoppedError, command: str) -> str:
    """After a signal: whether the state is saved, and how to continue."""
    if error.unsaved is not None:
        return f"stopped, but {error.unsaved}: {command}"
    return f"stopped and saved; to go on, run the same command again: {command}"


def several(results: list[dict[str, Any]]) -> str:
    """Accuracy over seeds."""
    accuracies = [result["test_accuracy"] for result in results]
    return (
        f"{len(results)} seeds: {np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}% "
        f"(mean ± standard deviation), best {max(accuracies):.2f}%"
    )
