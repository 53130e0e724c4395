"""The page of claims, results/README.md, its figure, and sentences of the project's README.

Words are chosen by verdicts, so that they are right whatever the runs say.
"""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from experiments.tables import controls
from experiments.tables.claims import (
    CLAIMS,
    FLAGS,
    RATE,
    Planned,
    Tables,
    answer,
    budgets,
    ends,
    figure,
    of_paper,
    table_of,
)
from experiments.tables.compare import compare
from experiments.tables.runs import Frame, load
from experiments.tables.statistics import CONFIDENCE, RULE, Difference, Family
from interflow_jax.cli import charts, markdown
from interflow_jax.cli.files import write_whole
from interflow_jax.vgg import VGG_DEPTH

START, END = "<!-- claims -->", "<!-- /claims -->"
_PICTURE = "claims.png"
_SHOWS = (
    "Left, test accuracy by learning rate. Right, every run at 3e-2: methods beside networks of "
    "13 and fewer layers alone. Means of the last ten epochs, with 95 % intervals of each mean "
    "where there are several runs: those of differences, in the text, are wider"
)
_ON = """\
On 10,000 images of CIFAR-10, 60 epochs, a plain network of width 1/8; mean test accuracy of the
last ten epochs, with a simultaneous 95 % interval; *undecided*: there are too few runs to tell."""
_SETTING = """\
Where nothing else is said, networks are trained on 10,000 images of CIFAR-10 for 60 epochs, at
width 1/8 and a learning rate of 3e-2; the paper has all images, 100 epochs, width 1 and 1e-3. So
accuracies are not the paper's. *Normal* is the network without branches, S0 to S9 are the paper's
methods, and the others are controls: *DSN* trains branches and leaves them out of the prediction,
*Concat* is one linear layer on the features of all branches, *Scaled* is Normal with a larger
output, and *Detached* is S1 without the gradient's short cut to shallower layers."""
_COMMAND = "python -m experiments.reproduce"
_WIDTH = 0.125  # of the runs in the figure
_SHORT = 20  # epochs, below which a run shows the first minutes alone


def write(planned: Planned, out: Path) -> str:
    """Writes OUT/README.md and OUT/claims.png, and the sentences between the README's markers.

    Returns:
      What was written, in words.
    """
    tables, style = Tables(planned), charts.STYLE
    with plt.rc_context(style):
        charts.save(_figure(tables), out / _PICTURE)
    write_whole(out / "README.md", _page(tables, load(out)))
    readme = out.parent / "README.md"
    text = readme.read_text() if readme.exists() else ""
    if START not in text:
        return f"{out / 'README.md'}; {readme} has no {START} to put its sentences after"
    before, _, after = text.partition(START)
    after = after.partition(END)[2] if END in after else after
    page = f"Claim by claim, with its controls: [{out.name}/README.md]({out.name}/README.md)."
    advice = " ".join(["\n".join(f"- {each}" for each in _advice(tables)), page, END])
    picture = f"![{_SHOWS}]({out.name}/{_PICTURE})"
    write_whole(readme, f"{before}{START}\n{_ON}\n\n{picture}\n{advice}{after}")
    return f"{out / 'README.md'}, {readme}"


def _page(tables: Tables, every: Frame) -> str:
    printed, rows, missing = of_paper(), [], []
    for claim in CLAIMS:
        table, found = table_of(claim), answer(claim, tables)
        place, says = claim["place"], claim["says"].format(**printed)
        if found is None:
            missing.append([place, says, f"`{FLAGS[table]}`"])
            continue
        page = tables.page(table)
        rows.append([place, says, *found, f"[{page.removesuffix('.md')}]({page})"])
    progress = [[f"`{flags}`", tables.progress(name)] for name, flags in FLAGS.items()]
    lines = [
        "# What the paper claims, and what these runs say",
        _SETTING,
        f"![{_SHOWS}]({_PICTURE})",
        "\n".join(_sentences(tables)),
        _words(["the paper", "its claim", "verdict", "number", "the control beside it"], rows),
        f"{RULE}\nOf a share of runs, the interval is exact; a claim on them is confirmed where it "
        f"holds in most.{_by_last_epoch(tables)}",
        f"Every number is computed from `runs.jsonl` or from the paper's own tables by "
        f"`{_COMMAND} --claims --out=results`.",
        "## What is not trained yet",
        f"Which runs these are, and in what order, is in [docs/evidence.md](../docs/evidence.md). "
        f"All by `{_COMMAND} --out=results` and:",
        _words(["the paper", "its claim"], missing),
        "\n".join(markdown.table(["", "runs"], progress)).strip(),
        _others(tables, every),
    ]
    return "\n\n".join(filter(None, lines)) + "\n"


def _by_last_epoch(tables: Tables) -> str:
    """How many verdicts of the controls would be others by the last epoch, as a sentence."""
    runs = tables.runs("controls")
    runs = runs[runs["learning_rate"] == RATE]
    late, last = (
        [
            row["difference"].verdict
            for control in ("Normal", "S1")
            for section in compare(runs, controls.ROWS, controls.PLACES, control, outcome=outcome)
            for row in section.rows
            if row["difference"]
        ]
        for outcome in ("late_accuracy", "test_accuracy")
    )
    others = [new for old, new in zip(late, last, strict=True) if old != new]
    if not others:
        return ""
    return (
        f" By the last epoch alone, as in the paper, {len(others)} of {len(late)} verdicts on the "
        f"controls at {RATE:g} would be others: {_counted(others)}."
    )


def _others(tables: Tables, every: Frame) -> str:
    """How many runs the record has that no claim uses, as a sentence."""
    used = {key for name in FLAGS for key in tables.runs(name)["key"]}
    others = every[~every["key"].isin(used)]
    short = int((others["epochs"] < _SHORT).sum())
    return (
        f"None of these claims uses {len(others)} more runs of `runs.jsonl`, {short} of them of "
        f"fewer than {_SHORT} epochs."
    )


def _counted(words: list[str]) -> str:
    return _listed([f"{words.count(word)} {word}" for word in dict.fromkeys(words)])


def _words(head: list[str], rows: list[list[str]]) -> str:
    """A table of words, aligned to the left; the last column says where from."""
    lines = markdown.table([*head, "table"], rows)
    lines[1] = f"| {' | '.join(['---'] * (len(head) + 1))} |"
    return "\n".join(lines).strip() if rows else ""


_CLAUSES = {
    "ahead": "{subject} {be} ahead of {other}",
    "no different": "{subject} {be} no different from {other}",
    "undecided": "{subject} against {other} {be} undecided",
    "behind": "{subject} {be} behind {other}",
    None: "{subject} against {other} {be} not trained yet",
}


def _told(subject: str, found: Difference | None, other: str) -> str:
    """How a subject compares with another, as a clause."""
    verdict = found and found.verdict
    clause = _CLAUSES[verdict].format(subject=subject, other=other, be="is")
    if found is None:
        return clause
    if verdict in ("ahead", "behind"):
        return f"{clause} by {abs(found.mean):.2f} points{ends(found)}"
    return f"{clause}, {figure(found)}"


def _grouped(found: dict[str, Difference | None], other: str) -> str:
    """How several subjects compare with another: a clause per verdict."""
    clauses = []
    for verdict, clause in _CLAUSES.items():
        alike = {name: each for name, each in found.items() if (each and each.verdict) == verdict}
        if alike:
            be = "are" if len(alike) > 1 or "weights" in next(iter(alike)) else "is"
            told = clause.format(subject=_listed([*alike]), other=other, be=be)
            figures = _listed([figure(each) for each in alike.values() if each])
            clauses.append(", ".join(filter(None, [told, figures])))
    return "; ".join(clauses)


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _verdict(found: Difference | None) -> str:
    return found.verdict if found else "undecided"


def _weights(tables: Tables) -> str:
    """How other ways to weigh branches compare with S1's."""
    found = {
        "fixed weights (S0)": "S0 to S1",
        "weights per class (S3)": "S3 to S1",
        "weights that see the image": "attention to S1",
        "Concat": "Concat to S1",
    }
    return _grouped({name: tables.difference(asked) for name, asked in found.items()}, "S1")


def _elsewhere(tables: Tables) -> str:
    """How S1 compares with Normal in other settings than that of all the rest."""
    places = {
        "at the paper's 1e-3, for an eighth of its steps": "S1 at 1e-3",
        "at 1e-2": "S1 at 1e-2",
        "on a residual network (20 epochs, most of the last ten before its rate drops)": (
            "S1 on ResNet"
        ),
        "on a small transformer": "S1 on ViT",
        "at depth 60": "S1 at depth 60",
    }
    told: dict[str, list[str]] = {}
    for place, name in places.items():
        if found := tables.difference(name):
            told.setdefault(found.verdict, []).append(f"{figure(found)} {place}")
    clauses = [f"{verdict}: {_listed(figures)}" for verdict, figures in told.items()]
    return f"Elsewhere, S1 minus Normal is {'; '.join(clauses) or 'not trained yet'}"


def _sentences(tables: Tables) -> list[str]:
    """Six sentences on what the runs say."""
    found = tables.difference
    depth = {
        "ahead": ": branches do more than make superfluous depth harmless",
        "no different": ": branches are worth what leaving four layers out is",
        "behind": ": it is better to leave superfluous layers out",
        "undecided": "; whether branches do more than make superfluous depth harmless is open",
    }[_verdict(found("S1 to nine"))]
    learned = {
        "behind": "learning the weights helps",
        "undecided": "what learning the weights adds is open",
    }.get(_verdict(found("S0 to S1")), "learning the weights is not what helps")
    cause = {
        "ahead": "fusing branches is not enough where the last one alone trains the backbone",
        "undecided": "whether fusion needs the gradient's short cut is open",
    }.get(_verdict(found("S1 to Detached")), "fusion does not need the gradient's short cut")
    if _verdict(found("S1 to Detached")) == "ahead":  # docs/evidence.md says what would decide
        is_cut = _verdict(found("DSN")) == _verdict(found("S1 probes")) == "ahead"
        cause += ", for want of the gradient's short cut" if is_cut else "; why is open"
    sentences = [
        f"{_told('S1', found('S1'), 'Normal')}, and "
        f"{_told('a network of nine of its thirteen layers', found('nine'), 'Normal')}; "
        f"{_told('S1', found('S1 to nine'), 'nine layers')}"
        f"{depth if _verdict(found('nine')) == 'ahead' else ''}. On nine layers, "
        f"{_told('S1', found('S1 at nine'), 'Normal')}.",
        f"{_elsewhere(tables)}.",
        f"{_weights(tables)}: {learned}.",
        f"{_told('S1', found('S1 to Detached'), 'Detached')}, and "
        f"{_told('Detached', found('Detached'), 'Normal')}: {cause}.",
        f"{_told('DSN', found('DSN'), 'Normal')}; at the paper's learning rate, 1e-3, for an "
        f"eighth of its steps, {_told('it', found('DSN at 1e-3'), 'Normal')}.",
        f"{_early(tables)}.",
    ]
    return [f"{n}. {_capitalized(each)}" for n, each in enumerate(sentences, 1)]


def _early(tables: Tables) -> str:
    cells = budgets(tables)
    ahead = {name: each for name, each in cells.items() if each.verdict == "ahead"}
    if not cells:
        return "early exits are not compared yet with networks of as many operations"
    than = "are early exits ahead of the best ordinary network of as many operations"
    if not ahead:
        verdicts = _counted([each.verdict for each in cells.values()])
        told = f"in none of {len(cells)} combinations of method and budget {than} ({verdicts})"
        return f"{told}: what is sure is that they give one network for many budgets"
    best = max(ahead, key=lambda name: ahead[name].mean)
    told = f"in {len(ahead)} of {len(cells)} combinations of method and budget {than}"
    return f"{told}, most by {figure(ahead[best])} ({best})"


def _advice(tables: Tables) -> list[str]:
    """Three sentences for someone who builds a network: when, which, and with what loss."""
    found = tables.difference
    s1, nine, losses, slow = map(found, ("S1", "nine", "losses to S1", "losses at 1e-3"))
    when = _told("S1, with four branches,", s1, "the same thirteen layers without them")
    if _verdict(s1) != "ahead":
        advice = "do not count on branches for accuracy"
    elif _verdict(found("S1 to nine")) == "ahead":
        advice = "use branches, which do more than fewer layers"
    elif nine is None or nine.verdict != "ahead":
        advice = "use branches; whether fewer layers do as much is open"
    else:
        when += f", and so are nine layers without them, by {nine.mean:.2f} points{ends(nine)}"
        advice = {
            "behind": "look for the right number of layers first",
            "undecided": "use either; which of the two is better is open",
        }.get(_verdict(found("S1 to nine")), "use branches where you do not know how deep to go")
        advice += f"; on nine layers, {_told('S1', found('S1 at nine'), 'Normal')}"
    any_of = "S1, or whichever is easiest to implement"
    which = {
        "behind": "Learn the weights (S1)",
        "ahead": "Keep the weights fixed (S0)",
        "undecided": f"{any_of}: the runs do not yet tell which is best",
    }.get(_verdict(found("S0 to S1")), f"{any_of}: they do alike")
    cost = {
        "behind": "branch losses (`--auxiliary_mean=1`) cost accuracy",
        "ahead": "branch losses (`--auxiliary_mean=1`) add accuracy",
        "undecided": "whether branch losses (`--auxiliary_mean=1`) cost accuracy is open",
    }.get(_verdict(losses), "branch losses (`--auxiliary_mean=1`) cost no accuracy")
    loss = f"{_capitalized(cost)}: {_told('S1 with them', losses, 'S1 without')}"
    if slow and slow.verdict == "ahead":
        loss += "; at the paper's 1e-3, for an eighth of its steps, they help: "
        loss += _told("S1 with them", slow, "Normal")
    return [
        f"**When.** At a learning rate of 3e-2, {when}: {advice}. {_elsewhere(tables)}.",
        f"**Which weights.** {which}. {_capitalized(_weights(tables))}.",
        f"**Branch losses.** {loss}. {_capitalized(_early(tables))}.",
    ]


def _capitalized(clause: str) -> str:
    return f"{clause[0].upper()}{clause[1:]}"


def _figure(tables: Tables) -> Any:
    names = ("controls", "rates", "exits")
    runs = pd.concat([tables.runs(name) for name in names]).drop_duplicates("key")
    four = runs["branches"].map(lambda branches: list(branches) in ([7, 9, 11, 13], [3, 5, 7, 9]))
    here = (runs["dataset"] == "cifar10") & (runs["width"] == _WIDTH) & (runs["distillation"] == 0)
    runs = runs[here & (four | runs["method"].isin(("Normal", "Scaled")))]
    names = [
        _name(*row) for row in runs[["method", "depth", "auxiliary_mean", "fusion"]].to_numpy()
    ]
    runs = runs.assign(row=names)
    chart, panels = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    at_several = runs.groupby("row")["learning_rate"].transform("nunique") > 2
    drawn = ((_by_rate, runs[at_several]), (_every_run, runs[runs["learning_rate"] == RATE]))
    for axes, (draw, some) in zip(panels, drawn, strict=True):
        if len(some):
            draw(axes, some)
    return chart


def _name(method: str, depth: int, auxiliary_mean: float, fusion: Any) -> str:
    if method == "Normal":
        return f"{depth} layers alone"
    name = f"{method} with weights that see the image" if fusion == "attention" else method
    name += f" of {depth} layers" if depth < VGG_DEPTH else ""
    return f"{name} with branch losses" if auxiliary_mean else name


def _bars(runs: Frame, by: str) -> Frame:
    """Mean and half a 95 % interval per row, by the deviation that the rows share."""
    groups = runs.groupby(by, sort=False)["late_accuracy"]
    deviation = Family(dict(iter(groups))).deviation or np.nan
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(runs) - groups.ngroups)
    half = quantile * deviation / np.sqrt(groups.size())
    return pd.DataFrame({"mean": groups.mean(), "half": half, "runs": groups.size()})


def _by_rate(axes: Axes, runs: Frame) -> None:
    by_rate = {rate: _bars(inside, "row") for rate, inside in runs.groupby("learning_rate")}
    rows = list(dict.fromkeys(runs["row"]))
    for number, row in enumerate(rows):
        bars = {rate: bars.loc[row] for rate, bars in by_rate.items() if row in bars.index}
        places = [rate * 1.03 ** (number - len(rows) / 2) for rate in bars]  # side by side
        means, halves = ([each[name] for each in bars.values()] for name in ("mean", "half"))
        axes.errorbar(places, means, halves, marker="o", capsize=2, markersize=4, label=row)
    axes.set_xscale("log")
    axes.set_xticks(list(by_rate), [f"{rate:g}" for rate in by_rate])
    axes.minorticks_off()
    axes.set(title="By learning rate", xlabel="learning rate", ylabel="test accuracy (%)")
    axes.legend(fontsize=8)


def _every_run(axes: Axes, runs: Frame) -> None:
    bars = _bars(runs, "row")
    layers = [name for name in bars.index if name.endswith(" layers alone")]
    layers.sort(key=lambda name: -int(name.split()[0]))
    methods = bars.drop(layers).sort_values("mean").index
    order = [*layers[:1], *methods, *layers[1:]]
    for place, name in enumerate(order):
        mean, half, _ = bars.loc[name]
        color = "C3" if name in methods else "black"
        single = runs.loc[runs["row"] == name, "late_accuracy"]
        axes.plot(single, [place + 0.25] * len(single), ".", color="0.6", markersize=4)
        axes.errorbar(mean, place, xerr=half, fmt="o", color=color, capsize=3)
    for name in layers[:1]:
        axes.axvline(bars.loc[name, "mean"], color="black", ls=":")
    labels = [f"{name}, {bars.loc[name, 'runs']:.0f} runs" for name in order]
    axes.set_yticks(range(len(order)), labels)
    title = "At 3e-2, beside networks of fewer layers"
    axes.set(ylim=(len(order) - 0.5, -0.5), title=title, xlabel="test accuracy (%)")
