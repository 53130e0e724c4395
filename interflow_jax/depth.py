"""Cuts a trained model at a branch: whatever lies deeper is gone (paper, III-C)."""

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.interpreters.partial_eval import dce_jaxpr

from interflow_jax.backbones import StrideVGG
from interflow_jax.fusion import FusionKind, cut_fusion, fit_fusion
from interflow_jax.model import Interflow
from interflow_jax.switch import switch_arguments
from interflow_jax.taps import Taps


def truncate(
    model: Interflow,
    variables: dict[str, Any],
    branches: int,
    images: Any = None,
    *,
    refit: tuple[Array | np.ndarray, Array | np.ndarray] | None = None,
    kind: FusionKind | None = None,
) -> tuple[Interflow, dict[str, Any]]:
    """Cuts a model after a branch.

    Layers that no branch needs any more are removed from the parameters and from the program. The
    fusion keeps the terms of the remaining branches: their weighted sum under `fixed`, `shared` and
    `class`, their part of the sum under `softmax`, the ensemble of that many under `geometric`.
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
        classes], of all branches or of the remaining ones, and labels (see `fit_fusion`).
      kind: the kind of that fusion; None for the model's own, or `shared` where that is fixed.

    Returns:
      The model and its variables; `variables` stay as they are.

    Raises:
      ValueError: for branches that the model does not have, images that are missing, a `kind`
        without `refit`, or a `refit` of fewer branches or that `fit_fusion` refuses.
    """
    if kind is not None and refit is None:
        raise ValueError(f"kind is {kind!r}, but nothing to fit it to is given: give refit, too")
    images = _shape(model, variables, images)
    count = _branches(model, variables, images)
    if not 1 <= branches <= count:
        raise ValueError(f"branches is {branches}; the model has {count}: choose 1 to {count}")
    if refit is not None and np.ndim(refit[0]) == 3 and refit[0].shape[1] < branches:
        raise ValueError(
            f"refit has the logits of {refit[0].shape[1]} branches; give those of {branches} or "
            "more"
        )
    fusion, params = cut_fusion(model.fusion, variables["params"].get("fusion", {}), branches)
    if refit is not None:
        own = "shared" if fusion.kind == "fixed" else fusion.kind
        fusion, params = fit_fusion(refit[0][:, :branches], refit[1], kind or own)
    parts = {name: part for name, part in variables["params"].items() if name != "fusion"}
    variables = {**variables, "params": {**parts, **({"fusion": params} if params else {})}}
    if isinstance(model.backbone, StrideVGG | Taps):
        backbone = model.backbone.clone(taps=tuple(model.backbone.taps[:branches]))
        model = model.clone(backbone=backbone, fusion=fusion)
        needed = jax.eval_shape(model.init, jax.random.key(0), images)
        return model, _part(variables, flatten_dict(cast(dict, needed)))
    backbone = FirstMaps(model.backbone, branches, switch=model.switch)
    model = model.clone(backbone=backbone, fusion=fusion, switch=None)
    variables = {
        collection: {
            name: {"backbone": part} if name == "backbone" else part for name, part in parts.items()
        }
        for collection, parts in variables.items()
    }
    needed = _needed(model, variables, images)
    absent = tuple(
        ((path[0], *path[3:]), leaf.shape, leaf.dtype.name)
        for path, leaf in cast(dict, flatten_dict(variables)).items()
        if path not in needed and path[1] == "backbone"
    )
    model = model.clone(backbone=FirstMaps(backbone.backbone, branches, absent, backbone.switch))
    return model, _part(variables, needed)


class FirstMaps(nn.Module):
    """The first feature maps of a backbone that has more.

    Attributes:
      backbone: as `Interflow` takes it.
      maps: how many.
      absent: variables of the backbone that the maps do not need, and that need not exist: the path
        (collection first), shape and dtype of each. They are taken as zeros.
      switch: the backbone's training switch, where its signature does not tell.
    """

    backbone: nn.Module
    maps: int
    absent: tuple[tuple[tuple[str, ...], tuple[int, ...], str], ...] = ()
    switch: str | None = None

    @property
    def labels(self) -> tuple[Any, ...] | None:
        """The branches' labels, if the backbone has any."""
        labels = getattr(self.backbone, "labels", None)
        return labels and tuple(labels[: self.maps])

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> list[Array]:
        """Computes the maps; arguments as for the backbone."""
        arguments = switch_arguments(self.backbone, train, self.switch)
        if self.is_initializing():
            return list(self.backbone(images, **arguments))[: self.maps]
        backbone = self.backbone.clone(parent=None, _deep_clone=True, _reset_names=True)
        zeros = {path: jnp.zeros(shape, dtype) for path, shape, dtype in self.absent}
        variables = unflatten_dict(zeros | flatten_dict(dict(self.backbone.variables)))
        mutable = [name for name in variables if self.is_mutable_collection(name)]
        rngs = {"dropout": self.make_rng("dropout")} if self.has_rng("dropout") else None
        result = backbone.apply(variables, images, rngs=rngs, mutable=mutable, **arguments)
        feature_maps, updates = cast(tuple, result)
        needed = {path: x for path, x in flatten_dict(dict(updates)).items() if path not in zeros}
        for collection, values in unflatten_dict(needed).items():
            for name, value in values.items():
                self.backbone.put_variable(collection, name, value)
        return list(feature_maps)[: self.maps]


def _shape(model: Interflow, variables: dict[str, Any], images: Any) -> jax.ShapeDtypeStruct:
    if images is not None:
        return jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    if not isinstance(model.backbone, StrideVGG):
        raise ValueError(
            f"{type(model.backbone).__name__} does not tell what its images are; give images, or "
            "jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)"
        )
    channels = variables["params"]["backbone"]["conv1"]["kernel"].shape[2]
    return jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32)  # any height and width will do


def _branches(model: Interflow, variables: dict[str, Any], images: Any) -> int:
    return jax.eval_shape(model.apply, variables, images).branch_logits.shape[1]


def _part(variables: dict[str, Any], needed: Any) -> dict[str, Any]:
    flat = flatten_dict(variables)
    return unflatten_dict({path: leaf for path, leaf in flat.items() if path in needed})


def _needed(model: Interflow, variables: dict[str, Any], images: Any) -> set[tuple[str, ...]]:
    """The paths of the variables that the prediction needs, according to its program."""
    flat = flatten_dict(variables)

    def predict(leaves: list[Array], images: Array) -> Any:
        return model.apply(unflatten_dict(dict(zip(flat, leaves, strict=True))), images)

    program = jax.make_jaxpr(predict)(list(flat.values()), images).jaxpr
    _, used = dce_jaxpr(program, [True] * len(program.outvars))
    return {path for path, each in zip(flat, used[: len(flat)], strict=True) if each}
