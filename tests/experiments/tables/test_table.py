"""What tables train and how their cells are named: any choice of the command line."""

import re

import pytest

import interflow_jax as ij
from experiments.cli.configuration import Configuration
from experiments.sweep.record import Record
from experiments.tables import frame, paper, pictures, presets, report, study
from experiments.tables.frame import Results
from experiments.tables.index import TABLES
from experiments.tables.table import Choice, Table

OF_VGG = [name for name in TABLES if name != "networks"]  # whose networks have no depth


def test_depths_are_shallow_to_deep_however_they_are_given():
    def depths(*given):
        choice = Choice(axes={"depth": given}, seeds=(0,))
        return [cell.flags.depth for cell in TABLES["6"].cells(choice)]

    assert depths(60, 40) == depths(40, 60) == [40, 40, 60, 60, 60, 60]


def test_runs_of_different_configurations_have_different_folders(tmp_path):
    choices = [
        Choice(preset, overrides=overrides)
        for preset in ("end", "quick", "paper")
        for overrides in ({}, {"downsample": "last"}, {"fc": "separate"}, {"epochs": 7})
    ]
    table = TABLES["7"]
    runs = [
        run
        for choice in choices
        for run in frame.planned(table.cells(choice), table.run_seeds(choice), tmp_path)
    ]
    assert len({run.folder.path for run in runs}) == len(runs) == 12 * 10


@pytest.mark.parametrize(
    "axis", [{}, {"batch_size": (32, 64)}, {study.CANDIDATE: ((1, 64, 2), (2, 64, 2))}]
)
@pytest.mark.parametrize("number", OF_VGG)
def test_no_two_cells_have_the_same_place(number, axis):
    """Whatever axis a table takes, its headings tell the cells apart."""
    axes = {
        "dataset": ("cifar10", "svhn"),
        "method": ("Normal", "S1", "S3", "Aux"),
        "depth": (13, 20, 60),
    }
    cells = TABLES[number].cells(Choice(axes=axes | axis, seeds=(0,)))
    places = [(cell.section, cell.row) for cell in cells]
    assert len(set(places)) == len(places) >= 24 * (2 if axis else 1)


def test_an_axis_that_the_choice_varies_stands_in_the_headings():
    choice = Choice(axes={"batch_size": (32, 64)}, overrides={"width": 0.5})
    cells = TABLES["4"].cells(choice)
    assert [cell.section for cell in cells] == ["cifar10, batch_size 32", "cifar10, batch_size 64"]
    assert [cell.flags.batch_size for cell in cells] == [32, 64]
    assert {cell.flags.width for cell in cells} == {0.5}
    # What a cell is compared with differs from it by nothing else.
    assert [cell.reference.batch_size for cell in cells] == [32, 64]


def test_an_override_narrows_an_axis():
    cells = TABLES["1"].cells(Choice(overrides={"downsample": "last"}))
    assert {cell.flags.downsample for cell in cells} == {"last"}
    assert len(cells) == 10


def test_layouts_stand_in_the_headings():
    depth = {"depth": (60,)}
    cells = TABLES["6"].cells(Choice(axes=depth, overrides={"layout": "append"}))
    assert {(cell.section, cell.flags.layout) for cell in cells} == {
        ("cifar10, depth 60, layout append", "append")
    }
    cells = TABLES["6"].cells(Choice(axes=depth | {"layout": ("spread", "append")}))
    assert {cell.section for cell in cells} == {
        "cifar10, depth 60, layout spread",
        "cifar10, depth 60, layout append",
    }


def test_the_paper_s_figures_stand_beside_its_networks_alone():
    axes = {"method": ("Normal", "S1", "S3"), "depth": (11,)}
    deep = Choice("paper", axes, overrides={"taps": (11,)})
    for number in OF_VGG[1:]:
        assert {cell.paper for cell in TABLES[number].cells(deep)} == {None}, number
    by_method = {cell.flags.method: cell.paper for cell in TABLES["1"].cells(deep)}
    assert by_method == {"Normal": paper.value("1", "11", "accuracy"), "S1": None, "S3": None}


def test_every_cell_of_the_paper_has_its_figure():
    choice = Choice("paper")
    for number in ("1", "3", "6"):
        for cell in TABLES[number].cells(choice):
            baseline = cell.flags.method in ij.BASELINES
            assert (cell.paper is None) == baseline, (number, cell.section, cell.row)
    (cell,) = TABLES["7"].cells(choice)
    assert cell.paper == paper.value("7", "mean", "accuracy")
    assert len(TABLES["7"].run_seeds(choice)) == 10


def test_the_paper_preset_is_the_main_command_s_default():
    """Paper, IV-B."""
    (cell,) = TABLES["4"].cells(Choice("paper"))
    assert cell.flags == Configuration(method="S1", dataset="cifar10")


def test_the_study_chose_the_quick_preset_among_its_candidates():
    cells = TABLES["study"].cells(Choice())
    assert len(cells) == 8
    small = presets.PRESETS["quick"]
    assert any(small.items() <= vars(cell.flags).items() for cell in cells)


@pytest.mark.parametrize(
    ("choice", "whose"),
    [
        (Choice("paper"), True),
        (Choice("paper", overrides={"data_dir": "/data"}), True),
        (Choice("paper", overrides={"batch_size": 512}), False),
        (Choice("paper", overrides={"dtype": "bfloat16"}), False),
        (Choice("paper", {"dataset": ("fashion_mini",)}), False),
        (Choice("quick"), False),
    ],
)
def test_a_protocol_says_whether_it_is_the_paper_s(choice, whose, tmp_path):
    text = protocol("3", choice, tmp_path)
    assert text.endswith(" (the paper's)") == whose
    assert ("; the paper's: width 1" in text) != whose


def protocol(number, choice, out):
    cells = TABLES[number].cells(choice)
    results = Results(cells, (0,), Record(out), out)
    return report.protocol([cell.flags for cell in cells], results.runs)


def test_a_protocol_names_what_else_was_given(tmp_path):
    overrides = {"downsample": "last", "taps": (9, 13)}
    assert ", --downsample=last, --taps=9,13;" in protocol(
        "7", Choice(overrides=overrides), tmp_path
    )
    both = Choice(axes={"dataset": ("fashion_mini", "cifar10")})
    assert "10,000 or all training examples" in protocol("3", both, tmp_path)


def test_a_file_s_name_is_safe_in_a_link():
    name = pictures.stem("table9", "eurosat/rgb, depth 40", "Aux (not the paper's)", "width 0.5")
    assert re.fullmatch(r"[A-Za-z0-9.-]+", name)
    assert name == "table9-eurosat-rgb-depth-40-Aux-not-the-paper-s-width-0.5"


def test_a_table_needs_no_picture_and_no_detail(tmp_path):
    table = Table("plain", "Plain", 2, {"dataset": ("mnist",), "depth": (13,), "method": ("S1",)})
    report.write(table, Choice(), Record(tmp_path), tmp_path, "command")
    assert {file.name for file in tmp_path.iterdir()} == {"plain.json", "plain.md"}
