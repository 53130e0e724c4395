"""Runs that the commands trained, opened with the library alone."""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from flax.errors import FlaxError

from interflow_jax.checkpoints import Checkpoints, UnreadableError, fingerprint
from interflow_jax.config import VGG, ModelConfig, from_record
from interflow_jax.data.dataset import Dataset
from interflow_jax.data.folders import PictureSplit
from interflow_jax.data.picture_files import find_pictures
from interflow_jax.data.pictures import LARGEST_SIDE, Resize, check_resize
from interflow_jax.data.preprocessing import Preprocessing, normalize
from interflow_jax.data.splits import Split, chunks, read, take
from interflow_jax.depth import truncate
from interflow_jax.fusion import KINDS, Fusion
from interflow_jax.methods import losses
from interflow_jax.model import Interflow, Prediction
from interflow_jax.networks import Network, recorded_network
from interflow_jax.steps import predict_in_batches
from interflow_jax.switch import switch_arguments, without_sowing

HELD_OUT = 4000  # training examples, at most, to fit and to choose with
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
      resize: how pictures of another shape become `image_shape` (see `pictures.fit`).
      losses: the branches' own losses in its training (see `methods.losses`).
      supervised: whether its branches had losses of their own, and so predict alone by their own
        logits (see `Prediction.alone`).
      result: all that the run's result.json says; for a cut run also what `cut` adds.
    """

    def __init__(self, model: Interflow, variables: dict[str, Any], result: dict[str, Any]):
        self.model, self.variables, self.result = model, variables, result
        mean, deviation = tuple(result["mean"]), tuple(result["deviation"])
        self.preprocessing = Preprocessing(mean, deviation, augment=False)
        self.class_names = tuple(result["class_names"])
        self.image_shape = tuple(result["image_shape"])
        self.labels = tuple(result["branches"][: result.get("cut")])
        self.resize: Resize = result.get("resize", "squash")
        means = (result.get(name, 0.0) for name in ("auxiliary_mean", "distillation"))
        self.losses = losses(result["method"], *means)
        self.supervised = any(self.losses.values())
        self._check_entries()
        if variables:
            self._check_fit()

        def predict(variables: dict[str, Any], images: jax.Array) -> Any:
            images = normalize(self.preprocessing, images)
            return model.apply(variables, images, **switch_arguments(model, False))

        self._predict = jax.jit(predict)

    def _check_entries(self) -> None:
        shape, names = self.image_shape, self.class_names
        if len(shape) != 3 or not all(type(n) is int and 0 < n <= LARGEST_SIDE for n in shape):
            at_most = f"height, width and channels of at most {LARGEST_SIDE}"
            raise ValueError(f"image_shape is {shape!r:.200}, not {at_most}")
        check_resize(self.resize)
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"class_names are {names!r:.200}, not strings")
        for name in ("mean", "deviation"):
            values = getattr(self.preprocessing, name)
            lowest = 0 if name == "deviation" else -math.inf
            numbers = all(isinstance(x, int | float) and lowest < x < math.inf for x in values)
            if not numbers or len(values) != shape[-1]:
                raise ValueError(f"{name} is {values!r:.200}, not a number per channel")

    def _check_fit(self) -> None:
        """Checks, without computing, that the variables and the branches are the model's."""
        images = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
        apply = partial(self.model.apply, **switch_arguments(self.model, False))
        try:
            branches = jax.eval_shape(apply, self.variables, images).branch_logits.shape[1]
        except (FlaxError, TypeError) as error:
            raise ValueError(f"the parameters are of another network ({error!s:.200})") from error
        if len(self.labels) != branches:
            raise ValueError(f"branches are {self.labels!r:.200}; the network has {branches}")

    @property
    def seen_size(self) -> int:
        """How many of the first training examples it, or what it began from, was trained on."""
        return self.result.get("seen_size", self.result["train_size"])

    def predict(self, images: np.ndarray) -> Prediction:
        """The model's prediction in evaluation mode for [images, *image_shape], uint8.

        Raises:
          ValueError: for images of another shape or type, or none.
        """
        program = partial(self._predict, self.variables)
        return predict_in_batches(program, images, self.image_shape, _BATCH_SIZE)

    def predict_files(
        self, paths: str | Path | Iterable[str | Path], unreadable: list[str] | None = None
    ) -> list[dict[str, Any]]:
        """Predicts picture files, turned upright (EXIF) and resized as the run's own were.

        Args:
          paths: files, folders and globs (see `find_pictures`).
          unreadable: gets a sentence per file that is no picture, which is left out; None to raise.

        Returns:
          A row per picture, as `pandas.DataFrame` takes them: `file`, a Path; `class`, the surest;
          `probability`, its own; `probabilities`, [classes], float32; `branches`, the classes that
          the branches say alone; `weights`, as of `image_weights`, [branches] or empty.

        Raises:
          ValueError: as `find_pictures` does, and for a file that is no picture.
        """
        files, rows = find_pictures(paths), []
        split = PictureSplit(files, np.zeros(len(files), np.int32), self.image_shape, self.resize)
        for indices in chunks(split, _BATCH_SIZE):
            indices, images = _readable(split, indices, unreadable)
            if not images.size:
                continue
            prediction = self.predict(images)
            fused = np.asarray(jax.nn.softmax(prediction.logits))
            alone = np.asarray(self.alone(prediction)).argmax(-1)
            weights = image_weights(prediction)
            for index, row, labels, own in zip(indices, fused, alone, weights, strict=True):
                rows.append(
                    {
                        "file": files[index],
                        "class": self.class_names[row.argmax()],
                        "probability": float(row.max()),
                        "probabilities": row,
                        "branches": [self.class_names[label] for label in labels],
                        "weights": own,
                    }
                )
        return rows

    def alone(self, prediction: Prediction) -> jax.Array:
        """The logits by which each branch predicts alone: [images, branches, classes], float32."""
        return prediction.branch_logits if self.supervised else prediction.alone

    def predict_split(
        self, split: Split
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
        """A split's logits, [examples, classes], and what `truncate` refits a fusion to.

        Those are the branches' logits, the labels, [examples], int32, and the branches' features.
        """
        parts = []
        for indices in chunks(split):
            images, labels = read(split, indices)
            given = self.predict(images)
            parts.append((given.logits, given.branch_logits, labels, given.features))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    def cut(
        self, branches: int, data: Dataset | None = None, refit: bool = False, alone: bool = False
    ) -> "TrainedRun":
        """The run with its model cut after so many branches, and measured where data are given.

        Its fusion keeps the terms that remain, which in a model without branch losses may predict
        far worse than the branches can.

        Args:
          branches: how many remain: `cut` in the result.
          data: the run's dataset; the result gets `cut_accuracy` and `whole_accuracy`, the cut's
            and the whole model's, in percent of its test images.
          refit: fits a fusion of the model's kind ("shared" for a fixed one) to what remains, on at
            most `HELD_OUT` training images that the run has not seen, or, where there are none, on
            others: `cut_fitted_to` says which.
          alone: the last remaining branch predicts alone, as by `TrainedRun.alone`; by its own
            logits where its weight depends on the image.

        Raises:
          ValueError: as `truncate` does; for `refit` without data or with `alone`, data of other
            classes, or another cut of a run that was cut to a branch alone.
        """
        if refit and (alone or data is None):
            raise ValueError(f"refit is {refit}: give data to fit to, and leave alone out")
        if data is not None:
            self.check_data(data, classes_alone=not refit)
        if not refit and "cut_fusion" in self.result and "cut_fitted_to" not in self.result:
            raise ValueError("the run was cut to a branch alone; cut the whole run instead")
        added = ("cut_accuracy", "whole_accuracy")
        result = {name: self.result[name] for name in self.result if name not in added}
        examples = None
        if refit and data is not None:
            unseen = held_out(self, data)
            split = unseen or take(data.train, min(HELD_OUT, len(data.train)))
            examples = self.predict_split(split)[1:]
            which = "held-out" if unseen else "trained-on"
            result["cut_fitted_to"] = f"{len(split):,} {which} training images"
        images = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
        model, variables = truncate(self.model, self.variables, branches, images, refit=examples)
        if alone:
            weights = self._alone_weights(branches)
            model = model.clone(fusion=Fusion("class" if weights.ndim == 2 else "shared"))
            params = variables["params"] | {"fusion": {"weights": weights}}
            variables = variables | {"params": params}
            result.pop("cut_fitted_to", None)
        if refit or alone:
            result["cut_fusion"] = model.fusion.kind
        cut = TrainedRun(model, variables, result | {"cut": branches})
        if data is not None:
            for name, run in zip(added, (cut, self), strict=True):
                logits, _, labels, _ = run.predict_split(data.test)
                cut.result[name] = 100 * float(np.mean(logits.argmax(-1) == labels))
        return cut

    def differs(self, data: Dataset) -> bool:
        """Whether a dataset's digest is not that of the run's own, which older runs do not know."""
        return self.result.get("data") not in (None, data.digest())

    def check_data(self, data: Dataset, classes_alone: bool = False) -> None:
        """Raises ValueError for a dataset of other classes, or that is not the run's own."""
        if data.class_names != self.class_names:
            raise ValueError(f"{data.name} has other classes than the run: {data.class_names}")
        if not classes_alone and self.differs(data):
            raise ValueError(
                f"{data.name} is not what the run was trained on (digest {self.result['data']}, "
                f"now {data.digest()}: files, labels or their versions differ), so which of its "
                "images the run has seen is not known; restore that"
            )

    def _alone_weights(self, branches: int) -> jax.Array:
        """Of a fusion by which the last of so many branches predicts as `alone` says."""
        weights = jnp.ones(len(self.labels))
        if not self.supervised and not KINDS[self.model.fusion.kind].of_features:
            params = {"params": self.variables["params"].get("fusion", {})}
            zeros = jnp.zeros((1, len(self.labels), len(self.class_names)))
            weights = jnp.asarray(self.model.fusion.apply(params, zeros)[1])
        own = jnp.where(weights == 0, 1.0, weights)[branches - 1]
        return jnp.zeros_like(weights[:branches]).at[-1].set(own)


def _readable(
    split: PictureSplit, indices: np.ndarray, unreadable: list[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The pictures at indices, and those of them that can be read, if others are to be told."""
    try:
        return indices, split.read(indices)[0]
    except ValueError:
        if unreadable is None:
            raise
    kept, images = [], []
    for index in indices:
        try:
            images.append(split.read(np.array([index]))[0][0])
            kept.append(index)
        except ValueError as error:
            unreadable.append(str(error))
    return np.array(kept, int), np.array(images)


def image_weights(prediction: Prediction) -> np.ndarray:
    """Every image's own fusion weights, [images, branches]; [images, 0] where all have equal."""
    weights = prediction.weights
    if weights is not None and weights.ndim == 3:
        return np.asarray(weights)[..., 0]
    return np.zeros((len(prediction.logits), 0), np.float32)


def held_out(run: TrainedRun, data: Dataset, most: int = HELD_OUT) -> Split | None:
    """Up to `most` training examples that the run has not seen; None where there are none."""
    if data.validation is not None:
        return take(data.validation, min(most, len(data.validation)))
    rest = len(data.train) - run.seen_size
    return take(data.train, min(most, rest), after=run.seen_size) if rest > 0 else None


def load_run(
    folder: str | Path, backbone: str | Network | None = None, trust_code: bool = False
) -> TrainedRun:
    """Opens a finished run of `interflow run` by its folder.

    Nothing that its files name is imported: a run on another network than the project's own needs
    one of the last two arguments.

    Args:
      folder: the run's folder.
      backbone: the network that it was trained on, as the command line named it, or as an object
        (see `networks.recorded_network`).
      trust_code: whether the network that the folder names may be imported and called.

    Raises:
      ValueError: if the folder holds none, or its last checkpoint is not the one it ended with.
    """
    folder = Path(folder).expanduser()
    file, checkpoints = folder / "result.json", folder / "checkpoints"
    if not os.path.exists(file):  # where `Path.exists` raises for a name that is too long
        raise ValueError(_without_result(folder))
    remedy = f"restore it, or move {folder} away and train that run again"
    with reading(file, remedy):
        result = json.loads(file.read_text())
        run = TrainedRun(build_as(result, backbone, trust_code), {}, result)
        digest, command = result["fingerprint"], result["command"]
    if result.get("keep") == "best":
        checkpoints = folder / "best"
    variables = _variables(checkpoints)
    if variables is None or fingerprint(variables["params"]) != digest:
        raise ValueError(
            f"the last checkpoint in {checkpoints} is not the one that the run ended with; move "
            f"{folder if variables is None else file} away and run again: {command}"
        )
    with reading(file, remedy):
        named = named_as_the_model_has_them(run.model, variables, result)
        return TrainedRun(run.model, named, result)


def _without_result(folder: Path) -> str:
    if not os.path.isdir(folder):
        what = "is no folder" if os.path.exists(folder) else "does not exist"
        return f"{folder} {what}: give the folder of a finished run"
    if (folder / "config.json").exists():
        return f"{folder} holds a run that is not finished: the same command goes on with it"
    return f"{folder} holds no result.json: give the folder of a finished run"


class UntrustedError(ValueError):
    """A file names a network that the caller neither gave nor trusts, or another one."""


@contextlib.contextmanager
def reading(file: Path, hint: str) -> Iterator[None]:
    """Turns whatever is wrong with a file into a ValueError that names it."""
    try:
        yield
    except UntrustedError as error:
        raise ValueError(f"{file}: {error}") from error
    except (OSError, LookupError, TypeError, ValueError, RecursionError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read ({error!r:.300}); {hint}") from error


def named_as_the_model_has_them(
    model: Interflow, variables: dict[str, Any], result: dict[str, Any]
) -> dict[str, Any]:
    """Renames a file's variables, whose names are all strings, as in the model: NNX has numbers."""
    if result.get("backbone", VGG) == VGG:
        return variables
    shapes = {"batch_stats": {}, **_shapes(model, _images(result))}
    return serialization.from_state_dict(shapes, variables)


def _images(result: dict[str, Any]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *result["image_shape"]), jnp.float32)


def _shapes(model: Interflow, images: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """Those of the model's variables."""
    with nn.intercept_methods(without_sowing):
        return dict(jax.eval_shape(model.init, jax.random.key(0), images))


def build_as(
    result: dict[str, Any], backbone: str | Network | None = None, trust_code: bool = False
) -> Interflow:
    """A result's model, untrained; raises LookupError, TypeError or ValueError for no result."""
    if not isinstance(result, dict):
        raise TypeError(f"it holds a {type(result).__name__}, not the entries of a result")
    try:
        network = recorded_network(result, backbone, trust_code)
    except ValueError as error:
        raise UntrustedError(str(error)) from error
    config = from_record(ModelConfig, result)
    model = config.build(len(result["class_names"]), network)
    if "cut" not in result:
        return model
    images = _images(result)
    shapes = _shapes(model, images)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    model = truncate(model, zeros, result["cut"], images)[0]
    if "cut_fusion" not in result:
        return model
    if result["cut_fusion"] not in KINDS:
        raise ValueError(f"cut_fusion is {result['cut_fusion']!r}; it must be a kind of fusion")
    return model.clone(fusion=Fusion(result["cut_fusion"]))


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
            state = restored.state | (restored.state.get("average") or {})
            own = {name: state.get(name) or {} for name in ("params", "batch_stats")}
            return own | (restored.state.get("collections") or {})
    return None
