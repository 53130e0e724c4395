"""What the README shows works, and says what the code does."""

import json
import re
import shlex
from pathlib import Path

import pytest

import interflow_jax as ij
from experiments.cli.configuration import parse
from experiments.tables import paper
from experiments.timing import report

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip() == "(2, 10) (2, 3, 10) (3, 10)"


def test_its_main_commands_parse():
    commands = re.findall(r"python -m experiments\.run ([^`\n|&]*)", README)
    assert len(commands) >= 2
    for flags in commands:
        if "--help" not in flags:
            parse(shlex.split(flags)).check()


@pytest.mark.parametrize("method", ij.METHODS)
def test_its_table_is_that_of_the_code(method):
    (row,) = re.findall(rf"^\| {method} \| (.*) \|$", README, re.MULTILINE)
    taps, kind, start = (cell.strip() for cell in row.split("|"))
    known = ij.METHODS[method]
    if method == "Normal":
        assert known.taps == (13,)
        return
    assert taps == ("7, 9, 11, 13" if len(known.taps) == 4 else "7 to 13")
    kinds = {
        "fixed": "fixed",
        "shared": "learned, one a branch",
        "class": "learned, one a branch and class",
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
    (row,) = re.findall(rf"^\| {baseline} \| (.*) \|$", README, re.MULTILINE)
    taps, loss = row.split(" | ")
    assert taps == ", ".join(map(str, ij.BASELINES[baseline].taps))
    (weight,) = re.findall(r"\+ ([\d.]+) \u00d7", loss)
    assert float(weight) == ij.BASELINES[baseline].auxiliary_loss


def test_its_results_are_those_of_the_files():
    root = Path(__file__).parent.parent / "results"
    runs = [json.loads(line) for line in (root / "runs.jsonl").read_text().splitlines()]
    by_command = {run["command"]: run for run in runs}
    rows = re.findall(r"^\| `python -m experiments\.run (.*)` \| (.*) \|$", README, re.MULTILINE)
    assert len(rows) > 0
    for flags, figures in rows:
        given = parse(shlex.split(flags))
        result = by_command[f"python -m experiments.run {flags}"]
        assert {key: result[key] for key in given.identity(given.seed)} == {
            **given.identity(given.seed),
            "train_size": result["train_size"],
        }
        accuracy, examples, _, _, printed = figures.split(" | ")
        assert accuracy == f"{result['test_accuracy']:.2f}"
        assert examples == f"{result['test_examples']:,}"
        expected = paper.value("3", given.method, given.dataset)
        assert printed.split()[0] == ("none:" if expected is None else f"{expected:.2f}")


def test_its_benchmark_is_that_of_the_file():
    root = Path(__file__).parent.parent / "results"
    measured = json.loads((root / "benchmark.json").read_text())
    table = report.in_short(measured)[:-1]
    assert len(table) == 2 + len(measured["networks"])
    assert "\n".join(table) in README
    assert measured["command"] in README


def test_its_findings_are_those_of_the_tables():
    """Every mean with a deviation and every difference with an interval is some table's."""
    results = Path(__file__).parent.parent / "results"
    written = results / "README.md"
    interval = r"[+-]\d+\.\d\d \([+-]\d+\.\d\d to [+-]\d+\.\d\d\)"
    figure = re.compile(rf"{interval}|\d+\.\d\d ± \d+\.\d\d")
    tables = (file.read_text() for file in results.glob("*.md") if file != written)
    in_tables = {found for table in tables for found in figure.findall(table)}
    for text in (README, written.read_text()):
        unbroken = " ".join(text.split())  # a figure may be wrapped over two lines
        assert set(figure.findall(unbroken)) <= in_tables


def test_its_layout_names_every_module():
    root = Path(__file__).parent.parent
    for file in [*root.glob("interflow_jax/*.py"), *root.glob("experiments/*.py")]:
        if file.name not in ("__init__.py", "version.py"):
            assert re.search(rf"\b{file.stem}\b", README), file
