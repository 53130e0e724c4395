"""conv3x3 is XLA's convolution with one pixel of padding, whatever computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from interflow_jax import conv3x3
from interflow_jax.ops.convolution import cpu_compiler_options


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


@pytest.mark.parametrize("size", [(5, 5), (6, 9), (8, 8), (13, 34), (16, 7), (34, 1), (31, 32)])
def test_many_channels_are_exact_to_float32(key, size):
    """Winograd's form: errors of the order of a plain sum's, of the outputs' size."""
    x, kernel = draw(key, *size, channels_in=128, channels_out=160, batch=2)

    def value_and_gradients(convolve):
        value, vjp = jax.vjp(lambda *inputs: convolve(*inputs, 1), x, kernel)
        return value, *vjp(jax.random.normal(jax.random.key(1), value.shape))

    found, expected = jax.jit(lambda: [value_and_gradients(f) for f in (conv3x3, reference)])()
    for array, expected_array in zip(found, expected, strict=True):
        size_of_values = jnp.sqrt(jnp.mean(expected_array**2))
        np.testing.assert_allclose(
            array / size_of_values, expected_array / size_of_values, atol=3e-5
        )
        error = jnp.sqrt(jnp.mean((array - expected_array) ** 2)) / size_of_values
        assert error < 2e-6


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height", range(1, 35))
def test_every_height_and_width_from_1_to_34(height, stride):
    """Each once, with channel counts from 1 to 512 drawn."""
    generator = np.random.default_rng(height)
    width = 1 + 13 * height % 34  # every width once, for 13 and 34 have no common factor
    channels = generator.choice(
        [1, 3, 8, 16, 64, 129, 512] if height < 9 else [1, 3, 8, 17, 130], 2
    )
    x = generator.normal(size=(2, height, width, channels[0])).astype(np.float32)
    kernel = generator.normal(size=(3, 3, *channels)).astype(np.float32)
    shape = (2, -(-height // stride), -(-width // stride), channels[1])
    cotangent = generator.normal(size=shape).astype(np.float32)

    def value_and_gradients(convolve, x, kernel, cotangent):
        value, vjp = jax.vjp(lambda *inputs: convolve(*inputs, stride), x, kernel)
        return value, *vjp(cotangent)

    both = jax.jit(lambda *inputs: [value_and_gradients(f, *inputs) for f in (conv3x3, reference)])
    found, expected = both(x, kernel, cotangent)
    for array, expected_array in zip(found, expected, strict=True):
        size_of_values = jnp.sqrt(jnp.mean(expected_array**2)) + 1e-3
        np.testing.assert_allclose(
            array / size_of_values, expected_array / size_of_values, atol=3e-5
        )


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 5), (9, 4), (14, 15)])
@pytest.mark.parametrize("channels", [(1, 16), (3, 5), (8, 8), (8, 32), (20, 8), (12, 12)])
@pytest.mark.parametrize("stride", [1, 2])
def test_few_channels_are_exact_to_float32(key, size, channels, stride):
    """Multiples of single channels, dense matrices and gradients by phases, border included."""
    x, kernel = draw(key, *size, *channels)

    def value_and_gradients(convolve):
        value, vjp = jax.vjp(lambda *inputs: convolve(*inputs, stride), x, kernel)
        return value, *vjp(jax.random.normal(jax.random.key(1), value.shape))

    found, expected = jax.jit(lambda: [value_and_gradients(f) for f in (conv3x3, reference)])()
    for array, expected_array in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, expected_array, rtol=1e-5, atol=1e-4)


def test_first_output_is_centred_on_first_pixel():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    np.testing.assert_array_equal(conv3x3(x, centre, 2), x[:, ::2, ::2])


@pytest.mark.parametrize(
    ("size", "channels"), [(28, 8), (9, 5), (16, 32), (8, 128), (4, 128), (2, 256), (2, 64)]
)
def test_several_in_a_row_are_each_computed_once(size, channels):
    """Evaluation is such a row; where XLA fused a sum into each of its uses, it grew by powers."""
    x = jnp.zeros((2, size, size, channels))
    kernel = jnp.zeros((3, 3, channels, channels))

    def operations(layers):
        def row(x, kernel):
            for _ in range(layers):
                x = jax.nn.relu(2 * conv3x3(x, kernel) + 1)
            return x

        program = jax.jit(row, compiler_options=cpu_compiler_options())
        return program.lower(x, kernel).compile().cost_analysis()["flops"]

    assert operations(3) < 3.2 * operations(1)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_under_vmap_scan_and_bfloat16(key, size):
    x, kernel = draw(key, size, size)
    expected = reference(x, kernel, 2)
    stacked = jnp.stack([x, 2 * x])
    mapped = jax.jit(jax.vmap(lambda x: conv3x3(x, kernel, 2)))(stacked)
    np.testing.assert_allclose(mapped, jnp.stack([expected, 2 * expected]), atol=5e-5)
    scanned = jax.lax.scan(lambda carry, x: (carry, conv3x3(x, kernel, 2)), None, stacked)[1]
    np.testing.assert_allclose(scanned, mapped, atol=5e-5)
    low_x, low_kernel = (array.astype(jnp.bfloat16) for array in (x, kernel))
    low = conv3x3(low_x, low_kernel, 2)
    assert low.dtype == jnp.bfloat16
    exact = reference(low_x.astype(jnp.float32), low_kernel.astype(jnp.float32), 2)
    # Summed in float32 and rounded once, to 8 bits.
    np.testing.assert_allclose(low.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)


def test_many_channels_under_vmap_scan_and_bfloat16(key):
    x, kernel = draw(key, 6, 7, 128, 128, batch=1)
    expected = reference(x, kernel, 1)
    stacked = jnp.stack([x, 2 * x])
    mapped = jax.jit(jax.vmap(lambda x: conv3x3(x, kernel)))(stacked)
    np.testing.assert_allclose(mapped, jnp.stack([expected, 2 * expected]), atol=2e-3)
    scanned = jax.lax.scan(lambda carry, x: (carry, conv3x3(x, kernel)), None, stacked)[1]
    np.testing.assert_allclose(scanned, mapped, atol=2e-3)
    low_x, low_kernel = (array.astype(jnp.bfloat16) for array in (x, kernel))
    low = conv3x3(low_x, low_kernel)
    assert low.dtype == jnp.bfloat16
    exact = reference(low_x.astype(jnp.float32), low_kernel.astype(jnp.float32), 1)
    # Computed in float32 and rounded once, to 8 bits.
    np.testing.assert_allclose(low.astype(jnp.float32), exact, rtol=2**-8, atol=1e-2)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from interflow_jax import conv3x3

mesh = Mesh(np.array(jax.local_devices()), ("batch",))
for size, channels in ((6, 128), (4, 128), (2, 8), (7, 8)):
    x = jax.random.normal(jax.random.key(0), (8, size, size, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, channels))
    step = jax.jit(jax.value_and_grad(lambda x, k: jnp.sin(conv3x3(x, k)).sum(), argnums=(0, 1)))
    alone = step(x, kernel)
    shared = step(jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch"))), kernel)
    assert shared[1][0].sharding.num_devices == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-2), alone, shared)
"""


def test_sharded_over_eight_devices(on_cpu_devices):
    on_cpu_devices(8, SHARDED)


@pytest.mark.parametrize(("size", "channels"), [(8, 128), (2, 64)])
def test_gpus_and_tpus_get_the_plain_convolution(key, size, channels):
    x, kernel = draw(key, size, size, channels, channels, batch=1)
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
