"""Real exits: an example that a branch is sure of goes no deeper."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from interflow_jax.budget import Measure, check_measure, confidence
from interflow_jax.depth import Refit, truncate
from interflow_jax.fusion import KINDS, Fusion, FusionKind
from interflow_jax.model import Interflow, Prediction, pool
from interflow_jax.ops.convolution import cpu_compiler_options
from interflow_jax.packing import Group, joined
from interflow_jax.switch import check_images, switch_arguments
from interflow_jax.vgg import StrideVGG

BATCH_SIZES = (1, 8, 16, 32, 64)


class Exits(NamedTuple):
    """What examples leave with.

    Attributes:
      logits: [images, classes], float32, those of `truncate` at the exit.
      exits: [images], int, the branch that each left after, counted from 1.
      confidence: [images], float32, 0 to 1, at that exit.
    """

    logits: np.ndarray
    exits: np.ndarray
    confidence: np.ndarray


class EarlyExit:
    """Runs a model branch by branch; an example leaves where its confidence is above a threshold.

    One jitted program runs from each branch to the next; examples that stay are packed into batches
    of a few fixed sizes, the largest except for the remainder at the end. A backbone whose method
    `segments` returns its parts, as `StrideVGG`'s does, computes nothing twice. For any other, the
    cut models run one after another, each from the images on.

    XLA's rounding depends on the batch size: an example's logits are bit for bit the same in
    batches of equal size.

    Attributes:
      thresholds: one per exit but the last, which lets everything out.
      labels: the exits' labels, shallow to deep.
    """

    def __init__(
        self,
        model: Interflow,
        variables: dict[str, Any],
        thresholds: Sequence[float],
        images: Any = None,
        *,
        measure: Measure = "probability",
        temperatures: Sequence[float] | None = None,
        refit: Refit | None = None,
        kind: FusionKind | None = None,
        batch_sizes: Sequence[int] = BATCH_SIZES,
    ):
        """Makes the programs; compiles nothing yet.

        Args:
          model, variables: as in `truncate`.
          thresholds: one per exit but the last, 0 to 1: confidence above it leaves. The last exit
            is the branch after those; fewer thresholds end before the model's last branch.
          images: as in `truncate`: their shape, which any backbone but a `StrideVGG` needs, and
            which calls then take, any number of them.
          measure: the measure of confidence (see `confidence`).
          temperatures: one per exit, by which its logits are divided first; None for 1.
          refit, kind: fit a fusion to every exit (see `truncate`).
          batch_sizes: the sizes that programs are compiled for, when needed.

        Raises:
          ValueError: for a threshold outside 0 to 1, a temperature or a batch size that is not
            positive, a wrong number of them, or an unknown measure.
        """
        self.thresholds = _thresholds(thresholds)
        count = len(self.thresholds) + 1
        if images is not None or model.labels is not None:
            branches = len(model.labels or ())
            if not branches:
                shapes = jax.eval_shape(model.apply, variables, images)
                branches = cast(Prediction, shapes).branch_logits.shape[1]
            if count > branches:
                raise ValueError(
                    f"thresholds are {self.thresholds}; the model has {branches} branches: give at "
                    f"most {branches - 1}, as the last exit takes the rest"
                )
        temperatures = (1.0,) * count if temperatures is None else temperatures
        temperatures = _numbers(
            "temperatures",
            temperatures,
            f"{count} numbers above 0",
            lambda given: len(given) == count and (given > 0).all(),
        )
        check_measure(measure)
        sizes = _numbers(
            "batch_sizes",
            batch_sizes,
            "one or more whole numbers from 1 on",
            lambda given: len(given) and given.dtype.kind in "iu" and given.min() >= 1,
        )
        self._sizes = [int(size) for size in sorted(sizes)]
        cuts = [
            truncate(model, variables, branches, images, refit=refit, kind=kind)
            for branches in range(1, count + 1)
        ]
        whole = cuts[-1][0]
        self.labels = whole.labels or tuple(range(1, count + 1))
        self._classes = model.num_classes
        self._variables = [cut_variables for _, cut_variables in cuts]
        self._rank, self._channels = 4, None
        if images is not None:
            self._rank, self._channels = len(images.shape), images.shape[-1]
        elif isinstance(model.backbone, StrideVGG):
            self._channels = variables["params"]["backbone"]["conv1"]["kernel"].shape[2]
        if callable(getattr(model.backbone, "segments", None)):
            segments = cast(Any, model.backbone).segments()[:count]
            parts = [
                partial(_from_the_branch_before, model, cut.fusion, segment, number)
                for number, ((cut, _), segment) in enumerate(zip(cuts, segments, strict=True), 1)
            ]
            # A cut may have wrapped its backbone in another; a segment takes what it needs.
            self._variables = [
                {
                    name: {**parts, "backbone": variables[name].get("backbone", {})}
                    for name, parts in cut_variables.items()
                }
                for cut_variables in self._variables
            ]
        else:
            parts = [partial(_from_the_images, cut) for cut, _ in cuts]

        def program(part: Callable, temperature: float) -> Callable:
            def run(variables: Any, carry: tuple[Array, ...]) -> tuple[Any, Array, Array]:
                carry, logits = part(variables, carry)
                return carry, logits, confidence(logits, measure, temperature)

            return jax.jit(run, compiler_options=cpu_compiler_options())

        self._programs = [program(*each) for each in zip(parts, temperatures, strict=True)]

    def __call__(
        self, images: Array | np.ndarray, thresholds: Sequence[float] | None = None
    ) -> Exits:
        """Predicts any number of images.

        Args:
          images: [images, height, width, channels], float, as the model takes them.
          thresholds: in place of those given at first; nothing is recompiled.

        Raises:
          ValueError: for integer images (uint8 pixels are to be normalised first), another rank or
            number of channels, a threshold outside 0 to 1, or a wrong number of them.
        """
        if thresholds is None:
            thresholds = self.thresholds
        thresholds = _thresholds(thresholds, len(self.thresholds))
        check_images(images)
        if images.ndim != self._rank or self._channels not in (None, images.shape[-1]):
            raise ValueError(
                f"images are {images.shape}; give a batch of {self._rank} dimensions, the last one "
                f"{self._channels or 'channels'}"
            )
        images, most, last = np.asarray(images), self._sizes[-1], len(self._programs) - 1
        logits = np.zeros((len(images), self._classes), np.float32)
        result = Exits(logits, np.zeros(len(images), int), np.zeros(len(images), np.float32))
        waiting: dict[int, Group] = {}  # by stage, fewer than the largest batch

        def add(stage: int, group: Group) -> None:
            if stage in waiting:
                group = joined(waiting.pop(stage), group, most)
            while len(group.rows) >= most:
                run(stage, group.first(most))
                group = group.after(most)
            if len(group.rows):
                waiting[stage] = group

        def run(stage: int, group: Group) -> None:
            numbers = group.numbers
            packed = group.packed(self._size(len(numbers)))
            carry, *outputs = self._programs[stage](self._variables[stage], packed)
            logits, sure = (np.asarray(output)[: len(numbers)] for output in outputs)
            leaves = np.full(len(numbers), True)
            if stage < last:
                leaves = sure > thresholds[stage]
                (stay,) = np.nonzero(~leaves)
                add(stage + 1, Group(carry, stay, numbers[stay]))
            result.logits[numbers[leaves]] = logits[leaves]
            result.exits[numbers[leaves]] = stage + 1
            result.confidence[numbers[leaves]] = sure[leaves]

        for start in range(0, len(images), most):
            batch = images[start : start + most]
            rows, size = np.arange(len(batch)), self._size(len(batch))
            padding = [(0, size - len(batch)), *[(0, 0)] * (images.ndim - 1)]
            no_branch = jnp.zeros((size, 0, self._classes), jnp.float32)
            add(0, Group((jnp.asarray(np.pad(batch, padding)), no_branch), rows, start + rows))
        for stage in range(last + 1):
            if stage in waiting:
                run(stage, waiting.pop(stage))
        return result

    def _size(self, count: int) -> int:
        return next(size for size in self._sizes if size >= count)


def _numbers(
    name: str, values: Any, words: str, fit: Callable[[np.ndarray], Any]
) -> tuple[float, ...]:
    given = np.asarray(values)
    if given.ndim != 1 or given.dtype.kind not in "fiu" or not fit(given):
        raise ValueError(f"{name} are {values}; give a list of {words}")
    return tuple(given.tolist())


def _thresholds(values: Any, count: int | None = None) -> tuple[float, ...]:
    def fit(given: np.ndarray) -> Any:
        return count in (None, len(given)) and ((given >= 0) & (given <= 1)).all()

    return _numbers("thresholds", values, f"{count or ''} numbers from 0 to 1".strip(), fit)


def _from_the_branch_before(
    model: Interflow,
    fusion: Fusion,
    segment: nn.Module,
    number: int,
    variables: Any,
    carry: tuple[Array, ...],
) -> tuple[tuple[Array, ...], Array]:
    """From a branch's feature map and all logits so far to those of branch `number`.

    The carry also holds the branches' features, where the fusion needs them.
    """
    x, earlier, *features = carry
    params = variables["params"]
    of_backbone = {
        collection: parts["backbone"]
        for collection, parts in variables.items()
        if "backbone" in parts
    }
    (x,) = cast(
        list, segment.apply(of_backbone, x, **switch_arguments(segment, False, model.switch))
    )
    layer = {"params": params[model.layer_name(number, x.shape[-1])]}
    pooled = pool(x, model.pool)
    scores = cast(Array, nn.Dense(model.num_classes).apply(layer, pooled))
    branch_logits = jnp.concatenate([earlier, scores[:, None]], axis=1)
    if KINDS[fusion.kind].of_features:
        features.append(pooled)
    given = {"params": params.get("fusion", {})}
    logits, *_ = cast(tuple, fusion.apply(given, branch_logits, features))
    return (x, branch_logits, *features), logits


def _from_the_images(
    cut: Interflow, variables: Any, carry: tuple[Array, ...]
) -> tuple[tuple[Array, ...], Array]:
    return carry, cast(Prediction, cut.apply(variables, carry[0])).logits
