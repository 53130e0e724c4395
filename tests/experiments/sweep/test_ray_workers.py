"""The runs of a sweep on a Ray cluster, with workers that die, fail and are stopped."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments import reproduce
from experiments.cli.configuration import Configuration
from experiments.runs.folder import RunFolder
from experiments.sweep import planning, processes, work
from experiments.sweep.record import Record
from tests.experiments.conftest import SMALL

SMALL_TABLE = ["--table=1", "--datasets=fashion_mini", "--depths=4", "--seeds=0", *SMALL[3:]]


def test_without_ray_it_names_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "experiments.sweep.ray_workers", raising=False)
    monkeypatch.delattr("experiments.sweep.ray_workers", raising=False)
    monkeypatch.setattr(work, "check", None)
    assert reproduce.main([*SMALL_TABLE, "--workers=ray", f"--out={tmp_path / 'results'}"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert "--workers=ray needs pip install '.[ray]'" in line
    assert not (tmp_path / "results").exists()


def test_cpus_are_of_workers_and_above_0(capsys):
    for flags in (["--cpus=0", "--workers=ray"], ["--cpus=2"]):
        with pytest.raises(SystemExit):
            reproduce.main([*SMALL_TABLE, *flags])
        assert "choose a number above 0, with --workers" in capsys.readouterr().err


def test_runs_per_gpu_are_of_ray_and_above_0(capsys):
    for flags in (["--runs_per_gpu=0", "--workers=ray"], ["--runs_per_gpu=2", "--workers=2"]):
        with pytest.raises(SystemExit):
            reproduce.main([*SMALL_TABLE, *flags])
        (line,) = capsys.readouterr().err.splitlines()
        assert "choose a number above 0, with --workers=ray" in line


def ray_workers():
    pytest.importorskip("ray", reason="Ray is an extra: pip install '.[ray]'")
    from experiments.sweep import ray_workers

    return ray_workers


def test_a_run_takes_a_gpu_or_cpus_that_some_machine_has():
    share = ray_workers().share
    two, many, gpus = {"CPU": 2.0}, {"CPU": 64.0}, {"CPU": 8.0, "GPU": 4.0}
    assert share([two], None) == {"num_gpus": 0, "num_cpus": 2}
    assert share([{}, two, many], None) == {"num_gpus": 0, "num_cpus": 4}
    assert share([two, many], 16) == {"num_gpus": 0, "num_cpus": 16}
    assert share([many, gpus], None) == {"num_gpus": 1, "num_cpus": 1}
    assert share([many, gpus], 16) == {"num_gpus": 1, "num_cpus": 8}
    assert share([many, gpus], None, 4) == {"num_gpus": 0.25, "num_cpus": 1}
    with pytest.raises(ValueError, match="--runs_per_gpu=2: the Ray cluster has no GPU"):
        share([many], None, 2)


def test_a_lock_that_outlives_its_process_is_waited_for(tmp_path):
    lock = RunFolder(tmp_path).locked()
    lock.__enter__()
    release = threading.Timer(0.5, lock.__exit__, (None, None, None))
    release.start()
    processes.wait_for_lock(RunFolder(tmp_path), 60.0)
    with RunFolder(tmp_path).locked():
        release.join()
        start = time.monotonic()
        processes.wait_for_lock(RunFolder(tmp_path), 0.0)
        assert time.monotonic() - start < 1


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this machine's processes that takes two runs at once, with all cores each."""
    ray_workers()
    import ray  # pyright: ignore[reportMissingImports]

    cores = len(os.sched_getaffinity(0))  # as many as the driver uses: other sums round alike
    ray.init("local", num_cpus=2 * cores, include_dashboard=False, log_to_driver=False)
    yield cores
    ray.shutdown()


def plan(out, seed):
    flags = Configuration(
        method="S1",
        depth=5,
        taps=(3, 4, 5),
        width=0.0625,
        train_size=1024,
        epochs=3,
        seed=seed,
        checkpoint_minutes=0.005,
    )
    return planning.plan(flags, out)


def output_of(folder):
    return (folder.path / "output.txt").read_text()


def kill_after_a_checkpoint(folder):
    """Kills the worker of a run, by the process that its output names."""
    while not list(folder.checkpoints.glob("*.sha256.json")):
        time.sleep(0.02)
    os.kill(int(output_of(folder).split()[1]), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_and_no_run_is_done_twice(cluster, tmp_path):
    expected = [plan(tmp_path / "alone", seed) for seed in range(3)]
    assert work._work(expected, Record(tmp_path), print) == []

    killed, other, done, taken = planned = [plan(tmp_path / "ray", seed) for seed in range(4)]
    shutil.copytree(expected[2].folder.path, done.folder.path)
    taken.folder.path.mkdir(parents=True)
    killer = threading.Thread(target=kill_after_a_checkpoint, args=[killed.folder])
    killer.start()
    said = []
    with taken.folder.locked():
        todo = Record(tmp_path).unfinished(planned)
        failed = processes.work(todo, said.append, ray_workers().RayPool(cluster))
    killer.join()
    print(*said, sep="\n")

    ((which, error),) = failed
    assert which is taken
    assert "another process is training in" in str(error)
    for ours, theirs in zip(planned, expected, strict=False):
        ours, theirs = ours.folder.result(), theirs.folder.result()
        for figure in ("fingerprint", "train_loss", "test_accuracy", "branch_accuracy", "weights"):
            assert ours[figure] == theirs[figure]
    starts = {each: output_of(each.folder).count("worker ") for each in (killed, other, taken)}
    assert starts == {killed: 2, other: 1, taken: 1}
    assert output_of(killed.folder).count("taking up") == 1
    assert not (done.folder.path / "output.txt").exists()
    assert [line for line in said if "its worker died" in line] == [
        f"{killed}: its worker died; another takes up its checkpoint"
    ]
    assert said[-1] == "[3/3] 66.7%"
    assert any(line.startswith("[2/3] ") and line.endswith(" to go") for line in said)


def die_or_break(planned, directory, wait):
    """In the place of `train`: seed 0 dies of a signal, seed 1 of what no run should raise."""
    with (planned.folder.path / "starts").open("a") as starts:
        starts.write("x")
    if planned.flags.seed == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    raise ZeroDivisionError("a mistake")


@pytest.mark.slow
def test_what_dies_again_and_again_fails_and_what_nobody_foresaw_at_once(
    cluster, tmp_path, monkeypatch
):
    dying, broken = plan(tmp_path, 0), plan(tmp_path, 1)
    for planned in (dying, broken):
        planned.folder.path.mkdir(parents=True)
    monkeypatch.setattr(processes, "train", die_or_break)
    ((which, error),) = processes.work([dying, dying], print, ray_workers().RayPool(None))
    assert which is dying
    assert "3 of its workers died" in str(error)
    assert (dying.folder.path / "starts").read_text() == "xxx"
    ((which, error),) = processes.work([broken], print, ray_workers().RayPool(None))
    assert which is broken
    assert "a mistake" in str(error)
    assert (broken.folder.path / "starts").read_text() == "x"


@pytest.mark.slow
def test_a_signal_saves_what_the_workers_train(tmp_path):
    ray_workers()
    command = [
        *(sys.executable, "-m", "experiments.reproduce", *SMALL_TABLE, "--train_size=1024"),
        *("--epochs=3", "--checkpoint_minutes=0.005", "--workers=ray", f"--out={tmp_path}"),
    ]

    def start():
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "RAY_ADDRESS": "local"},
        )

    process = start()
    while not (saved := list(tmp_path.glob("runs/**/checkpoints/*.sha256.json"))):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "stopped and saved" in output
    folder = RunFolder(saved[0].parent.parent)
    assert folder.result() is None
    newest = max(int(path.name.partition(".")[0]) for path in folder.checkpoints.glob("*.json"))
    print(output)
    again = start()
    output, _ = again.communicate()
    assert again.returncode == 0, output
    print(output)
    assert "2 runs, 2 to do" in output
    steps = 1024 // 64
    taken_up = f"after epoch {newest // (steps + 1)}, step {newest % (steps + 1)} of {steps}"
    assert taken_up in output_of(folder)
    assert len(list(tmp_path.glob("runs/**/result.json"))) == 2


def wait_for_the_other(planned, directory, wait):
    """In the place of `train`: says what it has of a GPU, and ends when two are at work."""
    share = os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"], os.environ["CUDA_VISIBLE_DEVICES"]
    (planned.folder.path / "share").write_text(" ".join(share))
    deadline = time.monotonic() + 60
    while len(list(planned.folder.path.parent.glob("*/share"))) < 2:
        if time.monotonic() > deadline:
            raise ValueError("the other run did not start beside this one")
        time.sleep(0.1)


@pytest.mark.slow
def test_runs_share_a_gpu_and_its_memory(tmp_path, monkeypatch):
    """Ray lends a GPU that it is told of, whether it is there or not."""
    workers = ray_workers()
    import ray  # pyright: ignore[reportMissingImports]

    ray.shutdown()
    monkeypatch.setattr(processes, "train", wait_for_the_other)
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        planned = [plan(tmp_path, seed) for seed in range(2)]
        for each in planned:
            each.folder.path.mkdir(parents=True)
        assert processes.work(planned, print, workers.RayPool(1, runs_per_gpu=2)) == []
    finally:
        ray.shutdown()
    shares = [(each.folder.path / "share").read_text() for each in planned]
    assert shares == ["0.450 0", "0.450 0"]
