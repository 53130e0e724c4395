"""Every table's command in small: runs, skips, goes on, reports, and answers bad input."""

import json

import pytest

import interflow_jax as ij
from experiments import reproduce, run
from experiments.cli.configuration import Configuration
from experiments.cli.console import duration
from experiments.runs import data, single
from experiments.runs.folder import RunFolder
from experiments.runs.training import NonFiniteLossError, StoppedError, StopSignals
from experiments.sweep import planning
from experiments.tables.index import TABLES
from interflow_jax.checkpoints import Checkpoints, UnwritableError

TINY = ["--datasets=fashion_mini", "--width=0.0625", "--train_size=128", "--epochs=1"]
COMMANDS = {
    "1": ["--table=1", "--depths=4,5", "--seeds=0", *TINY],
    "3": ["--table=3", "--depths=4", "--taps=4", "--methods=Normal,S1,Aux", "--seeds=0,1", *TINY],
    "4": ["--figure=4", "--depths=5", "--taps=3,5", "--seeds=0,1,2", *TINY],
    "5": ["--table=5", "--depths=5", "--taps=3,5", "--seeds=0,1", *TINY],
    "6": ["--table=6", "--depths=20", "--methods=Normal,S1", "--seeds=0", *TINY],
    "7": ["--table=7", "--depths=5", "--taps=3,5", "--seeds=0,1", *TINY],
    "branches": [
        *("--table=branches", "--methods=S1", "--depths=5", "--taps=3,4,5", "--seeds=0,1"),
        *TINY,
    ],
    "longer": ["--table=longer", "--depths=4", "--taps=4", "--seeds=0", *TINY],
    "weights": ["--table=weights", "--depths=4", "--taps=4", "--seeds=0", *TINY],
    "study": [
        *("--table=study", "--datasets=fashion_mini", "--depths=4", "--taps=4", "--seeds=0,1"),
        "--candidates=0.0625x128x1,0.0625x192x1",
    ],
}
RUNS = {"1": 4, "3": 6, "4": 3, "5": 2, "6": 2, "7": 2, "branches": 4, "longer": 4, "weights": 1}
RUNS["study"] = 8
PICTURES = {
    "1": ["table1"],
    "3": ["table3"],
    "4": ["figure4"],
    "5": ["table5"],
    "6": ["table6", "table6-branches"],
    "7": ["table7"],
    "branches": ["branches"],
    "longer": ["longer", "longer-by-epoch"],
    "weights": ["weights", "weights-by-epoch"],
    "study": [],
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


def report_of(out, number):
    """A table's JSON, and the runs of each cell from the record."""
    report = json.loads((out / f"{TABLES[number].name}.json").read_text())
    lines = (out / "runs.jsonl").read_text().splitlines()
    runs = {run["run"]: run for run in map(json.loads, lines)}
    return report, [[runs[name] for name in cell["runs"]] for cell in report["cells"]]


@pytest.mark.parametrize("number", COMMANDS)
def test_a_table_from_runs_to_report(number, out, capsys):
    def trained():
        return len(list(out.glob("runs/**/result.json")))

    before = trained()  # tables share runs
    assert reproduce.main([*COMMANDS[number], f"--out={out}"]) == 0
    assert f": {RUNS[number]} runs, {trained() - before} to do\n" in capsys.readouterr().out
    report, runs = report_of(out, number)
    assert sum(map(len, runs)) == RUNS[number]
    for cell, ran in zip(report["cells"], runs, strict=True):
        accuracies = [run["test_accuracy"] for run in ran]
        assert cell["mean"] == pytest.approx(sum(accuracies) / len(accuracies))
        assert cell["best"] == max(accuracies)
        assert all(run["history"][-1]["test_accuracy"] == run["test_accuracy"] for run in ran)
    text = (out / f"{TABLES[number].name}.md").read_text()
    assert report["command"] in text
    length = "1 or 4 epochs" if number == "longer" else "1 epoch"
    size = "128 or 192" if number == "study" else "128"
    assert f"{size} training examples, {length}," in text
    assert [picture["file"] for picture in report["pictures"]] == [
        f"{name}.png" for name in PICTURES[number]
    ]
    for name in PICTURES[number]:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"({name}.png)" in text

    assert reproduce.main([*COMMANDS[number], f"--out={out}"]) == 0
    assert ", 0 to do" in capsys.readouterr().out


def test_the_record_alone_gives_the_same_report(out, tmp_path):
    """What is in OUT/runs.jsonl is not trained again, and needs no run folder."""
    reproduce.main([*COMMANDS["6"], f"--out={out}"])
    (tmp_path / "runs.jsonl").write_text((out / "runs.jsonl").read_text())
    for only_report in ([], ["--report"]):
        command = [*COMMANDS["6"], *only_report, f"--out={tmp_path}"]
        assert reproduce.main(command) == 0
        (mine, _), (theirs, _) = report_of(tmp_path, "6"), report_of(out, "6")
        for report in (mine, theirs):
            del report["command"]
        assert mine == theirs
    assert not list(tmp_path.glob("runs/**/result.json"))


def test_a_difference_is_to_normal_of_the_same_seeds(out):
    reproduce.main([*COMMANDS["3"], f"--out={out}"])
    report, (normal, ours, _) = report_of(out, "3")
    pairs = zip(ours, normal, strict=True)
    expected = [a["test_accuracy"] - b["test_accuracy"] for a, b in pairs]
    first, second, _ = report["cells"]
    assert second["difference"]["mean"] == pytest.approx(sum(expected) / 2)
    assert second["difference"]["pairs"] == 2
    assert first["difference"] is None


def test_branches_stand_beside_the_fusion_of_the_same_runs(out):
    reproduce.main([*COMMANDS["branches"], f"--out={out}"])
    report, (shared, separate) = report_of(out, "branches")
    assert report["cells"][1]["to"] == "fc shared"
    assert separate[0]["parameters"] > shared[0]["parameters"]
    (section,) = report["branches"]
    rows = iter(section["rows"])
    for fc, runs in (("shared", shared), ("separate", separate)):
        for branch, after in enumerate((3, 4, 5)):
            row = next(rows)
            alone = [run["branch_accuracy"][branch] for run in runs]
            fused = [run["test_accuracy"] for run in runs]
            assert row["row"] == f"after {after}, fc {fc}"
            assert row["accuracy"]["mean"] == pytest.approx(sum(alone) / 2)
            difference = row["difference to the fusion of all"]["mean"]
            assert difference == pytest.approx((sum(alone) - sum(fused)) / 2)


def test_longer_training_is_told_apart(out):
    reproduce.main([*COMMANDS["longer"], f"--out={out}"])
    report, runs = report_of(out, "longer")
    cells = report["cells"]
    assert [(cell["section"].split(", ")[-1], cell["row"]) for cell in cells] == [
        ("epochs 1", "Normal"),
        ("epochs 1", "S1"),
        ("epochs 4", "Normal"),
        ("epochs 4", "S1"),
    ]
    assert [run["epochs"] for ran in runs for run in ran] == [1, 1, 4, 4]
    assert cells[3]["to"] == "Normal"


def test_the_study_s_candidates_are_an_axis_of_any_table(out, capsys):
    for number in ("study", "3"):
        command = [*COMMANDS["study"][1:], f"--table={number}", "--methods=Normal,S1"]
        assert reproduce.main([*command, f"--out={out}"]) == 0
        report, runs = report_of(out, number)
        sizes = [(run["train_size"], run["width"]) for ran in runs for run in ran]
        assert sorted(set(sizes)) == [(128, 0.0625), (192, 0.0625)]
        assert len({cell["section"] for cell in report["cells"]}) == 2
    assert reproduce.main([*command, "--seeds=0", f"--out={out}"]) == 0  # without any deviation
    with pytest.raises(SystemExit):
        reproduce.main(["--table=study", "--candidates=0.1x200"])
    assert "'0.1x200' is not as 0.125x20000x3" in capsys.readouterr().err
    assert reproduce.main(["--table=study", "--datasets=fashion_mini", f"--out={out}"]) == 2
    assert "--train_size=20000: fashion_mini has 6000" in capsys.readouterr().err


def test_missing_runs_show_as_missing_and_are_listed(out, capsys):
    wider = [*COMMANDS["3"], "--seeds=0,1,2", f"--out={out}"]
    reproduce.main([*COMMANDS["3"], f"--out={out}"])
    capsys.readouterr()
    assert reproduce.main([*wider, "--dry_run"]) == 0
    *commands, total = capsys.readouterr().out.strip().split("\n")
    assert len(commands) == 3
    assert all("--seed=2" in command and "about 0:" in command for command in commands)
    assert total.startswith("9 runs, 6 finished, 3 to do, about ")
    assert reproduce.main([*wider, "--report"]) == 0
    assert "| 2 of 3 |" in (out / "table3.md").read_text()
    capsys.readouterr()
    assert reproduce.main([*wider, "--dry_run"]) == 0
    assert "6 finished, 3 to do" in capsys.readouterr().out


def test_a_run_that_fails_is_named_and_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    train = single.run

    def failing(flags, *rest):
        if flags.seed == 0:
            raise NonFiniteLossError("the loss is nan in epoch 1, step 1 of 2")
        return train(flags, *rest)

    monkeypatch.setattr(single, "run", failing)
    command = ["--table=1", "--depths=4", "--downsample=last", "--seeds=0,1", *TINY]
    assert reproduce.main([*command, f"--out={tmp_path}"]) == 1
    captured = capsys.readouterr()
    assert "seed0: the loss is nan" in captured.err
    assert "| 1 of 2 |" in (tmp_path / "table1.md").read_text()


def test_what_nobody_foresaw_does_not_stop_the_others_either(tmp_path, capsys, monkeypatch):
    train = single.run

    def failing(flags, *rest):
        if flags.seed == 0:
            raise MemoryError("7 GB")
        return train(flags, *rest)

    monkeypatch.setattr(single, "run", failing)
    command = ["--table=1", "--depths=4", "--downsample=last", "--seeds=0,1", *TINY]
    assert reproduce.main([*command, f"--out={tmp_path}"]) == 1
    captured = capsys.readouterr()
    assert "seed0: MemoryError: 7 GB" in captured.err
    assert "Traceback" in captured.err
    assert "| 1 of 2 |" in (tmp_path / "table1.md").read_text()


def test_a_dry_run_answers_bad_input_and_estimates_by_other_runs(tmp_path, capsys):
    dry = ["--table=3", "--preset=quick", "--methods=S1", "--seeds=0", "--dry_run"]
    dry.append(f"--out={tmp_path}")
    assert reproduce.main([*dry, "--datasets=cifar10", "--train_size=50001"]) == 2
    assert "--train_size=50001: cifar10 has 50000" in capsys.readouterr().err
    assert reproduce.main([*dry, "--datasets=cifar11"]) == 2
    assert "cifar11" in capsys.readouterr().err
    assert reproduce.main([*dry, "--datasets=svhn"]) == 0
    assert "not measured yet" in capsys.readouterr().out
    flags = Configuration(method="Normal", dataset="cifar10", width=0.125)
    other = planning.plan(flags, tmp_path / "runs")
    line = {"run": other.name, **flags.identity(0), "images_per_second": 500.0}
    (tmp_path / "runs.jsonl").write_text(json.dumps(line) + "\n")
    assert reproduce.main([*dry, "--datasets=svhn", "--width=0.125"]) == 0
    # The same network on images of the same size: 3 epochs, test images at a third.
    seconds = 3 * (20_000 + 26_032 / 3) / 500
    assert f"about {duration(seconds)}" in capsys.readouterr().out
    assert (
        reproduce.main([*dry, "--datasets=eurosat/rgb"]) == 0
    )  # of how many images, and how large?
    assert "not measured yet" in capsys.readouterr().out


def test_a_dry_run_of_all_rates_says_how_long_is_left(tmp_path, capsys):
    """By the pace of the runs that are there, of whatever method and rate."""
    dry = ["--table=rates", "--methods=Normal,S1", f"--out={tmp_path}", "--dry_run"]
    flags = Configuration(
        method="Normal", dataset="cifar10", width=0.125, train_size=10_000, epochs=60
    )
    run = planning.plan(flags, tmp_path / "runs")
    line = {"run": run.name, **flags.identity(0), "images_per_second": 500.0}
    (tmp_path / "runs.jsonl").write_text(json.dumps(line) + "\n")
    assert reproduce.main(dry) == 0
    note, *commands, total = capsys.readouterr().out.strip().split("\n")
    assert "training examples that no run trains on" in note
    assert len(commands) == 2 * len(TABLES["rates"].axes["learning_rate"]) * 3 - 1
    left = len(commands)
    assert total.startswith(f"{left + 1} runs, 1 finished, {left} to do, about ")
    # As Normal's first: 60 epochs, test images at a third.
    alike = f"about {duration(60 * (10_000 + 10_000 / 3) / 500)}"
    assert all(alike in command for command in commands if "--method=Normal" in command)


def test_the_best_rates_are_chosen_before_they_are_tested(tmp_path, capsys):
    command = ["--table=best", "--methods=S1", "--dry_run", f"--out={tmp_path}"]
    assert reproduce.main(command) == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith("first train --table=rates --methods=Normal,S1 with the same flags")
    assert len(said.split("\n")) == 1


def test_runs_that_another_sweep_does_meanwhile_are_left_to_it(tmp_path, capsys, monkeypatch):
    train, trained = single.run, []

    def beside_another(flags, session, seed, folder, command):
        result = train(flags, session, seed, folder, command)
        trained.append(seed)
        for other in (2, 3):
            there = folder.path.with_name(f"seed{other}")
            there.mkdir()
            (there / "result.json").write_text(json.dumps(result | {"seed": other}))
        return result

    monkeypatch.setattr(single, "run", beside_another)
    command = ["--table=1", "--depths=4", "--downsample=last", "--seeds=1,2,3", *TINY]
    assert reproduce.main([*command, f"--out={tmp_path}"]) == 0
    assert trained == [1]
    assert "| 3 of 3 |" in (tmp_path / "table1.md").read_text()


@pytest.mark.parametrize("ends", [True, False])
def test_runs_in_another_process_s_hands_come_last(ends, tmp_path, capsys, monkeypatch):
    """Those that it ends in the meantime are as good as ours; one that it does not is missing."""
    theirs = tmp_path.joinpath(
        "runs", "epochs1-depth4-width0.0625-downsamplelast-train_size128", "fashion_mini"
    ).joinpath("Normal", "seed0")
    theirs.mkdir(parents=True)
    train, prepare, prepared = single.run, single.prepare, []

    def beside_another(flags, session, seed, folder, command):
        result = train(flags, session, seed, folder, command)
        if ends and seed == 2:
            (theirs / "result.json").write_text(json.dumps(result | {"seed": 0}))
        return result

    monkeypatch.setattr(single, "run", beside_another)
    monkeypatch.setattr(single, "prepare", lambda *given: (prepared.append(1), prepare(*given))[1])
    command = ["--table=1", "--depths=4", "--downsample=last", "--seeds=1,0,2", *TINY]
    with RunFolder(theirs).locked():
        assert reproduce.main([*command, f"--out={tmp_path}"]) == (0 if ends else 1)
    said = capsys.readouterr()
    assert f"left for now: another process is training in {theirs}" in said.out
    assert (f"failed: {theirs}: another process is training in" in said.err) != ends
    assert f"| {3 if ends else 2} of 3 |" in (tmp_path / "table1.md").read_text()
    assert prepared == [1]


def test_a_signal_ends_the_sweep_even_where_nothing_can_be_saved(tmp_path, capsys, monkeypatch):
    tried = []

    def no_space(*_):
        raise UnwritableError("No space left on device")

    def signalled(*_):
        tried.append(1)
        raise StoppedError(15)

    monkeypatch.setattr(Checkpoints, "save", no_space)
    monkeypatch.setattr(StopSignals, "check", signalled)
    command = ["--table=1", "--depths=4", "--downsample=last", "--seeds=0,1", *TINY]
    assert reproduce.main([*command, f"--out={tmp_path}"]) == 128 + 15
    assert tried == [1]
    assert "stopped, but the last state could not be saved" in capsys.readouterr().out


def test_a_full_disk_leaves_the_report_before_and_names_what_failed(
    out, tmp_path, capsys, monkeypatch
):
    command = ["--table=1", "--depths=4", "--downsample=last", "--seeds=0", *TINY]
    assert reproduce.main([*command, f"--out={tmp_path}"]) == 0
    before = {file: file.read_bytes() for file in tmp_path.glob("table1.*")}
    assert len(before) == 3
    with monkeypatch.context() as full:

        def no_space(*_):
            raise OSError("No space left on device")

        def failing(*_):
            raise NonFiniteLossError("the loss is nan in epoch 1, step 1 of 2")

        full.setattr(single, "run", failing)
        full.setattr("pathlib.Path.replace", no_space)
        assert reproduce.main([*command, "--seeds=0,1", f"--out={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert "seed1" in said
    assert said.endswith("reproduce: stopped: No space left on device\n")
    assert {file: file.read_bytes() for file in before} == before


def test_what_needs_no_data_is_checked_before_a_download(tmp_path, capsys, monkeypatch):
    def download(*_):
        raise AssertionError("downloads first")

    monkeypatch.setattr(data, "prepare", download)
    command = ["--table=3", "--methods=S1", "--seeds=0", f"--data_dir={tmp_path}"]
    out = f"--out={tmp_path / 'results'}"
    assert reproduce.main([*command, "--datasets=mnist,cifar11", out]) == 2
    assert "cifar11" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    out = f"--out={tmp_path / 'file'}"
    assert reproduce.main([*command, "--datasets=mnist", out]) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_a_run_of_a_sweep_is_the_main_command_s(out, tmp_path):
    """The recorded command, run by itself elsewhere, gives the same parameters bit for bit."""
    reproduce.main([*COMMANDS["1"], f"--out={out}"])
    (ran,) = report_of(out, "1")[1][0]
    arguments = ran["command"].split()[3:]
    assert arguments[-1].startswith("--out=")
    assert run.main([*arguments[:-1], f"--out={tmp_path}"]) == 0
    again = json.loads((tmp_path / "fashion_mini/Normal/seed0/result.json").read_text())
    assert again["fingerprint"] == ran["fingerprint"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "give either --table=N, of 1, 2, 3"),
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
        (["--table=8"], "choose from '1', '2'"),
        (["--table=3", "--methods=S10"], "--methods=S10: choose from Normal, S0"),
        (["--table=3", "--width=-1"], "width is -1.0"),
        (["--table=6", "--depths=300"], "depth is 300"),
        (["--table=3", "--seeds=-1"], "seed -1"),
        (["--table=3", "--preset=gpu"], "choose from"),
        (["--table=3", "--widht=1"], "did you mean --width?"),
        (["--table=3", "--fusion=clas"], "did you mean class?"),
        (["--table=networks", "--learning_rates=1e-2"], "--learning_rates: the table networks"),
        (["--table=exits", "--methods=S1"], "--methods: the table exits decides it; leave it out"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(arguments, named, tmp_path, capsys):
    try:
        status = reproduce.main([*arguments, f"--out={tmp_path / 'results'}"])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    said = capsys.readouterr().err.strip()
    assert named in said
    assert len(said.split("\n")) == 1
    assert not (tmp_path / "results").exists()


def test_a_report_that_names_fewer_runs_says_so(out, capsys):
    reproduce.main([*COMMANDS["3"], f"--out={out}"])
    capsys.readouterr()
    assert reproduce.main([*COMMANDS["3"], "--seeds=1", "--report", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "3 finished run(s) of the report before are not in this one" in said
    command = json.loads((out / "table3.json").read_text())["command"]
    assert "--seeds=1" in command
    assert "--report" not in command
    again = said.strip().split("to have them back: python -m experiments.reproduce ")[1].split()
    assert reproduce.main(again) == 0
    assert "finished run(s)" not in capsys.readouterr().out
    assert "| 2 of 2 |" in (out / "table3.md").read_text()


def test_a_result_of_another_version_is_named(out, capsys):
    reproduce.main([*COMMANDS["7"], f"--out={out}"])
    result = next(out.glob("runs/*/fashion_mini/S3/seed1/result.json"))
    text = result.read_text()
    result.write_text(text.replace('"branch_accuracy"', '"branches_alone"'))
    capsys.readouterr()
    assert reproduce.main([*COMMANDS["7"], f"--out={out}"]) == 2
    result.write_text(text)
    said = capsys.readouterr().err
    assert f"{result.parent.relative_to(out / 'runs')} in {out} has no branch_accuracy" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("place", ["check", "prepare"])
def test_ctrl_c_outside_training_ends_as_in_it(place, out, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(single, place, interrupted)
    assert reproduce.main([*COMMANDS["7"], f"--out={tmp_path}"]) == 130
    assert "run the same command again" in capsys.readouterr().out


def test_table_2_is_that_of_the_code(capsys):
    assert reproduce.main(["--table=2"]) == 0
    rows = capsys.readouterr().out.strip().split("\n")[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [*ij.METHODS, *ij.BASELINES]
