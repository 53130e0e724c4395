"""Hundreds of wrong inputs and damaged files end in one line, and leave nothing behind."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from experiments import reproduce
from interflow_jax.cli.main import main
from tests.faults.wrong import KINDS, NEEDED, Wrong, prepare_places

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
SECONDS = 60  # more than any refusal takes
LONGEST = 1500  # characters of a line
REMEDY = re.compile(
    r"--help|choose|give|move|restore|leave|mend|try|wait|run |use |see |pip install|put |make |"
    r"lists|allow|train|needs|must|has |are |at most|of the",
)


def places(root: Path) -> set[str]:
    """All folders, and files that are not a run's lock."""
    return {
        os.path.join(place, name)
        for place, folders, files in os.walk(root)
        for name in [*folders, *files]
        if name != ".lock"
    }


class Late(BaseException):
    """A command that works on in place of a refusal."""


def fault(wrong: Wrong, capfd: pytest.CaptureFixture) -> str | None:
    """Runs a wrong command here; returns how it breaks the rule, or None."""

    def late(*_: object) -> None:
        raise Late

    wrong.damage()
    before = places(Path.cwd())
    capfd.readouterr()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        if wrong.command == "reproduce":
            status = reproduce.main(wrong.arguments)
        else:
            status = main(wrong.command, wrong.arguments)
    except BaseException as error:
        status = f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    said = capfd.readouterr().err
    lines = said.splitlines()
    after = places(Path.cwd())
    left, lost = after - before, before - after
    if status not in (1, 2):
        return f"status {status}; {said[-300:]!r}"
    if len(lines) != 1 or len(said) > LONGEST or not said.rstrip("\n").isprintable():
        return f"{len(lines)} lines of {len(said)} characters: {said[:200]!r} ... {said[-200:]!r}"
    if not any(name.lower() in said.lower() for name in wrong.names):
        return f"names none of {wrong.names}: {said!r}"
    if not REMEDY.search(said):
        return f"no remedy: {said!r}"
    if "delete" in said and "cache" not in said:
        return f"advises to delete: {said!r}"
    return f"left {sorted(left)[:3]}, lost {sorted(lost)[:3]}" if left | lost else None


def test_the_strict_rule(tmp_path, monkeypatch, capfd):
    wanted = os.environ.get("FAULTS", ",".join(KINDS)).split(",")
    tried, failures = Counter(), []
    for kind in wanted:
        for number, wrong in enumerate(KINDS[kind]()):
            folder = tmp_path / f"{kind}{number}"
            folder.mkdir()
            monkeypatch.chdir(folder)
            problem = fault(wrong, capfd)
            tried[kind] += 1
            if problem:
                given = " ".join(wrong.arguments)[-150:]
                failures.append(f"{kind} {number}: {wrong.command} {given!r}: {problem}")
    total = sum(tried.values())
    share = 1 - len(failures) / total
    with capfd.disabled():
        print(f"\n{total - len(failures)} of {total} by the strict rule, {share:.1%}", dict(tried))
        print("\n".join(failures))
    assert set(wanted) != set(KINDS) or total >= 400
    assert share >= 0.99


@pytest.mark.parametrize("command", ["run", "predict", "exits", "export"])
def test_a_device_that_is_not_there(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare_places()
    before = places(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "interflow_jax", command, *NEEDED[command]],
        env={**os.environ, "JAX_PLATFORMS": "cuda", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 2)
    (line,) = done.stderr.splitlines()
    assert "cuda" in line
    assert "JAX_PLATFORMS" in line
    assert places(tmp_path) == before
