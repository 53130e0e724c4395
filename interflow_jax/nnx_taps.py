"""A backbone out of any NNX module, by the names of its layers (paper, III-C)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jax import Array


class NNXTaps(nn.Module):
    """A backbone that returns what named layers of an unmodified NNX network compute.

    An NNX network makes all its parameters at once, so those after the last tap exist; their
    gradients are zero.

    Attributes:
      make: returns the network, called as `make(rngs=nnx.Rngs(...))`.
      taps: attribute paths of its modules, as "encoder/blocks/3", in the order of the branches,
        shallow to deep. Of a module called more than once the last call counts.
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
          train: whether the network is in its training mode (`nnx.Module.train`) or in that of
            evaluation, deterministic and by running averages.

        Returns:
          An array per tap, in their order.

        Raises:
          ValueError: for a tap that the network does not have, with those that it has.
        """

        from flax import nnx  # slow to import, and of no use to the rest of the library

        def tapped(network: Any, images: Array) -> list[Array]:
            (network.train if train else network.eval)()
            forward = nnx.capture(network, nnx.Intermediate, method_outputs=nnx.Intermediate)
            outputs = {
                "/".join(map(str, path[:-1])): calls.get_value()[-1]
                for path, calls in nnx.to_flat_state(forward(images)[1])
                if path[-1] == "__call__" and path[:-1]
            }
            unknown = [tap for tap in self.taps if tap not in outputs]
            if unknown:
                raise ValueError(
                    f"the network has no layer {unknown[0]!r}; choose from {', '.join(outputs)}"
                )
            return [outputs[tap] for tap in self.taps]

        def make(rngs: Any) -> Any:
            # The bridge gives only the streams that Linen has, at initialisation "params" alone.
            streams = {name: stream() for name, stream in rngs.items()}
            default = {"default": next(iter(streams.values()))}
            return self.make(rngs=nnx.Rngs(**default | streams))

        return nnx.bridge.ToLinen(make, name="network")(images, nnx_method=tapped)
