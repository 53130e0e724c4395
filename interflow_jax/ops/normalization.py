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
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var = self.variable("batch_stats", "var", jnp.ones, channels)
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


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _by_batch(x: Array, scale: Array, bias: Array, dtype: Any) -> tuple[Array, Array, Array]:
    """The layer's result, and the batch's mean and (biased) variance (not differentiable)."""
    return _forward(x, scale, bias, dtype)[0]


def _forward(x: Array, scale: Array, bias: Array, dtype: Any):
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(jnp.float32)
    mean = wide.mean(axes)
    var = jnp.maximum(jnp.square(wide).mean(axes) - jnp.square(mean), 0)
    deviations = jax.lax.rsqrt(var + EPSILON)  # one over the standard deviation
    factor = scale * deviations
    y = _affine_relu(x, factor, bias - mean * factor, dtype)
    return (y, mean, var), (x, y, mean, deviations, scale)


def _backward(dtype: Any, residuals, cotangents):
    x, y, mean, deviations, scale = residuals
    wide, gradient = x.astype(jnp.float32), cotangents[0].astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    gradient = jnp.where(y > 0, gradient, 0)
    of_bias = gradient.sum(axes)
    of_scale = deviations * ((gradient * wide).sum(axes) - mean * of_bias)
    # scale * deviations * (gradient - of_bias / count - normalized * of_scale / count), in which
    # normalized is (x - mean) * deviations, arranged as one multiple of each map and a constant.
    factor = scale * deviations
    slope = -factor * deviations * of_scale / count
    constant = -factor * of_bias / count - slope * mean
    factor, slope, constant = (_per_channel(values, x) for values in (factor, slope, constant))
    of_x = gradient * factor + wide * slope + constant
    return of_x.astype(x.dtype), of_scale, of_bias


_by_batch.defvjp(_forward, _backward)
