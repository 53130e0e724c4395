"""Trained models as files: StableHLO, which needs only jax and flatbuffers, or safetensors."""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from interflow_jax.checkpoints import fingerprint
from interflow_jax.data.preprocessing import Preprocessing, normalize
from interflow_jax.data.splits import one_line
from interflow_jax.model import Prediction
from interflow_jax.networks import Network
from interflow_jax.saved_run import TrainedRun, build_as, named_as_the_model_has_them, reading
from interflow_jax.switch import switch_arguments

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(
    model: nn.Module,
    variables: dict[str, Any],
    preprocessing: Preprocessing,
    image_shape: tuple[int, int, int],
    platforms: tuple[str, ...] = DEFAULT_PLATFORMS,
    *,
    supervised: bool = False,
) -> bytes:
    """Exports a model in evaluation mode with its variables and preprocessing, by `jax.export`.

    `jax.export.deserialize(bytearray(program)).call(images)` takes any number of images, uint8
    [batch, height, width, channels], and returns float32 probabilities: the fused logits', [batch,
    classes], and those of every branch alone, [batch, branches, classes].

    Args:
      model: any Linen module that returns a `Prediction`.
      variables: what `model.apply` takes; they become constants of the program.
      preprocessing: normalisation; nothing is augmented.
      image_shape: (height, width, channels).
      platforms: those of `PLATFORMS` on which the program is to run.
      supervised: as in `eval_step`: how a branch predicts alone.

    Raises:
      ValueError: for no platform, an unknown one, or a model that asks for the size of its batch.
    """
    platforms = (platforms,) if isinstance(platforms, str) else tuple(platforms)
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(f"platforms are {platforms}; choose from {', '.join(PLATFORMS)}")

    @jax.jit
    def probabilities(images: Array) -> tuple[Array, Array]:
        images = normalize(preprocessing, images)
        arguments = switch_arguments(model, False)
        prediction = cast(Prediction, model.apply(variables, images, **arguments))
        alone = prediction.branch_logits if supervised else prediction.alone
        return jax.nn.softmax(prediction.logits), jax.nn.softmax(alone)

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), np.uint8)
    try:
        return bytes(jax.export.export(probabilities, platforms=platforms)(images).serialize())
    except jax.errors.InconclusiveDimensionOperation as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the model asks for the size of its batch: {reason}") from error


def load_exported(file: str | Path) -> tuple[jax.export.Exported, dict[str, Any]]:
    """Opens what `interflow export` wrote: the program, and what the .json beside it says.

    Raises:
      ValueError: if either cannot be read, they do not belong together, or a newer jax wrote them,
        or one so old that this jax no longer reads its programs.
    """
    file, beside = Path(file), Path(f"{file}.json")
    with reading(beside, f"was it written with {file}? export it again"):
        program, about = file.read_bytes(), json.loads(beside.read_text())
        digest, version = about["sha256"], about["versions"]["jax"]
        numbers = _numbers(version)
    if hashlib.sha256(program).hexdigest() != digest:
        raise ValueError(f"{file} is broken, or {beside} is another model's; export it again")
    if numbers > _numbers(jax.__version__):
        raise ValueError(f"{file} was written by jax {version}; jax {jax.__version__} is too old")
    try:
        return jax.export.deserialize(bytearray(program)), about
    except Exception as error:  # flatbuffers and MLIR raise errors of any type
        raise ValueError(
            f"{file} was written by jax {version}, and jax {jax.__version__} does not read it "
            f"({one_line(error)}); jax promises to for six months: export it again"
        ) from error


def _numbers(version: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if not numbers:
        raise ValueError(f"{version!r} is no version")
    return numbers


def to_safetensors(run: TrainedRun) -> bytes:
    """A run's variables, float32, by names such as "params/backbone/conv1/kernel".

    The metadata are strings: `run`, the JSON of the run's result, and `fingerprint`, of all
    variables.
    """
    arrays = flatten_dict(serialization.to_state_dict(run.variables), sep="/")
    metadata = {
        "run": json.dumps(run.result),
        "fingerprint": fingerprint(run.variables),
    }
    return save({name: np.asarray(array) for name, array in arrays.items()}, metadata)


def load_safetensors(
    file: str | Path, backbone: str | Network | None = None, trust_code: bool = False
) -> TrainedRun:
    """Opens what `to_safetensors` returned.

    Args:
      file: the file.
      backbone, trust_code: as in `load_run`; nothing that the file names is imported otherwise.

    Raises:
      ValueError: for a file of another kind or a broken one, or a network that is not given.
    """
    hint = "is it an exported run? ij.read_pretrained reads parameters alone"
    with reading(Path(file), hint):
        try:
            with safe_open(file, "numpy") as tensors:
                metadata = tensors.metadata() or {}
                names = tensors.keys()
                arrays = {name: tensors.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        result, digest = json.loads(metadata["run"]), metadata["fingerprint"]
        model = build_as(result, backbone, trust_code)
        variables = {"params": {}, "batch_stats": {}} | unflatten_dict(arrays, sep="/")
    if fingerprint(variables) != digest:
        raise ValueError(f"{file} is broken: its parameters are not those that it was written with")
    with reading(Path(file), hint):
        return TrainedRun(model, named_as_the_model_has_them(model, variables, result), result)
