"""BatchNorm and ReLU as one layer, with a gradient of few passes over memory."""

from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

MOMENTUM = 0.9  # written out because Linen's default is 0.99
EPSILON = 1e-5


class BatchNormRelu(nn.Module):
    """`nn.relu(nn.BatchNorm(momentum=0.9, epsilon=1e-5)(x))`, with the same variables.

    Attributes:
      dtype: the dtype of the result; parameters, statistics and the computation are float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Normalises [..., channels] per channel and takes the positive part.

        Args:
          x: [..., channels], float.
          train: whether to normalise by the batch, and update the running `mean` and `var`, or by
            these.
        """
        per_channel = x.shape[-1:], jnp.float32
        scale = self.param("scale", nn.initializers.ones, *per_channel)
        bias = self.param("bias", nn.initializers.zeros, *per_channel)
        mean = self.variable("batch_stats", "mean", jnp.zeros, *per_channel)
        var = self.variable("batch_stats", "var", jnp.ones, *per_channel)
        if not train:
            factor = scale * jax.lax.rsqrt(var.value + EPSILON)
            return _affine_relu(x, factor, bias - mean.value * factor, self.dtype)
        y, batch_mean, batch_var = cast(tuple, _by_batch(x, scale, bias, self.dtype))
        if not self.is_initializing():
            mean.value = MOMENTUM * mean.value + (1 - MOMENTUM) * batch_mean
            var.value = MOMENTUM * var.value + (1 - MOMENTUM) * batch_var
        return y


def _affine_relu(x: Array, factor: Array, offset: Array, dtype: Any) -> Array:
    scaled = x.astype(jnp.float32) * _per_channel(factor, x) + _per_channel(offset, x)
    return jnp.maximum(scaled, 0).astype(dtype)


def _per_channel(values: Array, x: Array) -> Array:
    return jnp.expand_dims(values, range(x.ndim - 1))


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _by_batch(x: Array, scale: Array, bias: Array, dtype: Any) -> tuple[Array, Array, Array]:
    """The layer's result, and the batch's mean and (biased) variance."""
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(jnp.float32)
    mean = wide.mean(axes)
    var = jnp.maximum(jnp.square(wide).mean(axes) - jnp.square(mean), 0)
    factor = scale * jax.lax.rsqrt(var + EPSILON)
    return _affine_relu(x, factor, bias - mean * factor, dtype), mean, var


@_by_batch.defjvp
def _by_batch_jvp(dtype: Any, primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    """Forward mode, in an order of operations whose transpose is the gradient in few passes.

    That gradient is two sums over the map, then one multiple of the cotangent, one of `x` and a
    constant per channel.
    """
    (x, scale, bias), (x_dot, scale_dot, bias_dot) = primals, tangents
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    y, mean, var = primals_out = _by_batch(x, scale, bias, dtype)
    deviations = jax.lax.rsqrt(var + EPSILON)  # one over the standard deviation
    factor = scale * deviations
    wide, wide_dot = x.astype(jnp.float32), x_dot.astype(jnp.float32)
    sum_dot = wide_dot.sum(axes)
    centred = (wide_dot * wide).sum(axes) - sum_dot * mean
    slope = deviations * (scale_dot + -factor * deviations * (centred / count))
    constant = bias_dot + -factor * (sum_dot / count) - mean * slope
    slope, constant, factor = (_per_channel(values, x) for values in (slope, constant, factor))
    y_dot = jnp.where(y > 0, wide_dot * factor + wide * slope + constant, 0).astype(dtype)
    return primals_out, (y_dot, sum_dot / count, 2 * centred / count)
