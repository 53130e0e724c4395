"""A sweep on a Ray cluster, with runs that die and are stopped."""

import os
import signal
import sys
import threading
import time

import pytest

from experiments.sweep import commands, pool, record, work
from interflow_jax.cli.config import RunConfig
from interflow_jax.cli.folder import RunFolder

CONFIG = RunConfig().replace(
    method="S1",
    depth=5,
    taps=(3, 4, 5),
    width=0.0625,
    train_size=1024,
    epochs=3,
    checkpoint_minutes=0.005,
)


def by_seed(seeds):
    return [CONFIG.replace(seed=seed) for seed in seeds]


def ray_pool():
    pytest.importorskip("ray", reason="Ray is an extra: pip install '.[ray]'")
    from experiments.sweep import ray_pool

    return ray_pool


def test_without_ray_it_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "experiments.sweep.ray_pool", raising=False)
    monkeypatch.delattr("experiments.sweep.ray_pool", raising=False)
    with pytest.raises(ValueError, match=r"--workers=ray needs pip install '\.\[ray\]'"):
        work.carry_out("ray", by_seed([0]), tmp_path / "out", workers="ray")
    assert not (tmp_path / "out").exists()


def test_a_run_takes_a_gpu_or_cpus_that_some_machine_has():
    share = ray_pool().share
    two, many, gpus = {"CPU": 2.0}, {"CPU": 64.0}, {"CPU": 8.0, "GPU": 4.0}
    assert share([two], None) == {"num_gpus": 0, "num_cpus": 2}
    assert share([{}, two, many], None) == {"num_gpus": 0, "num_cpus": 4}
    assert share([two, many], 16) == {"num_gpus": 0, "num_cpus": 16}
    assert share([many, gpus], None) == {"num_gpus": 1, "num_cpus": 1}
    assert share([many, gpus], 16) == {"num_gpus": 1, "num_cpus": 8}
    assert share([many, gpus], None, 4) == {"num_gpus": 0.25, "num_cpus": 1}
    with pytest.raises(ValueError, match="--runs_per_gpu=2: the Ray cluster has no GPU"):
        share([many], None, 2)


@pytest.fixture
def cluster():
    """A cluster of this machine's processes that takes two runs at once, with all cores each."""
    ray_pool()
    import ray  # pyright: ignore[reportMissingImports]

    cores = len(os.sched_getaffinity(0))  # as many as the driver uses: other sums round alike
    ray.init("local", num_cpus=2 * cores, include_dashboard=False, log_to_driver=False)
    yield cores
    ray.shutdown()


def run_of(folder):
    """The process that trains in a folder, by its lock."""
    return int((folder.path / ".lock").read_text().split()[1])


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(cluster, tmp_path):
    assert work.carry_out("alone", by_seed([0, 1]), tmp_path / "alone") == []
    killed = RunFolder(commands.placed(CONFIG, tmp_path / "ray" / "runs").folder())

    def kill_after_a_checkpoint():
        while not list(killed.checkpoints.glob("*.sha256.json")):
            time.sleep(0.02)
        os.kill(run_of(killed), signal.SIGKILL)

    killer = threading.Thread(target=kill_after_a_checkpoint)
    killer.start()
    runs, said = [commands.placed(run, tmp_path / "ray/runs") for run in by_seed([0, 1])], []
    assert pool.work(runs, ray_pool().RayPool(cluster), said.append, lambda left: "some") == []
    killer.join()
    expected, got = (
        {line["seed"]: line["fingerprint"] for line in record.read(tmp_path / name)}
        for name in ("alone", "ray")
    )
    assert got == expected
    assert sum("starting it again" in line for line in said) == 1
    assert (killed.path / "output.txt").read_text().count("taking up") == 1


def wait_for_the_other(arguments, output, directory):
    """In the place of a run: says what it has of a GPU, and ends when two are at work."""
    del arguments, directory
    names = "XLA_PYTHON_CLIENT_MEM_FRACTION", "CUDA_VISIBLE_DEVICES"
    output.write_text(" ".join(os.environ[name] for name in names))
    deadline = time.monotonic() + 60
    while len(list(output.parent.glob("*.txt"))) < 2:
        if time.monotonic() > deadline:
            return 1
        time.sleep(0.1)
    return 0


@pytest.mark.slow
def test_runs_share_a_gpu_and_its_memory(tmp_path, monkeypatch):
    """Ray lends a GPU that it is told of, whether it is there or not."""
    module = ray_pool()
    import ray  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(module, "_run", wait_for_the_other)
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        gpu = module.RayPool(1, runs_per_gpu=2)
        running = [gpu.start([], tmp_path / f"output{number}.txt") for number in range(2)]
        ended: list = []
        while len(ended) < 2:
            ended += gpu.ended([handle for handle in running if handle not in dict(ended)])
        assert [status for _, status in ended] == [0, 0]
    finally:
        ray.shutdown()
    assert [file.read_text() for file in tmp_path.glob("*.txt")] == ["0.450 0"] * 2
