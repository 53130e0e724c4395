"""One configuration's runs: checked, made ready, trained."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jax

from experiments.cli import configuration, console
from experiments.cli.configuration import Configuration
from experiments.runs import charts, data
from experiments.runs.folder import RunFolder, device, versions
from experiments.runs.session import Session, open_session
from experiments.runs.training import StopSignals, TrainingRun
from interflow_jax.checkpoints import fingerprint
from interflow_jax.data import splits


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
    folders = {
        seed: RunFolder(Path(flags.out) / flags.dataset / flags.method / f"seed{seed}")
        for seed in flags.all_seeds()
    }
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


def prepare(flags: Configuration, folders: dict[int, RunFolder], command: str) -> Session:
    """Opens the data, claims the folders, and makes all ready to train.

    Raises:
      ValueError: as `check`.
    """

    claimed = partial(claim, flags, folders, command)
    dataset = data.load(flags.dataset, flags.data_dir, flags.image_size, before_download=claimed)
    check_sizes(flags, len(dataset.train))
    if flags.train_size is not None:
        dataset = dataset._replace(train=splits.take(dataset.train, flags.train_size))
    claimed()
    return open_session(flags, dataset)


def claim(flags: Configuration, folders: dict[int, RunFolder], command: str) -> None:
    """Writes the configuration of every seed into its folder.

    Raises:
      ValueError: as `check`, or for a folder that cannot be written.
    """
    for seed, folder in folders.items():
        configuration.writable(folder.path)
        folder.claim(flags.identity(seed), {"command": command, "versions": versions()})


def run(
    flags: Configuration, session: Session, seed: int, folder: RunFolder, command: str
) -> dict[str, Any]:
    """Trains one seed to the end, or from where it stopped to the end; returns its result.

    Raises:
      HeldError: if another process is training in the folder.
      StoppedError, NonFiniteLossError, UnreadableError, UnwritableError: see `TrainingRun`.
    """
    with folder.held(), StopSignals() as stop:
        there = folder.result()
        if there is not None:  # another process has done it meanwhile
            return there
        training = TrainingRun(session, seed, folder, flags.checkpoint_minutes)
        try:
            print(console.beginning(flags.identity(seed), session, device()), flush=True)
            training.resume(lambda line: print(line, flush=True))
            training.train(stop)
            training.check_saved()
        finally:
            training.close()
        history = training.position.history
        last = history[-1]
        parameters = training.state.params
        result = {
            **flags.identity(seed),
            "train_size": len(session.dataset.train),
            "test_accuracy": last["test_accuracy"],
            "branch_accuracy": list(last["branch_accuracy"].values()),
            "branches": [int(tap) for tap in last["weights"]],
            "weights": list(last["weights"].values()),
            "train_seconds": training.position.seconds,
            "images_per_second": last["images_per_second"],
            "device": device(),
            "versions": versions(),
            "command": command,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "train_loss": last["train_loss"],
            "test_loss": last["test_loss"],
            "test_split": session.dataset.test_name,
            "test_examples": len(session.dataset.test),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(parameters)),
            "fingerprint": fingerprint(parameters),
            "class_names": list(session.dataset.class_names),
            "image_shape": list(session.dataset.image_shape),
            "mean": list(session.preprocessing.mean),
            "deviation": list(session.preprocessing.deviation),
        }
        charts.draw(history, result, session.dataset.class_names, folder.pictures)
        folder.write_history(history)
        folder.write_json("result.json", result)
        stop.check()  # a signal that came after the last epoch stops the seeds after this one
        return result
