"""How much this host can hold."""

import contextlib
import os
from pathlib import Path


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
