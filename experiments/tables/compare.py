"""The standard columns of a table: accuracies beside the paper's, and how far they are apart."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.tables.report import Section
from experiments.tables.runs import FIELDS, Frame, finished
from experiments.tables.statistics import Family, Share, has_begun, spread
from interflow_jax.cli.config import RunConfig, as_flag
from interflow_jax.methods import BASELINES

ROW_ABOVE, FIRST_ROW = "row above", "first row"
_SILENT_ZEROS = ("auxiliary_mean", "distillation", "warmup_epochs", "label_smoothing", "ema")


@dataclass(frozen=True)
class Runs:
    """The runs of a row, with letters that tell their machines, and how many there are to be."""

    names: list[str]
    planned: int
    letters: str

    def __str__(self) -> str:
        return f"{len(self.names)} of {self.planned}{self.letters and f' ({self.letters})'}"


def compare(
    runs: Frame,
    rows: Sequence[str] = ("method",),
    sections: Sequence[str] = ("dataset",),
    to: Any = "Normal",
    paper: Callable[[RunConfig], float | None] = lambda config: None,
    may_fail: bool = False,
    outcome: str = "late_accuracy",
    key: str = "cells",
    about: str = "",
) -> Iterator[Section]:
    """A section per value of `sections`, and in it a row per value of `rows`.

    A field that varies within a row, but for the seed, is one more of `sections`.

    Args:
      runs: a matched frame, perhaps with further columns of a row in `chosen`; rows without a
        finished run are named, not shown.
      to: what rows are compared with: the value of the first field of one row (the deepest, if
        there are several), or one of `ROW_ABOVE` and `FIRST_ROW`.
      paper: the paper's accuracy in percent for a configuration.
      may_fail: whether some runs may not begin to learn; a row with such runs and others has the
        mean of the others, and is not compared.
      outcome: the column by which rows are compared.
      key, about: what the sections have in common in JSON, and what their titles end with.
    """
    sections = [*sections, *_varied(runs, [*rows, *sections])]
    for place, inside in _groups(runs, sections):
        cells, values, controls, missing = [], {}, [], []
        for first, planned in _groups(inside, rows):
            done, row = finished(planned), in_words(first, rows)
            if done.empty:
                missing.append(row)
                continue
            begun = has_begun(done, "test_accuracy" if outcome == "late_accuracy" else outcome)
            mixed = may_fail and begun.nunique() > 1
            told = done[begun] if mixed else done
            values[row] = [] if mixed else done[outcome]
            if to in (FIRST_ROW, first[rows[0]]):
                controls.append((first["depth"] * (to != FIRST_ROW), row))
            cells.append(
                {
                    "row": row,
                    **{name: first[name] for name in (*sections, *rows)},
                    "paper": paper(first["config"]),
                    "begun": Share(int(begun.sum()), len(done)) if may_fail else None,
                    "last epoch": spread(told["test_accuracy"]),
                    "best": float(done["test_accuracy"].max()),
                    "last ten epochs": spread(told["late_accuracy"]),
                    "recalibrated": spread(told["recalibrated_accuracy"]),
                    **(first.get("chosen") or {}),
                    "runs": Runs(done["run"].tolist(), len(planned), "".join(done["letter"])),
                }
            )
        family, names = Family(values), list(values)
        control = max(controls, key=lambda pair: pair[0], default=(0, ""))[1]
        above = dict(zip(names[1:], names, strict=False))
        differences = family.between(above.items()) if to == ROW_ABOVE else family.to(control)
        for cell in cells:
            cell["difference"] = differences.get(cell["row"])
            cell["to"] = above.get(cell["row"]) if to == ROW_ABOVE else control
        named = "the row above" if to == ROW_ABOVE else control
        note = f"Differences are to {named}. " if differences else ""
        note += str(family)
        if missing:
            note += f" Without a finished run: {'; '.join(missing)}."
        if cells:
            title = in_words(place, sections) + about
            yield Section(title, cells, key, note, columns=_columns(cells))


def labelled(
    runs: Frame,
    rows: Sequence[str] = ("method",),
    sections: Sequence[str] = ("dataset",),
    along: Sequence[str] = (),
) -> Frame:
    """The finished runs with `row` and `section`, as `compare` names them.

    Args:
      along: fields that vary within a row, such as that of a picture's x axis.
    """
    sections = [*sections, *_varied(runs, [*rows, *sections, *along])]
    done = finished(runs)
    records = _records(done)
    return done.assign(
        row=[in_words(run, rows) for run in records],
        section=[in_words(run, sections) for run in records],
    )


def _columns(cells: list[dict[str, Any]]) -> list[str]:
    """What is printed: no fields, which the headings name, and no column without a figure."""
    printed = dict.fromkeys(name for cell in cells for name in cell if name not in (*FIELDS, "to"))
    return [name for name in printed if any(cell.get(name) is not None for cell in cells)]


def _groups(runs: Frame, names: Sequence[str]) -> Iterator[tuple[dict[str, Any], Frame]]:
    """The runs that agree on some columns, in order, each group after its first."""
    for _, group in runs.groupby(list(names), sort=False, dropna=False):
        yield _records(group.iloc[:1])[0], group


def _records(runs: Frame) -> list[dict[str, Any]]:
    """The rows, with None in place of NaN, which a column of words has for it."""
    return runs.astype(object).where(runs.notna(), None).to_dict("records")


def _varied(runs: Frame, names: list[str]) -> list[str]:
    """The fields, but for the seed, that differ among runs that agree on some others."""
    rest = [name for name in FIELDS if name not in (*names, "seed")]
    counts = runs.groupby(names, sort=False, dropna=False)[rest].nunique(dropna=False)
    return [name for name in rest if counts[name].max() > 1]


def in_words(values: dict[str, Any], names: Sequence[str]) -> str:
    """Fields as a heading or a row shows them."""
    return ", ".join(filter(None, (_in_words(name, values[name]) for name in names)))


def _in_words(name: str, value: Any) -> str:
    if name == "method" and value in BASELINES:
        return f"{value} (not the paper's)"
    if value is None or (name in _SILENT_ZEROS and not value):
        return ""
    if name in ("method", "dataset", "backbone"):
        return value.rpartition(":")[2] if name == "backbone" else value
    label = "fc" if name == "fully_connected" else name.replace("_", " ")
    return f"{label} {value:g}" if isinstance(value, float) else f"{label} {as_flag(value)}"
