"""A failure at any rename, write, unlink, mkdir, fsync or open of a run leaves what resumes."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

# Of five failures per point, every fourth, so that each point meets one or two: 10 minutes on two
# idle cores. FAULTS_EVERY=1 tries all; no multiple of five, which would try one kind alone.
EVERY = int(os.environ.get("FAULTS_EVERY", "4"))
REPOSITORY = Path(__file__).parents[2]
DRIVERS = 2  # processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler"),
]


def operation(point: dict) -> str:
    return point["call"].split()[1] if point["call"] else "none"


def test_every_point_ends_bit_for_bit_the_same(tmp_path):
    library = tmp_path / "inject.so"
    source = Path(__file__).with_name("inject.c")
    compile_it = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source, "-ldl"]
    subprocess.run([*compile_it, "-lpthread"], check=True)
    outputs = [tmp_path / f"output{number}" for number in range(DRIVERS)]
    drivers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.faults.driver", tmp_path, library),
                *(str(number * EVERY), str(EVERY * DRIVERS)),
            ],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "LD_PRELOAD": str(library),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
            stdout=output.open("w"),
        )
        for number, output in enumerate(outputs)
    ]
    assert [driver.wait() for driver in drivers] == [0] * DRIVERS
    lines = [json.loads(line) for output in outputs for line in output.read_text().splitlines()]
    calls = [line["calls"] for line in lines if "calls" in line]
    points = [line for line in lines if "point" in line]
    failures = [point for point in points if point["problems"]]
    kinds = Counter(call.split()[1] for call in calls[0])
    print(f"\n{len(calls[0])} calls, {dict(kinds)}; every {EVERY}th of {5 * len(calls[0])} tried:")
    print(*sorted(Counter(f"{operation(point)} {point['mode']}" for point in points).items()))
    print(f"{len(points) - len(failures)} of {len(points)} end bit for bit the same")
    for failure in failures:
        print(json.dumps(failure))
    inside = [point for point in points if "/checkpoints/" in (point["call"] or "")]
    assert len(inside) >= len(points) / 4  # those that C++ writes are among them
    assert len({point["mode"] for point in points}) == 5
    assert not failures
