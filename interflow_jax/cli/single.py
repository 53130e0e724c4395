"""One configuration's runs: checked, prepared, trained."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import jax

from interflow_jax.checkpoints import fingerprint
from interflow_jax.cli import charts, console, data, hosts, machine
from interflow_jax.cli.config import RunConfig
from interflow_jax.cli.folder import RunFolder
from interflow_jax.cli.stopping import StopSignals, memory_errors
from interflow_jax.cli.training import TrainingRun
from interflow_jax.config import VGG
from interflow_jax.data import splits
from interflow_jax.data.dataset import Dataset
from interflow_jax.data.preprocessing import Preprocessing, imagenet_preprocessing
from interflow_jax.networks import source
from interflow_jax.ops import onednn
from interflow_jax.pretrained import read_pretrained
from interflow_jax.trainer import Trainer
from interflow_jax.vgg import forward_flops


class Runs:
    """The runs of a configuration, one per seed, which share a `Trainer` and its programs.

    Attributes:
      config: of all of them.
      command: what repeats them.
      seeds: per seed, its configuration and its folder.
    """

    def __init__(self, config: RunConfig, command: str):
        """Checks all that can be checked without the data; makes no folder.

        Raises:
          ValueError: for what `RunConfig.check` refuses, a batch size that the devices do not
            share, or a folder of another configuration.
        """
        self.config, self.command = config, command
        with hosts.everywhere():
            config.check()
            devices, batch_size = jax.device_count(), config.training.batch_size
            if batch_size % devices:
                raise ValueError(
                    f"--batch_size={batch_size} on {devices} devices: choose a multiple of "
                    f"{devices}"
                )
        self.seeds = [(each, RunFolder(each.folder())) for each in config.by_seed()]
        self._identities = [each.identity() for each, _ in self.seeds]
        first = hosts.once(self._check_folders)
        with hosts.everywhere():
            if self._identities != first:
                me = jax.process_index()
                raise ValueError(f"process {me} was given another command than process 0")
        self._trainer: Trainer | None = None

    def _check_folders(self) -> list[dict[str, Any]]:
        for (_, folder), identity in zip(self.seeds, self._identities, strict=True):
            folder.check(identity)
        return self._identities

    def results(self) -> Iterator[dict[str, Any]]:
        """The result of every run, in order, after training it where it is not finished."""
        for number, (config, folder) in enumerate(self.seeds):
            result = hosts.once(partial(self._finished, folder))
            if result is None:
                if self._trainer is None:
                    self._trainer = self.prepare()
                result = self._run(self._trainer, config, folder, self._identities[number])
            print(console.summary(result, folder.path), flush=True)
            yield result

    def _finished(self, folder: RunFolder) -> dict[str, Any] | None:
        """A folder's result, if it is finished; a folder of pictures must still be the same one."""
        result, given = folder.result(), self.config.data
        if result is not None and given.dataset.startswith("folder:"):
            try:
                dataset = data.load(given.dataset, None, given.image_size, resize=given.resize)
            except ValueError as error:
                print(f"not compared with what {folder.path} was trained on: {error}", flush=True)
            else:
                folder.claim_data(dataset.digest())
        return result

    def prepare(self) -> Trainer:
        """Opens the data, claims the folders, and makes everything ready to train."""
        config, places = self.config, self.config.places
        with contextlib.ExitStack() as provisional:
            for _, folder in self.seeds if hosts.is_first() else ():
                provisional.enter_context(folder.provisional())

            def before_download() -> None:
                if not hosts.alone():
                    raise ValueError(
                        f"{config.data.dataset} is not prepared on process {jax.process_index()}; "
                        "for several hosts do it first: python -m interflow_jax prepare "
                        f"--dataset={config.data.dataset}"
                    )
                self._claim()

            with hosts.everywhere():
                dataset = data.load(
                    config.data.dataset,
                    places.data_dir,
                    config.data.image_size,
                    before_download,
                    config.data.resize,
                )
                check_sizes(config, len(dataset.train))
                pretrained = config.training.pretrained
                variables = pretrained and read_pretrained(pretrained)
            hosts.once(lambda: self._claim(dataset.digest()))
            for note in dataset.notes:
                print(note, flush=True)
            with hosts.everywhere(), memory_errors(), data.reading(dataset.name):
                dataset, losses = _subset(config, dataset), config.losses()
                trainer = Trainer(
                    config.model.build(len(dataset.class_names)),
                    dataset,
                    batch_size=config.training.batch_size,
                    optimizer=config.make_optimizer(
                        len(dataset.train) // config.training.batch_size
                    ),
                    preprocessing=self._preprocessing(dataset),
                    augment=config.data.augments(),
                    resized_crop=config.data.augment == "random_resized_crop",
                    auxiliary_loss=losses["auxiliary_loss"],
                    auxiliary_mean=losses["auxiliary_mean"],
                    pretrained=variables,
                    progress=partial(console.reading, words=dataset.name),
                )
            hosts.once(partial(self._keep_statistics, trainer.preprocessing))
        return trainer

    def _claim(self, digest: str | None = None) -> None:
        """Writes the configuration of every seed into its folder.

        Args:
          digest: of the data, which work in a folder must have been done on; None before there is
            any.
        """
        facts: dict[str, Any] = {"command": self.command, "versions": machine.versions()}
        if self.config.model.backbone != VGG:
            facts["backbone_source"] = source(self.config.model.backbone)
        for (_, folder), identity in zip(self.seeds, self._identities, strict=True):
            folder.claim(identity, facts)
            if digest is not None:
                folder.claim_data(digest)

    def _preprocessing(self, dataset: Dataset) -> Preprocessing | None:
        """That which the folders' work began with, or ImageNet's; None for the images' own."""
        augments: dict[str, Any] = {
            "augment": self.config.data.augments(),
            "resized_crop": self.config.data.augment == "random_resized_crop",
        }
        stored = hosts.once(lambda: [folder.statistics() for _, folder in self.seeds])
        if statistics := next(filter(None, stored), None):
            mean, deviation = map(tuple, (statistics["mean"], statistics["deviation"]))
            return Preprocessing(mean, deviation, **augments)
        if self.config.data.normalize == "imagenet":
            return imagenet_preprocessing(dataset.image_shape, **augments)
        return None

    def _keep_statistics(self, preprocessing: Preprocessing) -> None:
        """Records them, so that a streamed split is not read again for them."""
        mean, deviation = list(preprocessing.mean), list(preprocessing.deviation)
        for _, folder in self.seeds:
            folder.keep(statistics={"mean": mean, "deviation": deviation})

    def _run(
        self, trainer: Trainer, config: RunConfig, folder: RunFolder, identity: dict[str, Any]
    ) -> dict[str, Any]:
        """Trains one seed to the end, from where it stopped if it did; returns its result."""
        with contextlib.ExitStack() as lock, StopSignals() as stop:
            hosts.once(lambda: lock.enter_context(folder.locked()))
            if result := hosts.once(folder.result):  # another command has finished it meanwhile
                return result
            print(
                f"{config.model.method} on {config.data.dataset}, seed {config.training.seed}: "
                f"{config.epochs()} epoch(s) of {trainer.steps} steps of {trainer.batch_size} "
                f"images, branches after {', '.join(map(str, trainer.labels))}, on "
                f"{machine.device()}",
                flush=True,
            )
            if bring := onednn.hint():
                print(bring, flush=True)
            with memory_errors(), data.reading(trainer.dataset.name):
                training = TrainingRun(trainer, config, folder)
                with contextlib.closing(training):
                    training.resume(partial(print, flush=True))
                    training.train(stop)

            def finish() -> dict[str, Any]:
                history = training.position.history
                result = _result(identity, training, self.command)
                charts.draw(history, result, trainer.dataset.class_names, folder.pictures)
                folder.write_history(history)
                folder.write_json("result.json", result)
                return result

            result = hosts.once(finish)
            with hosts.everywhere():
                stop.check()  # a signal after the last epoch stops the seeds after this one
            return result


def check_sizes(config: RunConfig, examples: int) -> None:
    """Checks the flags against a training split of so many examples."""
    size, batch_size = config.data.train_size or examples, config.training.batch_size
    if size > examples:
        raise ValueError(
            f"--train_size={size}: {config.data.dataset} has {examples} training examples; choose "
            "at most as many, or leave it out for all"
        )
    if size < batch_size:
        raise ValueError(
            f"--batch_size={batch_size} is more than the {size} training examples; choose a "
            "smaller batch or a larger --train_size"
        )


def _subset(config: RunConfig, dataset: Dataset) -> Dataset:
    """Cuts the training split to `train_size`; the next tenth as many are for validation."""
    train, size = dataset.train, config.data.train_size or len(dataset.train)
    if size == len(train):
        return dataset
    validation = splits.take(train, min(max(1, size // 10), len(train) - size), after=size)
    return dataset._replace(train=splits.take(train, size), validation=validation)


def _result(identity: dict[str, Any], training: TrainingRun, command: str) -> dict[str, Any]:
    """What result.json holds: accuracies in percent, after the last epoch."""
    trainer, position = training.trainer, training.position
    last, dataset, parameters = position.history[-1], trainer.dataset, training.state.params
    figures = ("test_accuracy", "images_per_second", "train_loss", "test_loss")
    return {
        **identity,
        **{figure: last[figure] for figure in figures},
        "train_size": len(dataset.train),
        "validation_accuracy": last.get("validation_accuracy"),
        "branch_accuracy": list(last["branch_accuracy"].values()),
        "branches": list(trainer.labels),
        "weights": list(last["weights"].values()),
        "train_seconds": position.seconds,
        "device": machine.device(),
        "processes": jax.process_count(),
        "cores": position.cores,
        "software": position.software,
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
