"""What every table wants and says, from runs that were never trained."""

import re
from pathlib import Path
from types import ModuleType

import pytest

import interflow_jax as ij
from experiments.sweep.record import EXITS
from experiments.tables import paper, pictures, plan
from experiments.tables.report import protocol
from experiments.tables.runs import load
from interflow_jax.cli.config import RunConfig
from tests.experiments.tables.invented import TABLES, cells, planned, record, reported

RESULTS = Path(__file__).parents[3] / "results"


def configs(name, out, **choice):
    """A table's runs, of every recipe the one with the first seed."""
    seeds = choice.pop("seeds", TABLES[name].SEEDS)[:1]
    return [*planned(name, out, seeds=seeds, **choice)["config"]]


def accurate(accuracy):
    return lambda config: {"accuracy": accuracy}


MEASURED = {"best", "exits", "networks", "probes"}  # need more of a run than its accuracy
PICTURES = {  # of other tables none
    "1": ["table1"],
    "3": ["table3"],
    "4": ["figure4"],
    "5": ["table5"],
    "6": ["table6", "table6-branches", "table6-learning"],
    "7": ["table7"],
    "branches": ["branches"],
    "controls": ["controls"],
    "degradation": ["degradation-learning"],
    "rates": ["rates"],
    "recipes": ["recipes"],
    "settings": ["settings"],
}


@pytest.mark.parametrize("name", sorted({*TABLES} - MEASURED))
def test_a_report_is_whole(name, tmp_path):
    """Markdown, JSON without NaN, and every picture, of a table with some of its runs."""
    choice = {"seeds": (0, 1), "datasets": ("cifar10",)} | (
        {"depths": (40, 60)} if name == "6" else {}
    )
    record(tmp_path, planned(name, tmp_path, **choice)["config"][:-1], accurate(50.0))
    report = reported(name, tmp_path, **choice)
    assert [picture["file"] for picture in report["pictures"]] == [
        f"{picture}.png" for picture in PICTURES.get(name, ())
    ]
    (text,) = [file.read_text() for file in tmp_path.glob("*.md")]
    for picture in report["pictures"]:
        assert (tmp_path / picture["file"]).read_bytes().startswith(b"\x89PNG")
        assert f"[{picture['shows']}]({picture['file']})" in text


def test_an_axis_is_the_table_s_own_runs_or_its_first_ones_at_another_value(tmp_path):
    def places(**choice):
        runs = configs("6", tmp_path, **choice)
        return [(run.model.depth, run.model.method, run.model.layout) for run in runs]

    own = [(60, method, "spread") for method in ("Normal", "S1", "Aux", "DSN")]
    assert places(depths=(60,)) == own
    assert places(depths=(20,)) == [(20, "Normal", "spread"), (20, "S1", "spread")]
    assert places(given={"depth": 60, "layout": "append"}) == [(*run[:2], "append") for run in own]
    both = places(methods=("DSN", "S3"), depths=(60,))
    assert both == [(60, "DSN", "spread"), (60, "S3", "spread")]
    networks = configs("networks", tmp_path, learning_rates=(2.0,))
    assert {run.training.learning_rate for run in networks} == {2.0}
    with pytest.raises(ValueError, match=r"^--depth and --depths: give one"):
        places(given={"depth": 4}, depths=(4,))


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("networks", "exits")])
def test_headings_tell_apart_whatever_a_table_varies(name, tmp_path):
    """Runs that differ by more than the seed are of different rows."""
    axes = {"methods": ("Normal", "S1"), "depths": (13, 20), "learning_rates": (1e-3, 1e-2)}
    if hasattr(TABLES[name], "CHOOSE"):
        axes["learning_rates"] = (1e-2,)
    choice = {"datasets": ("cifar10", "svhn"), "seeds": (100, 101), **axes}
    wanted = [*planned(name, tmp_path, **choice)["config"]]
    record(tmp_path, wanted, accurate(50.0))
    rows = cells(name, tmp_path, **choice)
    assert {len(row["runs"].names) for row in rows} == {2}
    assert len(rows) == len({each.replace(seed=0) for each in wanted}) >= 2 * 2 * 2


def test_the_table_that_the_docs_show_is_one(tmp_path):
    text = (RESULTS.parent / "docs" / "layout.md").read_text()
    table = ModuleType("momenta")
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], vars(table))
    runs = plan.plan(table, load(tmp_path), table.DATASETS, table.SEEDS, {})
    record(tmp_path, runs["config"], accurate(50.0))
    runs = plan.plan(table, load(tmp_path), table.DATASETS, table.SEEDS, {})
    titles = [section.title for section in table.report(runs)]
    assert titles == ["cifar10, momentum 0.8", "cifar10, momentum 0.9", "cifar10, momentum 0.95"]


@pytest.mark.parametrize("name", "134567")
def test_every_cell_of_the_paper_has_its_figure(name, tmp_path):
    choice = {"preset": "paper", "seeds": (0,)}
    record(tmp_path, planned(name, tmp_path, **choice)["config"], accurate(50.0))
    for row in cells(name, tmp_path, **choice):
        assert (row["paper"] is None) == (row["method"] in ij.BASELINES)


@pytest.mark.parametrize("name", "13457")
def test_other_networks_stand_without_the_paper_s_figures(name, tmp_path):
    choice = {"preset": "paper", "seeds": (0,), "depths": (11,), "given": {"taps": (11,)}}
    choice["methods"] = ("Normal", "S1", "S3")
    record(tmp_path, planned(name, tmp_path, **choice)["config"], accurate(50.0))
    by_method = {row["method"]: row["paper"] for row in cells(name, tmp_path, **choice)}
    normal = paper.value("1", "11", "accuracy") if name == "1" else None
    assert by_method == {"Normal": normal, "S1": None, "S3": None}


def test_the_paper_preset_is_the_main_command_s_default(tmp_path):
    """Paper, IV-B."""
    (config,) = configs("4", tmp_path, preset="paper")
    assert config == RunConfig().replace(method="S1", dataset="cifar10")


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"preset": "paper"}, "The paper's: width 1"),
        ({"given": {"dtype": "bfloat16", "taps": (9, 13)}}, "--dtype=bfloat16 --taps=9,13 "),
        ({}, "--width=0.125 --train_size=10000 --epochs=60; the paper's: width 1"),
        ({"datasets": ("cifar10", "mnist")}, "--epochs=40 or 60; the paper's"),
    ],
)
def test_a_protocol_says_how_the_paper_s_runs_are_not_these(choice, says, tmp_path):
    assert says in protocol(planned("7", tmp_path, **choice))


def test_a_file_s_name_is_safe_in_a_link():
    name = pictures.stem("table9", "eurosat/rgb, depth 40", "Aux (not the paper's)", "width 0.5")
    assert re.fullmatch(r"[A-Za-z0-9.-]+", name)
    assert name == "table9-eurosat-rgb-depth-40-Aux-not-the-paper-s-width-0.5"


@pytest.mark.parametrize(
    ("dataset", "given", "trained"),
    [
        ("fashion_mini", {}, 5_400),
        ("cifar10", {"train_size": 50_000}, 45_000),
        ("cifar10", {"train_size": 20_000}, 20_000),
        ("eurosat/rgb", {"train_size": 20_000}, 20_000),
    ],
)
def test_there_are_always_examples_held_out(dataset, given, trained, tmp_path):
    choice = {"datasets": (dataset,), "preset": "paper", "given": given}
    assert {each.data.train_size for each in configs("rates", tmp_path, **choice)} == {trained}


def test_of_an_unknown_size_the_command_line_must_say_how_many_train(tmp_path):
    with pytest.raises(ValueError, match=r"eurosat/rgb: .* give a --train_size"):
        planned("rates", tmp_path, datasets=("eurosat/rgb",), preset="paper")


RATES = {"learning_rates": (1e-3, 1e-2)}
BY_RATE = {  # accuracy on the test split and on held-out training examples
    ("Normal", 0.0, 1e-3): (60, 70),
    ("Normal", 0.0, 1e-2): (90, 60),
    ("S1", 0.0, 1e-3): (95, 50),
    ("S1", 0.0, 1e-2): (63, 80),
    ("S1", 1.0, 1e-2): (65, 75),
}


def by_rate(config):
    training = config.training
    place = config.model.method, training.auxiliary_mean, training.learning_rate
    if place not in BY_RATE:
        return None
    accuracy, held_out = BY_RATE[place]
    return {"accuracy": accuracy + 0.1 * (training.seed % 2), "held_out": held_out}


@pytest.fixture
def rates(tmp_path):
    record(tmp_path, planned("rates", tmp_path, **RATES)["config"], by_rate)
    return tmp_path


def test_the_rate_is_chosen_on_held_out_examples_and_the_test_split_reported(rates):
    (best,) = reported("rates", rates, **RATES)["best"]
    normal, s1 = best["rows"]  # S1 with losses has no run at one of the rates
    assert (normal["row"], normal["best rate of 2"]) == ("Normal", "0.001 (the lowest)")
    assert (s1["row"], s1["best rate of 2"]) == ("S1", "0.01 (the highest)")
    assert (normal["held-out accuracy"], s1["held-out accuracy"]) == (70, 80)
    assert normal["last epoch"]["mean"] == pytest.approx(60 + 0.1 / 3)
    assert s1["difference"]["mean"] == pytest.approx(3)
    assert s1["difference"]["verdict"] == "ahead"


def test_branch_losses_are_compared_with_normal_without_them(rates):
    """Normal has one branch: a loss of its own would only be a larger step."""
    sections = reported("rates", rates, **RATES)["cells"]
    (cell,) = [row for each in sections for row in each["rows"] if row["auxiliary_mean"]]
    assert (cell["row"], cell["to"]) == ("S1, auxiliary mean 1", "Normal")
    assert cell["difference"]["mean"] == pytest.approx(65 - 90)
    assert "Without a finished run: Scaled" in sections[0]["note"]


def test_every_method_is_tested_at_its_own_rate_by_seeds_that_did_not_choose_it(rates):
    choice = {"methods": ("Normal", "S1"), **RATES}
    wanted = planned("best", rates, **choice)
    at = {(each.model.method, each.training.learning_rate) for each in wanted["config"]}
    assert at == {("Normal", 1e-3), ("S1", 1e-2)}
    assert not {*wanted["seed"]} & {*TABLES["rates"].SEEDS}
    record(rates, wanted["config"], by_rate)
    (section,) = reported("best", rates, **choice)["cells"]
    assert [row["row"] for row in section["rows"]] == ["Normal", "S1"]
    assert section["rows"][1]["difference"]["mean"] == pytest.approx(3)


def test_rates_that_are_not_all_tried_or_seeds_that_tried_them_choose_nothing(rates):
    with pytest.raises(ValueError, match="seed 2 chose the learning rates"):
        planned("best", rates, methods=("S1",), seeds=(2, 3), **RATES)
    with pytest.raises(ValueError, match=r"^S3 .* each of 2 .* --table=rates --seeds=0,1,2 with"):
        planned("best", rates, methods=("S3",), **RATES)


BEST = {"Normal": {"ResNet": 3e-2, "ViT": 1e-2}, "S1": {"ResNet": 3e-2, "ViT": 3e-3}}


def by_network(config):
    """A point is lost away from the best rate; S1 is two points ahead at its own."""
    method, network = config.model.method, config.model.backbone.rpartition(":")[2]
    best = config.training.learning_rate == BEST[method][network]
    seed = 0.1 * (config.training.seed % 2)
    return {"accuracy": 70 + best + 2 * (method == "S1") + seed, "held_out": 60 + best}


def test_networks_have_the_rates_that_one_seed_chose_and_others_test(tmp_path):
    methods = {"methods": ("Normal", "S1"), "given": {"fusion": None}}
    with pytest.raises(ValueError, match=r"each of 3 .* first train --table=networks --seeds=0 "):
        planned("networks", tmp_path, **methods)
    choosing = planned("networks", tmp_path, seeds=(0,), **methods)
    assert len(choosing) == 2 * 3 * 2
    record(tmp_path, choosing["config"], by_network)
    equal = reported("networks", tmp_path, seeds=(0,), **methods)["cells"]
    assert [section["rows"][1]["to"] for section in equal] == ["Normal"] * 6  # at its own rate
    with pytest.raises(ValueError, match="seed 0 chose the learning rates"):
        planned("networks", tmp_path, seeds=(0, 1), **methods)
    record(tmp_path, planned("networks", tmp_path, **methods)["config"], by_network)
    sections = reported("networks", tmp_path, **methods)["cells"]
    assert [section["title"] for section in sections] == ["cifar10, ResNet", "cifar10, ViT"]
    found = {
        row["method"]: (row["best rate of 3"], row["difference"] and row["difference"]["mean"])
        for row in sections[1]["rows"]
    }
    assert found["Normal"] == ("0.01 (the highest)", None)
    assert found["S1"] == ("0.003", pytest.approx(2.0))


def test_runs_that_fail_are_counted_where_others_do_not(tmp_path):
    choice = {"depths": (60,), "methods": ("Normal", "S1", "DSN")}
    wanted = planned("6", tmp_path, **choice)["config"]

    def figures(config):
        fails = config.model.method == "S1" and config.training.seed == 0
        return {"accuracy": 10.0 if fails else 50.0 + config.training.seed}

    record(tmp_path, wanted, figures)
    report = reported("6", tmp_path, **choice)
    (section,) = report["cells"]
    normal, s1, dsn = section["rows"]
    assert s1["begun"] == {"count": 2, "runs": 3}
    assert (s1["last epoch"]["mean"], s1["difference"]) == (51.5, None)  # of the two
    assert (normal["paper"], dsn["to"]) == (paper.value("6", "60", "Normal"), "Normal")
    assert "| 2 of 3 (9 to 99 %) |" in (tmp_path / "table6.md").read_text()


def test_deep_networks_are_judged_with_recalibrated_statistics(tmp_path):
    """Whose running statistics jump: all have begun to learn, and S1 is ahead."""

    def figures(config):
        better = 2.0 * (config.model.method == "S1") + 0.1 * (config.training.seed % 2)
        return {"accuracy": 10.0, "recalibrated_accuracy": 60.0 + better}

    choice = {"depths": (60,), "methods": ("Normal", "S1")}
    record(tmp_path, planned("degradation", tmp_path, **choice)["config"], figures)
    (section,) = reported("degradation", tmp_path, **choice)["cells"]
    rows = {row["row"]: row for row in section["rows"]}
    assert {*rows} == {"Normal", "S1", "Normal, warmup epochs 3", "S1, warmup epochs 3"}
    assert rows["S1"]["begun"] == {"count": 5, "runs": 5}
    assert rows["S1"]["difference"]["mean"] == pytest.approx(2.0)
    assert rows["S1, warmup epochs 3"]["runs"]["planned"] == 3


def test_rows_of_a_table_have_the_runs_that_their_precision_takes(tmp_path):
    def counts(name, **choice):
        return set(
            planned(name, tmp_path, **choice)["config"]
            .map(lambda c: c.replace(seed=0))
            .value_counts()
        )

    assert counts("controls") == {14, 10}
    assert [counts("settings", datasets=(name,)) for name in TABLES["settings"].DATASETS] == [
        {4},
        {8},
        {6},
    ]
    assert counts("controls", seeds=tuple(range(20))) == {20}  # those that the command line names


def test_branches_stand_beside_the_fusion_of_the_same_runs(tmp_path):
    choice = {"datasets": ("mnist",), "methods": ("S1",)}

    def figures(config):
        alone = [10.0 + config.training.seed, 40.0 - config.training.seed]
        return {
            "accuracy": 60.0 + config.training.seed,
            "branches": [9, 13],
            "branch_accuracy": alone,
            "weights": [1, 1],
        }

    record(tmp_path, planned("branches", tmp_path, **choice)["config"], figures)
    report = reported("branches", tmp_path, **choice)
    assert [section["title"] for section in report["branches"]] == [
        "Branches alone: mnist, S1, fc shared",
        "Branches alone: mnist, S1, fc separate",
    ]
    fused, first, last = report["branches"][0]["rows"]
    assert (fused["last epoch"]["mean"], fused["difference"]) == (62.0, None)
    assert (first["row"], first["difference"]["mean"]) == ("after 9", -50.0)
    assert (last["row"], last["last epoch"]["mean"]) == ("after 13", 38.0)
    assert report["cells"][0]["rows"][1]["to"] == "fc shared"


def exits(config):
    """Networks have 70, 80 and 81 % at 10, 20 and 30 operations: 75 at 15; narrower ones, less."""
    seed, training = config.training.seed, config.training
    better, held_out = training.learning_rate == 3e-2, 70.0
    if config.model.method == "Normal":
        depth, narrow = config.model.depth, config.model.width < 0.125
        held_out = {5: 60.0, 7: 70.0, 9: 80.0, 11: 81.0, 13: 81.0}[depth] - 30 * narrow
        operations = {5: 5.0, 7: 10.0, 9: 20.0, 11: 30.0, 13: 30.0}[depth] * (1 - 0.4 * narrow)
        measured = {"operations": [operations], "fusions": {}}
        facts = {"accuracy": held_out + 0.1 * (seed % 2)}
    else:
        fusions = {
            "own": _fusion(50, [None, 60.0, 61.0, 62.0]),
            "class": _fusion(70, [None, 76.0 + seed, 78.0, 79.0]),
        }
        measured = {"operations": [5.0, 10.0, 15.0, 30.0], "fusions": fusions}
        facts = {"accuracy": 80.0, "branches": [7, 9, 11, 13], "weights": [0.1, -0.2, 0.3, 0.4]}
    return facts | {"held_out": held_out + 10 * better, EXITS: measured}


def _fusion(held_out, budgets):
    return {
        "held_out_accuracy": held_out,
        "cuts": [20.0, 74.0, 77.0, 80.0],
        "left_out": [0.0, 1.0, 2.0, 30.0],
        "budgets": [each and {"accuracy": each, "operations": 15.0} for each in budgets],
        "curve": [{"operations": 10.0, "accuracy": 60.0}, {"operations": 20.0, "accuracy": 80.0}],
    }


def test_exits_are_compared_with_networks_of_equal_operations(tmp_path):
    record(tmp_path, planned("exits", tmp_path, seeds=(0,))["config"], exits)
    others = [each for each in planned("exits", tmp_path)["config"] if each.training.seed]
    record(tmp_path, others, exits)
    report = reported("exits", tmp_path)
    (section,) = report["cells"]
    assert {row["best rate of 2"] for row in section["rows"] if "best rate of 2" in row} == {
        "0.03 (the highest)"
    }
    assert {len(row["runs"]["names"]) for row in section["rows"]} == {3}
    rows = {row["row"]: row for row in report["to_networks"][0]["rows"]}
    s1 = rows["S1, taps 7,9,11,13, width 0.125"]
    assert s1["fusion"] == "class fitted"  # the best on held-out examples
    assert s1["25% of operations"] is None  # below the first exit
    # 76, 77 and 78 by seed, minus 75.03: on the line between the networks' 70.03 and 80.03.
    assert s1["50% of operations"]["mean"] == pytest.approx(77 - 75 - 0.1 / 3)
    assert s1["50% of operations"]["low"] < 0 < s1["50% of operations"]["high"]
    first, own = report["budgets"][0]["rows"][:2]
    assert first["50% of operations"] == {"mean": 77.0, "deviation": 1.0}
    assert (own["row"], own["100% of operations"]["mean"]) == (
        "S1, taps 7,9,11,13, width 0.125: its own fusion",
        62.0,
    )
    deepest = report["branches"][0]["rows"][3]
    assert (deepest["share of weights"], deepest["leaving it out costs"]["mean"]) == ("40%", 30.0)
    ranks = report["weights"][0]["rows"]  # none of DSN, whose weights are given
    assert {row["row"].split(",")[0] for row in ranks} == {"S1"}
    assert ranks[0]["rank correlation"]["mean"] == pytest.approx(1.0)  # whatever the weights' signs
    assert (tmp_path / "exits.png").stat().st_size > 10_000
