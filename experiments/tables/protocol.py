"""How runs were made, in words: protocol, devices and versions."""

from typing import Any

from experiments.cli.configuration import PLACES, Configuration, as_flag
from experiments.tables.cells import DATASETS


def protocol(trained: list[Configuration], results: list[dict[str, Any]]) -> str:
    """How runs differ from the paper's, and on what they ran, in words.

    Args:
      trained: configurations of the runs; what they have in common is said of the first.
      results: of those that are finished: device and versions.
    """
    flags = trained[0]
    lengths = sorted({each.resolved_epochs() for each in trained})
    sizes = {each.train_size for each in trained}
    widths = " or ".join(f"{width:g}" for width in sorted({each.width for each in trained}))
    examples = sorted("all" if size is None else f"{size:,}" for size in sizes)
    said = (
        f"width {widths}, {' or '.join(examples)} training examples, "
        f"{' or '.join(map(str, lengths))} epoch{'' if lengths == [1] else 's'}, "
        f"batch {flags.batch_size}, {flags.dtype}"
    )
    for name in ("taps", "image_size", "downsample", "fc"):
        values = {getattr(each, name) for each in trained}
        if len(values) == 1 and values != {getattr(Configuration(), name)}:
            said += f", --{name}={as_flag(values.pop())}"
    if all(_is_the_paper_s(each) for each in trained):
        said += " (the paper's)"
    else:
        said += "; the paper's: width 1, all examples, 100 or 40 epochs, batch 64"
    devices = sorted({result["device"] for result in results})
    versions = sorted({versions_line(result["versions"]) for result in results})
    return ". ".join([said, *devices, *versions])


def _is_the_paper_s(flags: Configuration) -> bool:
    """Whether the protocol is IV-B's, but for what the paper's tables vary."""
    varied = ("method", "dataset", "depth", "seed", "downsample", *PLACES)
    same = Configuration(**{name: getattr(flags, name) for name in varied})
    return flags == same and flags.dataset in DATASETS


def versions_line(versions: dict[str, str]) -> str:
    """A run's versions in words."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
