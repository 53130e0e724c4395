"""The page of claims, results/README.md, its figure, and sentences of the project's README.

Words are chosen by verdicts, so that they are right whatever the runs say.
"""

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from experiments.tables import pictures
from experiments.tables.claims import (
    CLAIMS,
    FLAGS,
    NOT_TRAINED,
    RATE,
    Planned,
    Tables,
    answer,
    budgets,
    figure,
    of_paper,
    table_of,
)
from experiments.tables.compare import in_words
from experiments.tables.runs import Frame
from experiments.tables.statistics import CONFIDENCE, RULE, Difference
from interflow_jax.cli import charts, markdown
from interflow_jax.cli.files import write_whole

START, END = "<!-- claims -->", "<!-- /claims -->"
_PICTURE = "claims.png"
_SHOWS = (
    "Left, test accuracy by learning rate, a line per method. Right, every run at 3e-2, methods "
    "beside networks of 13, 11, 9 and 7 layers without branches. Bars are 95 % intervals of one "
    "row, by the deviation that all rows of a rate share"
)
_SETTING = """\
Where nothing else is said, networks are trained on 10,000 images of CIFAR-10 for 60 epochs, at width
1/8 and at a learning rate of 3e-2, the best of five; the paper has all images, 100 epochs, width 1
and 1e-3. So accuracies are not the paper's; what is compared is equal but for what is named."""
_COMMAND = "python -m experiments.reproduce"


def write(planned: Planned, out: Path) -> str:
    """Writes OUT/README.md and OUT/claims.png, and the sentences between the README's markers.

    Returns:
      What was written, in words.
    """
    tables, style = Tables(planned), charts.STYLE
    with plt.rc_context(style):
        charts.save(_figure(tables), out / _PICTURE)
    write_whole(out / "README.md", _page(tables))
    readme = out.parent / "README.md"
    text = readme.read_text() if readme.exists() else ""
    if START not in text:
        return f"{out / 'README.md'}; {readme} has no {START} to put its sentences after"
    before, _, after = text.partition(START)
    after = after.partition(END)[2] if END in after else after
    advice = [*_advice(tables), f"![{_SHOWS}]({out.name}/{_PICTURE})"]
    write_whole(readme, "\n\n".join([f"{before}{START}", *advice, f"{END}{after}"]))
    return f"{out / 'README.md'}, {readme}"


def _page(tables: Tables) -> str:
    printed, rows = of_paper(), []
    for claim in CLAIMS:
        table, found = table_of(claim), answer(claim, tables)
        link = f"[{tables.page(table).removesuffix('.md')}]({tables.page(table)})"
        told = found or (NOT_TRAINED, f"`{_COMMAND} {FLAGS[table]}`", "")
        rows.append([claim["place"], claim["says"].format(**printed), *told, link if found else ""])
    head = ["the paper", "its claim", "verdict", "figure", "the control beside it", "table"]
    lines = [
        "# What the paper claims, and what these runs say",
        _SETTING,
        f"![{_SHOWS}]({_PICTURE})",
        *_sentences(tables),
        "\n".join(markdown.table(head, rows)).strip(),
        f"{RULE}\nIn how many runs something holds: the exact interval of the share (95 %), "
        "*confirmed* where it holds in most.",
        f"Every figure is computed from `runs.jsonl`, or from the paper's own tables, by\n"
        f"`{_COMMAND} --claims --out=results`. What is left to train: "
        "[docs/evidence.md](../docs/evidence.md).",
    ]
    return "\n\n".join(lines) + "\n"


def _told(subject: str, found: Difference | None, other: str) -> str:
    """How a subject compares with another, as a clause."""
    if found is None:
        return f"{subject} has not been compared with {other} yet"
    ends = "" if found.low is None else f" ({found.low:+z.2f} to {found.high:+z.2f})"
    if found.verdict in ("ahead", "behind"):
        word = "ahead of" if found.verdict == "ahead" else "behind"
        return f"{subject} is {word} {other} by {abs(found.mean):.2f} points{ends}"
    word = "no different from" if found.verdict == "no different" else "not told apart from"
    return f"{subject} is {word} {other}, {figure(found)}"


def _grouped(found: dict[str, Difference | None], other: str) -> str:
    """How several subjects compare with another, those of one verdict in one clause."""
    words = {
        "ahead": f"ahead of {other}",
        "no different": f"no different from {other}",
        "undecided": f"not told apart from {other}",
        "behind": f"behind {other}",
        None: f"not yet compared with {other}",
    }
    clauses = []
    for verdict, word in words.items():
        alike = {name: each for name, each in found.items() if (each and each.verdict) == verdict}
        if alike:
            named = [f"{name} ({figure(each)})" if each else name for name, each in alike.items()]
            *most, last = named
            listed = f"{', '.join(most)} and {last}" if most else last
            clauses.append(f"{listed} {'are' if most else 'is'} {word}")
    return "; ".join(clauses)


def _verdict(found: Difference | None) -> str:
    return found.verdict if found else "undecided"


def _sentences(tables: Tables) -> list[str]:
    """Six sentences on what the runs say."""
    found = tables.difference
    nine, beside_nine = found("nine"), found("S1 to nine")
    depth = {
        "ahead": "branches do more than make superfluous depth harmless",
        "no different": "branches do no more than make superfluous depth harmless",
        "behind": "it is better to leave superfluous layers out",
        "undecided": "whether branches do more than make superfluous depth harmless is open",
    }
    reading = f": {depth[_verdict(beside_nine)]}" if _verdict(nine) == "ahead" else ""
    weights = {
        "fixed weights (S0)": found("S0 to S1"),
        "a weight per class (S3)": found("S3 to S1"),
        "weights that see the image": found("attention to S1"),
        "one linear layer on all features (Concat)": found("Concat to S1"),
    }
    learned = {
        "behind": "learning the weights helps",
        "undecided": "what learning the weights adds is open",
    }.get(_verdict(found("S0 to S1")), "learning the weights is not what helps")
    short_cut = _verdict(found("S1 to Detached"))
    cause = {
        "ahead": "fusion alone, without the gradient's short cut, is not enough",
        "undecided": "whether fusion needs the gradient's short cut is open",
    }.get(short_cut, "fusion does not need the gradient's short cut")
    others = {
        "a residual network": found("S1 on ResNet"),
        "a small transformer": found("S1 on ViT"),
        "a network of depth 60": found("S1 at depth 60"),
    }
    elsewhere = _grouped({f"on {name}, S1": each for name, each in others.items()}, "Normal")
    return [
        f"1. {_told('S1', found('S1'), 'the same network without branches, Normal,')}; at 1e-2, "
        f"{_told('it', found('S1 at 1e-2'), 'Normal')}.",
        f"2. {_told('A network of nine layers and no branches', nine, 'Normal')}, and "
        f"{_told('S1', beside_nine, 'those nine layers')}{reading}.",
        f"3. {_capital(_grouped(weights, 'S1'))}: {learned}.",
        f"4. {_told('S1', found('S1 to Detached'), 'Detached')}, "
        f"{_told('which', found('Detached'), 'Normal')}; "
        f"{_told('DSN', found('DSN'), 'Normal')}: {cause}.",
        f"5. {_capital(elsewhere)}.",
        f"6. {_early(tables)}.",
    ]


def _early(tables: Tables) -> str:
    cells = budgets(tables)
    if not cells:
        return "Early exits have not been compared yet"
    ahead = [name for name, each in cells.items() if each.verdict == "ahead"]
    if ahead:
        best = max(ahead, key=lambda name: cells[name].mean)
        return (
            f"Leaving early is ahead of the best network of as many operations in {len(ahead)} of "
            f"{len(cells)} ways and budgets, most with {best}, {figure(cells[best])}"
        )
    return (
        f"Leaving early is ahead of the best network of as many operations in none of {len(cells)} "
        "ways and budgets: it is one network for many budgets, not a better one"
    )


def _advice(tables: Tables) -> list[str]:
    """Three sentences for someone who builds a network: when, which, and with what loss."""
    found = tables.difference
    s1, beside_nine = found("S1"), _verdict(found("S1 to nine"))
    if _verdict(s1) != "ahead":
        when = (
            f"Branches are no way to more accuracy: {_told('S1', s1, 'the network without them')}."
        )
    else:
        when = f"Branches help: {_told('S1', s1, 'the same network without them')}"
        when += {
            "ahead": ", and of the best number of layers, too.",
            "behind": ", but behind the right number of layers; try fewer layers first.",
        }.get(
            beside_nine,
            "; but fewer layers do as much as far as can be told "
            f"({_told('nine of thirteen', found('nine'), 'all')}), so use branches where you do "
            "not know how deep the network must be.",
        )
    kinds = {
        "fixed weights (S0)": found("S0 to S1"),
        "one linear layer on the features of all branches (Concat)": found("Concat to S1"),
        "weights that see the image": found("attention to S1"),
    }
    which = {
        "behind": "Learn their weights",
        "ahead": "Keep their weights fixed",
    }.get(_verdict(found("S0 to S1")), "Their weights hardly matter")
    losses = found("losses to S1")
    loss = {
        "behind": "Give branches losses of their own only where images are to leave early or the "
        "network is to be cut",
        "ahead": "Give branches losses of their own (`--auxiliary_mean=1`)",
    }.get(
        _verdict(losses),
        "Give branches losses of their own (`--auxiliary_mean=1`) where images are to leave early "
        "or the network is to be cut; no loss of accuracy is seen",
    )
    return [
        f"**When.** {when}",
        f"**Which.** {which}: beside one learned weight per branch (S1), {_grouped(kinds, 'it')}.",
        f"**With what loss.** {loss}: {_told('S1 with them', losses, 'S1')}. {_early(tables)}.",
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _figure(tables: Tables) -> Any:
    chart, panels = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    _by_rate(panels[0], tables.runs("rates"))
    names = ("controls", "rates", "exits")
    runs = pd.concat([tables.runs(name) for name in names]).drop_duplicates("key")
    plain = (runs["learning_rate"] == RATE) & (runs["dataset"] == "cifar10")
    _every_run(panels[1], runs[plain & (runs["width"] == 0.125)])
    return chart


def _bars(runs: Frame, by: str) -> Frame:
    """Mean and half a 95 % interval per row, by the deviation that the rows share."""
    groups = runs.groupby(by, sort=False)["late_accuracy"]
    freedom = len(runs) - groups.ngroups
    deviation = np.sqrt((groups.var() * (groups.size() - 1)).sum() / freedom) if freedom else np.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * deviation / np.sqrt(groups.size())
    return pd.DataFrame({"mean": groups.mean(), "half": half, "runs": groups.size()})


def _by_rate(axes: Axes, runs: Frame) -> None:
    runs = runs[runs["dataset"] == "cifar10"]
    records = runs.to_dict("records")
    runs = runs.assign(row=[in_words(run, ("method", "auxiliary_mean")) for run in records])
    by_rate = {rate: _bars(inside, "row") for rate, inside in runs.groupby("learning_rate")}
    rows = list(dict.fromkeys(runs["row"]))
    for number, row in enumerate(rows):
        bars = {rate: bars.loc[row] for rate, bars in by_rate.items() if row in bars.index}
        shift = 1.03 ** (number - len(rows) / 2)
        means, halves = ([each[name] for each in bars.values()] for name in ("mean", "half"))
        places = [rate * shift for rate in bars]
        axes.errorbar(places, means, halves, marker="o", capsize=2, markersize=4, label=row)
    axes.set_xscale("log")
    axes.set_xticks(list(by_rate), [f"{rate:g}" for rate in by_rate])
    axes.minorticks_off()
    label = pictures.LABELS["late_accuracy"]
    axes.set(title="by learning rate", xlabel="learning rate", ylabel=label)
    axes.legend(fontsize=7)


def _every_run(axes: Axes, runs: Frame) -> None:
    four = runs["branches"].map(lambda branches: list(branches) == [7, 9, 11, 13])
    alone = runs["method"] == "Normal"
    runs = runs[(four | alone | (runs["method"] == "Scaled")) & (runs["distillation"] == 0)]
    fields = ("method", "auxiliary_mean", "fusion")
    names = [
        f"{run['depth']} layers alone" if run["method"] == "Normal" else in_words(run, fields)
        for run in runs.replace({np.nan: None}).to_dict("records")
    ]
    runs = runs.assign(row=names)
    bars = _bars(runs, "row")
    layers = [name for depth in (13, 11, 9, 7) if (name := f"{depth} layers alone") in bars.index]
    methods = bars.drop(layers).sort_values("mean").index
    order = [*layers[:1], *methods, *layers[1:]]
    for place, name in enumerate(order):
        mean, half, count = bars.loc[name]
        color = "C3" if name in methods else "black"
        single = runs.loc[runs["row"] == name, "late_accuracy"]
        axes.plot(single, [place + 0.25] * len(single), ".", color="0.6", markersize=4)
        axes.errorbar(mean, place, xerr=half, fmt="o", color=color, capsize=3)
    axes.axvline(bars.loc[layers[0], "mean"], color="black", ls=":")
    labels = [f"{name}, {bars.loc[name, 'runs']:.0f}" for name in order]
    axes.set_yticks(range(len(order)), labels)
    axes.set(ylim=(len(order) - 0.5, -0.5), title="every run at 3e-2, and how many")
    axes.set_xlabel(pictures.LABELS["late_accuracy"])
