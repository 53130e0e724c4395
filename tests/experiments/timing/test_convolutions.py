"""The convolutions' times in small."""

import jax
import pytest

from experiments.timing import convolutions
from experiments.timing.convolutions import LIBRARIES, PASSES, Size
from interflow_jax.ops import onednn


@pytest.mark.parametrize(
    ("size", "way"), [(Size(5, 4, 6), "multiples"), (Size(12, 16, 32, 2), "xla")]
)
@pytest.mark.parametrize("installed", [True, False])
def test_a_row_of_the_report(size, way, installed, monkeypatch):
    if installed and onednn.package() is None:
        pytest.skip("oneDNN is not installed")
    if not installed:
        monkeypatch.setattr(onednn, "package", lambda: None)
    monkeypatch.setattr(convolutions, "SECONDS", 0.0)
    row = convolutions.measure(size)
    assert (row["size"], row["way"], tuple(row["passes"])) == (str(size), way, PASSES)
    norm = convolutions.measure_norm(4, 3)
    assert norm["size"] == "3@4x4"
    assert ("package_ms" in norm) == installed
    line = convolutions.table_row(row)
    for one in row["passes"].values():
        libraries = [library for library in LIBRARIES if f"{library}_ms" in one]
        assert libraries == ["xla", "ours", "onednn"][: 3 if installed else 2]
        assert all(0 < one[f"{library}_ms"] < 1e3 for library in libraries)
        assert one["choice"] == ("onednn" if installed else "ours")
        assert f"**{one[one['choice'] + '_ms']:.2f}**" in line


def test_ours_is_a_path_of_its_own_where_xla_has_a_convolution():
    shapes = (2, 5, 5, 4), (3, 3, 4, 6), (2, 5, 5, 6)
    x, kernel, gradient = map(jax.numpy.ones, shapes)
    compiled = {
        library: program.lower(x, kernel, gradient).compile().as_text()
        for library, program in convolutions.programs("forward", 1).items()
    }
    assert " convolution(" in compiled["xla"]
    assert " convolution(" not in compiled["ours"]
