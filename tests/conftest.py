"""Settings of the whole suite."""

import os

# The suite's own children (TensorFlow, other device counts) set what they need themselves.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compilation of small programs that run once.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest

import interflow_jax as ij

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def tiny():
    """Builds a method at a width whose four channel counts still differ: 4, 8, 16 and 32."""

    def build(method: str, num_classes: int = 10, **options):
        return ij.build(method, num_classes, **{"width": 1 / 16, **options})

    return build
