"""One configuration's runs: checked, made ready, trained."""

from datetime import UTC, datetime
from functools import partial
from typing import Any

import jax

import interflow_jax as ij
from experiments.cli import console
from experiments.cli.configuration import Configuration
from experiments.runs import charts, data, machine
from experiments.runs.files import writable
from experiments.runs.folder import RunFolder
from experiments.runs.stopping import StopSignals, memory_errors
from experiments.runs.training import TrainingRun
from interflow_jax.checkpoints import fingerprint
from interflow_jax.data import splits
from interflow_jax.data.datasets import Dataset
from interflow_jax.data.preprocessing import Preprocessing
from interflow_jax.trainer import Trainer


def check(flags: Configuration) -> dict[int, RunFolder]:
    """Checks all that can be wrong without the data; returns a folder for every seed.

    Raises:
      ValueError: in a line: what was given, what is allowed, what to do.
    """
    flags.check()
    devices = jax.local_device_count()
    if flags.batch_size % devices:
        raise ValueError(
            f"--batch_size={flags.batch_size} on {devices} devices: choose a multiple of {devices}"
        )
    folders = {seed: RunFolder(flags.folder(seed)) for seed in flags.all_seeds()}
    for seed, folder in folders.items():
        folder.check(flags.identity(seed))
    return folders


def check_sizes(flags: Configuration, examples: int) -> None:
    """Checks the flags against a training split of so many examples.

    Raises:
      ValueError: naming the flag, what is allowed and what to do.
    """
    taken = flags.train_size or examples
    if taken > examples:
        raise ValueError(
            f"--train_size={taken}: {flags.dataset} has {examples} training examples; choose at "
            "most as many, or leave it out for all"
        )
    if taken < flags.batch_size:
        raise ValueError(
            f"--batch_size={flags.batch_size} is more than the {taken} training "
            "examples; choose a smaller batch or a larger --train_size"
        )


def prepare(flags: Configuration, folders: dict[int, RunFolder], command: str) -> Trainer:
    """Opens the data, claims the folders, and makes all ready to train.

    Raises:
      ValueError: as `check`, or for data that cannot be read.
      OutOfMemoryError: for data or programs that are too large.
    """
    claimed = partial(claim, flags, folders, command)
    dataset = data.load(flags.dataset, flags.data_dir, flags.image_size, before_download=claimed)
    check_sizes(flags, len(dataset.train))
    claimed()
    kept = (folder.statistics() for folder in folders.values())
    statistics = next((each for each in kept if each), None)
    with memory_errors(), data.reading(dataset.name):
        trainer = _trainer(flags, _subset(flags, dataset), statistics)
    for folder in folders.values():
        folder.keep_statistics(trainer.preprocessing.mean, trainer.preprocessing.deviation)
    return trainer


def _subset(flags: Configuration, dataset: Dataset) -> Dataset:
    """Cuts the training split to `train_size`; a tenth as many of the next are for validation."""
    train, size = dataset.train, flags.train_size or len(dataset.train)
    if size == len(train):
        return dataset
    validation = splits.take(train, min(max(1, size // 10), len(train) - size), after=size)
    return dataset._replace(train=splits.take(train, size), validation=validation)


def _trainer(
    flags: Configuration,
    dataset: Dataset,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> Trainer:
    method = (ij.METHODS | ij.BASELINES)[flags.method]
    augment = flags.augments()
    return Trainer(
        flags.build(len(dataset.class_names)),
        dataset,
        batch_size=flags.batch_size,
        optimizer=flags.make_optimizer(len(dataset.train) // flags.batch_size),
        preprocessing=statistics and Preprocessing(*statistics, augment),
        augment=augment,
        auxiliary_loss=method.auxiliary_loss,
        auxiliary_mean=flags.auxiliary_mean,
        progress=partial(console.reading, words=dataset.name),
    )


def claim(flags: Configuration, folders: dict[int, RunFolder], command: str) -> None:
    """Writes the configuration of every seed into its folder.

    Raises:
      ValueError: as `check`, or for a folder that cannot be written.
    """
    for seed, folder in folders.items():
        writable(folder.path)
        folder.claim(flags.identity(seed), {"command": command, "versions": machine.versions()})


def run(
    flags: Configuration, trainer: Trainer, seed: int, folder: RunFolder, command: str
) -> dict[str, Any]:
    """Trains one seed to the end, or from where it stopped to the end; returns its result.

    Raises:
      LockedError: if another process is training in the folder.
      ValueError: for data that cannot be read.
      StoppedError, NonFiniteLossError, OutOfMemoryError, UnreadableError, UnwritableError
    """
    with folder.locked(), StopSignals() as stop:
        finished = folder.result()
        if finished is not None:  # another process has done it meanwhile
            return finished
        epochs = flags.resolved_epochs()
        with memory_errors(), data.reading(trainer.dataset.name):
            training = TrainingRun(trainer, epochs, seed, folder, flags.checkpoint_minutes)
            try:
                identity = flags.identity(seed)
                print(console.beginning(identity, epochs, trainer, machine.device()), flush=True)
                training.resume(lambda line: print(line, flush=True))
                training.train(stop)
                training.check_saved()
            finally:
                training.close()
        history = training.position.history
        result = _result(flags.identity(seed), training, command)
        charts.draw(history, result, trainer.dataset.class_names, folder.pictures)
        folder.write_history(history)
        folder.write_json("result.json", result)
        stop.check()  # a signal that came after the last epoch stops the seeds after this one
        return result


def _result(identity: dict[str, Any], training: TrainingRun, command: str) -> dict[str, Any]:
    """What result.json holds: accuracies in percent, after the last epoch."""
    trainer, last = training.trainer, training.position.history[-1]
    dataset, parameters = trainer.dataset, training.state.params
    return {
        **identity,
        "train_size": len(dataset.train),
        "test_accuracy": last["test_accuracy"],
        "validation_accuracy": last.get("validation_accuracy"),
        "branch_accuracy": list(last["branch_accuracy"].values()),
        "branches": list(trainer.labels),
        "weights": list(last["weights"].values()),
        "train_seconds": training.position.seconds,
        "images_per_second": last["images_per_second"],
        "device": machine.device(),
        "cores": training.position.cores,
        "versions": machine.versions(),
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "train_loss": last["train_loss"],
        "test_loss": last["test_loss"],
        "test_split": dataset.test_name,
        "test_examples": len(dataset.test),
        "validation_examples": dataset.validation and len(dataset.validation),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(parameters)),
        "fingerprint": fingerprint(parameters),
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "mean": list(trainer.preprocessing.mean),
        "deviation": list(trainer.preprocessing.deviation),
    }
