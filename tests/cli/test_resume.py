"""Killed at any moment and run again, a run ends bit for bit as one never stopped."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from experiments import run
from interflow_jax.cli.training import StoppedError, StopSignals, TrainingRun
from tests.cli.conftest import folder_in, result_in

# An augmenting dataset would need a network; every draw of augmentation is of (seed, epoch, step)
# by tests/test_preprocessing.py.
FLAGS = [
    *("--method=S1", "--depth=4", "--taps=2,3,4", "--width=0.0625", "--train_size=1024"),
    *("--epochs=2", "--checkpoint_minutes=0.005", "--distillation=0.5", "--fusion=attention"),
    *("--ema=0.9", "--mixup=0.2", "--keep=best", "--patience=2"),
]
COMMAND = [sys.executable, "-m", "experiments.run", *FLAGS]


def start(out, **options):
    return subprocess.Popen(
        [*COMMAND, f"--out={out}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    """The result of a run never stopped, in this process, as runs that are taken up again."""
    out = tmp_path_factory.mktemp("never_stopped")
    assert run.main([*FLAGS, f"--out={out}"]) == 0
    return result_in(out, "S1")


def kill_and_resume(moment, never_stopped, out, capsys):
    """Kills a run at a moment, a function of the process; whether it died, and was taken up."""
    process = start(out)
    moment(process)
    process.send_signal(signal.SIGKILL)
    last_words, _ = process.communicate()
    assert "run: stopped" not in last_words  # such as of other hosts, which there are none of
    assert run.main([*FLAGS, f"--out={out}"]) == 0
    result = result_in(out, "S1")
    for figure in (
        "fingerprint",
        "train_loss",
        "test_accuracy",
        "branch_accuracy",
        "weights",
        "held_out_accuracy",
        "kept_epoch",
    ):
        assert result[figure] == never_stopped[figure]
    return process.returncode == -signal.SIGKILL, "taking up" in capsys.readouterr().out


def a_checkpoint_is_there(out):
    """Waits until the run has saved one."""

    def wait(process):
        while not list(folder_in(out, "S1").glob("checkpoints/*.sha256.json")):
            assert process.poll() is None
            time.sleep(0.02)

    return wait


def test_killed_and_run_again(never_stopped, tmp_path, capsys):
    outcome = kill_and_resume(a_checkpoint_is_there(tmp_path), never_stopped, tmp_path, capsys)
    assert outcome == (True, True)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(never_stopped, tmp_path, capsys):
    generator = random.Random(0)

    def at_random(out):
        """A moment between the run's start and its end, by its progress: clocks lie under load."""
        folder = folder_in(out, "S1")
        last = 2 * (16 + 1)  # the number of the last checkpoint: two epochs of 16 steps
        target = generator.randrange(last)

        def progress():
            files = folder.glob("checkpoints/*.sha256.json")
            return max((int(file.name.partition(".")[0]) for file in files), default=0)

        def wait(process):
            while process.poll() is None and not (folder / "config.json").exists():
                time.sleep(0.01)
            while process.poll() is None and progress() < target:
                time.sleep(0.01)
            time.sleep(generator.random() * 0.5)

        return wait

    places = [tmp_path / str(trial) for trial in range(20)]
    outcomes = [kill_and_resume(at_random(place), never_stopped, place, capsys) for place in places]
    killed, resumed = (sum(flags) for flags in zip(*outcomes, strict=True))
    print(f"20 of 20 ended bit for bit the same; {killed} were killed, {resumed} from a checkpoint")
    assert killed >= 18  # one that ends while the moment is awaited cannot be killed
    assert resumed >= 12


def test_a_signal_saves_and_says_how_to_go_on(never_stopped, tmp_path, capsys, monkeypatch):
    save, sent = TrainingRun.save, []

    def signalled(self, say):
        save(self, say)
        if not sent:  # a second one would end this process
            sent.append(os.kill(os.getpid(), signal.SIGTERM))

    with monkeypatch.context() as once:
        once.setattr(TrainingRun, "save", signalled)
        assert run.main([*FLAGS, f"--out={tmp_path}"]) == 128 + signal.SIGTERM
    assert (
        "stopped and saved; to go on, run the same command again: python -m interflow_jax run"
        in capsys.readouterr().out
    )
    assert run.main([*FLAGS, f"--out={tmp_path}"]) == 0
    assert "taking up" in capsys.readouterr().out
    assert result_in(tmp_path, "S1")["fingerprint"] == never_stopped["fingerprint"]


def test_a_second_signal_ends_the_process():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StoppedError) as stopped:
            stop.check()
        assert stopped.value.signal == signal.SIGINT
        for number in (signal.SIGINT, signal.SIGTERM):
            assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before
