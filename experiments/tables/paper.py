"""The paper's own numbers, read from paper.json beside this file.

Tables I, III, IV, V, VI and VII as printed in Cai, "Interflow", arXiv:2106.14073, one line per
row of a table, so that a person can check the file against the paper. Cells that could not be read
beyond doubt are left out of the tables and listed as "doubtful" with the reason.
"""

import json
from pathlib import Path
from typing import Any

CELLS: dict[str, dict[str, dict[str, Any]]] = {
    number: table["cells"]
    for number, table in json.loads(Path(__file__).with_suffix(".json").read_text()).items()
    if number != "doubtful"
}
"""By table, as printed: {row: {column: number}}, by the names of methods, datasets and depths."""


def value(number: str, row: str, column: str) -> float | None:
    """One cell, such as `value("3", "S7", "svhn")`; None if it is doubtful or missing."""
    return CELLS[number].get(row, {}).get(column)


def repeated(config: Any) -> float | None:
    """The mean accuracy of the runs of Tables IV (S1) and VII (S3), for a `RunConfig` of theirs."""
    model, number = config.model, {"S1": "4", "S3": "7"}.get(config.model.method)
    network = config.data.dataset, model.depth, model.resolved_taps()
    theirs = network == ("cifar10", 13, (7, 9, 11, 13))
    return value(number, "mean", "accuracy") if number and theirs else None
