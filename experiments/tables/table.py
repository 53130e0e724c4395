"""What a table is: the configurations that it trains, and what it says of their runs."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from matplotlib.figure import Figure

import interflow_jax as ij
from experiments.cli.configuration import Configuration
from experiments.tables import presets
from experiments.tables.frame import Cell, Results, columns

PAPER_DEPTH = 13  # of all tables but I and VI

Picture = tuple[str, str, Figure]
"""Its file's name without ending, what it shows in words, and the figure."""


class Detail(NamedTuple):
    """A list of figures below a table's cells, in its JSON and in Markdown."""

    name: str  # in JSON, of all lists of the kind
    title: str  # of this one
    rows: list[dict[str, Any]]  # figures by column; the first column names them
    note: str = ""  # above the rows
    form: str = ".2f"  # of floats
    printed: bool = True  # whether it is in Markdown, too


@dataclass(frozen=True)
class Choice:
    """What the command line makes of a table."""

    preset: str = "cpu"
    axes: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # in place of the table's
    seeds: tuple[int, ...] | None = None  # in place of the table's
    overrides: dict[str, Any] = field(default_factory=dict)  # fields of `Configuration`


@dataclass(frozen=True)
class Table:
    """A table: cells with a figure each, details, and pictures.

    Every combination of the axes' values is a cell. An axis is a field of `Configuration`, or
    several ("width epochs"), whose values are tuples; `length` multiplies the epochs. Any table
    takes any axis from the command line: its headings name what varies.
    """

    name: str  # of its files, without ending
    title: str
    seeds: int  # runs per cell, from seed 0 on
    axes: dict[str, tuple[Any, ...]]
    rows: str = "method"  # the axis along the rows of a section
    sections: tuple[str, ...] = ("dataset",)  # fields that every heading names
    reference: str | None = "Normal"  # the row to compare with; None: the row above
    paper: Callable[[Configuration], float | None] = lambda flags: None  # accuracy in percent
    paper_dataset: str | None = None  # that its figures are of, whatever ours are of
    omit: Callable[[Configuration], bool] = lambda flags: False  # where no methods are chosen
    details: Callable[[Results], Iterable[Detail]] = lambda results: ()
    pictures: Callable[[Results], Iterable[Picture]] = lambda results: ()

    def run_seeds(self, choice: Choice) -> tuple[int, ...]:
        """The seeds of every cell."""
        return choice.seeds or tuple(range(self.seeds))

    def cells(self, choice: Choice) -> list[Cell]:
        """All cells, section by section; raises ValueError for a configuration that cannot be."""
        configurations = self._configurations(choice)
        axes = {name for axis in {**self.axes, **choice.axes} for name in axis.split()}
        heading = list(self.sections)
        for name in sorted(axes - {"length", self.rows, *self.sections}):
            values = {columns(flags)[name] for flags in configurations}
            if len(values) > 1 or values != set(self.axes.get(name, values)):
                heading.append(name)
        cells: dict[str, list[Cell]] = {}
        for flags in configurations:
            section = ", ".join(words(name, columns(flags)[name]) for name in heading)
            above = cells.setdefault(section, [])
            reference = above[-1].flags if above else None
            if self.reference is not None:
                reference = replace(flags, **{self.rows: self.reference})
            if reference == flags:
                reference = None
            row = words(self.rows, getattr(flags, self.rows))
            above.append(Cell(flags, section, row, self.paper(flags), reference))
        return [cell for section in cells.values() for cell in section]

    def _configurations(self, choice: Choice) -> list[Configuration]:
        axes = {**self.axes, **choice.axes}
        axes["depth"] = tuple(sorted(axes["depth"]))
        configurations = []
        for place in itertools.product(*axes.values()):
            values: dict[str, Any] = {}
            for axis, value in zip(axes, place, strict=True):
                names = axis.split()
                values |= zip(names, value if len(names) > 1 else [value], strict=True)
            length = values.pop("length", 1)
            given = presets.flags(choice.preset, values["dataset"]) | values | choice.overrides
            flags = Configuration(**given)
            for seed in self.run_seeds(choice):
                replace(flags, seed=seed).check()
            if length > 1:
                flags = replace(flags, epochs=length * flags.resolved_epochs())
            if "method" in choice.axes or not self.omit(flags):
                configurations.append(flags)
        return list(dict.fromkeys(configurations))  # an override makes some equal


def words(name: str, value: Any) -> str:
    """A field of `Configuration` as a heading or a row has it."""
    if name == "method" and value in ij.BASELINES:
        return f"{value} (not the paper's)"
    return value if name in ("method", "dataset") else f"{name} {value}"
