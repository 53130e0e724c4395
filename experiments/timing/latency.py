"""Times calls in turns, each beside the others under the same load."""

import statistics
import time
from collections.abc import Callable
from typing import Any

TURNS = 5
SECONDS_PER_TURN = 0.2  # a call is repeated as often as fits, at least once


def seconds(calls: dict[Any, Callable[[], Any]]) -> dict[Any, float]:
    """The median over turns of each call's mean seconds, without its first call, which compiles.

    Args:
      calls: each returns when everything is computed.
    """
    counts = {}
    for name, call in calls.items():
        call()
        counts[name] = max(1, int(SECONDS_PER_TURN / _mean(call, 1)))
    turns = [
        {name: _mean(call, counts[name]) for name, call in calls.items()} for _ in range(TURNS)
    ]
    return {name: statistics.median(turn[name] for turn in turns) for name in calls}


def _mean(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count
