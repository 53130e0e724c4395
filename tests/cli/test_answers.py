"""Predictions beside the truth: figures by hand, and names that charts must not read."""

import json

import numpy as np
import pytest

from interflow_jax.cli import charts
from interflow_jax.cli.answers import Answers, draw_mistakes

NAMES = ("cat", "$a_$ dog", "never \\ed")


def test_figures_by_hand(tmp_path):
    labels, predicted = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    answers = Answers(NAMES, labels, predicted)
    assert answers.confusion.tolist() == [[3, 1, 0], [1, 1, 0], [0, 0, 0]]
    answers.write(tmp_path, tmp_path / "classes.json")
    content = json.loads((tmp_path / "classes.json").read_text())
    assert content["accuracy"] == pytest.approx(100 * 4 / 6)
    cat, dog, never = (list(row.values()) for row in content["classes"])
    assert cat == ["cat", 75, 75, 75, 4]
    assert dog == ["$a_$ dog", 50, 50, 50, 2]
    assert never == ["never \\ed", None, None, None, 0]
    skewed = Answers(NAMES, np.array([0, 0, 1]), np.array([0, 1, 1]))
    assert [row["precision"] for row in skewed.rows[:2]] == [100, 50]
    assert [row["recall"] for row in skewed.rows[:2]] == [50, 100]
    assert skewed.rows[0]["f1"] == pytest.approx(200 / 3)


def test_the_surest_mistakes_are_read_and_named(tmp_path, monkeypatch):
    probabilities = np.full((60, 3), 0.2)
    probabilities[:, 1] = np.linspace(0.6, 0.4, 60)
    labels, asked = np.arange(60) % 2, []

    def read(indices):
        asked.extend(indices)
        return np.zeros((len(indices), 1, 8, 1), np.uint8)  # one pixel high

    files, titles = [f"a/b{number}.png" for number in range(60)], []
    save = charts.save

    def saves(chart, file):
        titles.extend(axes.get_title() for axes in chart.axes)
        save(chart, file)

    monkeypatch.setattr(charts, "save", saves)
    draw_mistakes(tmp_path / "mistakes.png", NAMES, files, labels, probabilities, read)
    assert titles[1] == "b2.png\ntrue: cat\n$a_$ dog, 59.3%"
    assert asked == list(range(0, 48, 2)), "those that are no dog, the surest first"
    draw_mistakes(tmp_path / "none.png", NAMES, files, np.ones(60, int), probabilities, read)
    assert len(asked) == 24
    assert (tmp_path / "none.png").stat().st_size < (tmp_path / "mistakes.png").stat().st_size
