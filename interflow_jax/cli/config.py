"""One run as its flags say it: what it computes, whether that can be, and how it is recorded."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import optax

from interflow_jax import networks
from interflow_jax.cli.flags import (
    BOUNDS,
    DataConfig,
    Places,
    RegularizationConfig,
    SelectionConfig,
    TrainingConfig,
)
from interflow_jax.config import VGG, VGG_ONLY, ModelConfig, check_choices, from_record
from interflow_jax.data.recipes import recipe
from interflow_jax.fusion import KINDS
from interflow_jax.methods import look_up, losses
from interflow_jax.optimizer import learning_rate_schedule, make_optimizer
from interflow_jax.training_recipe import TrainingRecipe, default_recipe, training_recipe
from interflow_jax.vgg import VGG_DEPTH

_DIGESTS = ("backbone_sha256", "pretrained_sha256")


@dataclass(frozen=True)
class RunConfig:
    """One run, or with `places.seeds` several; every field of its parts is a flag."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    regularization: RegularizationConfig = RegularizationConfig()
    selection: SelectionConfig = SelectionConfig()
    places: Places = Places()

    def replace(self, **values: Any) -> "RunConfig":
        """A copy with other values of any fields, whichever part they are of."""
        parts = {}
        for part in PARTS:
            owned = {name: values.pop(name) for name in fields(part) & values.keys()}
            parts[part] = dataclasses.replace(getattr(self, part), **owned)
        if values:
            raise TypeError(f"a run has no {', '.join(values)}")
        return RunConfig(**parts)

    def flat(self) -> dict[str, Any]:
        """The fields that say what is computed: of all parts but the places."""
        parts = (vars(getattr(self, part)) for part in PARTS if part != "places")
        return {name: value for part in parts for name, value in part.items()}

    def changes(self) -> dict[str, Any]:
        """The values of all parts that are not the flags' defaults."""
        defaults = {**DEFAULT.flat(), **vars(DEFAULT.places)}
        values = {**self.flat(), **vars(self.places)}
        return {name: value for name, value in values.items() if value != defaults[name]}

    def by_seed(self) -> list["RunConfig"]:
        """A configuration per seed, in order."""
        seeds = self.places.seeds
        return [self.replace(seed=seed, seeds=None) for seed in seeds or (self.training.seed,)]

    def folder(self) -> Path:
        """Where the run goes: OUT/DATASET/METHOD/seedN."""
        dataset = self.data.dataset
        if dataset.startswith("folder:"):  # a path cannot name a folder below OUT
            name = Path(dataset.removeprefix("folder:")).expanduser().resolve().name
            dataset = f"folder-{name}"
        out = Path(self.places.out).expanduser()
        return out / dataset / self.model.method / f"seed{self.training.seed}"

    def epochs(self) -> int:
        """The epochs as given, or else the dataset's."""
        return self.training.epochs or recipe(self.data.dataset).epochs

    def identity(self) -> dict[str, Any]:
        """What the run computes, JSON-able; resuming requires an equal one."""
        taps, decided = self.model.resolved_taps(), look_up(self.model.method).options
        values = self.replace(taps=taps, epochs=self.epochs(), **decided).flat()
        return _listed(values) | self._digests()

    def signature(self) -> str:
        """A digest of `identity`, the same before and after a flag with a default is added."""
        defaults = _listed(DEFAULT.flat())
        told = {key: each for key, each in self.identity().items() if each != defaults.get(key)}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _digests(self) -> dict[str, str]:
        """Digests that tell a backbone's source and pretrained parameters from their namesakes."""
        digests = {}
        if self.model.backbone != VGG:
            digests["backbone_sha256"] = networks.source(self.model.backbone)["sha256"]
        if self.training.pretrained is not None:
            digests["pretrained_sha256"] = file_digest(self.training.pretrained)
        return digests

    def decided(self) -> dict[str, Any]:
        """What the recipe decides of the fields, whatever flags win over it."""
        training = self.training
        if training.recipe == "paper":
            return {}
        return training_recipe("modern", self.epochs(), training.batch_size)._asdict()

    def recipe_line(self) -> str:
        """How it trains, in flags: what its recipe decides, and what was given in place of that."""
        values = {name: self.flat()[name] for name in TrainingRecipe._fields}
        if values["augment"] is None:
            values["augment"] = "crop_flip" if self.data.augments() else "none"
        given = (flag(name, value) for name, value in values.items() if value is not None)
        return f"recipe {self.training.recipe}: {' '.join(given)}"

    def losses(self) -> dict[str, float]:
        """The branches' own losses (see `methods.losses`)."""
        training = self.training
        return losses(self.model.method, training.auxiliary_mean, training.distillation)

    def make_optimizer(self, steps: int) -> optax.GradientTransformation:
        """The optimizer, with its schedule, for a training of so many steps per epoch."""
        training = self.training
        return make_optimizer(
            self.learning_rates(steps),
            training.optimizer,
            training.momentum,
            training.weight_decay,
            ("backbone",) if self.model.frozen else (),
            training.clip_norm,
        )

    def learning_rates(self, steps: int) -> optax.Schedule:
        """The learning rate by step, for a training of so many steps per epoch."""
        training, drop_after = self.training, self.training.drop_after
        return learning_rate_schedule(
            steps * self.epochs(),
            recipe(self.data.dataset).drop_after if drop_after is None else drop_after,
            training.learning_rate,
            training.schedule,
            round(steps * training.warmup_epochs),
        )

    def check(self) -> None:
        """Raises ValueError for what is wrong without a look at the data."""
        values = {**self.flat(), **vars(self.places)}
        for part in PARTS:
            check_choices(getattr(self, part))
        bounds = {**BOUNDS, "warmup_epochs": (0.0, self.epochs())}
        for name, (low, high) in bounds.items():
            value = values[name]
            if value is not None and not low <= value <= high:
                most = " on" if high == math.inf else f" to {high:,}"
                raise ValueError(f"--{name}={value}: choose a number from {low:g}{most}")
        if self.training.schedule == "cosine" and self.training.drop_after is not None:
            raise ValueError(
                f"--drop_after={self.training.drop_after}: a cosine has no drop; leave it out, or "
                "choose --schedule=step"
            )
        self.make_optimizer(1)
        self._check_backbone()
        self.model.build(num_classes=2)

    def idle(self) -> list[str]:
        """What some flags that were given do not do, a sentence each."""
        model, training, method = self.model, self.training, look_up(self.model.method)
        alone = method.predicts_from_last or len(model.resolved_taps()) == 1
        one, given = "there is one branch", method.initial_weights or model.initial_weights
        drawn = KINDS[model.fusion or method.fusion].drawn and given is None
        reasons = {
            "fusion_start": "" if drawn else "no weights are drawn",
            "pool": "vgg has no maps of tokens" if model.backbone == VGG else "",
            "layout": "" if model.depth > VGG_DEPTH else f"{model.depth} layers add none",
            "detached": one if alone else "the backbone is frozen" if model.frozen else "",
            "distillation": one if alone else "",
        }
        told = [
            f"{flag(name, value)} is without effect: {why}"
            for name, value in self.changes().items()
            if (why := reasons.get(name))
        ]
        if training.auxiliary_mean and alone:
            told.append(f"{flag('auxiliary_mean', training.auxiliary_mean)} scales the loss: {one}")
        if model.frozen and training.pretrained is None:
            told.append("--frozen=backbone without --pretrained: it stays as it is drawn at random")
        return told

    def _check_backbone(self) -> None:
        model = self.model
        if model.backbone == VGG:
            if model.backbone_options is not None:
                raise ValueError(
                    f"--backbone_options={model.backbone_options} is for another --backbone than "
                    f"vgg, which has --{', --'.join(VGG_ONLY)}"
                )
            if any(isinstance(tap, str) for tap in model.taps or ()):
                raise ValueError(
                    f"--taps={as_flag(model.taps)}: vgg has convolutions, as 7,9,11,13; names are "
                    "for another --backbone"
                )
            return
        for name in [name for name in VGG_ONLY if name in self.changes()]:
            raise ValueError(
                f"--{name}={getattr(model, name)} is for --backbone=vgg; give {model.backbone} "
                "what it takes by --backbone_options"
            )
        if model.taps is None:
            raise ValueError(
                f"--backbone={model.backbone} needs --taps; --list_layers prints what can be tapped"
            )

    def arguments(self) -> list[str]:
        """The main command's flags for this run."""
        given = {"method": self.model.method, "dataset": self.data.dataset, **self.changes()}
        if (recipe := self.training.recipe) != default_recipe(self.data.dataset):
            given["recipe"] = recipe
        if recipe == "modern":  # some flags may win over it
            values = {name: self.flat()[name] for name in TrainingRecipe._fields}
            given |= {name: value for name, value in values.items() if value is not None}
        if self.places.seeds is None:
            given["seed"] = self.training.seed
        return [flag(name, value) for name, value in given.items()]


PARTS = tuple(field.name for field in dataclasses.fields(RunConfig))
DEFAULT = RunConfig()


def fields(part: str) -> set[str]:
    """The names of the fields of one of `PARTS`."""
    return {field.name for field in dataclasses.fields(getattr(DEFAULT, part))}


def recorded(record: Mapping[str, Any]) -> RunConfig:
    """The configuration that a run recorded, without its places."""
    parts = {part: type(getattr(DEFAULT, part)) for part in PARTS if part != "places"}
    return RunConfig(**{part: from_record(kind, record) for part, kind in parts.items()})


def recorded_identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """A run's `identity` as it recorded it; a field younger than the run has its default."""
    digests = {name: record[name] for name in _DIGESTS if name in record}
    return _listed(recorded(record).flat()) | digests


def _listed(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(each) if isinstance(each, tuple) else each for key, each in values.items()}


def flag(name: str, value: Any) -> str:
    """A field and its value as the command line takes them."""
    return f"--{name}" if value is True and name != "frozen" else f"--{name}={as_flag(value)}"


def as_flag(value: Any) -> str:
    """Formats a value as the command line takes it."""
    if isinstance(value, bool):
        return "backbone" if value else "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def file_digest(file: str) -> str:
    """The SHA-256 of a file of parameters, which is read once while it does not change.

    Of a run's folder, that of its result, which has its parameters' digest.
    """
    try:
        path = Path(file).expanduser()
        path = path / "result.json" if path.is_dir() else path
        status = path.stat()
        return _digest(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ValueError(f"--pretrained={file} cannot be read: {error}") from error


@lru_cache(maxsize=8)
def _digest(file: Path, modified: int, size: int) -> str:
    del modified, size  # of the file whose digest is kept
    return hashlib.sha256(file.read_bytes()).hexdigest()
