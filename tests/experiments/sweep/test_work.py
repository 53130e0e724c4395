"""Sweeps worked off in this process and in several."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.cli.configuration import Configuration
from experiments.runs import data
from experiments.sweep import processes, work
from experiments.sweep.planning import plan
from experiments.sweep.record import Record
from interflow_jax.data import datasets, tfds_folders

SMALL = Configuration(method="Normal", depth=4, width=0.0625, train_size=128, epochs=2)


def sweep_in(out, seeds=(0, 1)):
    return [plan(Configuration(**{**vars(SMALL), "seed": seed}), out / "runs") for seed in seeds]


def fingerprints(record, sweep):
    return [record.result(planned)["fingerprint"] for planned in sweep]


@pytest.fixture(scope="module")
def by_one_worker(tmp_path_factory):
    """Two runs by one worker of one core."""
    out = tmp_path_factory.mktemp("one")
    sweep, record = sweep_in(out), Record(out)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    try:
        assert work.carry_out("one", sweep, record, out, workers=1) == []
    finally:
        os.sched_setaffinity(0, cores)
    return fingerprints(record, sweep), record.result(sweep[0])["cores"]


def test_two_workers_of_a_core_each_do_what_one_does(by_one_worker, tmp_path, capsys):
    if len(os.sched_getaffinity(0)) != 2:
        pytest.skip("needs two cores")
    sweep, record = sweep_in(tmp_path), Record(tmp_path)
    assert work.carry_out("two", sweep, record, tmp_path, workers=2) == []
    assert (fingerprints(record, sweep), record.result(sweep[0])["cores"]) == by_one_worker
    assert by_one_worker[1] == [1]
    assert "[2/2] 100.0%" in capsys.readouterr().out
    assert "worker" in (sweep[0].folder.path / "output.txt").read_text()
    # What was recorded needs no folder, and is not done again.
    shutil.rmtree(tmp_path / "runs")
    assert work.carry_out("two", sweep, Record(tmp_path), tmp_path, workers=2) == []
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").rglob("result.json"))


def test_a_run_that_another_sweep_ends_meanwhile_stops_nothing(tmp_path, monkeypatch, capsys):
    """Between the two looks at what is left: how long it takes is then not known."""
    monkeypatch.setattr(work.time_left, "seconds_left", lambda sweep, record: {})
    assert work.carry_out("two", sweep_in(tmp_path), Record(tmp_path), tmp_path) == []
    assert "[2/2]" in capsys.readouterr().out


class Dying:
    """A pool whose workers die, leaving a new checkpoint or not."""

    slots = 1

    def __init__(self, checkpoints):
        self.checkpoints, self.starts = iter(checkpoints), []

    def start(self, planned, wait):
        self.starts.append(wait)
        (planned.folder.checkpoints / str(next(self.checkpoints))).mkdir(
            parents=True, exist_ok=True
        )
        return planned.name

    def ended(self, running):
        return [(handle, processes.WorkerDiedError("gone")) for handle in running]

    def interrupt(self, running):
        raise AssertionError("nothing trains any longer")


def test_a_run_whose_workers_die_without_a_checkpoint_between_has_failed(tmp_path):
    (planned,) = sweep_in(tmp_path, (0,))
    pool, lines = Dying([0, 1, 1, 1]), []
    ((failed, reason),) = processes.work([planned], lines.append, pool)
    assert failed == planned
    assert reason == "3 of its workers died, the last of: gone"
    assert pool.starts[0] == 0
    assert all(wait > 0 for wait in pool.starts[1:])
    assert sum("another takes up its checkpoint" in line for line in lines) == 3


def test_more_workers_than_cores_are_refused(tmp_path):
    sweep = sweep_in(tmp_path)
    with pytest.raises(ValueError, match=r"--workers=99: this machine has \d+ core"):
        work.carry_out("many", sweep, Record(tmp_path), tmp_path, workers=99)


INTERRUPTED = """
import sys
from pathlib import Path
from experiments.sweep import work
from experiments.sweep.record import Record
from tests.experiments.sweep.test_work import long_sweep_in

out = Path(sys.argv[1])
sys.exit(work.exit_status("test", "again", lambda: len(
    work.carry_out("long", long_sweep_in(out), Record(out), out, workers=2))))
"""


def long_sweep_in(out):
    flags = {**vars(SMALL), "train_size": 5000, "epochs": 500}
    return [plan(Configuration(**{**flags, "seed": seed}), out / "runs") for seed in (0, 1)]


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def training_driver(out):
    """A driver whose two workers train, and the folders of their runs."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    driver = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(out)], stdout=subprocess.PIPE, text=True
    )
    folders = [planned.folder for planned in long_sweep_in(out)]
    wait_for(lambda: all((folder.path / "metrics.csv").exists() for folder in folders), 120)
    return driver, folders


def test_workers_end_with_a_driver_that_is_killed(tmp_path):
    driver, folders = training_driver(tmp_path)
    workers = [
        Path("/proc") / (folder.path / "output.txt").read_text().split()[1] for folder in folders
    ]
    assert all(worker.exists() for worker in workers)
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(worker.exists() for worker in workers), 20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_what_trains(number, tmp_path):
    driver, folders = training_driver(tmp_path)
    driver.send_signal(number)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 128 + number
    assert "stopping 2 run(s)" in output
    assert "stopped and saved" in output
    for folder in folders:
        assert folder.has_checkpoints()
        assert "result.json" not in os.listdir(folder.path)


def test_ctrl_c_before_training_says_that_nothing_was_saved(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "load", interrupted)
    sweep = sweep_in(tmp_path)

    def body():
        return len(work.carry_out("none", sweep, Record(tmp_path), tmp_path))

    assert work.exit_status("test", "the command", body) == 130
    assert capsys.readouterr().out == (
        "stopped before training; to begin, run the same command again: the command\n"
    )


def test_a_dataset_that_only_this_machine_has_is_taken(tmp_path, monkeypatch):
    prepared = tmp_path / "my_own_set" / "1.0.0"
    prepared.mkdir(parents=True)
    (prepared / "dataset_info.json").write_text("{}")
    flags = Configuration(**{**vars(SMALL), "dataset": "my_own_set", "data_dir": str(tmp_path)})
    work.check_without_data([plan(flags, tmp_path / "runs")])
    unknown = Configuration(**{**vars(SMALL), "dataset": "my_own_sett", "data_dir": str(tmp_path)})
    with pytest.raises(ValueError, match="there is no dataset 'my_own_sett'"):
        work.check_without_data([plan(unknown, tmp_path / "runs")])


@pytest.mark.parametrize(("name", "close"), [("svnh", "svhn"), ("cifar_10", "cifar10")])
def test_the_closest_of_our_names_and_of_tfds_s_are_named(name, close, tmp_path):
    with pytest.raises(ValueError, match=f"close: .*{close}"):
        tfds_folders.find(datasets.recipe(name).tfds_name, tmp_path)
