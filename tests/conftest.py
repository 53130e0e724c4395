"""Settings of the whole suite."""

import os
import subprocess
import sys

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
def on_cpu_devices():
    """Runs a program in a child with so many CPU devices; returns what it printed."""

    def run(devices: int, program: str) -> str:
        flags = (
            f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def tiny():
    """Builds a method at a width whose four channel counts still differ: 4, 8, 16 and 32."""

    def build(method: str, num_classes: int = 10, **options):
        return ij.build(method, num_classes, **{"width": 1 / 16, **options})

    return build
