"""What the README shows works, and says what the code does."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest

import interflow_jax as ij
from experiments.cli.configuration import Configuration, parse
from experiments.sweep.planning import plan
from experiments.sweep.record import Record
from experiments.tables.gradients import relative_steps
from experiments.tables.weights import at_start
from experiments.timing import report
from interflow_jax.optimizer import LEARNING_RATE

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
README = (ROOT / "README.md").read_text()
METHODS = README.partition("## The methods")[2].partition("## Results")[0]
SPEED = (ROOT / "docs" / "speed.md").read_text()


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 25
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    accuracy, unit, *branches, rows, columns = capsys.readouterr().out.split()
    assert float(accuracy) > 50, "five times what guessing has: it learned"
    assert (unit, len(branches), rows, columns) == ("%", 3, "(3,", "10)")


def test_the_networks_of_others_predict_and_learn(capsys):
    text = (ROOT / "docs" / "networks.md").read_text()
    namespace: dict = {"__name__": "networks"}
    for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(example, "networks.md", "exec"), namespace)
    assert "block2/norm (1, 4, 4, 64)" in capsys.readouterr().out
    images, labels = np.zeros((16, 32, 32, 3), np.uint8), np.arange(16) % 10
    dataset = ij.data.from_arrays((images, labels), (images, labels))
    for name, branches in (
        ("model", ("block0", "block1", "block2")),
        ("nnx_model", ("norm1", "conv2")),
    ):
        trainer = ij.Trainer(namespace[name], dataset, batch_size=8)
        assert trainer.labels == branches
        state, _ = trainer.train_epoch(trainer.init(), 0)
        assert trainer.predict(state, images).branch_logits.shape == (16, len(branches), 10)


def test_its_main_commands_parse():
    commands = re.findall(r"python -m experiments\.run ([^`\n|&]*)", README)
    assert len(commands) >= 2
    for flags in commands:
        if "--help" not in flags and "--list_layers" not in flags:
            parse(shlex.split(flags)).check()


@pytest.mark.parametrize("method", ij.METHODS)
def test_its_table_is_that_of_the_code(method):
    (row,) = re.findall(rf"^\| {method} \| (.*) \|$", METHODS, re.MULTILINE)
    taps, kind, start = (cell.strip() for cell in row.split("|"))
    known = ij.METHODS[method]
    if method == "Normal":
        assert known.taps == (13,)
        return
    assert taps == ("7, 9, 11, 13" if len(known.taps) == 4 else "7 to 13")
    kinds = {
        "fixed": "fixed",
        "shared": "learned, one per branch",
        "class": "learned, one per branch and class",
    }
    assert kind == kinds[known.fusion]
    numbers = [
        float(number)
        for number, times in re.findall(r"(0\.\d)(?: \u00d7(\d))?", start)
        for _ in range(int(times or 1))
    ]
    assert tuple(numbers) == (known.initial_weights or ())


@pytest.mark.parametrize("baseline", ij.BASELINES)
def test_its_baselines_are_those_of_the_code(baseline):
    (row,) = re.findall(rf"^\| {baseline} \| (.*) \|$", METHODS, re.MULTILINE)
    taps, loss = row.split(" | ")
    assert taps == ", ".join(map(str, ij.BASELINES[baseline].taps))
    weights = re.findall(r"\+ ([\d.]+) \u00d7", loss)
    assert float(sum(map(float, weights))) == ij.BASELINES[baseline].auxiliary_loss


def test_its_benchmarks_are_those_of_the_files():
    rows = iter([line for line in SPEED.splitlines() if re.match(r"\| S\d, ", line)])
    for file in (RESULTS / "benchmark.json", RESULTS / "jax-0.12" / "benchmark.json"):
        measured = json.loads(file.read_text())
        assert measured["networks"]
        for network in measured["networks"].values():
            seconds = median(network["contenders"]["ours"]["step_seconds"])
            rate = network["network"]["batch_size"] / seconds
            torch = report.best_torch(network)
            ratios = [report.ratio(network, "ours", name) for name in ("flax", torch)]
            figures = [f"{rate:.0f}", *(f"{ratio:.2f}" for ratio in ratios)]
            assert next(rows) == f"| {network['description']} | {' | '.join(figures)} |"
        assert measured["command"] in SPEED
    assert not list(rows)


RAW_FINDINGS = (RESULTS / "README.md").read_text()
FINDINGS = " ".join(RAW_FINDINGS.split())  # figures are wrapped, too
REPORTS = (*RESULTS.glob("*.md"), *RESULTS.glob("exits-*/*.md"))
TABLES = "\n".join(file.read_text() for file in REPORTS if file.name != "README.md")
INTERVAL = r"[+-]\d+\.\d\d \([+-]\d+\.\d\d to [+-]\d+\.\d\d\)"


@pytest.mark.parametrize(
    "figure",
    [
        INTERVAL,
        r"\d+\.\d\d ± \d+\.\d\d",
        rf"{INTERVAL}(?:, \d+ pairs?)?, (?:ahead|behind|equal|undecided)\b",
        r"[+-]\d+\.\d\d, (?:ahead|behind|equal|undecided)\b",
        r"(?<![\d.+-])\d\d\.\d\d(?!\d)",
    ],
    ids=["difference", "mean", "verdict", "verdict of one seed", "accuracy"],
)
def test_its_findings_are_those_of_the_tables(figure):
    """Every figure of the kind stands in some table, a verdict right behind its interval."""
    found = set(re.findall(figure, FINDINGS)) | set(re.findall(figure, " ".join(README.split())))
    assert found
    assert found <= set(re.findall(figure, TABLES))


def test_its_verdict_on_a_claim_is_that_of_the_differences_it_names():
    """Confirmed: all are ahead; not settled, behind: at least one is undecided, behind."""
    table = re.findall(r"^\| (.+?) \| \*\*(.+?)\*\* \| (.*)\|$", RAW_FINDINGS, re.MULTILINE)
    assert len(table) == 11
    for claim, verdict, by in table:
        found = set(re.findall(r"(?<=, )(?:ahead|behind|equal|undecided)\b", by))
        if "not settled" in verdict:
            assert "undecided" in found, claim
        if "behind" in verdict:
            assert "behind" in found, claim
        if re.search(r"(?<!not )confirmed", verdict):
            assert found == {"ahead"}, claim
        assert bool(by) != ("not trained" in verdict), claim


def test_what_it_says_of_fixed_weights_and_deep_supervision_is_what_the_cells_have():
    mean: dict[float, dict[str, float]] = {}  # by rate and method, on CIFAR-10
    for cell in json.loads((RESULTS / "rates.json").read_text())["cells"]:
        if cell["dataset"] == "cifar10" and cell["mean"] is not None:
            mean.setdefault(cell["learning_rate"], {})[cell["row"]] = cell["mean"]
    assert len(mean) == 5
    says = " ".join(README.split())
    assert "At no rate have learned weights (S1) more than fixed ones (S0)." in says
    assert all(each["S1"] <= each["S0"] for each in mean.values())
    assert "At 1e-3 and 3e-3 DSN stands out" in says
    highest = [rate for rate, each in mean.items() if max(each, key=each.__getitem__)[:3] == "DSN"]
    assert sorted(highest) == [1e-3, 3e-3]


def test_what_it_says_of_the_end_of_training_is_what_the_runs_did():
    """That accuracy still rose before the rate dropped, and hardly moves afterwards."""
    lines = [json.loads(line) for line in (RESULTS / "runs.jsonl").read_text().splitlines()]
    runs = [run for run in lines if run["epochs"] == 60 and run.get("backbone", "vgg") == "vgg"]
    after = {run["run"]: [row["test_accuracy"] for row in run["history"]] for run in runs}
    moved = {name: each[-1] - each[-7] for name, each in after.items()}
    highest = [moved.pop(name) for name in after if "learning_rate0.1" in name]
    assert max(map(abs, moved.values())) < 1
    assert f"(those at 1e-1 gain {min(highest):.1f} to {max(highest):.1f})" in FINDINGS
    fashion = [
        [row["test_accuracy"] for row in run["history"]]
        for run in lines
        if (run["dataset"], run["depth"], run["epochs"]) == ("fashion_mnist", 13, 40)
    ]
    most = max(abs(each[-1] - each[-5]) for each in fashion)
    assert f"last four epochs move none by more than {most:.1f}" in FINDINGS
    gains = [
        10 * np.polyfit(range(20), after[run["run"]][28:48], 1)[0]
        for run in runs
        if run.get("learning_rate", LEARNING_RATE) == LEARNING_RATE
    ]
    assert f"gained {min(gains):.1f} to {max(gains):.1f} points per ten epochs" in FINDINGS
    others = [
        10 * np.polyfit(range(20), after[run["run"]][28:48], 1)[0]
        for run in runs
        if run.get("learning_rate", LEARNING_RATE) != LEARNING_RATE
    ]
    assert f"those at higher rates {min(others):.1f} to {max(others):.1f}." in FINDINGS


def test_what_it_says_of_deep_networks_epochs_is_what_the_runs_did():
    lines = map(json.loads, (RESULTS / "runs.jsonl").read_text().splitlines())
    moved: dict[str, float] = {}
    for run in lines:
        if (run["depth"], run.get("layout"), run["epochs"]) == (60, "append", 40):
            after = [row["test_accuracy"] for row in run["history"]][20:]  # the rate's drop
            moved[run["method"]] = max(moved.get(run["method"], 0), *np.abs(np.diff(after)))
    says = f"by up to {moved['S1']:.0f} points with S1 and {moved['Normal']:.0f} without"
    assert says in FINDINGS


def test_what_it_says_of_deep_networks_steps_is_what_was_measured():
    networks = json.loads((RESULTS / "gradients.json").read_text())["networks"]
    normal, s1 = (relative_steps(each)[:, 0, 0] for each in networks)  # of the first kernel
    factors = s1 / normal
    says = (
        f"the first kernel by {normal[0]:.2f} times its norm, with S1 by {s1[0]:.2f} times; "
        f"after one epoch S1 moves it {factors[1]:.1f} times as far as Normal does, "
        f"after twelve {factors[2]:.1f} times"
    )
    assert says in FINDINGS


def test_what_it_says_of_deep_networks_weights_is_what_the_runs_have():
    (table,) = json.loads((RESULTS / "table6.json").read_text())["weights"]
    _, *rows = ([*row.values()][1:] for row in table["rows"])  # but the paper's
    start, learned = np.array(rows[::2]), np.array(rows[1::2])  # [seeds, branches]
    assert (np.abs(learned).argmax(axis=1) == learned.shape[1] - 1).all(), "the last in each"
    last, first = ("{:.2f}, {:.2f} and {:.2f}".format(*np.abs(learned[:, i])) for i in (-1, 0))
    kept = (np.sign(start) == np.sign(learned)).sum()
    says = f"the last in each, {last}, the first has {first}, and {kept} of {start.size} signs"
    assert f"in those runs of S1 the largest is {says} are the start's" in FINDINGS


def test_what_it_says_of_the_weights_signs_is_what_the_runs_have():
    flags = Configuration(method="S1", dataset="cifar10", width=0.125, train_size=10_000, epochs=60)
    start = at_start(flags, 10, [0, 1, 2], (32, 32, 3)).reshape(3, 4)

    def deepest(weights):
        return "{:.2f}, {:.2f} and {:.2f}".format(*weights[:, -1])

    for rate, says in (
        (1e-3, f"at 1e-3 {{}} signs of three runs {{}}weight goes from {deepest(start)} to {{}} "),
        (3e-2, "at 3e-2, its best rate, {}, {}from the same to {} "),
    ):
        runs = [
            plan(replace(flags, seed=seed, learning_rate=rate), RESULTS / "runs")
            for seed in range(3)
        ]
        learned = np.array([Record(RESULTS).result(run)["weights"] for run in runs])
        kept = (np.sign(start) == np.sign(learned)).sum()
        pattern = re.escape(says).replace(r"\{\}", "{}")
        expected = pattern.format(f"{kept} of {start.size}", ".*", re.escape(deepest(learned)))
        assert re.search(expected, FINDINGS)


def test_what_it_says_of_the_residual_network_s_end_is_what_its_runs_did():
    lines = map(json.loads, (RESULTS / "runs.jsonl").read_text().splitlines())
    runs = [run for run in lines if run.get("backbone", "").endswith(":ResNet")]
    after = [
        [row["test_accuracy"] for row in run["history"]]
        for run in runs
        if run["learning_rate"] == 3e-2
    ]
    moved = [each[-1] - each[-3] for each in after]
    ends = f"{min(moved):.1f} to {max(moved):.1f}"
    assert f"whose last two still move the accuracy by {ends} points" in FINDINGS


def test_the_layout_names_every_file_in_its_folder():
    (tree,) = re.findall(r"```\n(.*?)```", (ROOT / "docs" / "layout.md").read_text(), re.DOTALL)
    named, folders = set(), []
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        folders = [each for each in folders if each[0] < indent]
        if opened := re.match(r" *(\w+)/", line):
            folders.append((indent, opened[1]))
        folder = "/".join(name for _, name in folders)
        named |= {f"{folder}/{name}" for name in re.findall(r"\w+\.(?:py|md)\b", line)}
    patterns = ("interflow_jax/**/*.py", "experiments/**/*.py", "docs/*.md")
    files = [file for pattern in patterns for file in ROOT.glob(pattern)]
    unnamed = ("__init__.py", "version.py")
    assert named == {str(each.relative_to(ROOT)) for each in files if each.name not in unnamed}


def test_its_links_lead_somewhere():
    for file in [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "results" / "README.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
            assert (file.parent / link).exists(), f"{file}: {link}"
