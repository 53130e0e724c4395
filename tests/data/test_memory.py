"""How much of the data a host can hold."""

import os

from interflow_jax.data import batches


def test_a_container_s_memory_is_what_its_limit_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "Path", lambda path: tmp_path / path.lstrip("/"))
    whole = batches.host_memory()  # where no limit is set
    assert whole == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert batches.fits(whole // 5)
    assert not batches.fits(whole // 3)
    job = tmp_path / "sys" / "fs" / "cgroup" / "slurm" / "job1"
    (job / "step0").mkdir(parents=True)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/slurm/job1/step0\n")
    (job / "step0" / "memory.max").write_text("max\n")
    assert batches.host_memory() == whole
    (job / "memory.max").write_text("1000000\n")
    assert batches.host_memory() == 1000000
    assert not batches.fits(500000)
