"""Keeps the host's memory between steps, in large pages: on CPU, part of every step's time."""

import ctypes
import mmap
import sys

import jax.monitoring

# glibc's malloc.h; mallopt takes ints.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8
_NEVER = -1
_RESERVED_BYTES = 2**31 - 2**21  # address space, not memory; the largest int of whole large pages
_COMPILATION = "/jax/core/compile/backend_compile_duration"
_LONG_SECONDS = 0.5  # compilations longer than this leave something to give back


def keep_freed_memory() -> bool:
    """Lets this process reuse what it frees, and asks for large pages for it.

    XLA's CPU runtime allocates a step's temporaries anew in every step. By default glibc returns
    such blocks to the system at once, so that every step first faults in hundreds of megabytes,
    page by page. Call this once, before the first array exists. It changes the whole process (only
    what compilations freed goes back to the system: hundreds of megabytes in pieces, between which
    a step's temporaries would not fit), so the library never calls it by itself; the commands do.

    Returns:
      Whether it succeeded: on Linux with glibc only.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    kept = all(
        libc.mallopt(parameter, value)
        for parameter, value in (
            (_M_MMAP_MAX, 0),  # every block comes from the heap ...
            (_M_ARENA_MAX, 1),  # ... the one heap that grows without limit ...
            (_M_TRIM_THRESHOLD, _NEVER),  # ... and never shrinks
            (_M_TOP_PAD, _RESERVED_BYTES),
        )
    )
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.free(libc.malloc(ctypes.c_size_t(64 * 2**20)))  # grows the heap by what is reserved
    end = libc.sbrk(0) // mmap.PAGESIZE * mmap.PAGESIZE
    libc.madvise(end - _RESERVED_BYTES, _RESERVED_BYTES, mmap.MADV_HUGEPAGE)

    def give_back(event: str, duration_secs: float, **_) -> None:
        if event == _COMPILATION and duration_secs > _LONG_SECONDS:
            libc.malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(give_back)
    return kept
