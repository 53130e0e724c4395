"""A finished run, opened by its folder alone."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import interflow_jax as ij
from experiments.cli import configuration
from experiments.runs.folder import RunFolder
from interflow_jax.checkpoints import Checkpoints, UnreadableError, fingerprint
from interflow_jax.data.preprocessing import Preprocessing, normalize
from interflow_jax.training import TrainState, make_initializer

BATCH_SIZE = 64


class FinishedRun(NamedTuple):
    """A trained model and what its result.json says."""

    result: dict[str, Any]
    model: ij.Interflow
    state: TrainState
    preprocessing: Preprocessing


def load(path: Path) -> FinishedRun:
    """Loads a finished run from its folder.

    Raises:
      ValueError: if the folder holds none, or its last checkpoint is not the one it ended with.
    """
    folder = RunFolder(path)
    if folder.result() is None:
        raise ValueError(f"{path} holds no result.json: give the folder of a finished run")
    result = folder.read_json("result.json")
    model = configuration.of_result(result).build(len(result["class_names"]))
    optimizer = ij.make_optimizer(ij.learning_rate_schedule(1, 1.0))
    initialize = make_initializer(model, optimizer, tuple(result["image_shape"]))
    like = initialize.eval_shape(jax.random.key(0))
    restored = None
    if folder.has_checkpoints():
        checkpoints = Checkpoints(folder.checkpoints)
        with contextlib.suppress(UnreadableError):
            restored = checkpoints.restore(like, lambda line: print(line, file=sys.stderr))
        checkpoints.close()
    if restored is None or fingerprint(restored.state.params) != result["fingerprint"]:
        raise ValueError(
            f"the last checkpoint in {folder.checkpoints} is not the one that the run ended with; "
            f"delete {path if restored is None else path / 'result.json'} and run again: "
            f"{result['command']}"
        )
    preprocessing = Preprocessing(tuple(result["mean"]), tuple(result["deviation"]), augment=False)
    return FinishedRun(result, model, restored.state, preprocessing)


def probabilities(run: FinishedRun, batches: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, fused and of every branch alone (see `ij.Prediction.alone`).

    Args:
      run: from `load`.
      batches: each [at most 64, height, width, channels], uint8, of the run's image shape.

    Returns:
      [images, classes] and [images, branches, classes], float32.
    """

    @jax.jit
    def softmaxes(state: TrainState, images: jax.Array):
        prediction = ij.predict(run.model, state, normalize(run.preprocessing, images))
        return jax.nn.softmax(prediction.logits), jax.nn.softmax(prediction.alone)

    fused, branches = [], []
    for images in batches:
        missing = BATCH_SIZE - len(images)
        padded = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])
        for parts, values in zip((fused, branches), softmaxes(run.state, padded), strict=True):
            parts.append(np.asarray(values)[: len(images)])
    return np.concatenate(fused), np.concatenate(branches)
