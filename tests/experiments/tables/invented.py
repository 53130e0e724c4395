"""Records of runs that were never trained."""

import json
from itertools import takewhile

import pytest

from experiments.tables import plan, report
from experiments.tables.runs import load
from interflow_jax.cli.config import RunConfig
from interflow_jax.config import VGG
from interflow_jax.methods import look_up

TABLES = plan.tables()


def line(config: RunConfig, accuracy: float, held_out: float | None = None, **facts) -> dict:
    """A run's line of the record, of one epoch; other facts take the place of the invented ones."""
    branches = config.model.resolved_taps() if config.model.backbone == VGG else ("last",)
    weights = {f"weights/{branch}": 1.0 for branch in branches}
    per_class = look_up(config.model.method).fusion == "class"
    return {
        **config.identity(),
        "run": "-".join(map(str, config.changes().values())),
        "test_accuracy": accuracy,
        "validation_accuracy": held_out,
        "history": [{"epoch": 1, "test_accuracy": accuracy, **weights}],
        "branch_accuracy": [1.0] * len(branches),
        "branches": list(branches),
        "weights": [[1.0] * 10 if per_class else 1.0] * len(branches),
        "device": "CPU",
        "versions": {"jax": "0"},
        "class_names": ["class"] * 10,
        "image_shape": [32, 32, 3],
        **facts,
    }


def record(out, configs, figures) -> None:
    """Adds runs, with what a function of a run's configuration gives to `line`; None: no run."""
    lines = [(config, figures(config)) for config in configs]
    with (out / "runs.jsonl").open("a") as file:
        for config, given in lines:
            if given is not None:
                file.write(json.dumps(line(config, **given)) + "\n")


def planned(name, out, datasets=None, seeds=None, preset="end", given=None, **axes):
    """The runs of a table, with those that OUT has."""
    table = TABLES[name]
    where = datasets or table.DATASETS, seeds or table.SEEDS
    return plan.plan(table, load(out), *where, axes, preset, **(given or {}))


def cells(name, out, **choice):
    """The rows of a table's standard sections, on the runs that OUT has."""
    parts = TABLES[name].report(planned(name, out, **choice))
    sections = takewhile(lambda part: getattr(part, "key", None) == "cells", parts)
    return [row for section in sections for row in section.rows]


def reported(name, out, **choice):
    """The JSON of a table's report on the runs that OUT has."""
    table, runs = TABLES[name], planned(name, out, **choice)
    facts = {"title": table.TITLE, "command": "the command", "preset": "end", "note": ""}
    report.write(plan.stem(table), facts, runs, table.report(runs), out)
    text = (out / f"{plan.stem(table)}.json").read_text()
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
