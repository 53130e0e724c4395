"""Settings of the whole suite."""

import gc
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version

# The suite's own children (TensorFlow, other device counts) set what they need themselves.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compilation of small programs that run once. Of the two ways in which
# jaxlib 0.10 emits fusions, the default takes three times as long; later ones have no other.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    )
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# And many are alike: the first process, whose environment the workers and the suite's children
# inherit, opens a cache for all of them, which ends with it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="interflow_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import pytest

import interflow_jax as ij
from interflow_jax import dispatch, early_exit

jax.config.update("jax_numpy_rank_promotion", "raise")

# Traces are many objects, all of which a collection of garbage visits again.
gc.set_threshold(200_000, 20, 100)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def default_fusions(monkeypatch):
    """Compiles runs and exits as XLA fuses by default, which the flag above changes.

    The other way rounds a part of a network otherwise than the whole. Returns the options.
    """
    options = ij.cpu_compiler_options() or {}
    if "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]:
        options |= {"xla_cpu_use_fusion_emitters": True}
    for module in (dispatch, early_exit):
        monkeypatch.setattr(module, "cpu_compiler_options", lambda: options)
    return options


@pytest.fixture(scope="session")
def on_cpu_devices():
    """Runs a program in a child with so many CPU devices; returns what it printed."""

    def run(devices: int, program: str, *arguments: object) -> str:
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
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
