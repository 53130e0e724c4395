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


class Detail(NamedTuple):
    """A list of figures below a table's cells, in its JSON and in Markdown.

    Attributes:
      name: in JSON, of all lists of the kind.
      title: of this one.
      rows: figures by column; the first column names them.
      note: above the rows.
      form: of floats.
      printed: whether it is in Markdown, too.
    """

    name: str
    title: str
    rows: list[dict[str, Any]]
    note: str = ""
    form: str = ".2f"
    printed: bool = True


Picture = tuple[str, str, Figure]
"""Its file's name without ending, what it shows in words, and the figure."""


@dataclass(frozen=True)
class Choice:
    """What the command line makes of a table.

    Attributes:
      preset: of `presets.PRESETS`.
      axes: values in place of the table's, by axis; any table takes any axis.
      seeds: in place of the table's.
      overrides: fields of `Configuration`, of all runs.
    """

    preset: str = "cpu"
    axes: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table: cells with a figure each, details, and pictures.

    Attributes:
      name: of its files, without ending.
      title: of its report.
      seeds: runs per cell, from seed 0 on.
      axes: values by field of `Configuration`; every combination is a cell. An axis of several
        fields ("width epochs") takes tuples, and `length` multiplies the epochs.
      rows: the axis along the rows of a section.
      sections: fields that every heading names; others are named where the choice varies them.
      reference: the row that the others are compared with; without, each with the row above.
      paper: the paper's accuracy of a configuration in percent, if it prints one.
      paper_dataset: that its figures are of, whatever ours are of.
      omit: whether to leave a configuration out where no methods are chosen.
      details: printed below the cells, in order.
      pictures: of whatever runs there are.
    """

    name: str
    title: str
    seeds: int
    axes: dict[str, tuple[Any, ...]]
    rows: str = "method"
    sections: tuple[str, ...] = ("dataset",)
    reference: str | None = "Normal"
    paper: Callable[[Configuration], float | None] = lambda flags: None
    paper_dataset: str | None = None
    omit: Callable[[Configuration], bool] = lambda flags: False
    details: Callable[[Results], Iterable[Detail]] = lambda results: ()
    pictures: Callable[[Results], Iterable[Picture]] = lambda results: ()

    def run_seeds(self, choice: Choice) -> tuple[int, ...]:
        """The seeds of every cell."""
        return choice.seeds or tuple(range(self.seeds))

    def cells(self, choice: Choice) -> list[Cell]:
        """All cells, section by section.

        Raises:
          ValueError: for a configuration that cannot be.
        """
        configurations = self._configurations(choice)
        axes = {name for axis in {**self.axes, **choice.axes} for name in axis.split()}
        heading = list(self.sections)
        for name in sorted(axes - {"length", self.rows, *self.sections}):
            values = {columns(flags)[name] for flags in configurations}
            if len(values) > 1 or values != set(self.axes.get(name, values)):
                heading.append(name)
        sections: dict[str, list[Configuration]] = {}
        for flags in configurations:
            section = ", ".join(words(name, columns(flags)[name]) for name in heading)
            sections.setdefault(section, []).append(flags)
        return [
            self._cell(section, flags, above)
            for section, rows in sections.items()
            for above, flags in zip([None, *rows], rows, strict=False)
        ]

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

    def _cell(self, section: str, flags: Configuration, above: Configuration | None) -> Cell:
        reference = above
        if self.reference is not None:
            reference = replace(flags, **{self.rows: self.reference})
        row = words(self.rows, getattr(flags, self.rows))
        return Cell(
            flags, section, row, self.paper(flags), None if reference == flags else reference
        )


def words(name: str, value: Any) -> str:
    """A field of `Configuration` as a heading or a row has it."""
    match name:
        case "method":
            return f"{value} (not the paper's)" if value in ij.BASELINES else value
        case "dataset":
            return value
        case "epochs":
            return f"{value} epoch{'' if value == 1 else 's'}"
        case "train_size":
            return "all examples" if value is None else f"{value:,} examples"
        case "depth" | "width":
            return f"{name} {value}"
    return f"{name}={value}"
