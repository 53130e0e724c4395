"""A backbone from any NNX module, by the names of its layers (paper, III-C)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax import Array

from interflow_jax.taps import Layer, unknown_layer


class NNXTaps(nn.Module):
    """A backbone that returns what named layers of an unmodified NNX network compute.

    An NNX network makes all its parameters at once, so those after the last tap exist, too; their
    gradients are zero.

    Attributes:
      make: returns the network, called as `make(rngs=nnx.Rngs(...))`.
      taps: attribute paths of its modules, such as "encoder/blocks/3", in the order of the
        branches, shallow to deep. For a module called more than once, the last call counts.
    """

    make: Callable[..., Any]
    taps: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The branches' labels: the taps."""
        return tuple(self.taps)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> list[Array]:
        """Computes the outputs of the tapped layers.

        Args:
          images: whatever the network takes, usually [batch, height, width, channels], float.
          train: whether the network is in training mode (`nnx.Module.train`) or in evaluation mode,
            deterministic and with running averages.

        Returns:
          An array per tap, in their order; for a layer that returns a tuple, its first.

        Raises:
          ValueError: for a tap that the network does not have, naming the closest that it has, or
            one without an output per image, such as blocks that nnx.scan stacks.
        """
        network = _to_linen(self.make, name="network")
        outputs = network(images, nnx_method=partial(_outputs, train=train))
        for tap in self.taps:
            if tap not in outputs:
                raise unknown_layer(tap, {path: str(x.shape) for path, x in outputs.items()})
            if outputs[tap].shape[:1] != images.shape[:1]:
                raise ValueError(
                    f"layer {tap!r} gives {outputs[tap].shape} for a batch of {len(images)}: it is "
                    "inside nnx.scan, or has no output per image; tap another"
                )
        return [outputs[tap] for tap in self.taps]


def nnx_layers(make: Callable[..., Any], images: Any) -> list[Layer]:
    """What `NNXTaps` can tap in a network, from shapes alone, in the order of their paths.

    What has no output per image, such as blocks that nnx.scan stacks, is left out.

    Args:
      make: as in `NNXTaps`.
      images: as for a call of the network; `jax.ShapeDtypeStruct` will do.
    """
    run = partial(_to_linen(make).init_with_output, nnx_method=partial(_outputs, train=False))
    outputs, _ = jax.eval_shape(run, jax.random.key(0), images)
    return [
        Layer(path, array.shape, array.dtype)
        for path, array in outputs.items()
        if array.shape[:1] == images.shape[:1]
    ]


def _to_linen(make: Callable[..., Any], name: str | None = None) -> nn.Module:
    from flax import nnx  # slow to import, and of no use to the rest of the library

    def with_streams(rngs: Any) -> Any:
        # The bridge passes only the streams that Linen has, at initialisation "params" alone.
        streams = {name: stream() for name, stream in rngs.items()}
        default = {"default": next(iter(streams.values()))}
        network = make(rngs=nnx.Rngs(**default | streams))
        if not isinstance(network, nnx.Module):
            raise ValueError(f"the network is a {type(network).__name__}, not a flax.nnx.Module")
        return network

    return nnx.bridge.ToLinen(with_streams, name=name)


def _outputs(network: Any, images: Array, train: bool) -> dict[str, Array]:
    """What every module of a network computes, by its attribute path."""
    from flax import nnx

    (network.train if train else network.eval)()
    forward = nnx.capture(network, nnx.Intermediate, method_outputs=nnx.Intermediate)
    return {
        "/".join(map(str, path[:-1])): array
        for path, calls in nnx.to_flat_state(forward(images)[1])
        if path[-1] == "__call__" and path[:-1]
        for array in jax.tree.leaves(calls.get_value()[-1])[:1]
    }
