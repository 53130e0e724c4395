"""Freed memory is reused, but for what compilations leave."""

import subprocess
import sys

import jax
import jax.monitoring
import pytest

from interflow_jax.ops import memory

PAGES_OF_A_SECOND_ARRAY = """
import resource, sys
import numpy as np
import interflow_jax as ij

if sys.argv[1] == "kept":
    assert ij.keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(50_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_second_array_faults_nothing_in():
    def second(how):
        command = [sys.executable, "-c", PAGES_OF_A_SECOND_ARRAY, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert second("kept") < 100 < second("as it comes")


MEGABYTES_AFTER_COMPILATIONS = """
import resource
from pathlib import Path
import jax.monitoring
import interflow_jax as ij

def megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
assert ij.keep_freed_memory()
pieces = [bytearray(100_000) for _ in range(2_000)]
above = bytearray(100_000)  # what is freed lies below it, not at the heap's end
before = megabytes()
del pieces
for event, seconds in (
    ("jaxpr_trace_duration", 2.0),
    ("backend_compile_duration", 0.1),
    ("backend_compile_duration", 2.0),
):
    jax.monitoring.record_event_duration_secs("/jax/core/compile/" + event, seconds)
    print(before - megabytes())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_what_a_long_compilation_frees_goes_back_to_the_system():
    command = [sys.executable, "-c", MEGABYTES_AFTER_COMPILATIONS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after_a_trace, after_a_short_one, after_a_long_one = map(float, done.stdout.split())
    assert max(after_a_trace, after_a_short_one) < 50
    assert after_a_long_one > 150


def test_compilations_are_reported_by_the_name_that_is_waited_for():
    heard = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: heard.append(event)
    )
    jax.jit(lambda x: x + 12345)(1.0)
    assert memory._COMPILATION in heard
