"""How much this host can hold."""

import contextlib
import math
import os
from pathlib import Path

_BYTES_PER_PIXEL = 3 * 4  # RGB in float32


def host_memory() -> int:
    """This host's memory in bytes, or less under a container or batch system limit (cgroup v2)."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError):  # only Linux has such a file
        group = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()
        place = Path("/sys/fs/cgroup") / group.lstrip("/")
        for folder in (place, *place.parents):
            with contextlib.suppress(OSError, ValueError):  # a limit may be "max"
                limits.append(int((folder / "memory.max").read_text()))
    return min(limits)


def check_image_size(image_size: int | None) -> None:
    """Raises ValueError for a height and width below 1, or too large for this host's memory."""
    largest = math.isqrt(host_memory() // _BYTES_PER_PIXEL)
    if image_size is not None and not 1 <= image_size <= largest:
        raise ValueError(
            f"image_size is {image_size}; choose 1 to {largest}: a larger RGB image in float32 "
            f"does not fit in this host's {host_memory() / 1e9:.1f} GB"
        )
