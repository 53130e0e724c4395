"""The paper's own numbers, read from paper.json beside this file.

Tables I, III, IV, V, VI and VII as printed in Cai, "Interflow", arXiv:2106.14073, one line per
row of a table, so that a person can check the file against the paper. Cells that could not be read
beyond doubt are left out of the tables and listed in `DOUBTFUL` with the reason.
"""

import json
from pathlib import Path
from typing import Any

_FILE = json.loads(Path(__file__).with_name("paper.json").read_text())
DOUBTFUL: list[dict[str, Any]] = _FILE.pop("doubtful")  # table, row, column, reads, reason
TABLES: dict[str, dict[str, Any]] = _FILE


def table(number: str) -> dict[str, Any]:
    """One table of the paper: title and unit, in words, and cells, {row: {column: number}}.

    Rows and columns are methods, dataset names as in `interflow_jax.data.recipes`, depths, or
    branches, classes and runs, numbered as printed. "figure 4" is what the text says of its runs.

    Raises:
      ValueError: for a number that no table has.
    """
    if number not in TABLES:
        raise ValueError(f"there is no table {number!r}; choose one of {', '.join(TABLES)}")
    return TABLES[number]


def value(number: str, row: str, column: str) -> float | None:
    """One cell, such as `value("3", "S7", "svhn")`; None if it is doubtful or missing."""
    return table(number)["cells"].get(row, {}).get(column)


def repeated(config: Any) -> float | None:
    """The mean accuracy of the runs of Tables IV (S1) and VII (S3), for a `RunConfig` of theirs."""
    model, number = config.model, {"S1": "4", "S3": "7"}.get(config.model.method)
    theirs = (config.data.dataset, model.depth, model.backbone) == ("cifar10", 13, "vgg")
    return value(number, "mean", "accuracy") if number and theirs else None
