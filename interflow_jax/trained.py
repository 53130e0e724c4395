"""Runs that the commands trained, opened with the library alone."""

import contextlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from interflow_jax.checkpoints import Checkpoints, UnreadableError, fingerprint
from interflow_jax.data.preprocessing import Preprocessing, normalize
from interflow_jax.depth import truncate
from interflow_jax.methods import BASELINES, METHODS, build
from interflow_jax.model import Interflow, Prediction
from interflow_jax.networks import load_network, source
from interflow_jax.switch import switch_arguments
from interflow_jax.training import predict_in_batches

_BATCH_SIZE = 64  # predictions compile once


class TrainedRun:
    """A trained model, and how to prepare its images.

    Attributes:
      model: as it was trained.
      variables: its parameters and, with BatchNorm, statistics: what `model.apply` takes.
      preprocessing: normalisation by the training images' mean and deviation.
      class_names: one per class, in the order of the logits.
      image_shape: (height, width, channels) of the images that it takes.
      labels: its branches' labels, shallow to deep.
      supervised: whether its branches had losses of their own, and so predict alone by their own
        logits (see `Prediction.alone`).
      result: all that the run's result.json says; for a cut run also `cut`, the number of remaining
        branches.
    """

    def __init__(self, model: Interflow, variables: dict[str, Any], result: dict[str, Any]):
        self.model, self.variables, self.result = model, variables, result
        mean, deviation = tuple(result["mean"]), tuple(result["deviation"])
        self.preprocessing = Preprocessing(mean, deviation, augment=False)
        self.class_names = tuple(result["class_names"])
        self.image_shape = tuple(result["image_shape"])
        self.labels = tuple(result["branches"][: result.get("cut")])
        auxiliary_loss = (METHODS | BASELINES)[result["method"]].auxiliary_loss
        self.supervised = bool(auxiliary_loss or result.get("auxiliary_mean"))

        def predict(variables: dict[str, Any], images: jax.Array) -> Any:
            images = normalize(self.preprocessing, images)
            return model.apply(variables, images, **switch_arguments(model, False))

        self._predict = jax.jit(predict)

    def predict(self, images: np.ndarray) -> Prediction:
        """The model's prediction in evaluation mode for [images, *image_shape], uint8.

        Raises:
          ValueError: for images of another shape or type, or none.
        """
        program = partial(self._predict, self.variables)
        return predict_in_batches(program, images, self.image_shape, _BATCH_SIZE)

    def alone(self, prediction: Prediction) -> jax.Array:
        """The logits by which each branch predicts alone: [images, branches, classes], float32."""
        return prediction.branch_logits if self.supervised else prediction.alone

    def cut(self, branches: int) -> "TrainedRun":
        """The run with its model cut after so many branches; raises as `truncate` does."""
        images = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
        model, variables = truncate(self.model, self.variables, branches, images)
        return TrainedRun(model, variables, self.result | {"cut": branches})


def load_run(folder: str | Path) -> TrainedRun:
    """Opens a finished run of `experiments.run` by its folder.

    Raises:
      ValueError: if the folder holds none, or its last checkpoint is not the one it ended with.
    """
    file, checkpoints = Path(folder) / "result.json", Path(folder) / "checkpoints"
    if not file.exists():
        raise ValueError(f"{folder} holds no result.json: give the folder of a finished run")
    try:
        result = json.loads(file.read_text())
        run = TrainedRun(build_as(result), {}, result)
        digest, command = result["fingerprint"], result["command"]
    except (OSError, LookupError, TypeError, ValueError) as error:
        hint = f"is {folder} a run's folder?"
        raise ValueError(f"{file} cannot be read ({error!r}); {hint}") from error
    variables = _variables(checkpoints)
    if variables is None or fingerprint(variables["params"]) != digest:
        raise ValueError(
            f"the last checkpoint in {checkpoints} is not the one that the run ended with; delete "
            f"{folder if variables is None else file} and run again: {command}"
        )
    run.variables = named_as_the_model_has_them(run.model, variables, result)
    return run


def named_as_the_model_has_them(
    model: Interflow, variables: dict[str, Any], result: dict[str, Any]
) -> dict[str, Any]:
    """Renames a file's variables, whose names are all strings, as in the model: NNX has numbers."""
    if result.get("backbone", "vgg") == "vgg":
        return variables
    images = jax.ShapeDtypeStruct((1, *result["image_shape"]), jnp.float32)
    shapes = {"batch_stats": {}, **jax.eval_shape(model.init, jax.random.key(0), images)}
    return serialization.from_state_dict(shapes, variables)


def build_as(result: dict[str, Any]) -> Interflow:
    """A result's model, untrained; raises LookupError, TypeError or ValueError for no result."""
    if not isinstance(result, dict):
        raise TypeError(f"it holds a {type(result).__name__}, not the entries of a result")
    taps, weights = result.get("taps"), result.get("initial_weights")
    name = result.get("backbone", "vgg")
    network = None
    if name != "vgg":
        network, digest = load_network(name, result["backbone_options"]), source(name)["sha256"]
        if digest != result["backbone_sha256"]:
            raise ValueError(
                f"{name} is not what the run was trained with: its file {source(name)['file']} has "
                "been changed"
            )
    model = build(
        result["method"],
        len(result["class_names"]),
        depth=result["depth"],
        width=result["width"],
        downsample=result["downsample"],
        layout=result.get("layout", "spread"),  # older runs lack what follows
        taps=taps and tuple(taps),
        fully_connected=result["fc"],
        fusion_start=result.get("fusion_start", "xavier"),
        fusion=result.get("fusion"),
        dtype=jnp.dtype(result["dtype"]),
        network=network,
        initial_weights=weights and tuple(weights),
        pool=result.get("pool", "mean"),
        frozen=result.get("frozen", "none") == "backbone",
    )
    if "cut" not in result:
        return model
    images = jax.ShapeDtypeStruct((1, *result["image_shape"]), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return truncate(model, zeros, result["cut"], images)[0]


def _variables(folder: Path) -> dict[str, Any] | None:
    """The parameters and statistics of the newest checkpoint that can be read."""
    if not folder.is_dir():
        return None
    with (
        contextlib.closing(Checkpoints(folder)) as checkpoints,
        contextlib.suppress(UnreadableError),
    ):
        if restored := checkpoints.restore():
            # An empty tree, such as the statistics of a network without BatchNorm, is not saved.
            return {name: restored.state.get(name) or {} for name in ("params", "batch_stats")}
    return None
