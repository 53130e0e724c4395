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
from experiments.tables import cells, paper, report, weight_report
from experiments.tables.protocol import protocol
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
}
RUNS = {"1": 4, "3": 6, "4": 3, "5": 2, "6": 2, "7": 2, "branches": 4, "longer": 4, "weights": 1}
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
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.mark.parametrize("number", COMMANDS)
def test_a_table_from_runs_to_report(number, out, capsys):
    def trained():
        return len(list(out.glob("runs/**/result.json")))

    before = trained()  # tables share runs
    assert reproduce.main([*COMMANDS[number], f"--out={out}"]) == 0
    assert f": {RUNS[number]} runs, {trained() - before} to do\n" in capsys.readouterr().out
    report = json.loads((out / f"{cells.stem(number)}.json").read_text())
    assert sum(len(cell["runs"]) for cell in report["cells"]) == RUNS[number]
    for cell in report["cells"]:
        accuracies = [ran["test_accuracy"] for ran in cell["runs"]]
        assert cell["mean"] == pytest.approx(sum(accuracies) / len(accuracies))
        assert cell["best"] == max(accuracies)
    text = (out / f"{cells.stem(number)}.md").read_text()
    assert report["command"] in text
    length = "1 or 4 epochs" if number == "longer" else "1 epoch"
    assert f"128 training examples, {length}," in text
    for name in PICTURES[number]:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"({name}.png)" in text

    assert reproduce.main([*COMMANDS[number], f"--out={out}"]) == 0
    assert ", 0 to do" in capsys.readouterr().out


def test_a_difference_is_to_normal_of_the_same_seeds(out):
    reproduce.main([*COMMANDS["3"], f"--out={out}"])
    normal, ours, _ = json.loads((out / "table3.json").read_text())["cells"]
    pairs = zip(ours["runs"], normal["runs"], strict=True)
    expected = [a["test_accuracy"] - b["test_accuracy"] for a, b in pairs]
    assert ours["difference"]["mean"] == pytest.approx(sum(expected) / 2)
    assert ours["difference"]["pairs"] == 2
    assert normal["difference"] is None


def test_branches_stand_beside_the_fusion_of_the_same_runs(out):
    reproduce.main([*COMMANDS["branches"], f"--out={out}"])
    shared, separate = json.loads((out / "branches.json").read_text())["cells"]
    assert separate["difference"]["to"] == "shared"
    assert separate["runs"][0]["parameters"] > shared["runs"][0]["parameters"]
    for cell in (shared, separate):
        for branch, found in enumerate(cell["branches_alone"]):
            alone = [ran["branch_accuracy"][branch] for ran in cell["runs"]]
            fused = [ran["test_accuracy"] for ran in cell["runs"]]
            assert found["after"] == (3, 4, 5)[branch]
            assert found["mean"] == pytest.approx(sum(alone) / 2)
            assert found["difference"]["mean"] == pytest.approx((sum(alone) - sum(fused)) / 2)


def test_longer_training_is_told_apart(out):
    reproduce.main([*COMMANDS["longer"], f"--out={out}"])
    cells = json.loads((out / "longer.json").read_text())["cells"]
    assert [(cell["section"].split(", ")[-1], cell["row"]) for cell in cells] == [
        ("1 epoch", "Normal"),
        ("1 epoch", "Interflow (S1)"),
        ("4 epochs", "Normal"),
        ("4 epochs", "Interflow (S1)"),
    ]
    assert [ran["epochs"] for cell in cells for ran in cell["runs"]] == [1, 1, 4, 4]
    assert cells[3]["difference"]["to"] == "Normal"


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
    dry = ["--table=3", "--methods=S1", "--seeds=0", f"--out={tmp_path}", "--dry_run"]
    assert reproduce.main([*dry, "--datasets=cifar10", "--train_size=50001"]) == 2
    assert "--train_size=50001: cifar10 has 50000" in capsys.readouterr().err
    assert reproduce.main([*dry, "--datasets=cifar11"]) == 2
    assert "cifar11" in capsys.readouterr().err
    assert reproduce.main([*dry, "--datasets=svhn"]) == 0
    assert "not measured yet" in capsys.readouterr().out
    flags = Configuration(method="Normal", dataset="cifar10", width=0.125)
    other = planning.plan(flags, tmp_path / "runs").folder
    other.path.mkdir(parents=True)
    broken = tmp_path / "runs" / "another" / "svhn" / "S1" / "seed0"
    broken.mkdir(parents=True)
    (broken / "result.json").write_text("{}")
    other.write_json("result.json", {**flags.identity(0), "images_per_second": 500.0})
    assert reproduce.main([*dry, "--datasets=svhn", "--width=0.125"]) == 0
    # The same network on images of the same size: 3 epochs, test images at a third.
    seconds = 3 * (20_000 + 26_032 / 3) / 500
    assert f"about {duration(seconds)}" in capsys.readouterr().out
    assert (
        reproduce.main([*dry, "--datasets=eurosat/rgb"]) == 0
    )  # of how many images, and how large?
    assert "not measured yet" in capsys.readouterr().out


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
    with RunFolder(theirs).held():
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


def test_depths_are_shallow_to_deep_however_they_are_given():
    def depths(*given):
        choice = cells.Choice("cpu", depths=given, seeds=(0,))
        return [cell.flags.depth for cell in cells.cells("6", choice)]

    assert depths(60, 40) == depths(40, 60) == [40, 40, 60, 60, 60, 60]


def test_what_depth_costs_is_counted_from_the_shallowest_that_has_runs():
    cells = [
        {
            "section": f"fashion_mnist, depth {depth}",
            "row": "Normal",
            "runs": [
                {"seed": seed, "test_accuracy": value + seed} for seed, value in enumerate(values)
            ],
        }
        for depth, values in ((40, ()), (50, (80.0, 80.0)), (60, (50.0, 53.0)))
    ]
    (found,) = report.by_depth(cells)
    assert found["section"] == "fashion_mnist, depth 60"
    assert found["mean"] == pytest.approx(-28.5)


def test_a_run_of_a_sweep_is_the_main_command_s(out, tmp_path):
    """The recorded command, run by itself elsewhere, gives the same parameters bit for bit."""
    reproduce.main([*COMMANDS["1"], f"--out={out}"])
    cell = json.loads((out / "table1.json").read_text())["cells"][0]
    (ran,) = cell["runs"]
    arguments = ran["command"].split()[3:]
    assert arguments[-1].startswith("--out=")
    assert run.main([*arguments[:-1], f"--out={tmp_path}"]) == 0
    again = json.loads((tmp_path / "fashion_mini/Normal/seed0/result.json").read_text())
    assert again["fingerprint"] == ran["fingerprint"]


def test_runs_of_different_configurations_have_different_folders(tmp_path):
    choices = [
        cells.Choice(preset, overrides=overrides)
        for preset in ("cpu", "paper")
        for overrides in ({}, {"downsample": "last"}, {"fc": "separate"}, {"epochs": 7})
    ]
    planned = [
        made
        for choice in choices
        for cell in cells.cells("7", choice)
        for made in cell.runs(tmp_path)
    ]
    assert len({made.folder.path for made in planned}) == len(planned) == 8 * 10


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--table=1 to 7, branches, longer or weights, or --figure=4"),
        (["--table=3", "--figure=4"], "--table=1 to 7, branches, longer or weights, or --figure=4"),
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


@pytest.mark.parametrize("number", cells.TABLES)
def test_no_two_cells_have_the_same_place(number):
    choice = cells.Choice(
        "cpu", ("cifar10", "svhn"), ("Normal", "S1", "S3", "Aux"), (13, 20, 60), (0,)
    )
    places = [(cell.section, cell.row) for cell in cells.cells(number, choice)]
    assert len(set(places)) == len(places) >= 24


def test_the_paper_s_figures_stand_beside_its_networks_alone():
    deep = cells.Choice("paper", methods=("Normal", "S1", "S3"), depths=(11,))
    for number in ("3", "4", "5", "6", "7", "branches", "longer", "weights"):
        assert {cell.paper for cell in cells.cells(number, deep)} == {None}
    by_method = {cell.flags.method: cell.paper for cell in cells.cells("1", deep)}
    assert by_method == {"Normal": paper.value("1", "11", "accuracy"), "S1": None, "S3": None}


@pytest.mark.parametrize(
    ("choice", "whose"),
    [
        (cells.Choice("paper"), True),
        (cells.Choice("paper", overrides={"data_dir": "/data"}), True),
        (cells.Choice("paper", overrides={"batch_size": 512}), False),
        (cells.Choice("paper", overrides={"dtype": "bfloat16"}), False),
        (cells.Choice("paper", ("fashion_mini",)), False),
        (cells.Choice("cpu"), False),
    ],
)
def test_a_protocol_says_whether_it_is_the_paper_s(choice, whose):
    said = protocol([cell.flags for cell in cells.cells("3", choice)], [])
    assert said.endswith(" (the paper's)") == whose
    assert ("; the paper's: width 1" in said) != whose


def test_a_protocol_names_what_else_was_given():
    overrides = {"downsample": "last", "taps": (9, 13)}
    made = cells.cells("7", cells.Choice("cpu", overrides=overrides))
    assert ", --taps=9,13, --downsample=last;" in protocol([cell.flags for cell in made], [])
    both = cells.cells("3", cells.Choice("cpu", ("fashion_mini", "cifar10")))
    assert "20,000 or all training examples" in protocol([cell.flags for cell in both], [])


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


def test_curves_are_those_of_finished_runs(out):
    reproduce.main([*COMMANDS["1"], f"--out={out}"])
    choice = cells.Choice(
        "cpu",
        ("fashion_mini",),
        depths=(4,),
        seeds=(0,),
        overrides={"width": 0.0625, "train_size": 128, "epochs": 1, "downsample": "first"},
    )
    (cell,) = cells.cells("1", choice)
    (planned,) = cell.runs(out / "runs")
    (read,) = report.histories([cell], out / "runs").values()
    assert [len(epochs) for epochs in read] == [1]
    finished = planned.folder.path / "result.json"
    aside = finished.rename(finished.with_name("aside"))
    (read,) = report.histories([cell], out / "runs").values()
    aside.rename(finished)
    assert read == []


def test_a_result_of_another_version_is_named(out, capsys):
    reproduce.main([*COMMANDS["7"], f"--out={out}"])
    result = next(out.glob("runs/*/fashion_mini/S3/seed1/result.json"))
    text = result.read_text()
    result.write_text(text.replace('"fingerprint"', '"finger"'))
    capsys.readouterr()
    assert reproduce.main([*COMMANDS["7"], f"--out={out}"]) == 2
    result.write_text(text)
    said = capsys.readouterr().err
    assert f"{result} has no fingerprint" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("place", ["check", "prepare"])
def test_ctrl_c_outside_training_ends_as_in_it(place, out, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(single, place, interrupted)
    assert reproduce.main([*COMMANDS["7"], f"--out={tmp_path}"]) == 130
    assert "to go on, run the same command again" in capsys.readouterr().out


def test_every_cell_of_the_paper_has_its_figure():
    choice = cells.Choice("paper")
    for number in ("1", "3", "6"):
        for cell in cells.cells(number, choice):
            baseline = cell.flags.method in ij.BASELINES
            assert (cell.paper is None) == baseline, (number, cell.section, cell.row)
    (cell,) = cells.cells("7", choice)
    assert cell.paper == paper.value("7", "mean", "accuracy")
    assert len(cell.seeds) == 10


def test_the_paper_preset_is_the_main_command_s_default():
    """Paper, IV-B."""
    (cell,) = cells.cells("4", cells.Choice("paper"))
    assert cell.flags == Configuration(method="S1", dataset="cifar10")


def test_table_2_is_that_of_the_code(capsys):
    assert reproduce.main(["--table=2"]) == 0
    rows = capsys.readouterr().out.strip().split("\n")[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [*ij.METHODS, *ij.BASELINES]


def test_weights_over_runs_need_a_run():
    (cell,) = cells.cells("4", cells.Choice("cpu"))
    assert weight_report.over_runs(cell, []) is None
