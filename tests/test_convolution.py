"""conv3x3 is XLA's convolution with one pixel of padding, whatever computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from interflow_jax import conv3x3


def reference(x, kernel, stride):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


def draw(key, height, width, channels_in=5, channels_out=7, batch=3):
    x_key, kernel_key = jax.random.split(key)
    x = jax.random.normal(x_key, (batch, height, width, channels_in))
    return x, jax.random.normal(kernel_key, (3, 3, channels_in, channels_out))


SIZES = [(1, 1), (1, 3), (2, 2), (3, 4), (4, 2), (5, 5), (1, 8), (8, 8), (9, 7), (16, 13)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [3, 8])
def test_value_and_gradients_are_those_of_xla(key, size, stride, batch):
    x, kernel = draw(key, *size, batch=batch)

    def value_and_gradients(convolve):
        value, vjp = jax.vjp(lambda *inputs: convolve(*inputs, stride), x, kernel)
        return value, *vjp(jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape))

    found, expected = jax.jit(lambda: [value_and_gradients(f) for f in (conv3x3, reference)])()
    for array, expected_array in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, expected_array, atol=1e-4)


def test_first_output_is_centred_on_first_pixel():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    np.testing.assert_array_equal(conv3x3(x, centre, 2), x[:, ::2, ::2])


@pytest.mark.parametrize("size", [2, 4, 8])
def test_under_vmap_scan_and_bfloat16(key, size):
    x, kernel = draw(key, size, size)
    expected = reference(x, kernel, 2)
    stacked = jnp.stack([x, 2 * x])
    mapped = jax.jit(jax.vmap(lambda x: conv3x3(x, kernel, 2)))(stacked)
    np.testing.assert_allclose(mapped, jnp.stack([expected, 2 * expected]), atol=5e-5)
    scanned = jax.lax.scan(lambda carry, x: (carry, conv3x3(x, kernel, 2)), None, stacked)[1]
    np.testing.assert_allclose(scanned, mapped, atol=5e-5)
    low = conv3x3(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), 2)
    assert low.dtype == jnp.bfloat16
    # A sum of 9 x 5 products of size 1, each rounded to 8 bits.
    np.testing.assert_allclose(low.astype(jnp.float32), expected, atol=0.2)


def test_gpus_and_tpus_get_the_plain_convolution(key):
    x, kernel = draw(key, 2, 2)
    step = jax.jit(jax.grad(lambda x, kernel: conv3x3(x, kernel, 1).sum(), argnums=(0, 1)))
    for platform, products in (("cuda", False), ("tpu", False), ("cpu", True)):
        text = step.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) == (not products), platform
        assert ("stablehlo.dot_general" in text) == products, platform


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "stride", "named"),
    [
        ((1, 4, 4, 2), (3, 3, 2, 2), 3, "stride is 3"),
        ((1, 4, 4, 2), (5, 5, 2, 2), 1, "(5, 5, 2, 2)"),
        ((1, 4, 4, 2), (3, 3, 4, 2), 1, "(3, 3, 4, 2)"),
        ((4, 4, 2), (3, 3, 2, 2), 1, "(4, 4, 2)"),
    ],
)
def test_what_does_not_fit_is_named(x_shape, kernel_shape, stride, named):
    with pytest.raises(ValueError, match="conv3x3 takes") as error:
        conv3x3(jnp.zeros(x_shape), jnp.zeros(kernel_shape), stride)
    assert named in str(error.value)
