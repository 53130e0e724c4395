"""What the page of claims says, from the committed runs and from runs that were never trained."""

import json
import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments import reproduce
from experiments.sweep.record import PROBES
from experiments.tables import claims, findings, probes
from experiments.tables.statistics import Difference, deviation_interval
from tests.experiments.tables.invented import planned, record, reported

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A folder with what the command wrote of a copy of the committed runs, and their tables."""
    place, held, write = tmp_path_factory.mktemp("claims"), [], findings.write
    (place / "results").mkdir()
    shutil.copy(ROOT / "results" / "runs.jsonl", place / "results")
    shutil.copy(ROOT / "README.md", place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(findings, "write", lambda *given: (held.append(given[0]), write(*given))[1])
        assert reproduce.main(["--claims", f"--out={place / 'results'}"]) == 0
    return place, claims.Tables(held[0])


@pytest.fixture
def tables(committed):
    return committed[1]


def test_the_committed_page_and_sentences_are_the_command_s(committed):
    for name in ("README.md", "results/README.md"):
        assert (committed[0] / name).read_text() == (ROOT / name).read_text(), name
    assert (committed[0] / "results" / "claims.png").read_bytes().startswith(b"\x89PNG")


@lru_cache
def record_lines():
    return [*map(json.loads, (ROOT / "results" / "runs.jsonl").read_text().splitlines())]


def raw(method, depth=13, fusion=None, auxiliary_mean=0.0, epochs=10):
    """Mean accuracies of a row of the controls at 3e-2, over epochs, from the record's lines."""
    fields = {
        "dataset": "cifar10",
        "backbone": "vgg",
        "width": 0.125,
        "train_size": 10_000,
        "epochs": 60,
        "learning_rate": 3e-2,
        "taps": [depth] if method == "Normal" else TAPS[depth],
        "method": method,
        "depth": depth,
        "fusion": fusion,
        "auxiliary_mean": auxiliary_mean,
        "distillation": 0.0,
        "fully_connected": "separate" if method == "Concat" else "shared",
    }
    seeds = {*range(7), 100, 101, 102}
    precise = method in ("Normal", "Concat") or (method, depth) == ("S1", 13)
    if precise and not fusion and not auxiliary_mean:
        seeds |= {7, 8, 9, 10}
    older = {"learning_rate": 1e-3, "auxiliary_mean": 0.0, "fusion": None}  # than these fields
    late = [
        [epoch["test_accuracy"] for epoch in run["history"][-epochs:]]
        for run in (older | {"fully_connected": line.get("fc")} | line for line in record_lines())
        if run["seed"] in seeds
        and all(run.get(name, value) == value for name, value in fields.items())
    ]
    return np.array([np.mean(accuracies) for accuracies in late])


ROWS = {
    "S1": ("S1",),
    "Normal": ("Normal",),
    "nine to S1": ("Normal", 9),
    "S0 to S1": ("S0",),
    "S3 to S1": ("S3",),
    "Concat to S1": ("Concat",),
    "DSN to S1": ("DSN",),
    "Detached to S1": ("Detached",),
    "attention to S1": ("S1", 13, "attention"),
    "losses to S1": ("S1", 13, None, 1.0),
    "S1 of nine layers": ("S1", 9),
}
TAPS = {13: [7, 9, 11, 13], 9: [3, 5, 7, 9]}


def test_intervals_beside_s1_are_scipy_s_of_the_record_s_lines(tables):
    """Dunnett's, by a search of its own, or where deviations differ Games and Howell's by hand."""
    rows = {name: found for name, row in ROWS.items() if len(found := raw(*row))}
    control = rows.pop("S1")
    freedom = sum(map(len, rows.values())) + len(control) - len(rows) - 1
    repeated = [values for values in (control, *rows.values()) if len(values) > 1]
    if stats.bartlett(*repeated).pvalue >= 0.05:
        test = stats.dunnett(*rows.values(), control=control, rng=np.random.default_rng(7))
        ends = np.transpose(test.confidence_interval(0.95))
    else:
        ends = [games_howell(values, control, len(rows) + 1) for values in rows.values()]
    assert freedom > 0
    for (name, values), (low, high) in zip(rows.items(), ends, strict=True):
        if name not in ("Normal", "S1 of nine layers"):  # which claims.json has not beside S1
            found = tables.difference(name)
            assert found.mean == pytest.approx(values.mean() - control.mean())
            assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)


def verdicts(control, epochs):
    """Of all rows at 3e-2 against one, by Dunnett's intervals; their deviations do not differ."""
    rows = {name: raw(*row, epochs=epochs) for name, row in ROWS.items()}
    against = rows.pop(control)
    assert stats.bartlett(against, *rows.values()).pvalue >= 0.05
    test = stats.dunnett(*rows.values(), control=against, rng=np.random.default_rng(7))
    for low, high in np.round(np.transpose(test.confidence_interval(0.95)), 2):
        near = "no different" if low >= -0.5 and high <= 0.5 else "undecided"
        yield "ahead" if low > 0 else "behind" if high < 0 else near


def test_what_weights_and_the_last_epoch_say_is_by_the_record_s_lines(tables):
    """By hand: signs that branches share, the cheapest branch, verdicts by the last epoch."""
    runs = tables.runs("repeated")
    weights = np.array(runs["weights"].tolist())
    # At width 1/8 the first branch has a layer of its own, the others one together.
    turned = np.hstack([abs(weights[:, :1]), weights[:, 1:] * np.sign(weights[:, 3:])])
    deviations = ", ".join(f"{turned[:, n].std(ddof=1):.2f}" for n in (0, 2, 3))
    answered = claims._converge(tables, runs)
    assert answered.figure.endswith(f": {deviations}")
    assert answered.control.endswith(": 0.02, 0.02, 0.07")  # roots of 0.0003, 0.0003 and 0.0049
    exits = [
        line["exits_by_fusion"]["fusions"]["own"]["left_out"]
        for line in record_lines()
        if "exits_by_fusion" in line
        and (line["method"], line["branches"]) == ("S1", TAPS[13])
        and line["learning_rate"] == 3e-2  # which the table chose
        and not line.get("auxiliary_mean")
        and line.get("fusion") is None
    ]
    costs = np.mean(exits, axis=0)
    told = claims._stages(tables, tables.runs("exits"))
    assert f"after {[7, 9, 11, 13][costs.argmin()]} costs, over {len(exits)} runs" in told.figure
    assert f": {costs.min():.2f} (" in told.figure
    late, last = ([*verdicts("Normal", epochs), *verdicts("S1", epochs)] for epochs in (10, 1))
    changed = sum(old != new for old, new in zip(late, last, strict=True))
    assert f" {changed} of {len(late)} verdicts on the" in findings._by_last_epoch(tables)


def games_howell(first, second, rows):
    parts = [values.var(ddof=1) / values.size for values in (first, second)]
    squares = [
        part**2 / (values.size - 1) for part, values in zip(parts, (first, second), strict=True)
    ]
    half = stats.studentized_range.ppf(0.95, rows, sum(parts) ** 2 / sum(squares))
    half *= np.sqrt(sum(parts) / 2)
    mean = first.mean() - second.mean()
    return mean - half, mean + half


def test_the_paper_s_own_tables_are_counted():
    """By hand, of Tables I, III and VI as printed."""
    counted = claims.of_paper()
    assert counted["over_normal"] == "60 of 60"
    assert (counted["soft_cifar100"], counted["given"]) == ("1 of 4", "12 of 24")
    assert (counted["first"], counted["thirteen_over_nine"]) == ("7 of 7", "0.59")


def written(folder, accuracies, readme):
    """The page of runs of controls with an accuracy by method, beside a README."""
    out = folder / "results"
    out.mkdir()

    def figures(config):
        name = f"{config.model.method}{config.model.depth}"
        plain = config.model.fusion is None and not config.training.auxiliary_mean
        if name not in accuracies or not plain:
            return None
        accuracy = accuracies[name] + 0.1 * (config.training.seed % 2)
        epoch = {"epoch": 1, "test_accuracy": accuracy, "train_accuracy": 90.0}
        return {"accuracy": accuracy, "history": [epoch]}

    record(out, planned("controls", out)["config"], figures)
    (folder / "README.md").write_text(readme)
    assert reproduce.main(["--claims", f"--out={out}"]) == 0
    return (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("accuracies", "verdicts", "sentences"),
    [
        (
            {"Normal13": 70, "Normal9": 72, "S113": 72, "Concat13": 72, "S013": 71},
            ("confirmed, and the control does as much", "confirmed"),
            ("are worth what leaving four layers out is", ": learning the weights helps"),
        ),
        (
            {"Normal13": 70, "Normal9": 69, "S113": 68, "Concat13": 68, "S013": 70},
            ("contradicted", "contradicted"),
            ("S1 is behind Normal by 2.00 points", "learning the weights is not what helps"),
        ),
    ],
)
def test_words_follow_verdicts(accuracies, verdicts, sentences, tmp_path):
    page = written(tmp_path, accuracies, f"# Title\n{findings.START}\n\nThe rest.\n")
    lines = page.splitlines()
    (ahead,) = [line for line in lines if "| S1 minus Normal: " in line and "III-C" in line]
    (soft,) = [line for line in lines if "| S1 minus S0: " in line]
    assert [line.split(" | ")[2] for line in (ahead, soft)] == [*verdicts]
    for sentence in sentences:
        assert sentence in page
    assert "| `--table=degradation` |" in page.partition("What is not trained yet")[2]
    readme = (tmp_path / "README.md").read_text()
    helps = verdicts[0].startswith("confirmed")
    assert ("do not count on branches for accuracy" in readme) == (not helps)
    assert readme.startswith(f"# Title\n{findings.START}\nOn 10,000 images")
    assert readme.endswith(f" {findings.END}\n\nThe rest.\n")


def test_without_runs_all_is_to_be_trained_and_a_readme_without_marker_stays(tmp_path, capsys):
    page = written(tmp_path, {}, "# Title\n")
    missing = page.partition("What is not trained yet")[2].splitlines()
    assert sum(line.startswith(("| I", "| Table", "| not the")) for line in missing) == len(
        claims.CLAIMS
    )
    assert not [line for line in page.splitlines() if "(+" in line or "(-" in line]
    assert (tmp_path / "README.md").read_text() == "# Title\n"
    assert f"has no {findings.START}" in capsys.readouterr().out


AHEAD, BEHIND = (
    Difference(1.0, 0.5, 1.5, "ahead", None),
    Difference(-1.0, -2.0, -0.1, "behind", None),
)
OPEN = Difference(0.1, -0.9, 1.1, "undecided", 30)


@pytest.mark.parametrize(
    ("role", "control", "verdict"),
    [
        ("rival", AHEAD, "confirmed, and the control does as much"),
        ("rival", BEHIND, "confirmed"),
        ("also", AHEAD, "confirmed"),
        ("also", BEHIND, "confirmed, and contradicted by the control"),
        ("also", OPEN, "undecided, as the control is undecided"),
        ("also", None, "undecided, as the control is not trained yet"),
    ],
)
def test_a_claim_holds_where_its_control_lets_it(role, control, verdict):
    assert claims._judged("", AHEAD, "", control, role=role).verdict == verdict
    assert claims._judged("", BEHIND, "", control, role=role).verdict == "contradicted"
    open_verdict = claims._judged("", OPEN, "", control, role=role).verdict
    assert open_verdict == "undecided (it takes 30 runs per row)"


def test_a_difference_is_turned():
    assert -Difference(0.5, -0.2, 1.2, "undecided", 9) == Difference(
        -0.5, -1.2, 0.2, "undecided", 9
    )
    assert (-Difference(1.0, 0.5, 1.5, "ahead", None)).verdict == "behind"


def test_the_interval_of_a_deviation_holds_it_in_95_of_100_samples():
    samples = np.random.default_rng(0).normal(scale=2.0, size=(2000, 8))
    ends = np.array([deviation_interval(sample) for sample in samples])
    assert np.mean((ends[:, 0] < 2) & (ends[:, 1] > 2)) == pytest.approx(0.95, abs=0.02)


def test_a_probe_reads_what_is_linear_and_chooses_its_penalty_on_held_out_images():
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 3, size) for size in (300, 200, 500)]
    clear = [np.eye(3)[y] + 0.2 * rng.normal(size=(len(y), 3)) for y in labels]
    assert probes.probe(clear, labels, 3) > 95
    noise = [rng.normal(size=(len(y), 3)) for y in labels]
    assert 20 < probes.probe(noise, labels, 3) < 47


def test_the_loss_of_a_probe_has_its_gradient():
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(20, 4)), np.eye(3)[rng.integers(0, 3, 20)]
    weights, step = rng.normal(size=12), 1e-6
    _, gradient = probes._loss(features, targets, 0.1, weights)
    for place in range(12):
        apart = [
            probes._loss(features, targets, 0.1, weights + sign * step * np.eye(12)[place])[0]
            for sign in (1, -1)
        ]
        assert gradient[place] == pytest.approx((apart[0] - apart[1]) / (2 * step), abs=1e-5)


def test_probes_are_compared_by_the_middle_layers(tmp_path):
    def figures(config):
        better = 2.0 * (config.model.method == "S1")
        layers = [50.0 + config.training.seed % 2] * 6 + [60.0 + better] * 6 + [70.0]
        return {"accuracy": 75.0, PROBES: {"accuracies": layers}}

    record(tmp_path, planned("probes", tmp_path)["config"], figures)
    (section,) = reported("probes", tmp_path)["probes"]
    rows = {row["method"]: row for row in section["rows"]}
    assert rows["S1"]["middle"]["mean"] == 62.0
    assert rows["S1"]["difference"]["mean"] == pytest.approx(2.0)
    assert rows["DSN"]["after 1"]["mean"] == 50.5
