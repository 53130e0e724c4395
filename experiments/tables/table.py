"""What a table is: the configurations that it trains, and what it reports on their runs."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

import interflow_jax as ij
from experiments.cli.configuration import VGG, Configuration
from experiments.sweep import time_left
from experiments.sweep.planning import Planned
from experiments.sweep.record import Record
from experiments.tables import presets
from experiments.tables.frame import Cell, Results, columns
from interflow_jax.data import datasets

PAPER_DEPTH = 13  # of all tables but I and VI

Picture = tuple[str, str, Figure]
"""Its file's name without extension, what it shows in words, and the figure."""


class Detail(NamedTuple):
    """A list of figures below a table's cells, in its JSON and in Markdown."""

    name: str  # in JSON, of all lists of this kind
    title: str  # of this one
    rows: list[dict[str, Any]]  # figures by column; the first column names them
    note: str = ""  # above the rows
    form: str = ".2f"  # of floats
    printed: bool = True  # whether it is in Markdown, too


@dataclass(frozen=True)
class Choice:
    """What the command line chooses for a table."""

    preset: str = presets.DEFAULT
    axes: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # in place of the table's
    seeds: tuple[int, ...] | None = None  # in place of the table's
    overrides: dict[str, Any] = field(default_factory=dict)  # fields of `Configuration`


@dataclass(frozen=True)
class Table:
    """A table: cells with a figure each, details, and pictures.

    Every combination of the axes' values is a cell. An axis is a field of `Configuration`, or
    several ("width epochs"), whose values are tuples; `length` multiplies the epochs. Any table
    takes any axis from the command line, in place of those that share a field with it: its headings
    name what varies.
    """

    name: str  # of its files, without extension
    title: str
    seeds: int  # runs per cell
    axes: dict[str, tuple[Any, ...]]
    first_seed: int = 0
    rows: tuple[str, ...] = ("method",)  # fields that name the rows of a section
    sections: tuple[str, ...] = ("dataset",)  # fields that every heading names
    decides: tuple[str, ...] = ()  # fields that a command line's axes may not name
    # The row of the section to compare with, by the first of `rows`; None: the row above.
    reference: tuple[Any, ...] | None = ("Normal",)
    note: str = ""  # above the cells
    holds_out: bool = False  # whether it needs training examples that no run trains on
    may_fail: bool = False  # whether some runs may not begin to learn
    paper: Callable[[Configuration], float | None] = lambda flags: None  # accuracy in percent
    paper_dataset: str | None = None  # of the paper's figures, whatever the dataset of ours
    omit: Callable[[Configuration], bool] = lambda flags: False  # where no methods are chosen
    # How it narrows a choice, given the runs that the record in a folder has.
    narrow: Callable[[Choice, Record, Path], Choice] = lambda choice, record, out: choice
    # What it measures of a finished run, in the run's folder.
    measure: Callable[[Planned], None] = lambda run: None
    details: Callable[[Results], Iterable[Detail]] = lambda results: ()
    pictures: Callable[[Results], Iterable[Picture]] = lambda results: ()

    def run_seeds(self, choice: Choice) -> tuple[int, ...]:
        """The seeds of every cell."""
        return choice.seeds or tuple(range(self.first_seed, self.first_seed + self.seeds))

    @property
    def compared_with(self) -> str:
        """The row that all others of a section are compared with, in words."""
        if self.reference is None:
            return "the row above"
        return _field_in_words(self.rows[0], self.reference[0])

    def cells(self, choice: Choice) -> list[Cell]:
        """All cells, section by section; raises ValueError for an impossible configuration."""
        configurations = self._configurations(choice)
        axes = {name for axis in {**self.axes, **choice.axes} for name in axis.split()}
        heading = list(self.sections)
        named = {*self.rows, *self.sections}
        for axis in self.axes:  # of several fields that go together, one tells them all
            named |= set(axis.split()) if named & set(axis.split()) else set()
        for name in sorted(axes - named - {"length"}):
            values = {columns(flags)[name] for flags in configurations}
            if len(values) > 1 or values != set(self.axes.get(name, values)):
                heading.append(name)
        sections: dict[str, list[Configuration]] = {}
        for flags in configurations:
            sections.setdefault(words(flags, heading), []).append(flags)
        return [
            Cell(
                flags,
                section,
                words(flags, self.rows),
                self.paper(flags),
                self._reference(flags, inside),
                tuple(heading),
            )
            for section, inside in sections.items()
            for flags in inside
        ]

    def _reference(self, flags: Configuration, inside: list[Configuration]) -> Configuration | None:
        """What a cell is compared with, in its section or else among another table's runs."""
        if self.reference is None:
            place = inside.index(flags)
            return inside[place - 1] if place else None
        named = dict(zip(self.rows, self.reference, strict=False))
        alike = [other for other in inside if named.items() <= vars(other).items()]
        if not alike:
            return replace(flags, **named)
        # If a section has networks of several depths, the deepest.
        reference = min(
            alike, key=lambda other: (-other.depth, other.learning_rate != flags.learning_rate)
        )
        return None if reference == flags else reference

    def _axes(self, choice: Choice) -> dict[str, tuple[Any, ...]]:
        """The table's axes; a chosen one replaces those that share a field with it."""
        axes: dict[str, tuple[Any, ...]] = {}
        for axis, values in self.axes.items():
            chosen = [name for name in choice.axes if set(name.split()) & set(axis.split())]
            axes |= {name: choice.axes[name] for name in chosen} or {axis: values}
        axes |= choice.axes
        if "depth" in axes:
            axes["depth"] = tuple(sorted(axes["depth"]))
        return axes

    def _configurations(self, choice: Choice) -> list[Configuration]:
        axes = self._axes(choice)
        configurations = []
        for place in itertools.product(*axes.values()):
            values: dict[str, Any] = {}
            for axis, value in zip(axes, place, strict=True):
                names = axis.split()
                values |= dict(zip(names, value if len(names) > 1 else [value], strict=True))
            length = values.pop("length", 1)
            decided = values | choice.overrides
            given = presets.flags(choice.preset, values["dataset"])
            if decided.get("backbone", VGG) != VGG:
                given.pop("width", None)  # it has no meaning there
            given |= decided
            flags = Configuration(**given)
            if self.holds_out:
                flags = _with_held_out(flags)
            for seed in self.run_seeds(choice):
                replace(flags, seed=seed).check()
            if length > 1:
                flags = replace(flags, epochs=length * flags.resolved_epochs())
            if "method" in choice.axes or not self.omit(flags):
                configurations.append(flags)
        return list(dict.fromkeys(configurations))  # an override makes some equal


def _with_held_out(flags: Configuration) -> Configuration:
    """Holds out the last tenth of a training split that would otherwise be trained on whole."""
    if flags.dataset in datasets.RECIPES:
        examples = time_left.examples(flags.dataset)[0]
        whole = flags.train_size in (None, examples)
        return replace(flags, train_size=examples * 9 // 10) if whole else flags
    if flags.train_size is None:
        raise ValueError(
            f"{flags.dataset}: the table needs training examples that no run trains on; give a "
            "--train_size below the size of the training split"
        )
    return flags


def words(flags: Configuration, names: Sequence[str]) -> str:
    """Fields of a configuration as a heading or a row shows them."""
    values = columns(flags)
    return ", ".join(filter(None, (_field_in_words(name, values[name]) for name in names)))


def _field_in_words(name: str, value: Any) -> str:
    if name == "method" and value in ij.BASELINES:
        return f"{value} (not the paper's)"
    if value is None:
        return ""
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if name == "auxiliary_mean" and not value:
        return ""
    if name == "backbone":
        value = value.rpartition(":")[2]
    return value if name in ("method", "dataset") else f"{name} {value}"
