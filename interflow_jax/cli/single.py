"""One configuration's runs: checked, prepared, trained."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from interflow_jax.checkpoints import fingerprint
from interflow_jax.cli import charts, console, data, hosts, machine
from interflow_jax.cli.answers import Answers
from interflow_jax.cli.config import RunConfig, recorded
from interflow_jax.cli.files import locked
from interflow_jax.cli.folder import RunFolder
from interflow_jax.cli.stopping import StopSignals, memory_errors
from interflow_jax.cli.training import TrainingRun
from interflow_jax.config import VGG
from interflow_jax.data import splits
from interflow_jax.data.dataset import Dataset
from interflow_jax.data.listing import some
from interflow_jax.data.preprocessing import Preprocessing, imagenet_preprocessing
from interflow_jax.model import Interflow
from interflow_jax.networks import source
from interflow_jax.ops import onednn
from interflow_jax.pretrained import read_pretrained, taken
from interflow_jax.saved_run import load_run
from interflow_jax.steps import predict
from interflow_jax.trainer import Trainer
from interflow_jax.vgg import VGG_DEPTH


class Runs:
    """The runs of a configuration, one per seed, which share a `Trainer` and its programs.

    Attributes:
      config: of all of them.
      command: what repeats them.
      seeds: per seed, its configuration and its folder.
    """

    def __init__(self, config: RunConfig, command: str):
        """Checks all that can be checked without the data; makes no folder."""
        self.config, self.command = config, command
        with hosts.everywhere():
            for each in config.by_seed():
                each.check()
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
        self._held_out: splits.Split | None = None
        self._seen_size: int | None = None  # of the training split, from the first on

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
                for sentence in config.idle():
                    print(sentence, flush=True)
                dataset = data.load(
                    config.data.dataset,
                    places.data_dir,
                    config.data.image_size,
                    before_download,
                    config.data.resize,
                )
                check_sizes(config, len(dataset.train))
                model = config.model.build(len(dataset.class_names))
                variables, seen = _pretrained(config, model, dataset)
                check_held_out(config, len(dataset.train), seen)
                self._seen_size = max(seen, config.data.train_size or len(dataset.train))
            digest = dataset.digest()
            first = hosts.once(lambda: digest)
            with hosts.everywhere():
                if digest != first:
                    raise ValueError(
                        f"process {jax.process_index()} has other data of the name {dataset.name} "
                        f"(digest {digest}, that of process 0 is {first}); give every host the same"
                    )
            hosts.once(lambda: self._claim(digest))
            if dataset.name.startswith("folder:"):
                print(_contents(dataset), flush=True)
            with hosts.everywhere(), memory_errors(), data.reading(dataset.name):
                dataset, self._held_out = _subset(config, dataset, seen)
                losses, regularization = config.losses(), config.regularization
                trainer = Trainer(
                    model,
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
                    distillation=losses["distillation"],
                    label_smoothing=regularization.label_smoothing,
                    mixup=regularization.mixup,
                    balanced=regularization.class_weights == "balanced",
                    ema=regularization.ema,
                    pretrained=variables,
                    progress=partial(console.reading, words=dataset.name),
                )
            _say_what_is_trained_on(trainer, config)
            with hosts.everywhere(), data.reading(dataset.name):
                if not any(folder.has_work() for _, folder in self.seeds):
                    progress = partial(console.reading, words="pictures")
                    _check_pictures(trainer, self._held_out, progress)
            hosts.once(partial(self._keep_statistics, trainer.preprocessing))
        return trainer

    def _claim(self, digest: str | None = None) -> None:
        """Writes every seed's configuration into its folder, and on what data, once known."""
        facts: dict[str, Any] = {
            "command": self.command,
            "versions": machine.versions(),
            "recipe": self.config.decided(),
        }
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
            hosts.once(lambda: lock.enter_context(locked(folder.path)))
            if result := hosts.once(folder.result):  # another command has finished it meanwhile
                return result
            print(
                f"{config.model.method} on {config.data.dataset}, seed {config.training.seed}: "
                f"{config.epochs()} epoch(s) of {trainer.steps} steps of {trainer.batch_size} "
                f"images, branches after {', '.join(map(str, trainer.labels))}, on "
                f"{machine.device()}\n{config.recipe_line()}",
                flush=True,
            )
            if bring := onednn.hint():
                print(bring, flush=True)
            with memory_errors(), data.reading(trainer.dataset.name):
                training = lock.enter_context(
                    contextlib.closing(TrainingRun(trainer, config, folder))
                )
                training.resume(partial(print, flush=True))
                training.train(stop)
                deep = config.model.backbone == VGG and config.model.depth > VGG_DEPTH
                figures = training.measure(stop, self._held_out, recalibrated=deep)
                answers = Answers(trainer.dataset.class_names, *training.answers().T)

            def finish() -> dict[str, Any]:
                history = training.position.history
                result = _result(identity, training, figures, self.command)
                result["data"] = folder.fact("data")
                result["seen_size"] = self._seen_size
                charts.draw(history, result, trainer.dataset.class_names, folder.pictures)
                answers.write(folder.pictures, folder.path / "classes.json")
                training.write_pictures(partial(print, flush=True))
                folder.write_history(history)
                folder.write_json("result.json", result)
                return result

            result = hosts.once(finish)
            with hosts.everywhere():
                stop.check()  # a signal after the last epoch stops the seeds after this one
            return result


def _contents(dataset: Dataset) -> str:
    height, width, _ = dataset.image_shape
    return (
        f"{len(dataset.train):,} pictures to train on and {len(dataset.test):,} to test on, taken "
        f"at {width}x{height}, of {len(dataset.class_names)} classes: {some(dataset.class_names)}"
    )


def _say_what_is_trained_on(trainer: Trainer, config: RunConfig) -> None:
    """Says what a smaller training split lacks, and how many images choose an epoch."""
    dataset, selection = trainer.dataset, config.selection
    if config.data.train_size is not None and isinstance(dataset.train, splits.ArraySplit):
        counts = splits.class_counts(dataset.train, len(dataset.class_names))
        names = zip(dataset.class_names, counts, strict=True)
        if absent := [name for name, count in names if not count]:
            print(f"no image is trained on of {len(absent)} class(es): {some(absent)}", flush=True)
    if dataset.validation is not None and (selection.keep == "best" or selection.patience):
        print(f"{len(dataset.validation):,} held-out training images choose the epoch", flush=True)


def _check_pictures(
    trainer: Trainer, held_out: splits.Split | None, progress: splits.Progress
) -> None:
    """Reads those in folders that a run, which reads them as it goes, has not read by then."""
    dataset = trainer.dataset
    if dataset.name.startswith("folder:"):
        for split in (dataset.test, held_out, dataset.train):  # validation is of what is held out
            if split is not None and not isinstance(split, splits.ArraySplit):
                for indices in progress(splits.chunks(split, trainer.batch_size)):
                    splits.read(split, indices)


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
            f"--batch_size={batch_size} is more than the {size} training examples; choose at "
            f"most {size}, or a larger --train_size"
        )


def check_held_out(config: RunConfig, examples: int, seen: int = 0) -> None:
    """Checks that there are held-out images, if any are needed, beside the `seen` ones."""
    selection, size = config.selection, config.data.train_size or examples
    if max(size, seen) == examples and (selection.keep == "best" or selection.patience is not None):
        asked = f"patience={selection.patience}" if selection.keep == "last" else "keep=best"
        by = "" if size == examples else f" by {config.training.pretrained}"
        raise ValueError(
            f"--{asked} needs held-out images, and all {examples} training examples are trained "
            f"on{by}; hold a tenth of them out by --train_size={examples * 9 // 10}"
            + (" there" if by else "")
        )


def _subset(config: RunConfig, dataset: Dataset, seen: int) -> tuple[Dataset, splits.Split | None]:
    """Cuts the training split to `train_size`; also returns what is neither in it nor `seen`.

    The first of that, a tenth as many as are trained on, is for validation after every epoch.
    """
    train, size = dataset.train, config.data.train_size or len(dataset.train)
    first = max(size, seen)
    if size < len(train):
        dataset = dataset._replace(train=splits.take(train, size))
    if not (rest := len(train) - first):
        return dataset, None
    validation = splits.take(train, min(max(1, size // 10), rest), after=first)
    return dataset._replace(validation=validation), splits.take(train, rest, after=first)


def _pretrained(
    config: RunConfig, model: Interflow, dataset: Dataset
) -> tuple[dict[str, Any] | None, int]:
    """What `--pretrained` names, if it is given; says what a run's variables are taken for.

    Returns:
      Variables, and how many of the first training examples they have seen: 0 for a file, which
      does not tell.
    """
    given = config.training.pretrained
    if given is None:
        return None, 0
    images = jnp.zeros((1, *dataset.image_shape), jnp.float32)
    init = partial(jax.eval_shape, partial(model.init, train=False), jax.random.key(0), images)
    if not Path(given).expanduser().is_dir():
        variables = read_pretrained(given)
        own = init().keys() - {"params", "batch_stats", "intermediates"}
        if absent := sorted(own - variables.keys()):
            print(f"{given} has no {', '.join(absent)}, which begin anew", flush=True)
        return variables, 0
    named = config.model.backbone
    run = load_run(given, None if named == VGG else named)
    ours, theirs = vars(config.model), vars(recorded(run.result).model)
    deep = max(ours["depth"], theirs["depth"]) > VGG_DEPTH
    same = ("backbone", "backbone_options", "width", "downsample", *(["layout"] if deep else []))
    for name in same:
        if ours[name] != theirs[name]:
            raise ValueError(
                f"--pretrained={given}: its backbone has {name} {theirs[name]}, this one "
                f"{ours[name]}; choose the same, or another run"
            )
    params = run.variables["params"]
    if run.class_names != dataset.class_names:
        params = {"backbone": params["backbone"]}
    elif model.labels != run.labels:  # then only layers that branches share mean the same
        shared = [name for name in params if name != "fusion" and "_branch_" not in name]
        params = {name: params[name] for name in shared}
    variables = {**run.variables, "params": params}
    parts, new = taken(init(), variables)
    print(f"from {given}: {', '.join(parts)}; new: {', '.join(new) or 'nothing'}", flush=True)
    own = run.result["dataset"] == dataset.name or run.result.get("data") == dataset.digest()
    seen = min(run.seen_size, len(dataset.train)) if own else 0
    if seen > (config.data.train_size or len(dataset.train)):
        print(
            f"{given} was trained on {seen:,} images of {dataset.name}: none of them count as "
            "held-out",
            flush=True,
        )
    return variables, seen


def _branch_norms(training: TrainingRun) -> list[float]:
    """By branch, the norm of its weight, or weights by class, times its layer's kernel."""
    trainer, state = training.trainer, training.state
    images = jnp.zeros((1, *trainer.dataset.image_shape), jnp.float32)
    features = jax.eval_shape(partial(predict, trainer.model), state, images).features or ()
    norms = []
    weights = training.kept()["weights"].values()
    for number, (weight, pooled) in enumerate(zip(weights, features, strict=True), start=1):
        layer = trainer.model.layer_name(number, pooled.shape[-1])
        kernel = np.asarray(state.averaged().params[layer]["kernel"])
        norms.append(float(np.linalg.norm(kernel * np.reshape(weight, (1, -1)))))
    return norms


def _result(
    identity: dict[str, Any], training: TrainingRun, figures: dict[str, Any], command: str
) -> dict[str, Any]:
    """What result.json holds: accuracies in percent, of the epoch that is kept."""
    trainer, position = training.trainer, training.position
    last, dataset = training.kept(), trainer.dataset
    parameters = training.state.averaged().params
    of_epoch = ("test_accuracy", "images_per_second", "train_loss", "test_loss")
    of_images = ("weight_deviation", "weights_by_class")  # where weights depend on them
    return {
        **identity,
        **{name: last[name] for name in of_epoch},
        **figures,
        "train_size": len(dataset.train),
        "validation_accuracy": last.get("validation_accuracy"),
        "branch_accuracy": list(last["branch_accuracy"].values()),
        "branches": list(trainer.labels),
        "weights": list(last["weights"].values()),
        **{name: list(last[name].values()) for name in of_images if name in last},
        "branch_norms": _branch_norms(training),
        "trained_epochs": position.epoch,
        "kept_epoch": last["epoch"],
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
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(parameters)),
        "fingerprint": fingerprint(parameters),
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "mean": list(trainer.preprocessing.mean),
        "deviation": list(trainer.preprocessing.deviation),
    }
