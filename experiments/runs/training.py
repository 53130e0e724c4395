"""One run: trains, evaluates every epoch, keeps checkpoints, takes up where it stopped."""

import dataclasses
import signal
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.console import Progress, epoch_line
from experiments.runs.folder import Events, RunFolder
from experiments.runs.session import Session
from interflow_jax.checkpoints import Checkpoints, UnwritableError
from interflow_jax.data import batches, preprocessing
from interflow_jax.training import EvalMetrics, TrainMetrics, TrainState


class StoppedError(Exception):
    """A signal asked the run to stop.

    Attributes:
      signal: its number.
      unsaved: why the state at that moment could not be saved; None if it was.
    """

    def __init__(self, signal: int, unsaved: str | None = None):
        super().__init__(signal, unsaved)
        self.signal, self.unsaved = signal, unsaved


class NonFiniteLossError(RuntimeError):
    """The loss is not a finite number."""


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is noted; a second one ends the process."""

    def __enter__(self) -> "StopSignals":
        self.received: int | None = None
        self._before = {number: signal.signal(number, self._note) for number in (2, 15)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)

    def check(self) -> None:
        """Raises StoppedError once a signal has come."""
        if self.received is not None:
            raise StoppedError(self.received)


@dataclass
class Position:
    """How far a run is, and what it has measured; saved with every checkpoint.

    Attributes:
      epoch: finished epochs.
      step: steps taken in the epoch after them.
      loss_sum, correct, count: over those steps (see `TrainMetrics`).
      seconds: of training, without evaluation and the dispatches that compile.
      timed: images trained on in that time.
      history: a record a finished epoch.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    count: int = 0
    seconds: float = 0.0
    timed: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def number(self, steps: int) -> int:
        """A checkpoint number that grows with every step and every finished epoch."""
        return self.epoch * (steps + 1) + self.step


class TrainingRun:
    """A run of one seed in its folder."""

    def __init__(self, session: Session, seed: int, folder: RunFolder, minutes: float):
        self.session, self.seed, self.folder = session, seed, folder
        self._seconds_between_saves = 60 * minutes
        self._checkpoints = Checkpoints(folder.checkpoints)
        self._events = Events(folder)
        self.state: TrainState = session.initial_state(preprocessing.initial_key(seed))
        self.position = Position()
        self._saved = -1
        self._compiled: set[int] = set()  # dispatch sizes; the first of each is not timed
        self._last_save = time.monotonic()

    def resume(self, say) -> None:
        """Takes up the newest readable checkpoint, if there is one.

        Raises:
          checkpoints.UnreadableError: if there are some and none can be read.
        """
        self._checkpoints.remove_drafts()
        restored = self._checkpoints.restore(self.state, say)
        if restored is None:
            return
        self.state = jax.device_put(restored.state, batches.replicated(self.session.mesh))
        self.position = Position(**restored.notes)
        self._checkpoints.discard_after(restored.number)
        self._saved = restored.number
        say(
            f"taking up {self.folder.path} after epoch {self.position.epoch}, "
            f"step {self.position.step} of {self.session.steps}"
        )

    def train(self, stop: StopSignals) -> None:
        """Trains to the end.

        Raises:
          StoppedError: after a signal, once the state is saved or could not be.
          NonFiniteLossError: at once; the checkpoint before stays the last one.
        """
        session, position = self.session, self.position
        images_an_epoch = session.steps * session.batch_size
        progress = Progress(
            images_an_epoch * session.epochs,
            images_an_epoch * position.epoch + session.batch_size * position.step,
        )
        self._write_history(progress.say)  # a kill may have come between checkpoint and metrics
        try:
            while position.epoch < session.epochs:
                self.train_epoch(stop, progress)
                metrics = session.evaluate(self.state, stop.check)
                record = self._record(metrics)
                position.history.append(record)
                self.position = position = Position(
                    epoch=position.epoch + 1,
                    seconds=position.seconds,
                    timed=position.timed,
                    history=position.history,
                )
                self.save(progress.say)
                self._write_history(progress.say)
                progress.say(epoch_line(record, session.epochs))
        except StoppedError as stopped:
            try:
                self.save(progress.say)
                self.check_saved()
            except (UnwritableError, NonFiniteLossError) as error:
                raise StoppedError(stopped.signal, str(error)) from error
            raise
        finally:
            self._events.close()
            progress.close()

    def check_saved(self) -> None:
        """Raises UnwritableError if the state that `train` left could not be saved."""
        if self._saved != self.position.number(self.session.steps):
            raise UnwritableError(
                f"the last state could not be saved in {self.folder.checkpoints}; make room and "
                "run the same command again: it goes on from the checkpoint before"
            )

    def close(self) -> None:
        """Ends the threads that write checkpoints."""
        self._checkpoints.close()

    def _write_history(self, say) -> None:
        """Writes the metrics; a failure is said only, for every checkpoint has them too."""
        try:
            if self.position.history:
                self.folder.write_history(self.position.history)
                self._events.write(self.position.history)
        except OSError as error:
            say(f"could not write the metrics ({error})")

    def train_epoch(self, stop: StopSignals, progress: Progress) -> None:
        """Trains to the end of the epoch that the run is in, without evaluation."""
        session, position = self.session, self.position
        keys = preprocessing.epoch_keys(self.seed, position.epoch)
        order = batches.training_order(keys, len(session.dataset.train))
        epoch = f"{position.epoch + 1}/{session.epochs}"
        for steps, source in session.batches("train", order, position.step, session.steps):
            start = time.monotonic()
            self.state, metrics = session.programs.train(self.state, source, keys, steps)
            self._add(jax.tree.map(np.asarray, metrics))
            images = len(steps) * session.batch_size
            if len(steps) in self._compiled:
                position.seconds += time.monotonic() - start
                position.timed += images
            self._compiled.add(len(steps))
            progress.add(images, epoch)
            stop.check()
            due = time.monotonic() - self._last_save >= self._seconds_between_saves
            if due and position.step < session.steps:
                self.save(progress.say)

    def _add(self, metrics: TrainMetrics) -> None:
        """Adds a dispatch's sums, [steps] each, to the position."""
        position = self.position
        finite = np.isfinite(metrics.loss_sum)
        if not finite.all():
            step = position.step + int(np.argmin(finite))
            raise NonFiniteLossError(
                f"the loss is {metrics.loss_sum[np.argmin(finite)]} in epoch {position.epoch + 1}, "
                f"step {step + 1} of {self.session.steps}"
            )
        position.step += len(finite)
        position.loss_sum += float(np.sum(metrics.loss_sum, dtype=np.float64))
        position.correct += int(np.sum(metrics.correct))
        position.count += int(np.sum(metrics.count))

    def _record(self, metrics: EvalMetrics) -> dict[str, Any]:
        """An epoch's figures: losses in nats, accuracies in percent, branches by their tap."""
        position = self.position
        taps = self.session.model.backbone.taps
        hits = dict(zip(map(str, taps), metrics.branch_correct.tolist(), strict=True))
        return {
            "epoch": position.epoch + 1,
            "train_loss": position.loss_sum / position.count,
            "train_accuracy": 100 * position.correct / position.count,
            "test_loss": float(metrics.loss_sum) / int(metrics.count),
            "test_accuracy": 100 * int(metrics.correct) / int(metrics.count),
            "branch_accuracy": {tap: 100 * hit / int(metrics.count) for tap, hit in hits.items()},
            "weights": dict(zip(hits, self._weights().tolist(), strict=True)),
            "images_per_second": position.timed / position.seconds if position.seconds else 0.0,
        }

    def _weights(self) -> np.ndarray:
        """The fusion's weights, [branches] or [branches, classes]."""
        fusion = self.session.model.fusion
        parameters = {"params": self.state.params.get("fusion", {})}
        shape = (1, len(self.session.model.backbone.taps), self.session.model.num_classes)
        return np.asarray(fusion.apply(parameters, jnp.zeros(shape))[1])

    def save(self, say) -> None:
        """Saves state and position; a failure is said, and tried again at the next save."""
        self._last_save = time.monotonic()
        number = self.position.number(self.session.steps)
        if number == self._saved:
            return
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(self.state.params)):
            raise NonFiniteLossError(
                f"parameters are not finite after epoch {self.position.epoch}, "
                f"step {self.position.step} of the next"
            )
        try:
            self._checkpoints.save(number, self.state, dataclasses.asdict(self.position))
            self._saved = number
        except UnwritableError as error:
            say(f"could not save a checkpoint ({error}); trying again at the next one")
