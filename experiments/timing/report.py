"""What the benchmark measured, in readable form."""

from statistics import median
from typing import Any

from experiments.timing.contenders import TORCH
from interflow_jax.cli import markdown


def _seconds(measured: dict[str, Any], name: str) -> list[float]:
    """Seconds of a step, per turn; empty for a contender that failed or did not take part."""
    return measured["contenders"].get(name, {}).get("step_seconds", [])


def ratios(measured: dict[str, Any], name: str, to: str) -> list[float]:
    """How many times as fast as `to` a contender is, per pair of neighbouring turns."""
    pairs = zip(_seconds(measured, name), _seconds(measured, to), strict=False)
    return [theirs / ours for ours, theirs in pairs]


def ratio(measured: dict[str, Any], name: str, to: str) -> float | None:
    """The median of `ratios`; None without any."""
    values = ratios(measured, name, to)
    return median(values) if values else None


def _in_words(measured: dict[str, Any], name: str | None) -> str | None:
    """Ours over a contender's speed: the median, and the least and the greatest over turns."""
    values = ratios(measured, "ours", name) if name else []
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else None


def summary(report: dict[str, Any]) -> list[str]:
    """A row per network: ours, and how much faster and larger than others."""
    rows = []
    for measured in report["networks"].values():
        contenders, best = measured["contenders"], best_torch(measured)
        peaks = [contenders.get(name, {}).get("peak_bytes") for name in ("ours", best)]
        rows.append(
            [
                measured["description"],
                f"{measured['network']['batch_size'] / median(_seconds(measured, 'ours')):.0f}"
                if _seconds(measured, "ours")
                else None,
                *(_in_words(measured, name) for name in ("without oneDNN", "flax", best)),
                peaks[0] / peaks[1] if all(peaks) else None,
            ]
        )
    head = ["", "ours, images/s", "/ without oneDNN", "/ Flax", "/ PyTorch", "memory / PyTorch's"]
    return markdown.table(head, rows)


def best_torch(measured: dict[str, Any]) -> str | None:
    """PyTorch's fastest mode on this network."""
    names = [name for name in TORCH if _seconds(measured, name)]
    return min(names, key=lambda name: median(_seconds(measured, name)), default=None)


def table(measured: dict[str, Any]) -> list[str]:
    """A network's figures as the lines of a table, a row per contender."""
    rows = []
    for name, result in measured["contenders"].items():
        if "error" in result:
            rows.append([name, result["error"], None, None, None])
            continue
        rate = measured["network"]["batch_size"] / median(result["step_seconds"])
        faster = ratio(measured, "ours", name)
        peak = f"{result['peak_bytes'] / 1e6:.0f}"
        rows.append([name, f"{rate:.0f}", faster, result["compile_seconds"], peak])
    return markdown.table(["", "images/s", "ours / it", "compiled in, s", "peak, MB"], rows)


def text(report: dict[str, Any]) -> str:
    """The whole report, as Markdown."""
    lines = [
        "# Training steps on CPU\n",
        f"{origin(report)}; float32 where not said. One process per",
        f"contender, taking turns ({report['turns']}); medians over turns, ratios of neighbouring",
        "turns. `epoch` is a whole one of `ij.Trainer`, per step. Peak memory is that of the whole",
        "process. Ours is compared with PyTorch's fastest mode, with the range over turns.\n",
        *summary(report),
    ]
    for measured in report["networks"].values():
        lines.append(f"## {measured['description']}\n")
        lines += table(measured)
    return "\n".join(lines)


def origin(report: dict[str, Any]) -> str:
    """The command, the device and the versions of a report."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return f"`{report['command']}`: {report['device']}; {versions}"
