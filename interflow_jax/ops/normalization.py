"""BatchNorm and ReLU as one layer, with a gradient of few passes over memory.

JAX sees the layer, its tangent and its gradient as primitives: on a CPU, where
`interflow_jax_onednn` is installed, the layer and its gradient are calls of it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from interflow_jax.ops import onednn
from interflow_jax.ops.convolution import Library, equally_varying
from interflow_jax.ops.primitive import define, lower

MOMENTUM = 0.9  # written out because Linen's default is 0.99
EPSILON = 1e-5


class BatchNormRelu(nn.Module):
    """`nn.relu(nn.BatchNorm(momentum=0.9, epsilon=1e-5)(x))`, with the same variables.

    Attributes:
      dtype: the dtype of the result. Parameters and statistics are float32, as is the computation,
        unless the result or the parameters given are float64.
      library: "xla" is XLA's alone; otherwise, on a CPU, training takes `interflow_jax_onednn`
        where that is installed.
    """

    dtype: Any = jnp.float32
    library: Library = "auto"

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
            factor = scale * lax.rsqrt(var.value + EPSILON)
            return _affine_relu(x, factor, bias - mean.value * factor).astype(self.dtype)
        x = jnp.asarray(x).astype(self.dtype)
        wide = jnp.promote_types(x.dtype, scale.dtype)
        arrays = equally_varying(x, scale.astype(wide), bias.astype(wide))
        y, *statistics = _layer.bind(*arrays, library=self.library)
        if not self.is_initializing():
            for running, of_batch in zip((mean, var), statistics, strict=True):
                updated = MOMENTUM * running.value + (1 - MOMENTUM) * of_batch
                running.value = updated.astype(running.value.dtype)
        return y


def _affine_relu(x: Array, factor: Array, offset: Array) -> Array:
    wide = x.astype(jnp.promote_types(x.dtype, factor.dtype))
    scaled = wide * _per_channel(factor, x) + _per_channel(offset, x)
    return jnp.maximum(scaled, 0)


def _per_channel(values: Array, x: Array) -> Array:
    return jnp.expand_dims(values, range(x.ndim - 1))


def _sum(x: Array) -> Array:
    return x.sum(tuple(range(x.ndim - 1)))


def _layer_by_xla(x: Array, scale: Array, bias: Array) -> list[Array]:
    """The layer's result, like `x`, and the batch's mean and (biased) variance."""
    wide, count = x.astype(scale.dtype), x.size // x.shape[-1]
    mean = _sum(wide) / count
    var = jnp.maximum(_sum(jnp.square(wide)) / count - jnp.square(mean), 0)
    factor = scale * lax.rsqrt(var + EPSILON)
    return [_affine_relu(x, factor, bias - mean * factor).astype(x.dtype), mean, var]


def _tangent_by_xla(
    x_dot: Array,
    scale_dot: Array,
    bias_dot: Array,
    x: Array,
    y: Array,
    mean: Array,
    var: Array,
    scale: Array,
) -> list[Array]:
    """The tangents of the layer's results."""
    wide, wide_dot = x.astype(scale.dtype), x_dot.astype(scale.dtype)
    count = x.size // x.shape[-1]
    deviations = lax.rsqrt(var + EPSILON)  # one over the standard deviation
    mean_dot = _sum(wide_dot) / count
    var_dot = 2 * (_sum(wide_dot * wide) / count - mean_dot * mean)
    slope = deviations * (scale_dot - scale * jnp.square(deviations) * var_dot / 2)
    factor = scale * deviations
    offset = bias_dot - factor * mean_dot - mean * slope
    slope, offset, factor = (_per_channel(values, x) for values in (slope, offset, factor))
    y_dot = jnp.where(y > 0, wide_dot * factor + wide * slope + offset, 0)
    return [y_dot.astype(x.dtype), mean_dot, var_dot]


def _gradient_by_xla(
    gradient: Array, x: Array, y: Array, mean: Array, var: Array, scale: Array
) -> list[Array]:
    """The gradients of x, scale and bias from that of `y`.

    Two sums over the map, then one multiple of the gradient, one of `x` and a constant per channel.
    """
    wide, count = x.astype(scale.dtype), x.size // x.shape[-1]
    passed = jnp.where(y > 0, gradient, 0).astype(scale.dtype)
    deviations = lax.rsqrt(var + EPSILON)
    factor, bias_gradient = scale * deviations, _sum(passed)
    scale_gradient = deviations * (_sum(passed * wide) - bias_gradient * mean)
    slope = -factor * deviations * (scale_gradient / count)
    offset = -factor * (bias_gradient / count) - mean * slope
    slope, offset, factor = (_per_channel(values, x) for values in (slope, offset, factor))
    x_gradient = (passed * factor + wide * slope + offset).astype(x.dtype)
    return [x_gradient, scale_gradient, bias_gradient]


def _primitive(name: str, by_xla: Callable, position: int, in_package: bool = True) -> Primitive:
    """An operation whose three results are one like the map `x` and two per channel.

    Its last input is per channel, and the dtype of that is the computation's.

    Args:
      name: also of the package's function.
      by_xla: computes it on other platforms, and under vmap.
      position: of `x` among its inputs.
      in_package: whether the package has it.
    """

    def results(*inputs: Any, library: Library) -> list:
        x = inputs[position].update(weak_type=False)
        replicated = x.sharding.update(spec=(None,))
        dtype = inputs[-1].dtype
        per_channel = x.update(shape=x.shape[-1:], dtype=dtype, sharding=replicated)
        return [x, per_channel, per_channel]

    def batch(inputs: Sequence[Array], axes: Sequence, library: Library) -> tuple:
        return jax.vmap(by_xla, axes)(*inputs), (0, 0, 0)

    def lower_anywhere(context: Any, *inputs: Any, library: Library) -> Sequence:
        return lower(by_xla, context, *inputs)

    def lower_for_cpu(context: Any, *inputs: Any, library: Library) -> Sequence:
        first, *_, last = context.avals_in
        by_xla_alone = library == "xla" or 0 in first.shape or last.dtype != jnp.float32
        package = None if by_xla_alone else onednn.package()
        if package is None or not package.passes.usable(context):
            return lower(by_xla, context, *inputs)
        call = partial(getattr(package.passes, name), epsilon=EPSILON)
        return lower(call, context, *inputs)

    primitive = define(name, results, ("library",))
    primitive.multiple_results = True
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, lower_anywhere)
    if in_package:
        mlir.register_lowering(primitive, lower_for_cpu, platform="cpu")
    return primitive


_layer = _primitive("batch_norm_relu", _layer_by_xla, position=0)
_tangent = _primitive("batch_norm_relu_tangent", _tangent_by_xla, position=3, in_package=False)
_gradient = _primitive("batch_norm_relu_gradient", _gradient_by_xla, position=1)


def _layer_jvp(primals: Sequence, tangents: Sequence, library: Library) -> tuple:
    y, mean, var = _layer.bind(*primals, library=library)
    x, scale, _ = primals
    dots = map(ad.instantiate_zeros, tangents)
    return (y, mean, var), _tangent.bind(*dots, x, y, mean, var, scale, library=library)


def _tangent_transpose(cotangents: Sequence, *inputs: Any, library: Library) -> list:
    dots, (x, y, mean, var, scale) = inputs[:3], inputs[3:]
    of_y, of_mean, of_var = map(ad.instantiate_zeros, cotangents)
    x_gradient, *others = _gradient.bind(of_y, x, y, mean, var, scale, library=library)
    if any(type(cotangent) is not ad.Zero for cotangent in cotangents[1:]):
        slope = 2 * of_var
        by_statistics = x * _per_channel(slope, x) + _per_channel(of_mean - slope * mean, x)
        x_gradient += (by_statistics / (x.size // x.shape[-1])).astype(x.dtype)
    gradients = zip(dots, (x_gradient, *others), strict=True)
    return [value if ad.is_undefined_primal(dot) else None for dot, value in gradients] + [None] * 5


def _gradient_transpose(
    cotangents: Sequence, gradient: Any, *others: Array, library: Library
) -> list:
    transpose = jax.linear_transpose(lambda x: _gradient_by_xla(x, *others), gradient.aval)
    return [*transpose([*map(ad.instantiate_zeros, cotangents)]), *[None] * len(others)]


def _jvp_by_xla(by_xla: Callable, primals: Sequence, tangents: Sequence, library: Library) -> tuple:
    return jax.jvp(by_xla, tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))


ad.primitive_jvps[_layer] = _layer_jvp
ad.primitive_transposes[_tangent] = _tangent_transpose
ad.primitive_transposes[_gradient] = _gradient_transpose
# Derivatives of higher order.
ad.primitive_jvps[_tangent] = partial(_jvp_by_xla, _tangent_by_xla)
ad.primitive_jvps[_gradient] = partial(_jvp_by_xla, _gradient_by_xla)
