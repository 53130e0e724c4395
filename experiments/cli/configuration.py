"""The flags of the main command: a dataclass, its command line and its checks."""

import argparse
import dataclasses
import difflib
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_args

import jax.numpy as jnp
import optax

import interflow_jax as ij
from interflow_jax import networks
from interflow_jax.backbones import Downsample, Layout
from interflow_jax.data import datasets
from interflow_jax.fusion import FusionKind, FusionStart
from interflow_jax.model import FullyConnected, Pool
from interflow_jax.optimizer import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Optimizer, Schedule
from interflow_jax.training import BATCH_SIZE

HOSTS = ("coordinator", "processes", "process")
"""Flags that join the processes of one run on several hosts."""

PLACES = ("data_dir", "out", "checkpoint_minutes", "seeds", "list_layers", *HOSTS)
"""Flags that say where, how often and what to print, but do not change what a run computes."""

VGG = "vgg"
_OF_VGG = ("depth", "width", "downsample", "layout", "dtype")
"""Flags of the paper's backbone; any other takes its own from --backbone_options."""


def _list(
    text: str, kind: Callable[[str], Any], example: str, repeats: bool = False
) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in (text.split(",") if repeats else names(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list as {example}") from error


def integers(text: str) -> tuple[int, ...]:
    """Reads "7,9,11" from the command line."""
    return _list(text, int, "7,9,11")


def taps(text: str) -> tuple[Any, ...]:
    """Reads "7,9,11" or "stage1,stage2/block1" from the command line."""
    return integers(text) if all(part.isdigit() for part in text.split(",")) else names(text)


def numbers(text: str) -> tuple[float, ...]:
    """Reads "1e-3,1e-2" from the command line."""
    return _list(text, float, "1e-3,1e-2")


def weights(text: str) -> tuple[float, ...]:
    """Reads "0.2,0.2,0.6" from the command line."""
    return _list(text, float, "0.2,0.2,0.6", repeats=True)


def names(text: str) -> tuple[str, ...]:
    """Reads "S1,S3" from the command line."""
    given = tuple(text.split(","))
    for name in given:
        if given.count(name) > 1:
            raise argparse.ArgumentTypeError(f"{text!r} has {name} more than once")
    return given


def as_flag(value: Any) -> str:
    """Formats a value as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _flag(default: Any, meaning: str, kind: Any = None, unset: str | None = None) -> Any:
    """A field and its flag: `kind` parses a value or is the choices; `unset` is None in words."""
    choices = kind if isinstance(kind, tuple) else None
    parse = str if choices else kind or type(default)
    metadata = {"help": meaning, "parse": parse, "choices": choices, "unset": unset}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Configuration:
    """All options of the main command; every field is a flag."""

    method: str = _flag(
        "S7",
        "what to train: a method of Table II or a baseline (both below)",
        (*ij.METHODS, *ij.BASELINES),
    )
    dataset: str = _flag(
        "fashion_mini",
        f"{', '.join(datasets.RECIPES)}, folder:PATH for PATH/train/CLASS/*.png and PATH/test/..., "
        "or the tfds name of any dataset with image and label",
    )
    seed: int = _flag(0, "of the initial parameters, the order of examples, the augmentation")
    seeds: tuple[int, ...] | None = _flag(
        None, "several, as 0,1,2: one run after the other, in place of --seed", integers
    )
    epochs: int | None = _flag(
        None,
        "passes over the training split",
        int,
        "the paper's: CIFAR 100, others 40; "
        f"fashion_mini {datasets.RECIPES['fashion_mini'].epochs}",
    )
    batch_size: int = _flag(BATCH_SIZE, "examples per step, over all devices")
    depth: int = _flag(13, "convolutions, 4 to 200 (Table I: 4 to 13, Table VI: 40 to 100)")
    width: float = _flag(1.0, "multiplies the channels 64 to 512")
    downsample: Downsample = _flag(
        "first", "which convolution of a block has stride 2", get_args(Downsample)
    )
    layout: Layout = _flag(
        "spread",
        "convolutions above depth 13: over VGG's five blocks, or after its 13th",
        get_args(Layout),
    )
    taps: tuple[Any, ...] | None = _flag(
        None,
        "convolutions that branches follow, as 7,9,11,13; of another backbone the names of layers, "
        "as stage1,stage2/block1",
        taps,
        "the method's",
    )
    backbone: str = _flag(
        VGG,
        "vgg, the paper's, or package.module:function for any other: it returns a Flax Linen or "
        "NNX module",
    )
    backbone_options: str | None = _flag(
        None, "what that function is called with, as n_classes=10,stage_sizes=(2,2)", str
    )
    list_layers: bool = _flag(False, "print what can be tapped in the backbone, and end")
    initial_weights: tuple[float, ...] | None = _flag(
        None,
        "of the branches, as 0.2,0.2,0.6, for methods that start from given ones",
        weights,
        "the method's",
    )
    pool: Pool = _flag(
        "mean",
        "of a map of tokens: their mean, or the first, a class token",
        get_args(Pool),
    )
    pretrained: str | None = _flag(
        None, "file of the backbone's parameters to start from: *.safetensors or Flax msgpack", str
    )
    frozen: str = _flag(
        "none", "what is kept as it starts, statistics included", ("none", "backbone")
    )
    normalize: str = _flag(
        "dataset",
        "by the mean and deviation of the training images, or of ImageNet's",
        ("dataset", "imagenet"),
    )
    fusion_start: FusionStart = _flag(
        "xavier",
        "fans of Xavier's draws of fusion weights: n and 1, or n and n for squares that sum to 1",
        get_args(FusionStart),
    )
    fc: FullyConnected = _flag(
        "shared",
        "fully connected layers: one for all branches of equal channels, or one per branch",
        get_args(FullyConnected),
    )
    fusion: FusionKind | None = _flag(
        None,
        "how branches are weighed: fixed, shared or class (the paper's), softmax or geometric",
        get_args(FusionKind),
        "the method's",
    )
    dtype: str = _flag("float32", "of the backbone's computation", ("float32", "bfloat16"))
    train_size: int | None = _flag(
        None, "train on the first n examples of the split's fixed permutation", int, "all"
    )
    image_size: int | None = _flag(None, "resize images to n x n", int, "the dataset's own size")
    optimizer: Optimizer = _flag("sgd", "of the parameters", get_args(Optimizer))
    learning_rate: float = _flag(LEARNING_RATE, "at the start, or after the warmup")
    momentum: float | None = _flag(None, "of sgd, not Nesterov's", float, str(MOMENTUM))
    weight_decay: float = _flag(WEIGHT_DECAY, "of every parameter; of adamw decoupled")
    schedule: Schedule = _flag(
        "step", "of the learning rate: a drop to a tenth, or half a cosine", get_args(Schedule)
    )
    drop_after: float | None = _flag(
        None, "share of the training before the drop", float, "the paper's: CIFAR 0.8, others 0.5"
    )
    warmup_epochs: float = _flag(0.0, "over which the learning rate rises from zero")
    augment: str | None = _flag(
        None,
        "random flips of training images, and crops of their padded form or of resized boxes",
        ("none", "crop_flip", "random_resized_crop"),
        "the paper's: crop_flip for CIFAR",
    )
    auxiliary_mean: float = _flag(
        0.0,
        "weight of the mean of all branches' own losses, added to the loss; of Aux and DSN "
        "in place of their sum",
    )
    data_dir: str | None = _flag(
        None, "folder of prepared tfds datasets", str, "$TFDS_DATA_DIR, then ~/tensorflow_datasets"
    )
    out: str = _flag("runs", "results go to OUT/DATASET/METHOD/seedN")
    checkpoint_minutes: float = _flag(3.0, "between checkpoints within an epoch")
    coordinator: str | None = _flag(
        None,
        "of a run on several hosts: address of process 0 and a free port, as 10.0.0.1:1234",
        str,
    )
    processes: int | None = _flag(
        None,
        "how many such processes there are",
        int,
        "those that Slurm, Open MPI, Kubernetes or Cloud TPU started, else 1",
    )
    process: int | None = _flag(None, "which of them this is, from 0", int)

    def all_seeds(self) -> tuple[int, ...]:
        """The seeds to run, in order."""
        return (self.seed,) if self.seeds is None else self.seeds

    def folder(self, seed: int) -> Path:
        """Where a run of this seed goes: OUT/DATASET/METHOD/seedN."""
        dataset = self.dataset
        if dataset.startswith("folder:"):  # a path cannot name a folder below OUT
            dataset = f"folder-{Path(dataset.removeprefix('folder:')).resolve().name}"
        return Path(self.out) / dataset / self.method / f"seed{seed}"

    def resolved_epochs(self) -> int:
        """The epochs as given, or else the dataset's."""
        return self.epochs or datasets.recipe(self.dataset).epochs

    def identity(self, seed: int) -> dict[str, Any]:
        """What a run of this seed computes, JSON-able; resuming requires an equal one."""
        return {
            **{name: value for name, value in vars(self).items() if name not in PLACES},
            "seed": seed,
            "epochs": self.resolved_epochs(),
            "taps": list(self.taps or ij.default_taps(self.method, self.depth)),
            "initial_weights": self.initial_weights and list(self.initial_weights),
            **self._digests(),
        }

    def _digests(self) -> dict[str, str]:
        """Digests that tell a backbone's source and pretrained parameters from their namesakes."""
        digests = {}
        if self.backbone != VGG:
            digests["backbone_sha256"] = networks.source(self.backbone)["sha256"]
        if self.pretrained is not None:
            digests["pretrained_sha256"] = hashlib.sha256(_bytes(self.pretrained)).hexdigest()
        return digests

    def network(self) -> networks.Network | None:
        """The network to tap, None for the paper's; raises ValueError if it cannot be made."""
        if self.backbone == VGG:
            return None
        return ij.load_network(self.backbone, self.backbone_options)

    def changes(self) -> dict[str, Any]:
        """The values that are not the flags' defaults."""
        return {
            name: value for name, value in vars(self).items() if value != getattr(type(self), name)
        }

    def augments(self) -> bool:
        """Whether training images are cropped and flipped at random."""
        if self.augment is None:
            return datasets.recipe(self.dataset).augment
        return self.augment != "none"

    def auxiliary_loss(self) -> float:
        """The loss weight of every branch but the last; 0 where a mean takes their place."""
        method = (ij.METHODS | ij.BASELINES)[self.method]
        return 0.0 if self.auxiliary_mean else method.auxiliary_loss

    def make_optimizer(self, steps: int) -> optax.GradientTransformation:
        """The optimizer, with its schedule, for a training of so many steps per epoch."""
        drop_after = self.drop_after
        schedule = ij.learning_rate_schedule(
            steps * self.resolved_epochs(),
            datasets.recipe(self.dataset).drop_after if drop_after is None else drop_after,
            self.learning_rate,
            self.schedule,
            round(steps * self.warmup_epochs),
        )
        frozen = ("backbone",) if self.frozen == "backbone" else ()
        return ij.make_optimizer(
            schedule, self.optimizer, self.momentum, self.weight_decay, frozen=frozen
        )

    def build(self, num_classes: int) -> ij.Interflow:
        """The model; raises ValueError for values that do not fit together."""
        return ij.build(
            self.method,
            num_classes,
            depth=self.depth,
            width=self.width,
            downsample=self.downsample,
            layout=self.layout,
            taps=self.taps,
            fully_connected=self.fc,
            fusion_start=self.fusion_start,
            fusion=self.fusion,
            dtype=jnp.dtype(self.dtype),
            network=self.network(),
            initial_weights=self.initial_weights,
            pool=self.pool,
            frozen=self.frozen == "backbone",
        )

    def check(self) -> None:
        """Checks what can be checked without the data."""
        for name in ("epochs", "batch_size", "train_size", "image_size", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name}={value}: choose a number above 0")
        for name, low, high in (
            ("learning_rate", 0.0, math.inf),
            ("momentum", 0.0, 1.0),
            ("weight_decay", 0.0, math.inf),
            ("drop_after", 0.0, 1.0),
            ("warmup_epochs", 0.0, self.resolved_epochs()),
            ("auxiliary_mean", 0.0, math.inf),
        ):
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and value < math.inf):
                most = "" if high == math.inf else f" to {high:g}"
                raise ValueError(f"--{name}={value}: choose a number from {low:g}{most or ' on'}")
        self.make_optimizer(1)
        for seed in self.all_seeds():
            if not 0 <= seed < 2**32:
                raise ValueError(f"seed {seed}: choose 0 to {2**32 - 1}")
        if self.seeds is not None and self.seed != 0:
            raise ValueError(f"--seed={self.seed} and --seeds={self.seeds} together: give one")
        self._check_backbone()
        self.build(num_classes=2)

    def _check_backbone(self) -> None:
        if self.backbone == VGG:
            if self.backbone_options is not None:
                raise ValueError(
                    f"--backbone_options={self.backbone_options} is for another --backbone than "
                    f"vgg, which has --{', --'.join(_OF_VGG)}"
                )
            if any(isinstance(tap, str) for tap in self.taps or ()):
                raise ValueError(
                    f"--taps={as_flag(self.taps)}: vgg has convolutions, as 7,9,11,13; names are "
                    "for another --backbone"
                )
            return
        for name in _OF_VGG:
            if name in self.changes():
                raise ValueError(
                    f"--{name}={getattr(self, name)} is for --backbone=vgg; give {self.backbone} "
                    "what it takes by --backbone_options"
                )
        if self.taps is None:
            raise ValueError(
                f"--backbone={self.backbone} needs --taps; --list_layers prints what can be tapped"
            )


def _bytes(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"--pretrained={file} cannot be read: {error}") from error


def of_result(result: dict[str, Any]) -> Configuration:
    """The configuration of a finished run, without its `PLACES`."""
    names = (Configuration.__dataclass_fields__.keys() & result.keys()) - {*PLACES}
    values: dict[str, Any] = {name: result[name] for name in names}
    values["taps"] = tuple(values["taps"])
    values["initial_weights"] = values.get("initial_weights") and tuple(values["initial_weights"])
    return Configuration(**values)


class _Parser(argparse.ArgumentParser):
    """Answers a wrong command line with a one-line error that names close flags and values."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.split('.')[-1]}: error: {message}; --help lists all flags\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            known = {str(choice).casefold(): choice for choice in action.choices or ()}
            close = difflib.get_close_matches(str(value).casefold(), known, n=1)
            error.message += f"; did you mean {known[close[0]]}?" if close else ""
            raise

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        flags, unknown = self.parse_known_args(args, namespace)
        if unknown:
            given = unknown[0].partition("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            close = difflib.get_close_matches(given, known, n=1)
            self.error(f"unknown flag {given}" + (f"; did you mean {close[0]}?" if close else ""))
        return flags


def parser(command: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """An argument parser in the style of the project's commands."""
    return _Parser(
        prog=f"python -m experiments.{command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse(arguments: list[str] | None = None) -> Configuration:
    """Reads the main command's flags; an invalid one ends the process with status 2."""
    methods, baselines = (
        "\n".join(f"  {name:<8}{method.summary}" for name, method in table.items())
        for table in (ij.METHODS, ij.BASELINES)
    )
    flags = parser(
        "run",
        "Trains a network with one of the paper's methods or a baseline, evaluates it after every\n"
        "epoch, and leaves metrics, pictures, checkpoints and result.json in a folder. The same\n"
        "command again goes on where it stopped, and returns at once when it is finished.",
        f"methods (paper, Table II):\n{methods}\n\n"
        "baselines (not the paper's methods; their branches only help to train, see II-A):\n"
        f"{baselines}\n\nexamples:\n"
        "  python -m experiments.run --method=S7\n"
        "  python -m experiments.run --method=S7 --dataset=svhn\n"
        "  python -m experiments.run --method=S3 --dataset=cifar10 --seeds=0,1,2\n"
        "  python -m experiments.run --method=S1 --dataset=cifar10 --depth=60 --width=0.25\n"
        "  python -m experiments.run --backbone=jax_resnet:ResNet18 \\\n"
        "      --backbone_options=n_classes=10 --list_layers\n"
        "  python -m experiments.run --backbone=jax_resnet:ResNet18 \\\n"
        "      --backbone_options=n_classes=10 --taps=layers_3,layers_5,layers_7 --method=S1\n",
    )
    add_flags(flags)
    return Configuration(**vars(flags.parse_args(arguments)))


def add_flags(
    parser: argparse._ActionsContainer,
    leave_out: tuple[str, ...] = (),
    elsewhere: dict[str, str] | None = None,
) -> None:
    """Adds the fields of `Configuration` as flags.

    With `elsewhere`, which says in words what decides some of them if the command line does not,
    parsing omits whatever the command line does not give.
    """
    for item in dataclasses.fields(Configuration):
        if item.name in leave_out:
            continue
        meaning, choices = item.metadata["help"], item.metadata["choices"]
        if choices and len(choices) < 4:
            meaning += f": {' or '.join(choices)}"
        unset = item.metadata["unset"] if item.default is None else item.default
        default = (elsewhere or {}).get(item.name, unset)
        if isinstance(item.default, bool):  # only the main command has such flags
            if elsewhere is None:
                parser.add_argument(f"--{item.name}", action="store_true", help=meaning)
            continue
        parser.add_argument(
            f"--{item.name}",
            default=item.default if elsewhere is None else argparse.SUPPRESS,
            type=item.metadata["parse"],
            choices=choices,
            metavar=item.name.upper().split("_")[-1],
            help=meaning if default is None else f"{meaning} (default: {default})",
        )
