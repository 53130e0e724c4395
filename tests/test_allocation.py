"""Freed memory is reused: a second large array faults no pages in."""

import subprocess
import sys

import pytest

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
