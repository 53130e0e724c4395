"""BatchNorm with ReLU and its gradient are exact to rounding, on any number of cores."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interflow_jax_onednn import passes

EPSILON = 1e-5


def draw(shape, dtype="float32", seed=0):
    """A map, the gradient of its result, and a scale and bias per channel."""
    generator = np.random.default_rng(seed)
    x, gradient = generator.normal(0.5, 2, size=(2, *shape))
    scale, bias = generator.normal(size=(2, shape[-1]))
    wide = jnp.float32
    return (
        *(jnp.asarray(a, dtype) for a in (x, gradient)),
        jnp.asarray(scale, wide),
        bias.astype(wide),
    )


@jax.jit
def both(x, gradient, scale, bias):
    y, mean, var = passes.batch_norm_relu(x, scale, bias, EPSILON)
    gradients = passes.batch_norm_relu_gradient(gradient, x, y, mean, var, scale, EPSILON)
    return y, mean, var, *gradients


def exact(x, gradient, scale, bias, y):
    """The same in float64, but for where `y` is positive."""
    axes = tuple(range(x.ndim - 1))
    x, gradient, scale, bias, y = (
        np.asarray(array, np.float64) for array in (x, gradient, scale, bias, y)
    )
    mean, var = x.mean(axes), x.var(axes)
    normal = (x - mean) / np.sqrt(var + EPSILON)
    passed = np.where(y > 0, gradient, 0)
    sums = passed.sum(axes), (passed * normal).sum(axes)
    count = x.size / x.shape[-1]
    x_gradient = passed - sums[0] / count - normal * sums[1] / count
    x_gradient *= scale / np.sqrt(var + EPSILON)
    return np.maximum(scale * normal + bias, 0), mean, var, x_gradient, sums[1], sums[0]


@pytest.mark.parametrize(("dtype", "error"), [("float32", 3e-6), ("bfloat16", 4e-3)])
def test_random_sizes_are_exact_to_rounding(dtype, error):
    generator = np.random.default_rng(0)
    for number in range(60):
        shape = *generator.integers(1, 25, 3), generator.choice([1, 2, 3, 8, 17, 64, 130, 300])
        arrays = draw(tuple(map(int, shape)), dtype, number)
        outputs = both(*arrays)
        for output, right in zip(outputs, exact(*arrays, outputs[0]), strict=True):
            difference = np.asarray(output, np.float64) - right
            size = np.sqrt(np.mean(right**2)) + np.prod(shape[:3]) ** 0.5 * (output.ndim == 1)
            assert np.sqrt(np.mean(difference**2)) < error * (size + 1), (shape, number)


def test_what_is_no_number_stays_so_and_passes_no_gradient():
    x, gradient, scale, bias = draw((4, 5, 5, 3))
    y, *_, x_gradient, _, bias_gradient = both(x.at[0, 0, 0, 1].set(jnp.nan), gradient, scale, bias)
    others = np.array([0, 2])
    for array in (y, x_gradient):
        assert np.isnan(array[..., 1]).all()
        assert np.isfinite(array[..., others]).all()
    assert bias_gradient[1] == 0


def test_shapes_and_dtypes_that_do_not_fit_are_errors_of_xlas_and_no_crash():
    passes._library()
    result = jax.ShapeDtypeStruct
    floats = result((3,), "float32")
    x = jnp.zeros((2, 4, 3))
    for y, like, scale in (
        ((2, 4, 3), x, jnp.zeros(4)),
        ((2, 5, 3), x, jnp.zeros(3)),
        ((2, 4, 3), x.astype("int32"), jnp.zeros(3)),
        ((0, 4, 3), x[:0], jnp.zeros(3)),
    ):
        call = jax.ffi.ffi_call(
            "interflow_jax_onednn_batch_norm_relu", (result(y, like.dtype), floats, floats)
        )
        with pytest.raises(jax.errors.JaxRuntimeError, match="dtype"):
            jax.block_until_ready(call(like, scale, jnp.zeros(3), epsilon=np.float32(EPSILON)))


ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sys.path.insert(0, sys.argv[1])
from test_batch_norm import *
sys.stdout.write(bits())
"""


def bits():
    """Of all results on a map of several parts."""
    outputs = both(*draw((70, 20, 20, 24)))
    return "".join(np.asarray(output).tobytes().hex() for output in outputs)


def test_two_threads_at_once_and_one_core_give_the_same_bits():
    alone = bits()
    with ThreadPoolExecutor(2) as threads:
        assert set(threads.map(lambda _: bits(), range(6))) == {alone}
    command = [sys.executable, "-c", ONE_CORE, __file__.rpartition("/")[0]]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == alone
