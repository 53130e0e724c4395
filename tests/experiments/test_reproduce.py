"""The command: a table trained and reported by the real sweep, reports of records, bad input."""

import json
import shutil

import pytest

import interflow_jax as ij
from experiments import reproduce
from experiments.sweep.record import EXITS
from experiments.tables.runs import load
from interflow_jax.cli import depths, run
from interflow_jax.cli.config import recorded
from tests.experiments.tables.invented import TABLES, planned, record

TINY = ["--datasets=fashion_mini", "--width=0.0625", "--train_size=128", "--epochs=1"]
FIGURE = ["--figure=4", "--depths=5", "--taps=3,4,5", *TINY]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a table of two runs, trained by the command."""
    out = tmp_path_factory.mktemp("trained")
    assert reproduce.main([*FIGURE, "--seeds=0,1", f"--out={out}"]) == 0
    return out


def test_a_table_from_runs_to_report(trained, capsys):
    report = json.loads((trained / "table4.json").read_text())
    lines = [json.loads(each) for each in (trained / "runs.jsonl").read_text().splitlines()]
    (section,) = report["cells"]
    (row,) = section["rows"]
    assert row["runs"]["names"] == [each["run"] for each in lines]
    accuracies = [each["test_accuracy"] for each in lines]
    assert row["last epoch"]["mean"] == pytest.approx(sum(accuracies) / 2)
    assert row["best"] == max(accuracies)
    learned = [each["weights"] for each in lines]
    shown = next(each for each in report["weights"][0]["rows"] if each["row"] == "as learned, mean")
    assert shown["after 4"] == pytest.approx((learned[0][1] + learned[1][1]) / 2)
    text = (trained / "table4.md").read_text()
    assert report["command"] in text
    assert "(figure4.png)" in text
    assert (trained / "figure4.png").read_bytes().startswith(b"\x89PNG")
    again = [*FIGURE, "--workers=1", f"--out={trained}"]
    assert reproduce.main([*again, "--seeds=0,1"]) == 0
    said = capsys.readouterr().out
    assert "2 runs, none to do" in said
    assert f"{(trained / 'table4.md').read_text()}\nwritten: {trained / 'table4'}.md" in said
    assert reproduce.main([*again, "--seeds=0,1,2", "--dry_run"]) == 0
    assert "3 runs, 2 finished, 1 to do" in capsys.readouterr().out


def test_the_record_alone_gives_the_same_report(trained, tmp_path):
    """What is in OUT/runs.jsonl is not trained again, and needs no run folder."""
    shutil.copy(trained / "runs.jsonl", tmp_path)
    for only_report in ([], ["--report"]):
        assert reproduce.main([*FIGURE, "--seeds=0,1", *only_report, f"--out={tmp_path}"]) == 0
        mine, theirs = (
            json.loads((out / "table4.json").read_text()) for out in (tmp_path, trained)
        )
        assert mine.pop("command") != theirs.pop("command")  # the folder is another
        assert mine == theirs
    assert not (tmp_path / "runs").exists()


def test_a_run_of_a_sweep_is_the_main_command_s(trained, tmp_path):
    """The recorded command, run by itself elsewhere, gives the same parameters bit for bit."""
    ran = json.loads((trained / "runs.jsonl").read_text().splitlines()[0])
    arguments = [each for each in ran["command"].split()[4:] if not each.startswith("--out=")]
    assert run([*arguments, f"--out={tmp_path}"]) == 0
    (again,) = [
        json.loads(each.read_text()) for each in tmp_path.glob(f"**/seed{ran['seed']}/result.json")
    ]
    assert again["fingerprint"] == ran["fingerprint"]


def test_a_finished_run_is_measured_once_and_its_line_has_the_figures(
    trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(depths, "HELD_OUT", 400)
    monkeypatch.setattr(depths, "KINDS", ("shared",))
    name = load(trained)["run"][0]
    folder = tmp_path / "runs" / name
    shutil.copytree(trained / "runs" / name, folder)
    config = recorded(json.loads((folder / "result.json").read_text()))
    reproduce._measure(TABLES["exits"], [config], tmp_path)
    (measured,) = load(tmp_path).to_dict("records")
    figures = measured[EXITS]
    assert len(figures["operations"]) == len(measured["branches"]) == 3
    assert figures["operations"] == sorted(figures["operations"])
    own = figures["fusions"]["own"]
    assert own["cuts"][-1] == pytest.approx(measured["test_accuracy"], abs=0.11)
    whole = own["budgets"][depths.SHARES.index(1.0)]
    assert figures["operations"][0] <= whole["operations"] <= figures["operations"][-1]
    before = (folder / f"{EXITS}.json").stat().st_mtime_ns
    reproduce._measure(TABLES["exits"], [config], tmp_path)
    assert (folder / f"{EXITS}.json").stat().st_mtime_ns == before


def test_a_report_that_names_fewer_runs_says_so(tmp_path, capsys):
    methods = {"methods": ("Normal", "S1"), "datasets": ("mnist",), "seeds": (0, 1, 2)}
    wanted = planned("3", tmp_path, **methods)["config"]
    record(tmp_path, wanted[:5], lambda config: {"accuracy": 90.0 + config.training.seed})
    command = [
        "--table=3",
        "--methods=Normal,S1",
        "--datasets=mnist",
        "--report",
        f"--out={tmp_path}",
    ]
    assert reproduce.main([*command, "--seeds=0,1,2"]) == 0
    assert "| 2 of 3 |" in capsys.readouterr().out
    assert reproduce.main([*command, "--seeds=1"]) == 0
    said = capsys.readouterr().out
    assert "3 finished run(s) of the report before are not in this one" in said
    written = json.loads((tmp_path / "table3.json").read_text())["command"]
    assert "--seeds=1" in written
    assert "--report" not in written
    again = said.strip().split("to have them back: python -m experiments.reproduce ")[1].split()
    assert reproduce.main(again) == 0
    assert "finished run(s)" not in capsys.readouterr().out


def test_runs_of_several_machines_say_whose_they_are(tmp_path, capsys):
    figure = {"datasets": ("cifar10",), "seeds": (0, 1, 2), "given": {"width": 0.0625}}
    record(
        tmp_path,
        planned("4", tmp_path, **figure)["config"],
        lambda config: {
            "accuracy": 50.0 + config.training.seed,
            "device": "one" if config.training.seed else "two",
        },
    )
    command = ["--figure=4", "--seeds=0,1,2", "--width=0.0625", "--report", f"--out={tmp_path}"]
    assert reproduce.main(command) == 0
    said = capsys.readouterr().out
    assert "a: one; jax 0. b: two; jax 0." in said
    assert "| 3 of 3 (baa) |" in said
    assert (tmp_path / "figure4.png").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "give either --table=N, of 1, 3"),
        (["--table=3", "--figure=4"], "or --figure=4"),
        (["--table=3", "--seeds=0,1,0"], "'0,1,0' has 0 more than once"),
        (["--table=3", "--methods=S1,S1"], "'S1,S1' has S1 more than once"),
        (["--table=3", "--report"], "no run of this table is finished"),
        (
            ["--table=3", "--datasets=fashion_mini", "--train_size=7000"],
            "--train_size=7000: fashion_mini has 6000",
        ),
        (
            ["--table=3", "--datasets=fashion_mini", "--train_size=32"],
            "--batch_size=64 is more than the 32",
        ),
        (["--table=3", "--datasets=cifar11", "--dry_run"], "cifar11"),
        (["--table=8"], "choose from '1', '3'"),
        (["--table=3", "--methods=S10"], "method is 'S10'; choose one of Normal, S0"),
        (["--table=3", "--width=-1"], "--width=-1.0"),
        (["--table=6", "--depths=300"], "depth is 300"),
        (["--table=3", "--seeds=-1"], "--seed=-1"),
        (["--table=3", "--preset=gpu"], "choose from"),
        (["--table=3", "--widht=1"], "did you mean --width?"),
        (["--table=3", "--fusion=clas"], "did you mean class?"),
        (["--table=3", "--cpus=2"], "--cpus=2: choose a number above 0, with --workers=ray"),
        (["--table=best", "--methods=S1", "--dry_run"], "first train --table=rates"),
        (["--claims", "--dry_run"], "--claims takes --out alone"),
        (["--claims", "--width=0.5"], "--claims takes --out alone"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(arguments, named, tmp_path, capsys):
    assert reproduce.main([*arguments, f"--out={tmp_path / 'results'}"]) == 2
    said = capsys.readouterr().err.strip()
    assert named in said
    assert len(said.split("\n")) == 1
    assert not (tmp_path / "results").exists()


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    """Not even the pictures that the table makes."""
    monkeypatch.chdir(tmp_path)
    assert reproduce.main(["--table=recipes", "--dry_run"]) == 0
    assert "63 runs, 0 finished, 63 to do" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_table_2_is_that_of_the_code(capsys):
    assert reproduce.main(["--table=2"]) == 0
    rows = capsys.readouterr().out.strip().split("\n")[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [*ij.METHODS, *ij.BASELINES]
