"""What the benchmark measured, for people."""

from statistics import median
from typing import Any

from experiments.page.markdown import table
from experiments.timing.contenders import PRODUCT_FLOPS

TORCH = ("torch_eager", "torch_channels_last", "torch_compiled")


def ratio(measured: dict[str, Any], name: str, to: str) -> float | None:
    """How many times as fast as `to` a contender is: the median over turns, of neighbours."""
    first, second = (_step_seconds(measured, who) for who in (name, to))
    if first is None or second is None:
        return None
    return median(theirs / ours for ours, theirs in zip(first, second, strict=True))


def best_torch(measured: dict[str, Any]) -> str | None:
    """PyTorch's fastest mode on this network."""
    medians = {
        name: median(seconds) for name in TORCH if (seconds := _step_seconds(measured, name))
    }
    return min(medians, key=medians.__getitem__, default=None)


def epoch_overhead(measured: dict[str, Any]) -> float | None:
    """A whole epoch of `experiments.run` over as many bare steps; median over turns."""
    whole, bare = (_step_seconds(measured, name) for name in ("epoch", "ours"))
    if whole is None or bare is None:
        return None
    batches = measured["contenders"]["epoch"]["batches"]
    return median(a / (batches * b) for a, b in zip(whole, bare, strict=True))


def _step_seconds(measured: dict[str, Any], name: str) -> list[float] | None:
    """Of every turn; None for a contender that failed or was not there."""
    return measured["contenders"].get(name, {}).get("step_seconds")


def lines(measured: dict[str, Any]) -> list[str]:
    """A network's figures, one line per contender."""
    return [
        f"{name:<20} {result['error'] if 'error' in result else _figures(measured, name)}"
        for name, result in measured["contenders"].items()
    ]


def _figures(measured: dict[str, Any], name: str) -> str:
    result = measured["contenders"][name]
    seconds = median(result["step_seconds"])
    if name == "product":
        return f"{PRODUCT_FLOPS / seconds / 1e9:7.0f} GFLOP/s"
    if name == "epoch":
        overhead = epoch_overhead(measured)
        return f"{seconds:7.1f} s" if overhead is None else f"{overhead:7.3f} of its steps' time"
    against = ratio(measured, "ours", name)
    rate = measured["flops"] / seconds
    product = _step_seconds(measured, "product")
    share = 100 * rate * median(product) / PRODUCT_FLOPS if product else None
    return (
        f"{measured['network']['batch_size'] / seconds:7.0f} images/s  "
        f"ours/it {_or_dash(against, '5.2f')}  {rate / 1e9:5.0f} GFLOP/s "
        f"({_or_dash(share, '3.0f')}% of a product's)  "
        f"compiled in {result['compile_seconds']:5.1f} s  "
        f"peak {result['peak_bytes'] / 1e6:5.0f} MB"
    )


def _or_dash(figure: float | None, form: str) -> str:
    return format(figure, form) if figure is not None else "-".rjust(int(form.split(".")[0]))


def markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    text = [
        "# Training steps on CPU",
        "",
        f"{origin(report)}; float32. One process a",
        f"contender, taking turns ({report['turns']}); medians over turns, ratios of neighbouring",
        "turns. GFLOP/s count the convolutions as if padding were data, which ours partly skips",
        "and partly replaces by fewer products. Peak memory is that of the whole process.",
        "",
    ]
    for measured in report["networks"].values():
        taken = measured["taken_by_hypervisor"]
        text += [f"## {measured['description']}", ""]
        best = best_torch(measured)
        against = ratio(measured, "ours", best) if best else None
        if against is not None:
            text += [f"Ours / PyTorch's best ({best}): **{against:.2f}**", ""]
        if taken > 0.01:
            text += [f"The hypervisor took {100 * taken:.0f}% of the processor time away.", ""]
        text += ["```", *lines(measured), "```", ""]
    return "\n".join(text)


def origin(report: dict[str, Any]) -> str:
    """The command, the device and the versions of a report."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return f"`{report['command']}`: {report['device']}; {versions}"


def in_short(report: dict[str, Any]) -> list[str]:
    """The lines of a Markdown table: a row per network, with ours beside the others' best."""
    rows = []
    for measured in report["networks"].values():
        seconds = measured["contenders"]["ours"].get("step_seconds")  # without, it failed
        rate = measured["network"]["batch_size"] / median(seconds) if seconds else None
        best = best_torch(measured)
        flax = ratio(measured, "ours", "flax")
        torch = best and ratio(measured, "ours", best)
        figures = ((rate, ".0f"), (flax, ".2f"), (torch, ".2f"))
        shown = ["-" if figure is None else format(figure, form) for figure, form in figures]
        rows.append([measured["description"], *shown])
    return table(["", "ours, images/s", "ours / Flax", "ours / PyTorch"], rows)
