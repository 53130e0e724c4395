"""One run: trains, evaluates every epoch, keeps checkpoints, resumes where it stopped."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np

from interflow_jax.checkpoints import Checkpoints, UnwritableError
from interflow_jax.cli import hosts, machine
from interflow_jax.cli.config import RunConfig, as_flag
from interflow_jax.cli.console import Progress, epoch_line
from interflow_jax.cli.events import Events
from interflow_jax.cli.folder import RunFolder
from interflow_jax.cli.stopping import NonFiniteLossError, StoppedError, StopSignals
from interflow_jax.data.batches import cores
from interflow_jax.data.splits import Split, take
from interflow_jax.steps import TrainMetrics, TrainState
from interflow_jax.trainer import Trainer

Say = Callable[[str], None]
LEAST_MEASURED = 1000  # images
LATE_EPOCHS = 10  # whose mean accuracy varies less between seeds than the last one's


@dataclass
class Position:
    """How far a run is, and what it has measured; saved with every checkpoint."""

    epoch: int = 0  # finished epochs
    step: int = 0  # steps taken in the epoch after those
    loss_sum: float = 0.0  # this and the next two are sums since the last evaluation
    correct: int = 0
    count: int = 0
    seconds: float = 0.0  # of training, without evaluation and dispatches that compile
    timed: int = 0  # images trained on in that time
    history: list[dict[str, Any]] = field(default_factory=list)  # a record per evaluation
    cores: list[int] = field(default_factory=list)  # as they change: sums round differently
    software: list[str] = field(default_factory=list)  # likewise

    def number(self, steps: int) -> int:
        """A checkpoint number that grows with every step and every finished epoch."""
        return self.epoch * (steps + 1) + self.step


def _best(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The first of the epochs with the best accuracy on held-out images."""
    return max(history, key=lambda record: record["validation_accuracy"])


def late_epochs(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those records that are of the last ten epochs, of fewer than twenty of their last half."""
    epochs = history[-1]["epoch"] if history else 0  # not all of them may have been evaluated
    first = epochs - min(LATE_EPOCHS, -(-epochs // 2))
    return [record for record in history if record["epoch"] > first]


def _check(stop: StopSignals) -> None:
    with hosts.everywhere():
        stop.check()


class TrainingRun:
    """A run of one seed in its folder."""

    def __init__(self, trainer: Trainer, config: RunConfig, folder: RunFolder):
        self.trainer, self.folder = trainer, folder
        self.epochs, self.seed = config.epochs(), config.training.seed
        self._selection, self._rates = config.selection, config.learning_rates(trainer.steps)
        self._seconds_between_saves = 60 * config.places.checkpoint_minutes
        self._checkpoints = Checkpoints(folder.checkpoints)
        shown = {
            name: as_flag(value) if isinstance(value, tuple) else value
            for name, value in {**config.flat(), "epochs": self.epochs}.items()
        }
        self._events = Events(folder.path / "events", shown, trainer.dataset.class_names)
        self.state: TrainState = trainer.init(self.seed)
        self._signature = config.signature()
        self.position = Position(cores=[cores()], software=[machine.software()])
        self._saved = -1
        self._answers: np.ndarray | None = None  # of the last evaluation
        self._compiled: set[int] = set()  # dispatch sizes; the first of each is not timed
        self._last_save = time.monotonic()

    def resume(self, say: Say) -> None:
        """Resumes from the newest readable checkpoint, if there is one."""

        state = self.state

        def restore() -> tuple[int, dict] | None:
            nonlocal state
            self._checkpoints.remove_drafts()
            restored = self._checkpoints.restore(self.state, say)
            if restored is None:
                return None
            self._checkpoints.discard_after(restored.number)
            self._checkpoints.complete(restored.number)
            state = restored.state
            return restored.number, restored.notes

        restored = hosts.once(restore)
        if restored is None:
            return
        self.state = self.trainer.put(hosts.same(state))
        self._saved, notes = restored
        owner = notes.pop("run", None)
        if owner is None:
            say(f"{self.folder.path}: an older checkpoint, which does not name its run, is taken")
        elif owner != self._signature:
            raise ValueError(
                f"checkpoint {self._saved} in {self.folder.checkpoints} is another run's; move it "
                "away, or give another --out"
            )
        self.position = position = Position(**notes)
        if position.cores[-1:] != [cores()]:
            position.cores.append(cores())
        if position.software and position.software[-1] != machine.software():
            say(
                f"trained with {position.software[-1]} before, now with {machine.software()}: the "
                "figures may differ in their last digits"
            )
        if position.software[-1:] != [machine.software()]:
            position.software.append(machine.software())
        say(
            f"taking up {self.folder.path} after epoch {self.position.epoch}, "
            f"step {self.position.step} of {self.trainer.steps}"
        )

    def train(self, stop: StopSignals) -> None:
        """Trains to the end; a signal raises StoppedError once the state is saved or cannot be.

        A loss that is not finite ends it at once: the previous checkpoint stays the last one.
        """
        steps, batch_size, position = self.trainer.steps, self.trainer.batch_size, self.position
        done = steps * position.epoch + position.step
        progress = Progress(batch_size * steps * self.epochs, batch_size * done)
        self._write_history(progress.say)  # a kill may have come between checkpoint and metrics
        try:
            while position.epoch < self.epochs and not self._is_out_of_patience():
                self.train_epoch(stop, progress)
                epoch, record = position.epoch + 1, None
                if epoch % self._selection.evaluate_every == 0 or epoch == self.epochs:
                    record = self._record(stop)
                    position.history.append(record)
                    if self._selection.keep == "best" and self.kept() is record:
                        self._save_best()
                    position = dataclasses.replace(position, loss_sum=0.0, correct=0, count=0)
                self.position = position = dataclasses.replace(position, epoch=epoch, step=0)
                self.save(progress.say)
                if record is not None:
                    self._write_history(progress.say)
                    progress.say(epoch_line(record, self.epochs))
            if position.epoch < self.epochs:
                progress.say(
                    f"no better on held-out images since epoch {_best(position.history)['epoch']}: "
                    f"ended after {position.epoch} of {self.epochs} epochs"
                )
        except StoppedError as stopped:
            with hosts.everywhere():
                try:
                    self.save(progress.say)
                    self._check_saved()
                except (UnwritableError, NonFiniteLossError) as error:
                    raise StoppedError(stopped.signal, str(error)) from error
            raise
        finally:
            progress.close()
        with hosts.everywhere():
            self._check_saved()
        if self._selection.keep == "best":
            self._restore_best()

    def kept(self) -> dict[str, Any]:
        """The record of the epoch that is kept: the last, or the first of the best by `keep`."""
        history = self.position.history
        return _best(history) if self._selection.keep == "best" else history[-1]

    def _is_out_of_patience(self) -> bool:
        """Asked after evaluations alone: what is recorded is then of the epoch that is last."""
        history, patience = self.position.history, self._selection.patience
        if patience is None or not history or history[-1]["epoch"] != self.position.epoch:
            return False
        return self.position.epoch - _best(history)["epoch"] >= patience

    def _save_best(self) -> None:
        """Saves the state apart from the checkpoints, before that which says it is the best."""
        number = self.position.history[-1]["epoch"]

        def write() -> None:
            with contextlib.closing(Checkpoints(self.folder.best)) as best:
                best.discard_after(number - 1)  # of a session whose checkpoints were lost
                best.save(number, self.state, {"run": self._signature})

        hosts.once(write)

    def _restore_best(self) -> None:
        """Takes the state of the best epoch up, to measure it."""
        number, state = self.kept()["epoch"], self.state

        def read() -> None:
            nonlocal state
            with contextlib.closing(Checkpoints(self.folder.best)) as best:
                best.discard_after(number)  # a later one that, measured again, was not better
                restored = best.restore(self.state)
            if restored is None or restored.number != number:
                raise ValueError(
                    f"{self.folder.best} lacks epoch {number}, the best on held-out images; move "
                    f"{self.folder.path} away and run again"
                )
            state = restored.state

        hosts.once(read)
        self.state, self._answers = self.trainer.put(hosts.same(state)), None

    def _check_saved(self) -> None:
        if self._saved != self.position.number(self.trainer.steps):
            raise UnwritableError(
                f"the last state could not be saved in {self.folder.checkpoints}; make room and "
                "run the same command again: it goes on from the checkpoint before"
            )

    def write_pictures(self, say: Say) -> None:
        """Adds the run's pictures to its events."""
        try:
            self._events.write_pictures(self.position.epoch, self.folder.pictures)
        except OSError as error:
            say(f"could not write the pictures' events ({error})")

    def close(self) -> None:
        """Ends the threads of checkpoints, and closes the events."""
        self._events.close()
        self._checkpoints.close()

    def _write_history(self, say: Say) -> None:
        """Writes the metrics; a failure loses nothing, as every checkpoint has them too."""
        try:
            if self.position.history and hosts.is_first():
                self.folder.write_history(self.position.history)
                self._events.write(self.position.history)
        except OSError as error:
            say(f"could not write the metrics ({error})")

    def train_epoch(self, stop: StopSignals, progress: Progress) -> None:
        """Trains to the end of the current epoch, without evaluation."""
        trainer, position = self.trainer, self.position
        start = time.monotonic()
        dispatches = trainer.dispatches(self.state, position.epoch, self.seed, position.step)
        for self.state, metrics in dispatches:
            steps = len(metrics.count)
            images = steps * trainer.batch_size
            with hosts.everywhere():
                self._add(metrics)
                if steps in self._compiled:
                    position.seconds += time.monotonic() - start
                    position.timed += images
                self._compiled.add(steps)
                progress.add(images, f"{position.epoch + 1}/{self.epochs}")
                stop.check()
            if position.step < trainer.steps and hosts.once(self._save_is_due):
                self.save(progress.say)
            start = time.monotonic()

    def _save_is_due(self) -> bool:
        return time.monotonic() - self._last_save >= self._seconds_between_saves

    def _add(self, metrics: TrainMetrics) -> None:
        """Adds a dispatch's sums, [steps] each, to the position."""
        position = self.position
        for step, loss in enumerate(metrics.loss_sum.tolist(), start=position.step + 1):
            if not np.isfinite(loss):
                kept = "no checkpoint is" if self._saved < 0 else "the checkpoint before it is"
                raise NonFiniteLossError(
                    f"the loss is {loss} in epoch {position.epoch + 1}, step {step} of "
                    f"{self.trainer.steps}; {kept} kept. Try a lower --learning_rate, or "
                    "--warmup_epochs=1, with another --out"
                )
        position.step += len(metrics.loss_sum)
        position.loss_sum += float(np.sum(metrics.loss_sum, dtype=np.float64))
        position.correct += int(np.sum(metrics.correct))
        position.count += int(np.sum(metrics.count))

    def _record(self, stop: StopSignals) -> dict[str, Any]:
        """Evaluates: losses in nats, accuracies in percent, branches by their labels."""
        position, trainer, between = self.position, self.trainer, partial(_check, stop)
        test = trainer.evaluate(self.state, "test", between)
        self._answers = np.asarray(test.answers)
        younger: dict[str, float] = {}

        def measured(figure: str) -> bool:
            """Of every epoch before: a run begun without a figure goes on without it."""
            return all(figure in record for record in position.history)

        if trainer.dataset.validation is not None and measured("validation_accuracy"):
            metrics = trainer.evaluate(self.state, "validation", between)
            younger["validation_accuracy"] = metrics.accuracy
        if measured("learning_rate"):
            last = trainer.steps * (position.epoch + 1) - 1
            younger["learning_rate"] = float(np.asarray(self._rates(last)))
        labels = [str(label) for label in trainer.labels]
        by_branch = {"weights": test.weights}
        if (sums := test.weight_sums) is not None:
            by_branch |= {"weight_deviation": sums.deviation, "weights_by_class": sums.by_class}
        return {
            "epoch": position.epoch + 1,
            "train_loss": position.loss_sum / position.count,
            "train_accuracy": 100 * position.correct / position.count,
            "test_loss": test.loss,
            "test_accuracy": test.accuracy,
            **younger,
            "branch_accuracy": dict(zip(labels, test.branch_accuracy, strict=True)),
            **{
                name: dict(zip(labels, np.asarray(values).tolist(), strict=True))
                for name, values in by_branch.items()
            },
            "images_per_second": position.timed / position.seconds if position.seconds else 0.0,
        }

    def answers(self) -> np.ndarray:
        """The true and the predicted class of every test example, [examples, 2], int32."""
        if self._answers is None:  # resumed after the last epoch, or of another one
            self._answers = np.asarray(self.trainer.evaluate(self.state).answers)
        return self._answers

    def measure(
        self, stop: StopSignals, held_out: Split | None, recalibrated: bool
    ) -> dict[str, Any]:
        """What is measured once, after the last epoch: accuracies in percent, in evaluation mode.

        Of the training images and of all those that no run trains on; where these are more than a
        tenth of the images that training visits, and than `LEAST_MEASURED`, of as many of them: it
        is to take a few percent of the training's time.
        """
        trainer, between = self.trainer, partial(_check, stop)
        late = [record["test_accuracy"] for record in late_epochs(self.position.history)]
        figures: dict[str, Any] = {"late_accuracy": float(np.mean(late))}
        visited = trainer.steps * trainer.batch_size * self.epochs
        most = max(LEAST_MEASURED, visited // 10)
        for name, split in (("train_eval", trainer.dataset.train), ("held_out", held_out)):
            part = split if split is None else take(split, min(most, len(split)))
            measured = part and trainer.evaluate(self.state, part, between).accuracy
            figures |= {f"{name}_accuracy": measured, f"{name}_examples": part and len(part)}
        if recalibrated:
            state = trainer.recalibrate(self.state)
            accuracy = trainer.evaluate(state, "test", between).accuracy
            figures["recalibrated_accuracy"] = accuracy
        return figures

    def save(self, say: Say) -> None:
        """Saves state and position; after a failure the next save tries again."""
        self._last_save = time.monotonic()
        number = self.position.number(self.trainer.steps)
        if number == self._saved:
            return

        def write() -> None:
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(self.state.params)):
                raise NonFiniteLossError(
                    f"parameters are not finite after epoch {self.position.epoch}, "
                    f"step {self.position.step} of the next; the checkpoint before is kept. Try a "
                    "lower --learning_rate, or --warmup_epochs=1, with another --out"
                )
            if not self.folder.path.is_dir():
                raise FileNotFoundError(
                    f"{self.folder.path} was deleted while it trained; the same command again "
                    "begins anew"
                )
            notes = {**dataclasses.asdict(self.position), "run": self._signature}
            self._checkpoints.save(number, self.state, notes)

        try:
            hosts.once(write)
            self._saved = number
        except UnwritableError as error:
            say(f"could not save a checkpoint ({error}); trying again at the next one")
