"""Chooses the `cpu` preset: which small training tells methods apart, and at what cost.

python -m experiments.study
"""

import argparse
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.cli import configuration
from experiments.cli.configuration import Configuration
from experiments.cli.console import duration
from experiments.runs.files import write_whole
from experiments.sweep import planning, work
from experiments.tables import paper
from experiments.tables.protocol import protocol
from experiments.tables.statistics import CONFIDENCE
from interflow_jax.ops import memory

CANDIDATES = "0.125x20000x3,0.125x10000x3,0.125x10000x6,0.25x12000x3"
METHOD = "S1"  # what Normal is compared with
SEEDS_LATER = 5  # of Table III's runs, for which the preset is chosen


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.study", *arguments])
    parser = configuration.parser(
        "study",
        "Trains Normal and S1 in several small ways and reports, for each, the deviation over\n"
        f"seeds and the smallest difference that {SEEDS_LATER} paired seeds would show, beside\n"
        "the difference that the paper prints: OUT/study.md and OUT/study.json. Finished runs\n"
        "are skipped.",
    )
    parser.add_argument(
        "--candidates",
        type=_candidates,
        default=_candidates(CANDIDATES),
        help=f"as WIDTHxEXAMPLESxEPOCHS,... (default: {CANDIDATES})",
    )
    parser.add_argument("--dataset", default="cifar10", help="default: cifar10")
    parser.add_argument("--depth", type=int, default=13, help="convolutions (default: 13)")
    parser.add_argument(
        "--seeds", type=configuration.integers, default=(0, 1, 2, 3), help="default: 0,1,2,3"
    )
    parser.add_argument("--out", default="results", help="folder of the report (default: results)")
    flags = parser.parse_args(arguments)
    out = Path(flags.out)
    planned = {
        (candidate, method): [
            planning.plan(replace(_flags(candidate, method, flags), seed=seed), out / "runs")
            for seed in flags.seeds
        ]
        for candidate in flags.candidates
        for method in ("Normal", METHOD)
    }
    runs = [run for group in planned.values() for run in group]

    def body() -> int:
        if len(flags.seeds) < 2:
            raise ValueError(f"--seeds={flags.seeds}: give two or more, for a deviation")
        if work.carry_out("The study of small trainings", runs, out):
            return 1
        measured = [measure(candidate, planned, flags.dataset) for candidate in flags.candidates]
        results = [run.folder.read_json("result.json") for run in runs]
        report = {
            "command": command,
            "dataset": flags.dataset,
            "protocol": protocol([run.flags for run in runs], results),
            "candidates": measured,
        }
        write_whole(out / "study.json", json.dumps(report, indent=1) + "\n")
        write_whole(out / "study.md", markdown(report))
        print(markdown(report))
        return 0

    return work.exit_status("study", command, body)


def _candidates(text: str) -> list[tuple[float, int, int]]:
    made = []
    for part in configuration.names(text):
        try:
            width, examples, epochs = part.split("x")
            made.append((float(width), int(examples), int(epochs)))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{part!r} is not as 0.125x20000x3") from error
    return made


def _flags(candidate: tuple[float, int, int], method: str, flags: Any) -> Configuration:
    width, examples, epochs = candidate
    return Configuration(
        method=method,
        dataset=flags.dataset,
        depth=flags.depth,
        width=width,
        train_size=examples,
        epochs=epochs,
    )


def measure(candidate: tuple[float, int, int], planned: dict, dataset: str) -> dict[str, Any]:
    """What the finished runs of a candidate say.

    Returns:
      Accuracies in percent by method and seed; `deviation` of Normal's; `differences` to it of S1
      by seed; `smallest_difference`, in points: half the 95 % interval of the mean difference of
      `SEEDS_LATER` seeds, if differences go on to deviate as these; `seconds` of a run.
    """
    results = {
        method: [run.folder.read_json("result.json") for run in planned[candidate, method]]
        for method in ("Normal", METHOD)
    }
    accuracy = {
        method: np.array([result["test_accuracy"] for result in found])
        for method, found in results.items()
    }
    differences = accuracy[METHOD] - accuracy["Normal"]
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, SEEDS_LATER - 1)
    printed = [paper.value("3", method, dataset) for method in (METHOD, "Normal")]
    seconds = [result["train_seconds"] for found in results.values() for result in found]
    return {
        "width": candidate[0],
        "train_size": candidate[1],
        "epochs": candidate[2],
        "accuracy": {method: values.tolist() for method, values in accuracy.items()},
        "deviation": float(accuracy["Normal"].std(ddof=1)),
        "differences": differences.tolist(),
        "smallest_difference": float(quantile * differences.std(ddof=1) / SEEDS_LATER**0.5),
        "paper_difference": None if None in printed else float(printed[0] - printed[1]),  # pyright: ignore
        "seconds": float(np.median(seconds)),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    text = [
        "# Which small training tells methods apart",
        "",
        *("```", report["command"], "```"),
        "",
        f"On {report['dataset']}: {report['protocol']}.",
        "",
        "Accuracy in percent, mean ± standard deviation over seeds. The smallest visible",
        f"difference is the half width of the 95 % interval that {SEEDS_LATER} paired seeds would",
        "have.",
        "",
        f"| width | examples | epochs | training time of a run | Normal | {METHOD} "
        f"| {METHOD} - Normal | in the paper | smallest visible difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for found in report["candidates"]:
        normal, ours = (np.array(found["accuracy"][method]) for method in ("Normal", METHOD))
        printed = found["paper_difference"]
        text.append(
            f"| {found['width']:g} | {found['train_size']:,} | {found['epochs']} | "
            f"{duration(found['seconds'])} | {normal.mean():.2f} ± {normal.std(ddof=1):.2f} | "
            f"{ours.mean():.2f} ± {ours.std(ddof=1):.2f} | {np.mean(found['differences']):+.2f} | "
            f"{'-' if printed is None else f'{printed:+.2f}'} | "
            f"{found['smallest_difference']:.2f} |"
        )
    return "\n".join([*text, ""])


if __name__ == "__main__":
    memory.keep_freed_memory()
    sys.exit(main())
