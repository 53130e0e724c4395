"""Batches where the step runs: from splits that the devices hold, or read ahead from the host."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from interflow_jax.data.preprocessing import EpochKeys
from interflow_jax.data.splits import Split, read

PREFETCHED_WINDOWS = 2  # read ahead of the device while streaming
_MOST_AT_ONCE = 16  # examples that a thread reads before it takes others


class Resident(NamedTuple):
    """A split that the devices hold whole, and the order to visit it in."""

    images: Array  # [examples, height, width, channels], uint8
    labels: Array  # [examples], int32
    order: Array  # [visits], int32

    def batch(self, step: Array, size: int) -> tuple[Array, Array]:
        """The images and labels of the step, counted from the epoch's start."""
        visited = jax.lax.dynamic_slice(self.order, (step * size,), (size,))
        return self.images[visited], self.labels[visited]


class Window(NamedTuple):
    """The batches of the steps from `first` on, streamed from the host."""

    images: Array  # [steps, batch, height, width, channels], uint8
    labels: Array  # [steps, batch], int32
    first: Array  # int32

    def batch(self, step: Array, size: int) -> tuple[Array, Array]:
        """The images and labels of the step, counted from the epoch's start."""
        del size  # the window is already cut to it
        return self.images[step - self.first], self.labels[step - self.first]


def device_mesh() -> Mesh:
    """All devices of all processes along one axis, "batch"."""
    return Mesh(np.array(jax.devices()), ("batch",))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(arrays: Any, mesh: Mesh) -> Any:
    """Copies a pytree of arrays that every process has, equal on all, to every device."""
    # `device_put` would have the processes send each other their copies, to compare them.
    return jax.make_array_from_process_local_data(replicated(mesh), arrays)


def own_examples(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Which examples of a batch this process's devices take, in order, int."""
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.sort(np.concatenate([np.arange(batch_size)[part] for part in parts]))


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


def fits(nbytes: int) -> bool:
    """Whether every device may hold data of `nbytes`, which each host reads first.

    At most a quarter of the memory of each device and of the host; CPU devices share the host's.
    All processes must ask together, and get the answer of the one with the least memory.
    """
    memory = host_memory()
    copies = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    statistics = jax.local_devices()[0].memory_stats() or {}
    device_memory = statistics.get("bytes_limit", memory)
    enough = nbytes <= min(memory // copies, device_memory) // 4
    return bool(multihost_utils.process_allgather(np.array(enough)).all())


def cores() -> int:
    """The cores that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def steps_per_dispatch() -> int:
    """How many steps to hand to the devices at once.

    One on CPU, where XLA's convolutions lose their fast path inside a loop (5 to 14 times slower,
    measured); elsewhere enough to keep the host idle and few enough that progress is seen.
    """
    return 1 if jax.default_backend() == "cpu" else 32


def chunks(first: int, last: int, size: int) -> list[np.ndarray]:
    """The steps from `first` to before `last`, int32, in dispatches of at most `size`.

    Dispatches end at multiples of `size`, so that an epoch resumed at one runs the same programs.
    """
    bounds = [first, *range((first // size + 1) * size, last, size), last]
    return [np.arange(a, b, dtype=np.int32) for a, b in pairwise(bounds) if a < b]


def streamed_batches(
    split: Split,
    order: np.ndarray,
    steps: list[np.ndarray],
    mesh: Mesh,
    batch_size: int,
    draws: Callable[[int], np.ndarray] | None = None,
    readers: int | None = None,
) -> Iterator[tuple[np.ndarray, Window]]:
    """Pairs every dispatch's steps with their batches, read ahead from the host in threads.

    A process reads only the examples that its own devices take. Decoding pictures releases the GIL,
    so threads are about as fast as processes, and start at once.

    Args:
      draws: gives a step's draws of random crops, [batch, ...] (see `Split.read`); None for whole
        images.
      readers: how many examples to read at once; None for one per core.
    """
    readers = readers or cores()
    sharding = NamedSharding(mesh, PartitionSpec(None, "batch"))
    own = own_examples(mesh, batch_size)

    def visits(chunk: np.ndarray) -> np.ndarray:
        return order[: (chunk[-1] + 1) * batch_size].reshape(-1, batch_size)[chunk][:, own]

    def begin(chunk: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        visited = visits(chunk)
        parts = min(visited.size, max(readers, visited.size // _MOST_AT_ONCE))
        indices = np.array_split(visited.ravel(), parts)
        if draws is None:
            return pool.map(read, repeat(split), indices)
        boxes = np.concatenate([draws(int(step))[own] for step in chunk])
        return pool.map(read, repeat(split), indices, np.array_split(boxes, parts))

    def window(
        chunk: np.ndarray, examples: Iterator[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, Window]:
        arrays = map(np.concatenate, zip(*examples, strict=True))
        shape = visits(chunk).shape
        shaped = [array.reshape(*shape, *array.shape[1:]) for array in arrays]
        shards = jax.make_array_from_process_local_data(sharding, shaped)
        return chunk, Window(*shards, first=jnp.asarray(chunk[0]))

    with ThreadPoolExecutor(readers) as pool, ThreadPoolExecutor(1) as joiner:
        pending: deque[Future] = deque()
        for chunk in steps:
            # Started here, so that the readers go on while a window is joined and handed over.
            pending.append(joiner.submit(window, chunk, begin(chunk)))
            if len(pending) > PREFETCHED_WINDOWS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def training_order(keys: EpochKeys, examples: int) -> np.ndarray:
    """The order in which an epoch visits the training examples, [examples], int32."""
    return np.asarray(jax.random.permutation(keys.order, examples))


def evaluation_order(examples: int, batch_size: int) -> np.ndarray:
    """Every example once, in order, then the last one again until the batch is full; int32."""
    visits = -(-examples // batch_size) * batch_size
    return np.minimum(np.arange(visits, dtype=np.int32), examples - 1)
