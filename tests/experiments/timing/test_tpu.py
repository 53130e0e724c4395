"""The step compiled for TPUs that are not here: what is in it."""

import importlib.util

import pytest

from experiments import benchmark
from experiments.timing import tpu
from experiments.timing.contenders import Network

SMALL = Network("Normal", 4, 1 / 16, (8, 8, 1), 8, "bfloat16")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="pip install 'jax[tpu]'"
)


@needs_libtpu
def test_a_step_reduces_sums_and_gathers_nothing():
    row = tpu.measure(SMALL, "v5e:2x2", tpu.mesh_of("v5e:2x2"))
    # BatchNorm's sums forward and backward, per convolution; the gradients; the hits.
    assert row["collectives"] == {"all-reduce": 2 * SMALL.depth + 2}
    # A layer's pass forward and its two gradients, of which nobody needs the images'. The branch's
    # product is a convolution on a TPU; each path of conv3x3 on CPU would have other numbers.
    assert row["convolutions"] == 3 * SMALL.depth - 1 + 3
    assert row["chips"] == 4
    assert row["temporary_bytes"] > 0 < row["flops"]
    assert "| v5e:2x2 | bfloat16 | 8 |" in tpu.table_row(row)


@pytest.mark.parametrize("topology", ["v5e:none", "v99:2x2"])
def test_an_unknown_topology_or_no_libtpu_is_answered_in_a_line(topology, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main([f"--tpu={topology}", f"--out={tmp_path / 'out'}"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no TPU topology {topology}" in line
    assert not (tmp_path / "out").exists()
