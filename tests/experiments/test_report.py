"""Reports of tables, and the page of them, from invented runs."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from markdown_it import MarkdownIt
from scipy import stats

import interflow_jax as ij
from experiments import report
from experiments.cli.configuration import Configuration
from experiments.sweep.record import Record
from experiments.tables import frame, paper, statistics, study, weights
from experiments.tables import report as table_report
from experiments.tables.index import TABLES
from experiments.tables.table import Choice
from interflow_jax.data.preprocessing import initial_key

VOID = ("meta", "img", "br", "hr", "wbr")


def result(cell, seed, accuracy):
    """What a run's result.json holds."""
    identity = cell.flags.identity(seed)
    taps = identity["taps"]
    weights = [0.25 + seed] * len(taps)
    if cell.flags.method == "S3":  # classes 1, 3, 5, 7, 9 have their second and fourth turned
        turned = [[(-1) ** (branch * label) for label in range(1, 11)] for branch in range(4)]
        weights = (np.array(turned) * (0.25 + seed)).tolist()
    return {
        **identity,
        "test_accuracy": accuracy,
        "branch_accuracy": [50.0] * len(taps),
        "branches": taps,
        "weights": weights,
        "train_loss": 1.0,
        "test_loss": 1.0,
        "test_examples": 10_000,
        "image_shape": [28, 28, 1],
        "train_seconds": 3600.0,
        "images_per_second": 1.0,
        "parameters": 1,
        "fingerprint": "",
        "device": "an invented <device>",
        "class_names": ["class"] * 10,
        "versions": {"jax": "0.0.7"},
        "command": f"run {cell.section} {cell.row} {seed}",
        "finished": f"2026-01-{seed + 1:02}T00:00:00+00:00",
    }


def write(out, number, accuracies, command="made & written by <someone>", seeds=(0, 1), **axes):
    """Writes a table's report from accuracies by row, as {"S1": [61.5, 62]}; others lack runs."""
    table, choice = TABLES[number], Choice("quick", axes, seeds)
    for cell in table.cells(choice):
        ran = zip(frame.planned([cell], seeds, out), accuracies.get(cell.row, ()), strict=False)
        for planned, accuracy in ran:
            planned.folder.path.mkdir(parents=True, exist_ok=True)
            planned.folder.write_json("result.json", result(cell, planned.flags.seed, accuracy))
            planned.folder.write_history(history(cell, planned.flags.seed, accuracy))
    record = Record(out)
    record.finished(frame.planned(table.cells(choice), seeds, out))
    record.write()
    table_report.write(table, choice, record, out, command)


def history(cell, seed, accuracy):
    weights = {tap: 0.25 for tap in cell.flags.identity(seed)["taps"]}
    return [{"epoch": 1, "test_accuracy": accuracy, "weights": weights}]


class Page(HTMLParser):
    """Tags with their attributes, and the text of every table's rows."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self._open = [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(out):
    assert report.main([f"--out={out}"]) == 0
    text = (out / "index.html").read_text()
    return Page(text), text


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    accuracies = {"Normal": [60, 61], "S3": [62.5, 63]}
    several = {"dataset": ("cifar10", "svhn"), "method": ("Normal", "S3", "S4")}
    write(out, "3", accuracies, **several)
    write(out, "4", {"S1": [60, 61, 62]}, seeds=(0, 1, 2))
    write(out, "5", {"S3": [62.5, 63]})
    (out / "README.md").write_text(
        "# Plain words\n\nSee [III](table3.md), [old](old/table3.md) <script>alert(1)</script>\n\n"
        "| a | b |\n| --- | --- |\n| <i>c</i> | 1 |\n\n"
        "![far](https://example.org/far.png) ![gone](gone.png)\n"
    )
    return out


@pytest.fixture(scope="module")
def page(results):
    return page_of(results)


def test_every_figure_of_a_cell_is_there(page):
    rows = page[0].rows
    assert ["Normal", "91.12", "60.50 ± 0.71", "61.00", "2 of 2", "-", "-"] in rows
    # Paired: 2.5 and 2; the half interval is 12.706 * 0.3536 / √2.
    welch = str(statistics.welch(np.array([62.5, 63]), np.array([60.0, 61])))
    assert [
        *("S3", "92.12", "62.75 ± 0.35", "63.00", "2 of 2"),
        *("+2.25 (-0.93 to +5.43), undecided", welch),
    ] in rows


def test_s1_is_compared_with_the_baselines_of_the_same_seeds(tmp_path):
    aux, dsn = "Aux (not the paper's)", "DSN (not the paper's)"
    accuracies = {"S1": [62, 64], aux: [60, 61], dsn: [70]}
    methods = ("S1", "Aux", "DSN")
    write(tmp_path, "3", accuracies, dataset=("cifar10",), method=methods)
    # 2 and 3: the half interval is 12.706 * 0.7071 / √2.
    rows = page_of(tmp_path)[0].rows
    welch = str(statistics.welch(np.array([62.0, 64]), np.array([60.0, 61])))
    assert [f"cifar10, S1 less {aux}", "+2.50 (-3.85 to +8.85), undecided", welch] in rows
    assert [f"cifar10, S1 less {dsn}", "-8.00, 1 pair, undecided", "-"] in rows


def test_a_table_of_one_method_is_compared_with_normal_s_runs_of_another_table(page):
    rows = page[0].rows
    # The same figures in every pair; S3 as in Table III.
    assert [
        "S1",
        "91.81",
        "61.00 ± 1.00",
        "62.00",
        "3 of 3",
        "+0.00 (+0.00 to +0.00), 2 pairs, equal",
    ] in [row[:6] for row in rows]
    s3 = ["S3", "91.89", "62.75 ± 0.35", "63.00", "2 of 2", "+2.25 (-0.93 to +5.43), undecided"]
    assert s3 in [row[:6] for row in rows]


def test_normal_is_not_compared_with_itself(tmp_path):
    write(tmp_path, "7", {"Normal": [60, 61]}, method=("Normal",))
    rows = page_of(tmp_path)[0].rows
    assert ["Normal", "-", "60.50 ± 0.71", "61.00", "2 of 2", "-", "-"] in rows


def test_the_weights_of_tables_4_and_5_are_there(page):
    rows = page[0].rows
    assert ["paper, variance", "0.0200", "0.0439", "0.0462?", "0.2256", "0.4428"] in rows
    assert "the two variances and two means of branch 2 cannot all be right" in page[1]
    assert ["as learned, mean", "61.0000", *["1.2500"] * 4] in rows
    # Accuracy and weights deviate by 1 over three runs: 4.302653 / √3.
    assert ["as learned, variance", *["1.0000"] * 5] in rows
    assert ["as learned, mean's 95 % interval, ±", *["2.4841"] * 5] in rows
    assert ["absolute, mean", "-", *["1.2500"] * 4] in rows
    model = ij.build("S1", 10)
    starts = []
    for seed in range(3):
        state = ij.create_state(model, ij.make_optimizer(1e-3), initial_key(seed), (32, 32, 3))
        starts.append(np.array(state.params["fusion"]["weights"], dtype=float))
    start = np.array(starts)
    assert ["at the start, mean", "-", *(f"{mean:.4f}" for mean in start.mean(axis=0))] in rows
    grown = (1.25 - np.abs(start)).mean(axis=0)
    assert ["grown, mean", "-", *(f"{mean:.4f}" for mean in grown)] in rows
    printed = paper.table("5")["cells"]["4"].values()
    assert ["after 13", *(f"{value:+.2f}" for value in printed)] in [row[:-1] for row in rows]
    # As learned; where the fourth was turned, so are the second and the third with it.
    alternating, straight = ["-0.75", "+0.75"] * 5, ["+0.75"] * 10
    in_table_5 = [row[:-1] for row in rows if row[0].startswith("after ") and row[-1] == "0.75"]
    assert in_table_5[-8:] == [
        ["after 7", *straight],
        ["after 9", *alternating],
        ["after 11", *straight],
        ["after 13", *alternating],
        ["after 7", *straight],
        ["after 9", *straight],
        ["after 11", *alternating],
        ["after 13", *straight],
    ]


def test_the_weights_of_table_6_stand_beside_the_paper_s(tmp_path):
    write(tmp_path, "6", {"S1": [60, 61]}, depth=(40, 50))
    rows = page_of(tmp_path)[0].rows
    printed = ["-2.45", "-1.18", "+0.74", "+0.61", "+0.34"]
    assert ["paper (cifar10)", *printed] in rows
    assert ["seed 1, learned", *["+1.25"] * 5] in rows
    assert ["seed 0, learned", *["+0.25"] * 7] in rows
    state = ij.create_state(
        ij.build("S1", 10, depth=40), ij.make_optimizer(1e-3), initial_key(1), (32, 32, 3)
    )
    start = [f"{weight:+z.2f}" for weight in state.params["fusion"]["weights"]]
    assert ["seed 1, at the start", *start] in rows


def test_weights_by_class_at_the_start_are_those_of_the_seed():
    flags = Configuration(method="S3", width=1 / 16)
    model = flags.build(10)
    state = ij.create_state(model, ij.make_optimizer(1e-3), initial_key(4), (28, 28, 1))
    (start,) = weights.at_start(flags, 10, [4], (28, 28, 1))
    np.testing.assert_array_equal(start, state.params["fusion"]["weights"])


def test_an_outlying_run_is_left_out_of_its_own_rows(tmp_path):
    # Four runs near each other and one far off; weights as `result` has them, 0.25 + seed.
    write(tmp_path, "4", {"S1": [60, 61, 62, 61, 30]}, seeds=(0, 1, 2, 3, 4))
    (by_run,) = json.loads((tmp_path / "table4.json").read_text())["weights_by_run"]
    assert [run["outlying"] for run in by_run["rows"]] == [False] * 4 + [True]
    assert "seed 4. Variances" in " ".join((tmp_path / "table4.md").read_text().split())
    rows = page_of(tmp_path)[0].rows
    assert ["as learned, all, mean", "54.8000", *["2.2500"] * 4] in rows
    assert ["as learned, without outlying, mean", "61.0000", *["1.7500"] * 4] in rows


def test_table_vi_says_what_depth_costs_beside_the_paper_s_figures(tmp_path):
    accuracies = {"Normal": [60, 61]}
    write(tmp_path, "6", accuracies, depth=(40, 50), dataset=("svhn",))
    rows = page_of(tmp_path)[0].rows
    assert ["svhn, depth 50, Normal", "+0.00 (+0.00 to +0.00), equal"] in rows
    costs = [row[0] for row in rows if len(row) == 2]
    assert "svhn, depth 40, Normal" not in costs
    printed = paper.value("6", "50", "Normal")
    assert ["Normal", f"{printed:.2f} (cifar10)", "60.50 ± 0.71"] in [row[:3] for row in rows]


def test_what_depth_costs_is_counted_from_the_shallowest_that_has_runs(tmp_path):
    choice = Choice("quick", {"depth": (40, 50, 60), "method": ("Normal",)}, (0, 1))
    accuracies = {40: (), 50: (80.0, 81.0), 60: (50.0, 54.0)}
    results = results_of(tmp_path, "6", choice, lambda flags: accuracies[flags.depth])
    details = {detail.name: detail for detail in TABLES["6"].details(results)}
    (row,) = details["cost_of_depth"].rows
    assert row["row"] == "cifar10, depth 60, Normal"
    assert row["less the shallowest of the method"].mean == pytest.approx(-28.5)


def test_runs_of_which_some_have_not_begun_to_learn_are_counted(tmp_path):
    accuracies = {"Normal": [11, 12], "S1": [60, 11]}
    write(tmp_path, "6", accuracies, depth=(60,), dataset=("mnist",))
    rows = page_of(tmp_path)[0].rows
    ends = stats.binomtest(1, 2).proportion_ci(method="exact")
    share = f"1 of 2 ({100 * ends.low:.0f} to {100 * ends.high:.0f} %)"
    printed = f"{paper.value('6', '60', 'Interflow'):.2f} (cifar10)"
    assert ["S1", printed, share, "60.00", "2 of 2", "-", "-"] in rows
    assert ["mnist, depth 60, S1", share, "60.00"] in rows
    assert "11.50 ± 0.71" in [row[2] for row in rows if row[0] == "Normal" and len(row) == 7]


def results_of(out, number, choice, accuracies):
    """The results of a table's invented runs: accuracies by seed, of a cell's flags."""
    cells = TABLES[number].cells(choice)
    for cell in cells:
        planned = frame.planned([cell], choice.seeds, out)
        for run, accuracy in zip(planned, accuracies(cell.flags), strict=False):
            run.folder.path.mkdir(parents=True)
            run.folder.write_json("result.json", result(cell, run.flags.seed, accuracy))
    return frame.Results(cells, choice.seeds, Record(out), out)


def test_table_i_sets_one_reading_against_the_other(tmp_path):
    choice = Choice("quick", {"depth": (4, 5)}, (0, 1))
    accuracies = {
        **{("first", 4): (50, 51), ("first", 5): (53, 55)},
        **{("last", 4): (50, 50), ("last", 5): (51, 53)},
    }
    of_flags = lambda flags: accuracies[flags.downsample, flags.depth]  # noqa: E731
    results = results_of(tmp_path, "1", choice, of_flags)
    (readings,) = TABLES["1"].details(results)
    assert [row["row"] for row in readings.rows] == ["depth 4", "depth 5"]
    assert [row["accuracy"].mean for row in readings.rows] == [0.5, 2.0]
    gains = [row["gain over the row above"] for row in readings.rows]
    assert gains[0] is None
    assert gains[1].mean == 1.5  # `first` gains 3 and 4, `last` 1 and 3.
    alone = frame.Results(results.cells[:1], (0, 1), Record(tmp_path), tmp_path)
    assert list(TABLES["1"].details(alone)) == []


def test_the_smallest_difference_is_that_of_five_paired_seeds(tmp_path):
    accuracies = {"Normal": (50, 52, 54), "S1": (51, 55, 55)}
    choice = Choice("quick", {study.CANDIDATE: ((0.5, 10_000, 2),)}, (0, 1, 2))
    results = results_of(tmp_path, "study", choice, lambda flags: accuracies[flags.method])
    (detail,) = TABLES["study"].details(results)
    (row,) = detail.rows
    assert results.of(results.cells[0].flags)["test_accuracy"].std() == pytest.approx(2.0)
    # Differences 1, 3, 1: their deviation over n - 1, and t(0.975, 4) = 2.7764.
    assert row["ours"].mean == pytest.approx(5 / 3)
    assert row["smallest visible"] == pytest.approx(2.776445 * (4 / 3) ** 0.5 / 5**0.5)
    assert row["paper"] == pytest.approx(92.04 - 91.12)
    assert row["seconds per run"] == 3600.0


def test_what_is_missing_shows(page):
    parsed, text = page
    assert ["S4", "91.93", "missing", "missing", "0 of 2", "-", "-"] in parsed.rows
    assert "Table VII: S3 ten times (missing)" in text
    assert "python -m experiments.reproduce --table=7 --out=" in text
    assert "Gradients by layer (missing)" in text
    for command in ("gradients", "reproduce --table=study", "benchmark"):
        assert text.count(f"python -m experiments.{command} --out=") == 1
    for name in ("https://example.org/far.png", "gone.png"):
        assert f"({name})</span>" in text


def test_nothing_is_run_or_loaded(page):
    parsed, text = page
    assert {"script", "link", "iframe", "object", "style"} & {tag for tag, _ in parsed.tags} == {
        "style"
    }
    assert len({image["src"] for image in parsed.all("img")}) == 3
    assert all(image["src"].startswith("data:image/png;base64,") for image in parsed.all("img"))
    assert "url(" not in text
    assert "@import" not in text
    assert "&lt;script&gt;" in text
    assert "made &amp; written by &lt;someone&gt;" in text
    assert "an invented &lt;device&gt;" in text


def test_it_can_be_read_by_all(page):
    parsed, _ = page
    assert len(parsed.all("h1")) == 1
    assert all(image["alt"] for image in parsed.all("img"))
    heads = parsed.all("th")
    assert {head["scope"] for head in heads} == {"col", "row"}
    assert all(row for row in parsed.rows)
    names = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(names) == len(set(names))
    targets = [link["href"][1:] for link in parsed.all("a") if link["href"].startswith("#")]
    assert targets[0] == "findings"  # plain words come first
    assert {"table1", "table2", "table3", "table4"} <= set(targets) <= set(names)
    assert targets[1:4] == ["table1", "table2", "table3"]
    assert targets.count("table3") == 2  # from the contents and the findings
    assert "old/table3.md" in [link["href"] for link in parsed.all("a")]


def test_its_first_screen_is_a_paragraph_and_a_picture(page):
    """Without README's findings or a table above it."""
    names = [
        name
        for name, _ in page[0].tags[: page[0].tags.index(("nav", {"aria-labelledby": "contents"}))]
    ]
    assert [name for name in names if name in ("h1", "p", "img", "table", "ul")] == [
        "h1",
        "p",
        "img",
    ]


def test_it_says_when_and_with_what(page):
    text = page[1]
    # Table V shares its runs with Table III.
    assert "Runs: 11, finished on 2026-01-01 to 2026-01-03 (UTC)" in text
    assert "Hours of training: 11.0" in text
    assert "With: jax 0.0.7" in text


S1_AND_S3 = {"S1": [60, 61], "S3": [62, 63]}


def test_table_i_says_where_the_accuracy_jumps(tmp_path):
    accuracies = {"depth 4": [50, 51], "depth 5": [53, 55], "depth 6": [54, 55]}
    write(tmp_path, "1", accuracies, depth=(4, 5, 6))
    cells = json.loads((tmp_path / "table1.json").read_text())["cells"][:3]  # of one downsampling
    assert [cell["to"] for cell in cells] == [None, "depth 4", "depth 5"]
    assert [cell["difference"]["mean"] for cell in cells[1:]] == [3.5, 0.5]
    assert "| difference to the row above |" in (tmp_path / "table1.md").read_text()


@pytest.mark.parametrize(
    ("number", "accuracies", "axes", "names"),
    [
        ("1", {"depth 4": [50, 51], "depth 6": [52]}, {"depth": (4, 5, 6)}, ["table1"]),
        ("3", S1_AND_S3, {"method": ("S1", "S3")}, []),  # there is no Normal to compare with
        (
            *("4", {"S1": [60, 61], "Aux (not the paper's)": [62, 63]}),
            *({"method": ("S1", "Aux"), "depth": (13, 40)},),
            [
                "figure4-cifar10-depth-13-Aux-not-the-paper-s",
                "figure4-cifar10-depth-13-S1",
                "figure4-cifar10-depth-40-Aux-not-the-paper-s",
                "figure4-cifar10-depth-40-S1",
            ],
        ),
        ("5", S1_AND_S3, {"method": ("S1",)}, ["table5"]),
        (
            *("6", {"Normal": [10, 11], "S1": [60, 61]}),
            {"depth": (40, 60), "dataset": ("cifar10", "eurosat/rgb")},
            ["table6-branches-cifar10", "table6-branches-eurosat-rgb", "table6", "table6-learning"],
        ),
        (
            *("6", {"Normal": [10, 11], "S1": [60, 61]}),
            {"depth": (40, 60), "layout": ("spread", "append")},
            ["table6-branches-append", "table6-branches-spread", "table6", "table6-learning"],
        ),
        (
            *("6", {"Normal": [10, 11], "S1": [60, 61]}),
            *({"depth": (60,)}, ["table6", "table6-branches", "table6-learning"]),
        ),
        ("7", S1_AND_S3, {}, ["table7"]),
        ("7", {}, {}, []),
        ("longer", {"S1": [60, 61]}, {}, ["longer", "longer-by-epoch"]),
        ("weights", {"Normal": [60, 61]}, {"method": ("Normal", "S1")}, ["weights"]),
        ("branches", {"fc separate": [60, 61]}, {}, ["branches"]),
        ("study", S1_AND_S3, {}, []),
    ],
)
def test_pictures_of_any_choice_of_runs(tmp_path, number, accuracies, axes, names):
    """Each is shown: by what renders Markdown elsewhere, and on the page."""
    write(tmp_path, number, accuracies, **axes)
    assert sorted(file.stem for file in tmp_path.glob("*.png")) == sorted(names)
    text = (tmp_path / f"{TABLES[number].name}.md").read_text()
    inline = [
        token.children for token in MarkdownIt().enable("table").parse(text) if token.children
    ]
    shown = [
        child.attrs["src"] for children in inline for child in children if child.type == "image"
    ]
    assert sorted(shown) == sorted(f"{name}.png" for name in names)
    assert len(page_of(tmp_path)[0].all("img")) == len(names)


@pytest.mark.parametrize("method", ["Normal", "S0", "S3"])
@pytest.mark.parametrize("number", TABLES)
def test_one_run_of_one_method_makes_a_report(tmp_path, number, method):
    """Whatever a table's pictures are of, it is written where they have nothing to show."""
    row = {"1": "depth 13", "branches": "fc separate", "best": f"{method}, learning_rate 0.001"}
    row["networks"] = f"{method}, learning_rate 0.003"
    taps = "13" if method == "Normal" else "7,9,11,13"
    row["exits"] = f"{method}, taps {taps}, learning_rate 0.001"
    row = row.get(number, method)
    write(tmp_path, number, {row: [60]}, seeds=(0,), method=(method,), depth=(13,))
    assert "60.00" in (tmp_path / f"{TABLES[number].name}.md").read_text()


def test_what_else_lies_there_is_on_the_page(tmp_path):
    write(tmp_path, "7", {"S3": [62]}, seeds=(0,))
    (tmp_path / "benchmark.md").write_text("# Steps\n\n| a | b |\n| --- | --- |\n| c | 7 |\n")
    (tmp_path / "gradients-again.md").write_text("# Gradients, again\n")
    page, text = page_of(tmp_path)
    assert ["c", "7"] in page.rows
    assert "Steps (missing)" not in text
    assert {"#benchmark", "#gradients-again"} <= {link["href"] for link in page.all("a")}


@pytest.mark.parametrize("content", ["{", "[]", "{}", "3", "\udcff"])
def test_a_broken_record_is_named(tmp_path, capsys, content):
    write(tmp_path, "7", {"S3": [62]}, seeds=(0,))
    (tmp_path / "runs.jsonl").write_bytes(content.encode(errors="surrogateescape"))
    assert report.main([f"--out={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"report: error: {tmp_path / 'runs.jsonl'} is not a record of runs")
    assert said.count("\n") == 1
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize("there", [True, False])
def test_no_table_at_all(tmp_path, capsys, there):
    out = tmp_path if there else tmp_path / "nowhere"
    assert report.main([f"--out={out}"]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"report: error: {out} has no table's report; "
        f"try python -m experiments.reproduce --table=3 --out={out}\n"
    )
    assert list(tmp_path.iterdir()) == []
