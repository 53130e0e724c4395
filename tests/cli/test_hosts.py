"""Several processes train one run as one process does, and end together."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import run
from tests.cli.conftest import SMALL, folder_in, result_in

COMMAND = [
    *(sys.executable, "-m", "experiments.run"),
    *("--method=S1", "--depth=4", "--taps=2,3,4", "--width=0.0625", "--train_size=512"),
    *("--epochs=2", "--checkpoint_minutes=0.005"),
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(out, devices, *flags, prefix=(), cwd=None):
    """A process with so many CPU devices."""
    options = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [*prefix, *COMMAND, f"--out={out}", *flags],
        env={**os.environ, "XLA_FLAGS": options, "PYTHONPATH": os.getcwd()},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(out):
    """Two processes of one run, with two devices each."""
    join = [f"--coordinator=127.0.0.1:{free_port()}", "--processes=2"]
    return [start(out, 2, *join, f"--process={process}") for process in range(2)]


def finish(*processes):
    """Waits for processes; returns their exit statuses, outputs and errors."""
    output, errors = zip(*(process.communicate(timeout=300) for process in processes), strict=True)
    return [process.returncode for process in processes], output, errors


def wait_for_a_checkpoint(out, processes):
    while not list(folder_in(out, "S1").glob("checkpoints/*.sha256.json")):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


@pytest.fixture(scope="module")
def by_one(tmp_path_factory):
    """The result of one process with four devices."""
    out = tmp_path_factory.mktemp("one")
    statuses, _, errors = finish(start(out, 4))
    assert statuses == [0], errors
    return result_in(out, "S1")


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """The result of two processes with two devices each, and what they printed."""
    out = tmp_path_factory.mktemp("two")
    statuses, output, errors = finish(*start_two(out))
    assert statuses == [0, 0], errors
    return result_in(out, "S1"), output


def assert_close(result, expected):
    np.testing.assert_allclose(result["train_loss"], expected["train_loss"], rtol=1e-4)
    np.testing.assert_allclose(result["test_loss"], expected["test_loss"], rtol=1e-4)
    np.testing.assert_allclose(result["weights"], expected["weights"], rtol=1e-4)


@pytest.mark.slow
def test_two_processes_train_as_one_and_the_first_tells_it(by_one, by_two):
    result, (first, second) = by_two
    assert_close(result, by_one)
    assert (by_one["processes"], result["processes"]) == (1, 2)
    assert "epoch 2/2" in first
    assert re.sub(r"\[Gloo\].*|\s", "", second) == ""


@pytest.mark.slow
def test_killed_and_signalled_they_end_together_and_go_on(by_one, by_two, tmp_path):
    out = tmp_path / "two"
    processes = start_two(out)
    wait_for_a_checkpoint(out, processes)
    processes[1].kill()
    killed = time.monotonic()
    statuses, _, errors = finish(*processes)
    assert time.monotonic() - killed < 60
    assert statuses[0] != 0  # of this command, or of JAX where that was the first to notice
    assert statuses[1] == -signal.SIGKILL
    for error in errors:
        assert error.splitlines()[-1].endswith("to go on, run the same command again on every host")
    checkpoints = {path.name for path in folder_in(out, "S1").glob("checkpoints/*.sha256.json")}

    processes = start_two(out)
    while {path.name for path in folder_in(out, "S1").glob("checkpoints/*.json")} <= checkpoints:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    statuses, (first, _), _ = finish(*processes)
    assert statuses == [128 + signal.SIGTERM] * 2
    assert "taking up" in first
    assert "stopped and saved; to go on, run the same command again" in first

    shutil.copytree(out, tmp_path / "one")
    statuses, _, errors = finish(*start_two(out))
    assert statuses == [0, 0], errors
    assert result_in(out, "S1")["fingerprint"] == by_two[0]["fingerprint"]
    statuses, (output,), errors = finish(start(tmp_path / "one", 1))
    assert statuses == [0], errors
    assert "taking up" in output
    assert_close(result_in(tmp_path / "one", "S1"), by_one)


@pytest.mark.slow
def test_another_number_of_processes_than_came_is_one_line_on_each(tmp_path):
    join = f"--coordinator=127.0.0.1:{free_port()}"
    statuses, _, errors = finish(
        start(tmp_path, 1, join, "--processes=2", "--process=0"),
        start(tmp_path, 1, join, "--processes=3", "--process=1"),
    )
    assert statuses == [2, 2]
    for error in errors:
        (line,) = (line for line in error.splitlines() if "[Gloo]" not in line)
        assert line.startswith("run: error: --processes=3 on process 1: 2 came; give every process")


@pytest.mark.slow
def test_processes_with_other_data_of_the_same_name_are_one_line_on_each(tmp_path):
    for place, count in (("a", 8), ("b", 7)):
        for name in ("cat", "dog"):
            (folder := tmp_path / place / "pics" / name).mkdir(parents=True)
            for number in range(count):
                Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    join = [f"--coordinator=127.0.0.1:{free_port()}", "--processes=2", "--dataset=folder:pics"]
    join += ["--train_size=8", "--batch_size=4"]
    statuses, _, errors = finish(
        *(
            start(tmp_path, 1, *join, f"--process={n}", cwd=tmp_path / place)
            for n, place in enumerate("ab")
        )
    )
    assert statuses == [2, 2]
    for error in errors:
        (line,) = (line for line in error.splitlines() if "[Gloo]" not in line)
        assert "process 1 has other data of the name folder:pics" in line
        assert "give every host the same" in line


def listening(port):
    """The addresses, as the kernel writes them, at which this machine listens on a port."""
    files = [Path("/proc/net", name) for name in ("tcp", "tcp6")]
    lines = [line for file in files for line in file.read_text().splitlines()]
    sockets = [line.split()[1:4] for line in lines[1:]]
    return [
        local for local, _, state in sockets if local.endswith(f":{port:04X}") and state == "0A"
    ]


def test_a_process_that_no_other_joins_says_so_and_listened_where_it_was_told():
    program = (
        "import sys; from experiments import run; from interflow_jax.cli import hosts; "
        "hosts.START_SECONDS = 1; sys.exit(run.main(sys.argv[1:]))"
    )
    port = free_port()
    flags = [f"--coordinator=127.0.0.1:{port}", "--processes=2", "--process=0"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *flags], stderr=subprocess.PIPE, text=True
    )
    while not (places := listening(port)):
        assert process.poll() is None
        time.sleep(0.05)
    _, error = process.communicate()
    local = "0100007F", "0000000000000000FFFF00000100007F"  # 127.0.0.1, also as IPv6 writes it
    assert {place.partition(":")[0] for place in places} <= {*local}
    assert process.returncode != 0
    line = error.splitlines()[-1]
    assert line.startswith("run: stopped: not all processes came within 1 s")
    assert "start one on every host" in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--processes=0"], "--processes=0: choose a number above 0"),
        (["--process=1"], "--process=1: give --processes=N"),
        (["--coordinator=a:1"], "--coordinator=a:1: give --processes=N"),
        (["--processes=2", "--process=0"], "--coordinator=None: --processes=2 needs the address"),
        (["--processes=2", "--process=0", "--coordinator=a"], "--coordinator=a: --processes=2"),
        (["--processes=2", "--coordinator=a:1"], "--process=None: --processes=2 needs 0 to 1"),
        (["--processes=2", "--coordinator=a:1", "--process=2"], "--process=2: --processes=2"),
    ],
)
def test_flags_that_do_not_fit_together_are_one_line(flags, said, capsys):
    assert run.main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_places_are_no_part_of_a_run(finished):
    assert run.main([*SMALL, "--processes=1", f"--out={finished}"]) == 0


def namespaces_are_allowed():
    return (
        shutil.which("unshare")
        and not subprocess.run(
            ["unshare", "--net", "--mount", "true"], capture_output=True, check=False
        ).returncode
    )


@pytest.fixture
def two_hosts():
    """What to put before a command to run it on either of two hosts, which have 10.77.0.1 and .2.

    Each is a network namespace with one end of a cable.
    """
    names = [f"interflow{os.getpid()}{letter}" for letter in "ab"]

    def ip(*arguments):
        subprocess.run(["ip", *arguments], check=True)

    try:
        for number, name in enumerate(names, start=1):
            ip("netns", "add", name)
            # What `ip netns exec` shows as /etc/hosts: gloo listens where this host's name leads.
            file = Path("/etc/netns", name, "hosts")
            file.parent.mkdir(parents=True)
            file.write_text(f"127.0.0.1 localhost\n10.77.0.{number} {socket.gethostname()}\n")
        ip(*f"link add cable netns {names[0]} type veth peer name cable netns {names[1]}".split())
        for number, name in enumerate(names, start=1):
            ip(*f"-n {name} address add 10.77.0.{number}/24 dev cable".split())
            ip(*f"-n {name} link set cable up".split())
            ip(*f"-n {name} link set lo up".split())
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)


@pytest.mark.slow
@pytest.mark.skipif(not namespaces_are_allowed(), reason="needs root, for network namespaces")
def test_hosts_with_addresses_of_their_own(two_hosts, by_one, tmp_path):
    def start_both():
        join = ["--coordinator=10.77.0.1:1234", "--processes=2"]
        return [
            start(tmp_path, 2, *join, f"--process={process}", prefix=host)
            for process, host in enumerate(two_hosts)
        ]

    processes = start_both()
    wait_for_a_checkpoint(tmp_path, processes)
    processes[0].kill()  # the one that the others ask
    statuses, _, errors = finish(*processes)
    assert statuses[0] == -signal.SIGKILL
    assert statuses[1] != 0
    assert errors[1].splitlines()[-1].endswith("run the same command again on every host")
    statuses, _, errors = finish(*start_both())
    assert statuses == [0, 0], errors
    assert_close(result_in(tmp_path, "S1"), by_one)
