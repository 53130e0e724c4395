"""Tables of figures as Markdown."""

from typing import Any


def text(value: Any, form: str = ".2f") -> str:
    """Formats a float by `form`, None as a dash, and anything else with `str`."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return format(value, form)
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def table(head: list[str], rows: list[list[Any]], form: str = ".2f") -> list[str]:
    """A table's lines: names in the left column, figures right-aligned."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    lines += [[text(value, form) for value in row] for row in rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]
