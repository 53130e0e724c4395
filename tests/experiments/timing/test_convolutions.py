"""The convolutions' times in small."""

import json

from experiments import benchmark
from experiments.timing import convolutions
from experiments.timing.convolutions import Size


def test_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(convolutions, "SIZES", (Size(5, 4, 6), Size(12, 16, 32, 2)))
    monkeypatch.setattr(convolutions, "SECONDS", 0.0)
    assert benchmark.main(["--convolutions", f"--out={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "convolutions.json").read_text())["rows"]
    assert [(row["size"], row["way"]) for row in rows] == [
        ("4->6@5x5", "multiples"),
        ("16->32@12x12/2", "xla"),
    ]
    printed, written = capsys.readouterr().out, (tmp_path / "convolutions.md").read_text()
    for row in rows:
        assert list(row["passes"]) == ["forward", "input gradient", "kernel gradient"]
        for one in row["passes"].values():
            assert 0 < one["ours_ms"] < 1e3
            assert 0 < one["xla_ms"] < 1e3
        line = convolutions.table_row(row)
        assert line in printed
        assert line in written
    compiled_to = [one["compiled_to"] for row in rows for one in row["passes"].values()]
    assert compiled_to[0] == "loops"
    assert compiled_to[3:] == ["1 convolution", "2 convolutions", "1 convolution"]


def test_disturbed_repetitions_do_not_count():
    calm, disturbed = False, True
    assert convolutions.figure([(3.0, calm), (9.0, disturbed), (5.0, calm)]) == (4.0, 2)
    assert convolutions.figure([(9.0, disturbed), (7.0, disturbed)]) == (7.0, 0)


def test_what_was_only_disturbed_is_marked():
    one = {"xla_ms": 3.0, "xla_repetitions": 0, "ours_ms": 1.5, "ours_repetitions": 4}
    passes = {name: {**one, "compiled_to": "loops"} for name in convolutions.PASSES}
    row = convolutions.table_row({"size": "8@8x8", "way": "xla", "passes": passes})
    assert row.count("3.00* |") == row.count("1.50 |") == row.count("2.00 |") == 3
