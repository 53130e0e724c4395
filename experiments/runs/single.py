"""One configuration's runs: checked, prepared, trained."""

import contextlib
from datetime import UTC, datetime
from functools import partial
from typing import Any

import jax

import interflow_jax as ij
from experiments.cli import console
from experiments.cli.configuration import VGG, Configuration
from experiments.runs import charts, data, hosts, machine
from experiments.runs.files import writable
from experiments.runs.folder import RunFolder
from experiments.runs.stopping import StopSignals, memory_errors
from experiments.runs.training import TrainingRun
from interflow_jax import networks
from interflow_jax.backbones import StrideVGG, forward_flops
from interflow_jax.checkpoints import fingerprint
from interflow_jax.data import splits
from interflow_jax.data.datasets import Dataset
from interflow_jax.data.preprocessing import Preprocessing, imagenet_preprocessing
from interflow_jax.trainer import Trainer


def check(flags: Configuration) -> dict[int, RunFolder]:
    """Checks all that can be checked without the data; returns a folder for every seed."""
    with hosts.everywhere():
        flags.check()
        devices = jax.device_count()
        if flags.batch_size % devices:
            raise ValueError(
                f"--batch_size={flags.batch_size} on {devices} devices: choose a multiple of "
                f"{devices}"
            )
    identities = {seed: flags.identity(seed) for seed in flags.all_seeds()}
    folders = {seed: RunFolder(flags.folder(seed)) for seed in identities}

    def check_folders() -> dict[int, dict[str, Any]]:
        for seed, folder in folders.items():
            folder.check(identities[seed])
        return identities

    first = hosts.once(check_folders)
    with hosts.everywhere():
        if identities != first:
            me = jax.process_index()
            raise ValueError(f"process {me} was given another command than process 0")
    return folders


def print_layers(flags: Configuration) -> None:
    """Prints what can be tapped in the backbone, for the dataset's images."""
    dataset = data.load(flags.dataset, flags.data_dir, flags.image_size)
    network = flags.network()
    own = network is None
    if network is None:
        network = StrideVGG(
            (flags.depth,), flags.depth, flags.width, flags.downsample, flags.layout
        )
    print(f"layers for --taps, and the shapes that they give for one {flags.dataset} image:")
    for layer in ij.network_layers(network, dataset.image_shape):
        if own and not layer.path.removeprefix("conv").isdigit():
            continue  # branches follow whole convolutions, named by number
        name = layer.path.removeprefix("conv") if own else layer.path
        print(f"  {name}  {' x '.join(map(str, layer.shape[1:]))}")


def check_sizes(flags: Configuration, examples: int) -> None:
    """Checks the flags against a training split of so many examples."""
    size = flags.train_size or examples
    if size > examples:
        raise ValueError(
            f"--train_size={size}: {flags.dataset} has {examples} training examples; choose at "
            "most as many, or leave it out for all"
        )
    if size < flags.batch_size:
        raise ValueError(
            f"--batch_size={flags.batch_size} is more than the {size} training "
            "examples; choose a smaller batch or a larger --train_size"
        )


def prepare(flags: Configuration, folders: dict[int, RunFolder], command: str) -> Trainer:
    """Opens the data, claims the folders, and makes everything ready to train."""
    claims = partial(claim, flags, folders, command)

    def before_download() -> None:
        if not hosts.alone():
            raise ValueError(
                f"{flags.dataset} is not prepared on process {jax.process_index()}; for several "
                f"hosts do it first: python -m experiments.prepare --dataset={flags.dataset}"
            )
        claims()

    with hosts.everywhere():
        dataset = data.load(flags.dataset, flags.data_dir, flags.image_size, before_download)
        check_sizes(flags, len(dataset.train))
    hosts.once(claims)
    augments: dict[str, Any] = {
        "augment": flags.augments(),
        "resized_crop": flags.augment == "random_resized_crop",
    }
    preprocessing = None
    stored = hosts.once(lambda: [each.statistics() for each in folders.values()])
    if statistics := next(filter(None, stored), None):
        preprocessing = Preprocessing(**statistics, **augments)
    elif flags.normalize == "imagenet":
        preprocessing = imagenet_preprocessing(dataset.image_shape, **augments)
    with hosts.everywhere(), memory_errors(), data.reading(dataset.name):
        dataset = _subset(flags, dataset)
        trainer = Trainer(
            flags.build(len(dataset.class_names)),
            dataset,
            batch_size=flags.batch_size,
            optimizer=flags.make_optimizer(len(dataset.train) // flags.batch_size),
            preprocessing=preprocessing,
            **augments,
            auxiliary_loss=flags.auxiliary_loss(),
            auxiliary_mean=flags.auxiliary_mean,
            pretrained=flags.pretrained and ij.read_pretrained(flags.pretrained),
            progress=partial(console.reading, words=dataset.name),
        )
    mean, deviation = trainer.preprocessing[:2]
    hosts.once(lambda: [each.keep_statistics(mean, deviation) for each in folders.values()])
    return trainer


def _subset(flags: Configuration, dataset: Dataset) -> Dataset:
    """Cuts the training split to `train_size`; the next tenth as many are for validation."""
    train, size = dataset.train, flags.train_size or len(dataset.train)
    if size == len(train):
        return dataset
    validation = splits.take(train, min(max(1, size // 10), len(train) - size), after=size)
    return dataset._replace(train=splits.take(train, size), validation=validation)


def claim(flags: Configuration, folders: dict[int, RunFolder], command: str) -> None:
    """Writes the configuration of every seed into its folder."""
    for seed, folder in folders.items():
        writable(folder.path)
        facts = {"command": command, "versions": machine.versions()}
        if flags.backbone != VGG:
            facts["backbone_source"] = networks.source(flags.backbone)
        folder.claim(flags.identity(seed), facts)


def run(
    flags: Configuration, trainer: Trainer, seed: int, folder: RunFolder, command: str
) -> dict[str, Any]:
    """Trains one seed to the end, from where it stopped if it did; returns its result."""
    with contextlib.ExitStack() as lock, StopSignals() as stop:
        hosts.once(lambda: lock.enter_context(folder.locked()))
        if result := hosts.once(folder.result):  # another command has finished it meanwhile
            return result
        epochs = flags.resolved_epochs()
        print(
            f"{flags.method} on {flags.dataset}, seed {seed}: {epochs} epoch(s) of "
            f"{trainer.steps} steps of {trainer.batch_size} images, branches after "
            f"{', '.join(map(str, trainer.labels))}, on {machine.device()}",
            flush=True,
        )
        with memory_errors(), data.reading(trainer.dataset.name):
            training = TrainingRun(trainer, epochs, seed, folder, flags.checkpoint_minutes)
            with contextlib.closing(training):
                training.resume(partial(print, flush=True))
                training.train(stop)

        def finish() -> dict[str, Any]:
            history = training.position.history
            result = _result(flags.identity(seed), training, command)
            charts.draw(history, result, trainer.dataset.class_names, folder.pictures)
            folder.write_history(history)
            folder.write_json("result.json", result)
            return result

        result = hosts.once(finish)
        with hosts.everywhere():
            stop.check()  # a signal that came after the last epoch stops the seeds after this one
        return result


def _result(identity: dict[str, Any], training: TrainingRun, command: str) -> dict[str, Any]:
    """What result.json holds: accuracies in percent, after the last epoch."""
    trainer, last = training.trainer, training.position.history[-1]
    dataset, parameters = trainer.dataset, training.state.params
    figures = ("test_accuracy", "images_per_second", "train_loss", "test_loss")
    return {
        **identity,
        **{figure: last[figure] for figure in figures},
        "train_size": len(dataset.train),
        "validation_accuracy": last.get("validation_accuracy"),
        "branch_accuracy": list(last["branch_accuracy"].values()),
        "branches": list(trainer.labels),
        "weights": list(last["weights"].values()),
        "train_seconds": training.position.seconds,
        "device": machine.device(),
        "processes": jax.process_count(),
        "cores": training.position.cores,
        "versions": machine.versions(),
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "test_split": dataset.test_name,
        "test_examples": len(dataset.test),
        "validation_examples": dataset.validation and len(dataset.validation),
        "forward_flops": forward_flops(trainer.model.backbone, dataset.image_shape),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(parameters)),
        "fingerprint": fingerprint(parameters),
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "mean": list(trainer.preprocessing.mean),
        "deviation": list(trainer.preprocessing.deviation),
    }
