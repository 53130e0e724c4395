"""What a model is: one frozen dataclass, which flags hold, runs record and `build` takes."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from interflow_jax.fusion import Fusion, FusionKind, FusionStart
from interflow_jax.methods import default_taps, initial_weights, look_up
from interflow_jax.model import FullyConnected, Interflow, Pool
from interflow_jax.networks import Network, load_network
from interflow_jax.taps import Taps
from interflow_jax.vgg import Downsample, Layout, StrideVGG

VGG = "vgg"

Config = TypeVar("Config")


@dataclass(frozen=True)
class ModelConfig:
    """A model of one of the paper's methods (Tables I, II and VI) or of a baseline.

    On a network of your own, a method is its fusion, its start and its loss, over any number of
    taps; `Normal` and `Scaled` predict from the last tap alone. A model knows nothing of its loss:
    to train a baseline, give `train_step` what `methods.losses` says.

    Attributes:
      method: what to train, a method of Table II or a baseline.
      depth: convolutions, 4 to 200 (Table I: 4 to 13, Table VI: 40 to 100).
      width: multiplies the channels 64 to 512.
      downsample: which convolution of a block has stride 2.
      layout: convolutions above depth 13, over VGG's five blocks or after its 13th.
      dtype: of the backbone's computation; all else is float32.
      taps: convolutions that branches follow, as 7,9,11,13; of another backbone the names of
        layers, as stage1,stage2/block1; None for the method's.
      backbone: vgg, the paper's, or package.module:function for any other; it returns a Flax Linen
        or NNX module.
      backbone_options: what that function is called with, as n_classes=10,stage_sizes=(2,2).
      fusion: how branches are weighed; None for the method's.
      fusion_start: fans of Xavier's draws of fusion weights, n and 1, or n and n for squares that
        sum to 1.
      initial_weights: of the branches, as 0.2,0.2,0.6, for methods that start from given ones; None
        for the method's.
      fully_connected: layers of the branches, one for all of equal channels, or one per branch, as
        Concat always has.
      pool: of a map of tokens, their mean, or the first, a class token.
      frozen: whether the backbone stays as it starts, statistics included.
      detached: let no branch but the last send a gradient into the backbone, as Detached always
        does.
    """

    method: str = "S7"
    depth: int = 13
    width: float = 1.0
    downsample: Downsample = "first"
    layout: Layout = "spread"
    dtype: Literal["float32", "bfloat16"] = "float32"
    taps: tuple[Any, ...] | None = None
    backbone: str = VGG
    backbone_options: str | None = None
    fusion: FusionKind | None = None
    fusion_start: FusionStart = "xavier"
    initial_weights: tuple[float, ...] | None = None
    fully_connected: FullyConnected = "shared"
    pool: Pool = "mean"
    frozen: bool = False
    detached: bool = False

    def __post_init__(self) -> None:
        taps = (self.taps,) if isinstance(self.taps, int | str) else self.taps
        weights = self.initial_weights
        object.__setattr__(self, "taps", None if taps is None else tuple(taps))
        if weights is not None:
            object.__setattr__(self, "initial_weights", tuple(map(float, weights)))
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype).name)

    def resolved_taps(self) -> tuple[Any, ...]:
        """The taps as given, or else the method's at this depth."""
        return default_taps(self.method, self.depth) if self.taps is None else self.taps

    def build(self, num_classes: int, network: Network | None = None) -> Interflow:
        """Builds the model.

        Args:
          num_classes: classes to tell apart.
          network: in place of the named backbone, a Linen or NNX module, or a function that makes
            one (see `Taps`); `taps` are then the names of its layers (see `layers`).

        Returns:
          A Linen module; call it with images, [batch, height, width, channels], float, and
          `train=`.

        Raises:
          ValueError: for a value outside those above, taps that the backbone lacks, or fields of
            `VGG_ONLY` for another network.
        """
        row = look_up(self.method)
        decided = dataclasses.replace(self, **row.options)
        if not isinstance(num_classes, int | np.integer) or num_classes < 2:
            raise ValueError(f"num_classes is {num_classes!r}; give a whole number of 2 or more")
        check_choices(self)
        for weight in self.initial_weights or ():
            if not math.isfinite(weight):
                raise ValueError(f"initial_weights are {self.initial_weights}; give finite numbers")
        if self.backbone == VGG and self.backbone_options is not None:
            raise ValueError(
                f"backbone_options are {self.backbone_options!r}, but the paper's backbone takes "
                "none: leave them out, or name another backbone"
            )
        taps, backbone = self.taps, self.backbone
        if network is None and backbone != VGG:
            network = load_network(backbone, self.backbone_options)
        if network is None:
            taps = self.resolved_taps()
            module: nn.Module = StrideVGG(
                taps, self.depth, self.width, self.downsample, self.layout, jnp.dtype(self.dtype)
            )
            module.check()
        else:
            for name in VGG_ONLY:
                if (value := getattr(self, name)) != getattr(ModelConfig, name):
                    raise ValueError(
                        f"{name} is {value!r}, which only the paper's backbone takes: leave it "
                        "out, and make the network so"
                    )
            if not taps:
                raise ValueError(
                    "a network needs taps, the names of its layers; ij.layers lists them"
                )
            taps = tuple(map(str, taps[-1:] if row.predicts_from_last else taps))
            module = Taps(network, taps)
        kind = self.fusion or row.fusion
        weights = initial_weights(self.method, kind, taps, self.initial_weights)
        return Interflow(
            module,
            num_classes,
            Fusion(kind, weights, self.fusion_start),
            decided.fully_connected,
            pool=self.pool,
            frozen=self.frozen,
            detached=decided.detached,
        )


VGG_ONLY = sorted(
    {field.name for field in dataclasses.fields(StrideVGG)}
    & {field.name for field in dataclasses.fields(ModelConfig)} - {"taps"}
)
"""Fields of `ModelConfig` that another network does not take."""


def build(
    method: str, num_classes: int, *, network: Network | None = None, **options: Any
) -> Interflow:
    """Builds the model of a method by name.

    Args:
      method: a name of `METHODS` or `BASELINES`.
      num_classes, network: as in `ModelConfig.build`.
      **options: the other fields of `ModelConfig`.

    Raises:
      TypeError: for an option that `ModelConfig` does not have.
      ValueError: as `ModelConfig.build`.
    """
    return ModelConfig(method, **options).build(num_classes, network)


def check_choices(config: Any) -> None:
    """Raises ValueError for a field of a dataclass that has another value than its type lists."""
    for name, hint in get_type_hints(type(config)).items():
        value, allowed = getattr(config, name), choices(hint)
        if (
            allowed
            and value not in allowed
            and not (value is None and type(None) in get_args(hint))
        ):
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")


def choices(hint: Any) -> tuple[str, ...]:
    """The strings that a type lists, as `Literal["a", "b"] | None` does; () for other types."""
    parts = [hint, *get_args(hint)]
    return next((tuple(get_args(part)) for part in parts if get_origin(part) is Literal), ())


_RENAMED = {"fully_connected": "fc"}  # fields, and what older runs call them
_WORDS = {"none": False, "backbone": True}  # of `frozen` in older runs


def from_record(kind: type[Config], record: Mapping[str, Any]) -> Config:
    """A configuration as a run recorded it; a field younger than the run has its default."""
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        name = next(
            (each for each in (field.name, _RENAMED.get(field.name)) if each in record), None
        )
        if name is not None:
            value = record[name]
            value = _WORDS.get(value, value) if field.name == "frozen" else value
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
