"""Our training step, compiled by libtpu for absent TPUs: what it would need of each chip."""

import os
import re
import time
from collections import Counter
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import interflow_jax as ij
from experiments.timing.contenders import Network
from experiments.timing.report import origin
from interflow_jax.training import make_initializer

CASES = list(product(("float32", "bfloat16"), (64, 1024)))
"""Dtypes of the computation, and images per chip."""

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

HEAD = (
    "| topology | dtype | images per chip | compiled in | state and batch | temporaries "
    "| GFLOP per chip | convolutions | collectives |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
)


def mesh_of(topology: str) -> Mesh:
    """All chips of a TPU topology such as "v5e:2x2", which need not be present.

    Raises:
      ValueError: without libtpu, or for a topology that it does not know.
    """
    # Without these, libtpu spends a minute asking the cloud which machine this is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    try:
        devices = topologies.get_topology_desc(topology, "tpu").devices
    except Exception as error:  # jax and libtpu raise errors of any type
        reason = str(error).splitlines()[0]
        hint = "give one as v5e:2x2; needs pip install 'jax[tpu]'"
        raise ValueError(f"no TPU topology {topology} ({reason}); {hint}") from error
    return Mesh(np.array(devices), ("batch",))


def compile_step(network: Network, mesh: Mesh) -> jax.stages.Compiled:
    """Compiles the step of a network whose batch size is that of one chip."""
    model = network.build()
    optimizer = ij.make_optimizer(ij.learning_rate_schedule(1_000_000, 0.5))
    replicated, sharded = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("batch",)))

    def shape(of: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), of
        )

    initializer = make_initializer(model, optimizer, network.image_shape)
    state = shape(initializer.eval_shape(jax.random.key(0)), replicated)
    batch = network.batch_size * mesh.size
    images = jax.ShapeDtypeStruct((batch, *network.image_shape), jnp.float32, sharding=sharded)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=sharded)
    step = partial(ij.train_step, model, optimizer)
    program = jax.jit(step, donate_argnums=0, out_shardings=replicated)
    return program.lower(state, images, labels).compile()


def collectives(compiled: jax.stages.Compiled) -> dict[str, int]:
    """How many collectives of each kind a program has."""
    kinds = "|".join(COLLECTIVES)
    return dict(Counter(re.findall(rf" ({kinds})(?:-start)?\(", compiled.as_text() or "")))


def measure(network: Network, topology: str, mesh: Mesh) -> dict[str, Any]:
    """One row: seconds, bytes and operations, per chip."""
    start = time.perf_counter()
    compiled = compile_step(network, mesh)
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    return {
        "topology": topology,
        "chips": mesh.size,
        "dtype": network.dtype,
        "images_per_chip": network.batch_size,
        "compile_seconds": seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "flops": cost["flops"],
        "convolutions": len(re.findall(r" convolution\(", compiled.as_text() or "")),
        "collectives": collectives(compiled),
    }


def table_row(row: dict[str, Any]) -> str:
    """A row as a line of Markdown."""
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(row["collectives"].items()))
    return (
        f"| {row['topology']} | {row['dtype']} | {row['images_per_chip']:,} "
        f"| {row['compile_seconds']:.0f} s | {row['argument_bytes'] / 1e6:.0f} MB "
        f"| {row['temporary_bytes'] / 1e6:,.0f} MB | {row['flops'] / 1e9:,.0f} "
        f"| {row['convolutions']} | {counts} |"
    )


def markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    return "\n".join(
        [
            "# The training step, compiled for TPUs\n",
            f"{report['network']}. {origin(report)}.",
            "Compiled by libtpu for the topology, without a TPU: nothing was run. Memory and",
            "operations are per chip, as the compiler counts them.\n",
            HEAD,
            *map(table_row, report["rows"]),
            "",
        ]
    )
