"""Tables of figures as Markdown."""

from typing import Any

MISSING = "missing"
"""Stands where no run is finished."""


def text(value: Any, form: str = ".2f") -> str:
    """A float by its form, a dash for None, anything else as `str` has it."""
    if value is None:
        return "-"
    return format(value, form) if isinstance(value, float) else str(value)


def table(head: list[str], rows: list[list[Any]], form: str = ".2f") -> list[str]:
    """A table's lines: names on the left, figures to the right of their columns."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    lines += [[text(value, form) for value in row] for row in rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]
