"""The convolutions' times in small."""

import pytest

from experiments.timing import convolutions
from experiments.timing.convolutions import LIBRARIES, PASSES, Size
from interflow_jax.ops import onednn


@pytest.mark.parametrize(
    ("size", "way", "compiled_to"),
    [
        (Size(5, 4, 6), "multiples", ["loops", "1 product", "1 convolution"]),
        (Size(12, 16, 32, 2), "xla", ["1 convolution", "2 convolutions", "1 convolution"]),
    ],
)
@pytest.mark.parametrize("installed", [True, False])
def test_a_row_of_the_report(size, way, compiled_to, installed, monkeypatch):
    if installed and onednn.package() is None:
        pytest.skip("oneDNN is not installed")
    if not installed:
        monkeypatch.setattr(onednn, "package", lambda: None)
    monkeypatch.setattr(convolutions, "SECONDS", 0.0)
    row = convolutions.measure(size)
    assert (row["size"], row["way"], tuple(row["passes"])) == (str(size), way, PASSES)
    line = convolutions.table_row(row)
    for one, contents in zip(row["passes"].values(), compiled_to, strict=True):
        libraries = [library for library in LIBRARIES if f"{library}_ms" in one]
        assert libraries == ["xla", "ours", "onednn"][: 3 if installed else 2]
        assert all(0 < one[f"{library}_ms"] < 1e3 for library in libraries)
        assert one["choice"] == ("onednn" if installed else "ours")
        assert f"**{one[one['choice'] + '_ms']:.2f}" in line
        assert one["compiled_to"] == contents


def test_disturbed_repetitions_do_not_count():
    calm, disturbed = False, True
    assert convolutions.figure([(3.0, calm), (9.0, disturbed), (5.0, calm)]) == (4.0, 2)
    assert convolutions.figure([(9.0, disturbed), (7.0, disturbed)]) == (7.0, 0)


def test_what_was_only_disturbed_is_marked():
    one = {"xla_ms": 3.0, "xla_repetitions": 0, "ours_ms": 1.5, "ours_repetitions": 4}
    one |= {"compiled_to": "loops", "choice": "ours"}
    passes = {name: one for name in PASSES}
    row = convolutions.table_row({"size": "8@8x8", "way": "xla", "passes": passes})
    assert row.count("3.00*, **1.50**, - | 2.00 |") == 3
