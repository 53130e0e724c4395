"""Times our training step beside plain Flax's and PyTorch's, in one run.

python -m experiments.benchmark
"""

import importlib.metadata
import importlib.util
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from experiments.timing import convolutions
from experiments.timing import report as of_networks
from experiments.timing.contenders import (
    TORCH,
    Contender,
    Network,
    epoch,
    flax,
    ours,
    without_onednn,
)
from experiments.timing.turns import measure
from interflow_jax.cli.files import writable
from interflow_jax.cli.machine import device
from interflow_jax.cli.parser import Parser
from interflow_jax.ops import memory, onednn
from interflow_jax.steps import BATCH_SIZE

NETWORKS = {
    "width1": Network("S1", 13, 1.0, (32, 32, 3), BATCH_SIZE),
    "width1-28": Network("S1", 13, 1.0, (28, 28, 1), BATCH_SIZE),
    "half": Network("S1", 13, 0.5, (32, 32, 3), BATCH_SIZE),
    "quarter": Network("S1", 13, 0.25, (32, 32, 3), BATCH_SIZE),
    "quarter-28": Network("S1", 13, 0.25, (28, 28, 1), BATCH_SIZE),
    "eighth-28": Network("S1", 13, 0.125, (28, 28, 1), BATCH_SIZE),
    "deep": Network("S1", 60, 0.125, (28, 28, 1), BATCH_SIZE),
    "deepest": Network("S1", 100, 0.25, (28, 28, 1), BATCH_SIZE),
    "width1-bf16": Network("S1", 13, 1.0, (32, 32, 3), BATCH_SIZE, "bfloat16"),
    "quarter-bf16": Network("S1", 13, 0.25, (32, 32, 3), BATCH_SIZE, "bfloat16"),
}
EPOCH_OF = "quarter-28"
"""The network whose whole epoch is timed; fashion_mini has images of its size."""
PYTORCH = importlib.util.find_spec("torch") is not None


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    flags = parser.parse_args(arguments)
    names = flags.networks.split(",")
    for name in names:
        if name not in NETWORKS:
            parser.error(f"--networks={name}: choose from {', '.join(NETWORKS)}")
    if flags.turns < 1:
        parser.error(f"--turns={flags.turns}: choose a number above 0")
    out = Path(flags.out)
    try:
        writable(out)
    except ValueError as error:
        parser.error(str(error))

    packages = ["jax", "jaxlib"]
    if not flags.convolutions:
        packages += ["flax", "optax", *(["torch"] * PYTORCH)]
    report: dict[str, Any] = {
        "command": " ".join(["python -m experiments.benchmark", *arguments]),
        "device": device(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    if flags.convolutions:
        _convolutions(report, out)
    else:
        _networks(report | {"turns": flags.turns}, names, flags.profile, out)
    return 0


def _convolutions(report: dict[str, Any], out: Path) -> None:
    memory.keep_freed_memory()
    report |= {"rows": [], "norms": []}
    print(convolutions.HEAD)
    for size in convolutions.SIZES:
        report["rows"].append(convolutions.measure(size))
        print(convolutions.table_row(report["rows"][-1]), flush=True)
        _write(out / "convolutions", report, convolutions.text(report))
    for size in convolutions.MAPS:
        report["norms"].append(convolutions.measure_norm(*size))
        _write(out / "convolutions", report, convolutions.text(report))


def _networks(report: dict[str, Any], names: list[str], profile: str | None, out: Path) -> None:
    if not PYTORCH:
        print("PyTorch is not installed: pip install '.[benchmark]' to compare with it")
    report["networks"] = {}
    for number, name in enumerate(names, start=1):
        network = NETWORKS[name]
        print(f"[{number}/{len(names)}] {network}", flush=True)
        contenders: dict[str, Contender] = {"ours": ours}
        if onednn.package():
            contenders["without oneDNN"] = without_onednn
        contenders |= {"flax": flax, **(TORCH if PYTORCH else {})}
        if name == EPOCH_OF:
            contenders["epoch"] = epoch
        trace = f"{profile}/{name}" if profile else None
        measured = report["networks"][name] = measure(network, contenders, report["turns"], trace)
        print("\n".join(of_networks.table(measured)), flush=True)
        _write(out / "benchmark", report, of_networks.text(report))


def _write(path: Path, report: dict[str, Any], text: str) -> None:
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(text)


def _parser() -> Parser:
    parser = Parser(
        "benchmark",
        "Times training steps: ours, the same network in plain Flax, and in PyTorch (eager,\n"
        "channels last, compiled) where it is installed (pip install '.[benchmark]'). Each has\n"
        "a process of its own; they take turns, and ratios are medians over the turns. One that\n"
        "fails or dies is reported, and the others go on.\n"
        "Writes OUT/benchmark.json and OUT/benchmark.md after every network.\n\n"
        "With --convolutions, times the forward pass and both gradients of ij.conv3x3 against\n"
        "XLA's convolution in place of networks, at the sizes below, and BatchNorm with ReLU on\n"
        "their maps, in about three minutes, and writes OUT/convolutions.json and .md.",
        "networks:\n"
        + "\n".join(f"  {name:<14}{network}" for name, network in NETWORKS.items())
        + "\n\nsizes of --convolutions, as channels@map/stride:\n"
        + textwrap.indent(textwrap.fill(", ".join(map(str, convolutions.SIZES)), 80), "  "),
        prefix="python -m experiments.",
    )
    parser.add_argument("--networks", default=",".join(NETWORKS), help="default: all, as a,b,c")
    parser.add_argument("--turns", type=int, default=7, help="of each contender (default: 7)")
    parser.add_argument("--out", default="results", help="folder of the report (default: results)")
    trace_help = "keep a trace of some of our steps there, for xprof or perfetto"
    parser.add_argument("--profile", metavar="DIR", help=trace_help)
    in_place = "time convolutions in place of networks"
    parser.add_argument("--convolutions", action="store_true", help=in_place)
    return parser


if __name__ == "__main__":
    sys.exit(main())
