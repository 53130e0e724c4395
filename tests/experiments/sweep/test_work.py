"""Sweeps: command lines started, started again, stopped, recorded."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.sweep import commands, pool, record, work
from interflow_jax.cli.config import RunConfig
from interflow_jax.cli.files import locked
from interflow_jax.cli.main import LOCKED, guarded
from interflow_jax.cli.parser import parse_run

SMALL = RunConfig().replace(method="Normal", depth=4, width=0.0625, train_size=128, epochs=2)
LONG = SMALL.replace(train_size=5000, epochs=500)


def by_seed(config=SMALL, seeds=(0, 1)):
    return [config.replace(seed=seed) for seed in seeds]


def results(out):
    return {line["seed"]: (line["fingerprint"], line["cores"]) for line in record.read(out)}


def test_a_run_s_command_line_is_its_configuration(tmp_path):
    run = commands.placed(SMALL.replace(taps=(4,), seed=3, learning_rate=0.01), tmp_path / "a b")
    assert parse_run(run.arguments()) == run
    other = commands.placed(SMALL.replace(taps=(4,), seed=3), tmp_path / "a b")
    assert run.folder() != other.folder()
    assert run.folder().name == "seed3"


@pytest.mark.slow
def test_two_workers_of_a_core_each_do_what_one_does(tmp_path, capsys):
    if len(os.sched_getaffinity(0)) != 2:
        pytest.skip("needs two cores")
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    try:
        assert work.carry_out("one", by_seed(), tmp_path / "one", workers=1) == []
    finally:
        os.sched_setaffinity(0, cores)
    assert work.carry_out("two", by_seed(), tmp_path / "two", workers=2) == []
    assert results(tmp_path / "two") == results(tmp_path / "one")
    assert {cores[0] for _, cores in results(tmp_path / "two").values()} == {1}
    assert "[2/2]" in capsys.readouterr().out


def test_the_time_left_is_that_of_runs_of_the_same_kind(tmp_path):
    """Of their model, data and batch size, for as many epochs."""
    lines = [{**config.identity(), "train_seconds": 100.0} for config in by_seed(seeds=(0, 1, 2))]
    lines[2]["train_seconds"] = 900.0
    paces = commands.Paces(lines)
    assert paces.seconds(SMALL.replace(seed=7, epochs=3, learning_rate=0.1)) == 150.0
    for other in ({"width": 0.25}, {"train_size": 256}, {"batch_size": 32}):
        assert paces.seconds(SMALL.replace(**other)) is None
    concat = SMALL.replace(method="Concat", taps=(4,))  # which decides a field of the model
    line = {**concat.identity(), "train_seconds": 100.0}
    assert commands.Paces([line]).seconds(concat) == 100.0
    runs = [SMALL, SMALL.replace(width=0.25)]
    assert paces.to_go(runs, workers=2) == "about 1:40 of training to go"
    assert paces.to_go(runs[1:], workers=2) == "1 to go, for an unknown time"
    listing = commands.listing(runs, tmp_path).splitlines()
    assert listing[0] == f"{commands.command(SMALL)}  # not measured yet"
    assert listing[-1] == "2 runs, 0 finished, 2 to do, 2 to go, for an unknown time"


class Invented:
    """A pool whose command lines end as told: an exit status, and the checkpoint they leave."""

    slots = 1

    def __init__(self, ends):
        self.ends, self.started = iter(ends), []

    def start(self, arguments, output):
        self.started.append(arguments)
        status, checkpoint, words = next(self.ends)
        with output.open("a") as stream:
            stream.write(words)
        if checkpoint is not None:
            (output.parent / "checkpoints" / str(checkpoint)).mkdir(parents=True, exist_ok=True)
        if status == 0:
            (output.parent / "result.json").write_text("{}")
        return status

    def ended(self, running):
        return [(handle, handle) for handle in running]

    def interrupt(self, running):
        raise AssertionError("nothing runs any longer")


def outcome(tmp_path, ends, seeds=(0,)):
    runs = [commands.placed(run, tmp_path) for run in by_seed(seeds=seeds)]
    lines, made = [], Invented(ends)
    failed = pool.work(runs, made, lines.append, lambda left: "some to go")
    return [(run.training.seed, reason) for run, reason in failed], lines, made.started


@pytest.mark.parametrize("death", [-signal.SIGKILL, -signal.SIGSEGV, 128 + signal.SIGTERM])
def test_a_run_that_dies_thrice_without_a_new_checkpoint_has_failed(tmp_path, death):
    ends = [(death, 0, ""), (death, 1, ""), (death, 1, ""), (death, 1, "")]
    ((seed, reason),), lines, started = outcome(tmp_path, ends)
    assert (seed, len(started)) == (0, 4)
    assert reason.startswith(f"3 of its processes ended by signal {abs(death) % 128}")
    assert sum("starting it again" in line for line in lines) == 3


def test_a_run_that_dies_goes_on(tmp_path):
    ends = [(-9, 0, ""), (-9, 1, ""), (-9, 2, ""), (-9, 3, ""), (0, 4, "")]
    failed, lines, started = outcome(tmp_path, ends)
    assert (failed, len(started)) == ([], 5)
    assert lines[-2].endswith("/fashion_mini/Normal/seed0: finished")
    assert lines[-1] == "[1/1]"


def test_a_failure_is_told_by_its_line_and_other_seeds_go_on(tmp_path):
    ends = [(1, None, "epoch 1\nrun: stopped: the loss is nan\n"), (0, None, "")]
    failed, lines, started = outcome(tmp_path, ends, seeds=(0, 1))
    assert failed == [(0, "run: stopped: the loss is nan")]
    assert ["--seed=0" in started[0], "--seed=1" in started[1]] == [True, True]
    assert any(line.startswith("  failed: ") for line in lines)


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ((120, None, "the last line\n"), "the last line"),
        ((1, None, ""), "it ended with status 1, without a word"),
    ],
)
def test_a_failure_that_no_signal_is_names_none(tmp_path, end, told):
    ((_, reason),), *_ = outcome(tmp_path, [end])
    assert reason == told


def test_a_folder_that_another_process_holds_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    failed, *_ = outcome(tmp_path / "a", [(LOCKED, None, "")] * 3 + [(0, None, "")])
    assert failed == []
    monkeypatch.setattr(pool, "LOCK_SECONDS", 0.0)
    ((_, reason),), *_ = outcome(tmp_path / "b", [(LOCKED, None, "run: error: held by A\n")])
    assert reason == "run: error: held by A"


def test_the_wait_for_a_lock_begins_anew_after_any_other_end(tmp_path, monkeypatch):
    """A run that trained for hours, and whose machine was lost, waits as long as one at first."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    clock = iter([0.0, 0.0, 1e4, 1e4])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    ends = [(LOCKED, None, ""), (-9, 0, ""), (LOCKED, None, ""), (0, None, "")]
    failed, *_ = outcome(tmp_path, ends)
    assert failed == []


@pytest.mark.parametrize("text", ['{"run": "a"}\n{"ru\n', "[]\n", "3\n", "\0\n", "[" * 99_999])
def test_a_line_that_is_no_run_is_named_and_the_others_kept(tmp_path, text):
    (tmp_path / "runs.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"runs\.jsonl, line \d, is not a run .* mend that line"):
        record.read(tmp_path)


DRIVER = """
import sys
from pathlib import Path
from experiments.sweep import work
from interflow_jax.cli.main import guarded
from tests.experiments.sweep.test_work import LONG, by_seed

sys.exit(guarded("test", "again", lambda: len(
    work.carry_out("long", by_seed(LONG), Path(sys.argv[1]), workers=eval(sys.argv[2])))))
"""


def _training(places):
    return [place for place in places if (place / "metrics.csv").exists()]


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "number"),
    [
        *((2, each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)),
        ("ray", signal.SIGTERM),
    ],
)
def test_a_signal_saves_what_trains_and_a_kill_leaves_no_orphan(workers, number, tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    if workers == "ray":
        pytest.importorskip("ray", reason="Ray is an extra: pip install '.[ray]'")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), repr(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAY_ADDRESS": "local"},
    )
    places = [commands.placed(run, tmp_path / "runs").folder() for run in by_seed(LONG)]
    needed = 2 if workers == 2 else 1  # Ray may have room for one, whichever it is
    wait_for(lambda: len(_training(places)) >= needed, 240)
    places = _training(places)
    runs = [int((place / ".lock").read_text().split()[1]) for place in places]
    driver.send_signal(number)
    output, _ = driver.communicate(timeout=60)
    wait_for(lambda: not any(Path(f"/proc/{run}/stat").exists() for run in runs), 20)
    if number == signal.SIGKILL:
        return
    assert driver.returncode == 128 + number, output
    assert "stopped and saved" in output
    for place in places:
        with locked(place):
            assert "stopped and saved" in (place / "output.txt").read_text()
        assert not (place / "result.json").exists()


def test_ctrl_c_before_training_says_that_nothing_was_saved(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(work.data, "load", interrupted)
    body = lambda: len(work.carry_out("none", by_seed(), tmp_path))  # noqa: E731
    assert guarded("test", "the command", body) == 130
    assert capsys.readouterr().out == (
        "stopped before training; to begin, run the same command again: the command\n"
    )
