"""What the benchmark measured, in readable form."""

from statistics import median
from typing import Any

from experiments.timing.contenders import PRODUCT_SIZE, TORCH

PRODUCT_FLOPS = 2 * PRODUCT_SIZE**3


def _seconds(measured: dict[str, Any], name: str) -> list[float]:
    """Seconds of a step, per turn; empty for a contender that failed or did not take part."""
    return measured["contenders"].get(name, {}).get("step_seconds", [])


def ratio(measured: dict[str, Any], name: str, to: str) -> float | None:
    """How many times as fast as `to` a contender is: the median ratio of neighbouring turns."""
    pairs = zip(_seconds(measured, name), _seconds(measured, to), strict=False)
    ratios = [theirs / ours for ours, theirs in pairs]
    return median(ratios) if ratios else None


def best_torch(measured: dict[str, Any]) -> str | None:
    """PyTorch's fastest mode on this network."""
    names = [name for name in TORCH if _seconds(measured, name)]
    return min(names, key=lambda name: median(_seconds(measured, name)), default=None)


def epoch_overhead(measured: dict[str, Any]) -> float | None:
    """Time of a whole epoch of `experiments.run` over as many bare steps'; median over turns."""
    of_one_step = ratio(measured, "ours", "epoch")
    return of_one_step and of_one_step / measured["contenders"]["epoch"]["batches"]


def lines(measured: dict[str, Any]) -> list[str]:
    """A network's figures, one line per contender."""
    return [
        f"{name:<20} {result.get('error') or _figures(measured, name)}"
        for name, result in measured["contenders"].items()
    ]


def _figures(measured: dict[str, Any], name: str) -> str:
    result = measured["contenders"][name]
    seconds = median(result["step_seconds"])
    if name == "product":
        return f"{PRODUCT_FLOPS / seconds / 1e9:7.0f} GFLOP/s"
    if name == "epoch":
        overhead = epoch_overhead(measured)
        return f"{overhead:7.3f} of its steps' time" if overhead else f"{seconds:7.1f} s"
    rate = measured["flops"] / seconds
    product = _seconds(measured, "product")
    share = 100 * rate * median(product) / PRODUCT_FLOPS if product else None
    return (
        f"{measured['network']['batch_size'] / seconds:7.0f} images/s  "
        f"ours/it {_or_dash(ratio(measured, 'ours', name), '5.2f')}  {rate / 1e9:5.0f} GFLOP/s "
        f"({_or_dash(share, '3.0f')}% of a product's)  "
        f"compiled in {result['compile_seconds']:5.1f} s  "
        f"peak {result['peak_bytes'] / 1e6:5.0f} MB"
    )


def _or_dash(figure: float | None, form: str) -> str:
    return "-".rjust(int(form[0])) if figure is None else format(figure, form)


def markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    text = [
        "# Training steps on CPU\n",
        f"{origin(report)}; float32 where not said. One process per",
        f"contender, taking turns ({report['turns']}); medians over turns, ratios of neighbouring",
        "turns. GFLOP/s count the convolutions as if padding were data, which ours partly skips",
        "and partly replaces by fewer products. Peak memory is that of the whole process.\n",
    ]
    for measured in report["networks"].values():
        text.append(f"## {measured['description']}\n")
        best = best_torch(measured)
        if best and (factor := ratio(measured, "ours", best)):
            text.append(f"Ours / PyTorch's best ({best}): **{factor:.2f}**\n")
        if (taken := measured["taken_by_hypervisor"]) > 0.01:
            text.append(f"The hypervisor took {100 * taken:.0f}% of the processor time away.\n")
        text += ["```", *lines(measured), "```\n"]
    return "\n".join(text)


def origin(report: dict[str, Any]) -> str:
    """The command, the device and the versions of a report."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return f"`{report['command']}`: {report['device']}; {versions}"
