"""Times our training step beside plain Flax's and PyTorch's, in one run.

python -m experiments.benchmark
"""

import contextlib
import importlib.util
import json
import multiprocessing
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from experiments import configuration
from experiments.contenders import PRODUCT_FLOPS, Network, facts, serve
from experiments.folder import device
from interflow_jax.training import BATCH_SIZE

NETWORKS = {
    "width1": Network("S1", 13, 1.0, (32, 32, 3), BATCH_SIZE),
    "width1-28": Network("S1", 13, 1.0, (28, 28, 1), BATCH_SIZE),
    "class": Network("S3", 13, 1.0, (32, 32, 3), BATCH_SIZE),
    "class-28": Network("S3", 13, 1.0, (28, 28, 1), BATCH_SIZE),
    "quarter": Network("S1", 13, 0.25, (32, 32, 3), BATCH_SIZE),
    "quarter-28": Network("S1", 13, 0.25, (28, 28, 1), BATCH_SIZE),
    "deep": Network("S1", 60, 0.125, (28, 28, 1), BATCH_SIZE),
    "deepest": Network("S1", 100, 0.25, (28, 28, 1), BATCH_SIZE),
}
EPOCH_OF = "quarter-28"
"""The network whose whole epoch is timed: fashion_mini has its images' size."""
TORCH = ("torch_eager", "torch_channels_last", "torch_compiled")
PYTORCH = importlib.util.find_spec("torch") is not None
SECONDS_A_TURN = 1.0  # a contender takes as many steps at once as fit, at least one


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = configuration.parser(
        "benchmark",
        "Times training steps: ours, the same network in plain Flax, and in PyTorch (eager,\n"
        "channels last, compiled) where it is installed (pip install '.[benchmark]'). Each has\n"
        "a process of its own; they take turns, and ratios are medians over the turns. Writes\n"
        "OUT/benchmark.json and OUT/benchmark.md after every network.",
        "networks:\n" + "\n".join(f"  {name:<12}{network}" for name, network in NETWORKS.items()),
    )
    parser.add_argument("--networks", default=",".join(NETWORKS), help="default: all, as a,b,c")
    parser.add_argument("--turns", type=int, default=7, help="of each contender (default: 7)")
    parser.add_argument("--out", default="results", help="folder of the report (default: results)")
    parser.add_argument("--profile", metavar="DIR", help="write a trace of our step there")
    flags = parser.parse_args(arguments)
    names = flags.networks.split(",")
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        parser.error(f"--networks={unknown[0]}: choose from {', '.join(NETWORKS)}")
    if flags.turns < 1:
        parser.error(f"--turns={flags.turns}: choose a number above 0")
    out = Path(flags.out)
    try:
        configuration.writable(out)
    except ValueError as error:
        parser.error(str(error))

    contenders = ["ours", "flax", "product"]
    if PYTORCH:
        contenders[2:2] = TORCH
    else:
        print("PyTorch is not installed: pip install '.[benchmark]' to compare with it")
    report = {
        "command": " ".join(["python -m experiments.benchmark", *arguments]),
        "device": device(),
        "versions": facts(),
        "turns": flags.turns,
        "networks": {},
    }
    for number, name in enumerate(names, start=1):
        network = NETWORKS[name]
        print(f"[{number}/{len(names)}] {network}", flush=True)
        profile = f"{flags.profile}/{name}" if flags.profile else None
        also = ["epoch"] if name == EPOCH_OF else []
        measured = measure(network, [*contenders, *also], flags.turns, profile)
        report["networks"][name] = measured
        for line in lines(measured):
            print(f"  {line}", flush=True)
        (out / "benchmark.json").write_text(json.dumps(report, indent=1) + "\n")
        (out / "benchmark.md").write_text(markdown(report))
    return 0


def measure(
    network: Network, contenders: list[str], turns: int, profile: str | None = None
) -> dict[str, Any]:
    """Lets contenders take turns on a network.

    Returns:
      JSON-able: the network, its FLOPs a step, the share of processor time that a hypervisor took
      away, and for every contender an `error` or `compile_seconds`, `step_seconds` (one figure a
      turn, the mean of the turn's steps) and `peak_bytes` (of the process).
    """
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        pipes, results, counts = {}, {}, {}
        for name in contenders:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, name, network, profile))
            process.start()
            stack.callback(_end, process)
            theirs.close()
            made = _receive(ours)
            if isinstance(made, str):
                results[name] = {"error": made}
                continue
            pipes[name] = ours
            results[name] = {"compile_seconds": made, "step_seconds": []}
            counts[name] = max(1, int(SECONDS_A_TURN / _ask(ours, 1)))
        before = _processor_time()
        for _ in range(turns):
            for name, pipe in pipes.items():
                seconds = _ask(pipe, counts[name]) / counts[name]
                results[name]["step_seconds"].append(seconds)
                time.sleep(0.3)  # until the threads of a contender have stopped waiting actively
        taken, total = (b - a for a, b in zip(before, _processor_time(), strict=True))
        for name, pipe in pipes.items():
            results[name]["peak_bytes"] = _ask(pipe, 0)
    return {
        "network": network._asdict(),
        "description": str(network),
        "flops": network.flops(),
        "taken_by_hypervisor": taken / total if total else 0.0,
        "contenders": results,
    }


def _end(process) -> None:
    process.join(10)
    process.kill()


def _ask(pipe, count: int) -> float:
    pipe.send(count)
    return _receive(pipe)


def _receive(pipe) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        return "its process ended"


def _processor_time() -> tuple[float, float]:
    """Ticks that a hypervisor gave to others, and all, since the start; zeros where unknown."""
    try:
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except OSError:
        return 0.0, 0.0
    return ticks[7], sum(ticks[:8])


def ratio(measured: dict[str, Any], name: str, to: str) -> float | None:
    """How many times as fast as `to` a contender is: the median over turns, of neighbours."""
    first, second = (measured["contenders"].get(who, {}) for who in (name, to))
    if "step_seconds" not in first or "step_seconds" not in second:
        return None
    pairs = zip(first["step_seconds"], second["step_seconds"], strict=True)
    return median(theirs / ours for ours, theirs in pairs)


def best_torch(measured: dict[str, Any]) -> str | None:
    """PyTorch's fastest mode on this network."""
    there = [name for name in TORCH if "step_seconds" in measured["contenders"].get(name, {})]
    return min(
        there, key=lambda name: median(measured["contenders"][name]["step_seconds"]), default=None
    )


def lines(measured: dict[str, Any]) -> list[str]:
    """A network's figures, one line a contender."""
    ceiling = PRODUCT_FLOPS / median(measured["contenders"]["product"]["step_seconds"])
    said = []
    for name, result in measured["contenders"].items():
        if name == "product":
            said.append(f"{name:<20} {ceiling / 1e9:7.0f} GFLOP/s")
            continue
        if "error" in result:
            said.append(f"{name:<20} {result['error']}")
            continue
        seconds = median(result["step_seconds"])
        if name == "epoch":
            said.append(f"{name:<20} {epoch_overhead(measured):7.3f} of its steps' time")
            continue
        rate = measured["flops"] / seconds
        against = ratio(measured, "ours", name)
        said.append(
            f"{name:<20} {measured['network']['batch_size'] / seconds:7.0f} images/s  "
            f"ours/it {against:5.2f}  {rate / 1e9:5.0f} GFLOP/s ({100 * rate / ceiling:3.0f}% of a "
            f"product's)  compiled in {result['compile_seconds']:5.1f} s  "
            f"peak {result['peak_bytes'] / 1e6:5.0f} MB"
        )
    return said


def epoch_overhead(measured: dict[str, Any]) -> float | None:
    """A whole epoch of `experiments.run` over as many bare steps; median over turns."""
    whole = measured["contenders"].get("epoch", {}).get("step_seconds")
    if whole is None:
        return None
    steps = 6000 // measured["network"]["batch_size"]
    bare = measured["contenders"]["ours"]["step_seconds"]
    return median(a / (steps * b) for a, b in zip(whole, bare, strict=True))


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    text = [
        "# Training steps on CPU",
        "",
        f"`{report['command']}`: {report['device']}; {versions}; float32. One process a",
        f"contender, taking turns ({report['turns']}); medians over turns, ratios of neighbouring",
        "turns. GFLOP/s count the convolutions as if padding were data, which ours partly skips",
        "and partly replaces by fewer products. Peak memory is that of the whole process.",
        "",
    ]
    for measured in report["networks"].values():
        taken = measured["taken_by_hypervisor"]
        text += [f"## {measured['description']}", ""]
        best = best_torch(measured)
        if best:
            against = ratio(measured, "ours", best)
            text += [f"Ours / PyTorch's best ({best}): **{against:.2f}**", ""]
        if taken > 0.01:
            text += [f"The hypervisor took {100 * taken:.0f}% of the processor time away.", ""]
        text += ["```", *lines(measured), "```", ""]
    return "\n".join(text)


if __name__ == "__main__":
    sys.exit(main())
