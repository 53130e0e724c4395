"""BatchNormRelu is Linen's BatchNorm and ReLU, with the same variables."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interflow_jax.ops.normalization import BatchNormRelu


class Linens(nn.Module):
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
        return nn.relu(nn.share_scope(self, norm) or norm(x)).astype(self.dtype)


@pytest.fixture
def variables(key):
    """Parameters and statistics that are no identity."""
    keys = jax.random.split(key, 4)
    return {
        "params": {
            "scale": jax.random.normal(keys[0], (6,)),
            "bias": jax.random.normal(keys[1], (6,)),
        },
        "batch_stats": {
            "mean": jax.random.normal(keys[2], (6,)),
            "var": jnp.exp(jax.random.normal(keys[3], (6,))),
        },
    }


@pytest.fixture
def x(key):
    return 3 * jax.random.normal(key, (8, 5, 4, 6)) + 1


def test_variables_start_as_linens(key, x):
    ours, theirs = (layer.init(key, x, train=True) for layer in (BatchNormRelu(), Linens()))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_training_and_its_gradients_are_linens(variables, x):
    def evaluate(layer):
        def loss(params, x):
            changed = {**variables, "params": params}
            y, updates = layer.apply(changed, x, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), (y, updates)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)  # noqa: E731
    jax.tree.map(close, evaluate(BatchNormRelu()), evaluate(Linens()))


def test_evaluation_is_linens(variables, x):
    ours, theirs = (layer.apply(variables, x, train=False) for layer in (BatchNormRelu(), Linens()))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_bfloat16_keeps_float32_statistics(variables, x):
    low = x.astype(jnp.bfloat16)
    y, updates = BatchNormRelu(jnp.bfloat16).apply(
        variables, low, train=True, mutable=["batch_stats"]
    )
    expected, _ = BatchNormRelu().apply(variables, low, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert updates["batch_stats"]["mean"].dtype == jnp.float32
    np.testing.assert_array_equal(y, expected.astype(jnp.bfloat16))
