"""What a person sees while a run works."""

from types import SimpleNamespace

from interflow_jax.cli import console


def test_the_rate_and_eta_leave_compilation_out(monkeypatch, capsys):
    seconds = [0.0]
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    progress = console.Progress(total=1000, done=200)

    def a_step_ends_at(instant: float) -> str:
        seconds[0] = instant
        progress.add(100, "1/1")
        return capsys.readouterr().out

    assert a_step_ends_at(300.0) == ""  # it compiled, and nothing is known of the next ones
    assert "40.0%  10 images/s  ETA 1:00" in a_step_ends_at(310.0)
    assert a_step_ends_at(330.0) == ""  # not half a minute later
    assert "60.0%  5 images/s  ETA 1:20" in a_step_ends_at(360.0)
    progress.close()
