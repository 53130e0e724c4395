"""Figures as Markdown: numbers, spreads, differences with intervals, and tables of them."""

from typing import Any

MISSING = "missing"
"""Stands where a run has not been made."""


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table's lines: names on the left, figures to the right of their columns."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def number(value: float | None) -> str:
    """With two decimals; a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"


def spread(found: dict[str, Any]) -> str:
    """A mean, and its standard deviation if there is one."""
    deviation = found["deviation"]
    return number(found["mean"]) + ("" if deviation is None else f" ± {deviation:.2f}")


def difference(found: dict[str, Any] | None, runs: int | None = None) -> str:
    """A difference, its interval if there is one, and its pairs if there are fewer than runs."""
    if found is None:
        return "-"
    interval = "" if found["low"] is None else f" ({found['low']:+.2f} to {found['high']:+.2f})"
    fewer = runs is not None and found["pairs"] < runs
    pairs = f", {found['pairs']} pair{'s' if found['pairs'] > 1 else ''}" if fewer else ""
    return f"{found['mean']:+.2f}{interval}{pairs}"
