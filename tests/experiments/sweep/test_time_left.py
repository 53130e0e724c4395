"""Estimates of what is left to train."""

import json

import pytest

from experiments.cli.configuration import Configuration
from experiments.sweep import time_left
from experiments.sweep.planning import plan
from experiments.sweep.record import Record

FLAGS = Configuration(method="Normal", dataset="cifar10", width=0.125, train_size=6400, epochs=2)


def finished(out, planned, rate):
    line = {"run": planned.name, **planned.flags.identity(0), "images_per_second": rate}
    (out / "runs.jsonl").write_text(json.dumps(line | {"train_size": 6400}) + "\n")


def planned_with(out, **changes):
    return plan(Configuration(**{**vars(FLAGS), **changes}), out / "runs")


def test_a_run_like_it_tells_most_and_others_by_their_operations(tmp_path):
    runs = [planned_with(tmp_path, seed=seed) for seed in (0, 1)]
    wider = planned_with(tmp_path, width=0.25)
    assert time_left.seconds_left([runs[1]], Record(tmp_path)) == {runs[1].name: None}
    finished(tmp_path, runs[0], rate=100.0)
    seconds = time_left.seconds_left([*runs, wider], Record(tmp_path))
    images = 2 * (6400 + 10_000 / 3)
    assert seconds[runs[1].name] == pytest.approx(images / 100)
    assert seconds[wider.name] == pytest.approx(
        images / 100 * time_left.operations(wider.flags) / time_left.operations(FLAGS)
    )


def test_layers_beyond_the_last_tap_do_not_count(tmp_path):
    flags = {"method": "S1", "taps": (3, 4, 5, 6)}
    shallow = planned_with(tmp_path, depth=6, **flags)
    deep = planned_with(tmp_path, depth=13, **flags)
    assert time_left.operations(deep.flags) == time_left.operations(shallow.flags)


def test_a_result_is_read_once(tmp_path, monkeypatch):
    (run,) = [planned_with(tmp_path)]
    run.folder.path.mkdir(parents=True)
    (run.folder.path / "result.json").write_text(json.dumps({"seed": 0}))
    record = Record(tmp_path)
    assert record.finished([run]) == [run]
    monkeypatch.setattr(type(run.folder), "read_json", None)
    assert record.finished([run]) == [run]
    record.write()
    assert json.loads((tmp_path / "runs.jsonl").read_text())["run"] == run.name


def test_a_line_that_is_no_run_is_named(tmp_path):
    (tmp_path / "runs.jsonl").write_text('{"run": "a"}\n{"ru\n')
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 2, is not a run"):
        Record(tmp_path)
