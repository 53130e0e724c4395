"""Cuts a trained model at a branch: whatever lies deeper is gone (paper, III-C)."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from interflow_jax.dataflow import run_part
from interflow_jax.fusion import Fusion, FusionKind, cut_fusion, fit_fusion
from interflow_jax.model import Interflow
from interflow_jax.taps import Taps
from interflow_jax.vgg import StrideVGG

Refit = (
    tuple[Array | np.ndarray, Array | np.ndarray]
    | tuple[Array | np.ndarray, Array | np.ndarray, Sequence[Array | np.ndarray]]
)


def truncate(
    model: Interflow,
    variables: dict[str, Any],
    branches: int,
    images: Any = None,
    *,
    refit: Refit | None = None,
    kind: FusionKind | None = None,
) -> tuple[Interflow, dict[str, Any]]:
    """Cuts a model after a branch.

    Layers that no branch needs any more are removed from the parameters and from the program. The
    fusion keeps the terms of the remaining branches: their weighted sum under `fixed`, `shared` and
    `class`, their part of the sum under `softmax`, the ensemble of that many under `geometric`; the
    weights of `attention` are shared out among them.
    Where the last branch alone predicts, as in `DSN`, it is now the last remaining one.

    A `StrideVGG` or `Taps` is cut to another one with fewer taps. Any other backbone stays as it
    is, wrapped in one that returns its first feature maps and computes with zeros in place of the
    parameters that these do not need; under jit that costs nothing.

    Args:
      model: a model whose fusion is a `Fusion`.
      variables: its parameters and, with BatchNorm, statistics.
      branches: how many remain.
      images: as the model takes them, or their `jax.ShapeDtypeStruct`; any backbone but a
        `StrideVGG` needs them, to see which parameters its maps need.
      refit: fits a new fusion to the remaining branches: branch logits, [examples, branches,
        classes], of all branches or of the remaining ones, labels and, for `attention`, features
        (see `fit_fusion`).
      kind: the kind of that fusion; None for the model's own, or `shared` where that is fixed.

    Returns:
      The model and its variables; `variables` stay as they are.

    Raises:
      ValueError: for branches that the model does not have, images that are missing, a `kind`
        without `refit`, or a `refit` of fewer branches or that `fit_fusion` refuses.
    """
    if kind is not None and refit is None:
        raise ValueError(f"kind is {kind!r}, but nothing to fit it to is given: give refit, too")
    if not isinstance(model, Interflow):
        raise ValueError(f"model is a {type(model).__name__}; give an Interflow")
    if not isinstance(model.fusion, Fusion):
        raise ValueError(
            f"the model's fusion is a {type(model.fusion).__name__}; only a Fusion can be cut"
        )
    images = _shape(model, variables, images)
    try:
        prediction = cast(Any, jax.eval_shape(model.apply, variables, images))
    except FlaxError as error:
        raise ValueError(f"variables are not the model's: {error}") from error
    count = prediction.branch_logits.shape[1]
    whole = isinstance(branches, int | np.integer) and not isinstance(branches, bool)
    if not whole or not 1 <= branches <= count:
        raise ValueError(f"branches is {branches!r}; the model has {count}: choose 1 to {count}")
    fusion, params = cut_fusion(model.fusion, variables["params"].get("fusion", {}), branches)
    if refit is not None:
        if len(refit) not in (2, 3):
            raise ValueError(
                f"refit holds {len(refit)} things; give branch logits and labels, and features if "
                "they are needed"
            )
        logits, labels = map(np.asarray, refit[:2])
        features = refit[2][:branches] if len(refit) == 3 else None
        if logits.ndim != 3 or logits.shape[1] < branches or logits.shape[2] != model.num_classes:
            raise ValueError(
                f"refit has logits of shape {logits.shape}; give [examples, {branches} branches or "
                f"more, {model.num_classes} classes]"
            )
        learned = "shared" if fusion.kind == "fixed" else fusion.kind
        fusion, params = fit_fusion(logits[:, :branches], labels, kind or learned, features)
    parts = {name: part for name, part in variables["params"].items() if name != "fusion"}
    variables = {**variables, "params": {**parts, **({"fusion": params} if params else {})}}
    backbone, switch = model.backbone, model.switch
    if isinstance(backbone, StrideVGG) or (
        isinstance(backbone, Taps) and isinstance(backbone.network, nn.Module)
    ):
        backbone = backbone.clone(taps=tuple(backbone.taps[:branches]))
    else:
        backbone, switch = FirstMaps(backbone, branches, switch), None
        variables = {
            collection: {
                name: {"backbone": part} if name == "backbone" else part
                for name, part in parts.items()
            }
            for collection, parts in variables.items()
        }
    model = model.clone(backbone=backbone, fusion=fusion, switch=switch)
    needed = flatten_dict(cast(dict, jax.eval_shape(model.init, jax.random.key(0), images)))
    flat = flatten_dict(variables)
    return model, unflatten_dict({path: leaf for path, leaf in flat.items() if path in needed})


class FirstMaps(nn.Module):
    """The first feature maps of a backbone that has more, without the variables of the others.

    Attributes:
      backbone: as `Interflow` takes it.
      maps: how many.
      switch: the backbone's training switch, where its signature does not tell.
    """

    backbone: nn.Module
    maps: int
    switch: str | None = None

    @property
    def labels(self) -> tuple[Any, ...] | None:
        """The branches' labels, if the backbone has any."""
        labels = getattr(self.backbone, "labels", None)
        return tuple(labels[: self.maps]) if isinstance(labels, list | tuple) else None

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> list[Array]:
        """Computes the maps; arguments as for the backbone."""

        def outputs(backbone: nn.Module, variables: Any, *given: Any, **arguments: Any) -> Any:
            rngs, mutable, images = given
            apply = partial(backbone.apply, variables, images, rngs=rngs, mutable=mutable or [])
            feature_maps, changed = cast(tuple, apply(**arguments))
            return list(feature_maps)[: self.maps], changed

        return run_part(self, self.backbone, images, train, self.switch, outputs)


def _shape(model: Interflow, variables: dict[str, Any], images: Any) -> jax.ShapeDtypeStruct:
    example = "jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)"
    if images is not None:
        if getattr(images, "dtype", jnp.uint8) == jnp.uint8:
            kind = getattr(images, "dtype", type(images).__name__)
            raise ValueError(f"images are {kind}; give them as the model takes them, or {example}")
        return jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    if not isinstance(model.backbone, StrideVGG):
        raise ValueError(
            f"{type(model.backbone).__name__} does not tell what its images are; give images, or "
            f"{example}"
        )
    try:
        channels = variables["params"]["backbone"]["conv1"]["kernel"].shape[2]
    except (LookupError, TypeError) as error:
        raise ValueError("variables are not the model's: they lack a conv1") from error
    return jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32)  # any height and width will do
