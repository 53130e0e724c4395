"""What the README shows works, and says what the code does."""

import json
import re
import shlex
from pathlib import Path
from statistics import median

import numpy as np
import pytest

import interflow_jax as ij
from experiments.timing import report
from interflow_jax.cli.flags import parse_run

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
        trainer = ij.Trainer(namespace[name], dataset, epochs=1, batch_size=8)
        assert trainer.labels == branches
        state, _ = trainer.train_epoch(trainer.init(), 0)
        assert trainer.predict(state, images).branch_logits.shape == (16, len(branches), 10)


def test_its_main_commands_parse():
    commands = re.findall(r"interflow run ([^`\n|&]*)", README)
    assert len(commands) >= 2
    for flags in commands:
        if "--help" not in flags and "--list_layers" not in flags:
            parse_run(shlex.split(flags)).check()


@pytest.mark.parametrize("name", [*ij.METHODS, *ij.BASELINES])
def test_its_methods_are_those_of_the_code(name):
    """Their branches, initial weights, and weights of other losses."""
    (row,) = re.findall(rf"^\| {name} \| (.*) \|$", METHODS, re.MULTILINE)
    taps, *rest = (cell.strip() for cell in row.split("|"))
    known = (ij.METHODS | ij.BASELINES)[name]
    if name == "Normal":
        assert known.taps == (13,)
        return
    numbers = [int(number) for number in re.findall(r"\d+", taps)]
    numbers = list(range(numbers[0], numbers[-1] + 1)) if " to " in taps else numbers
    assert tuple(numbers) == known.taps
    if name in ij.BASELINES:
        weights = re.findall(r"\+ ([\d.]+) \u00d7", rest[-1])
        assert sum(map(float, weights)) == known.auxiliary_loss
        return
    starts = re.findall(r"(0\.\d)(?: \u00d7(\d))?", rest[-1])
    starts = [float(start) for start, times in starts for _ in range(int(times or 1))]
    assert tuple(starts) == (known.initial_weights or ())


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


FINDINGS = " ".join((RESULTS / "README.md").read_text().split())  # figures are wrapped, too
REPORTS = (*RESULTS.glob("*.md"), *RESULTS.glob("exits-*/*.md"))
TABLES = "\n".join(file.read_text() for file in REPORTS if file.name != "README.md")
INTERVAL = r"[+-]\d+\.\d\d \([+-]\d+\.\d\d to [+-]\d+\.\d\d\)"


@pytest.mark.parametrize(
    "figure",
    [
        INTERVAL,
        r"\d+\.\d\d ± \d+\.\d\d",
        rf"{INTERVAL}, (?:ahead|behind|no different|undecided)\b",
        r"(?<![\d.+-])\d\d\.\d\d(?!\d)",
    ],
    ids=["difference", "mean", "verdict", "accuracy"],
)
def test_its_findings_are_those_of_the_tables(figure):
    """Every figure of the kind stands in some table, a verdict right behind its interval."""
    found = set(re.findall(figure, FINDINGS)) | set(re.findall(figure, " ".join(README.split())))
    assert found
    assert found <= set(re.findall(figure, TABLES))


def test_the_layout_names_files_that_are_there():
    text = (ROOT / "docs" / "layout.md").read_text()
    files = [
        file
        for place in ("interflow_jax", "experiments", "docs")
        for file in ROOT.glob(f"{place}/**/*")
    ]
    assert {*re.findall(r"\w+\.(?:py|md)\b", text)} <= {file.name for file in files}


def test_its_links_lead_somewhere():
    for file in [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "results" / "README.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
            assert (file.parent / link).exists(), f"{file}: {link}"
