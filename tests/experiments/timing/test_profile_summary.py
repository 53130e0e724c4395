"""A profile: the trace of a few steps, summed by kind of operation."""

import jax
import jax.numpy as jnp
import pytest

import interflow_jax as ij
from experiments.timing import profile_summary
from experiments.timing.compiled_program import Operation, Program
from experiments.timing.contenders import Step

PROGRAM = Program(
    {
        "a": Operation({"convolution"}, [], "jit(step)/jvp(Interflow)/backbone/conv1/conv"),
        "b": Operation({"add"}, [], "jit(step)/add"),
    },
    {},
)


def test_kinds_by_hand():
    taken = {"a": [2.0, 3.0, 9.0], "b": [0.5] * 6, "c": [0.25] * 3}  # b twice a step
    summary = profile_summary.summarize(taken, PROGRAM, [0.003, 0.004, 0.008])
    assert (summary["steps"], summary["step_ms"]) == (3, 4.0)
    kinds = {kind: each for kind, each in summary["kinds_ms"].items() if each}
    assert kinds == {"convolutions": 3.0, "elementwise loops": 1.0, "other": 0.25}
    assert [one["operation"] for one in summary["longest"]] == ["a", "b", "c"]
    assert summary["longest"][0] == {
        "operation": "a",
        "kind": "convolutions",
        "layer": "backbone/conv1",
        "ms": 3.0,
    }
    text = profile_summary.markdown(summary)
    assert "3 steps of 4.0 ms" in text[0]
    assert "4.2 ms, 1.06 of it" in text[0]
    assert "| 71% | 0% | 0% | 0% | 24% | 6% |" in text
    assert "| 3.00 | a | convolutions | backbone/conv1 |" in text


def test_an_instant_is_shared_by_hand():
    assert profile_summary.shares([(1.0, 5.0), (3.0, 9.0), (9.0, 9.0), (12.0, 13.0)]) == [
        2.0 + 1.0,
        1.0 + 4.0,
        0.0,
        1.0,
    ]


def test_no_operations_are_an_error():
    with pytest.raises(ValueError, match="recorded no operation"):
        profile_summary.summarize({}, PROGRAM, [0.001])


def test_an_asynchronous_convolution_counts_to_its_end():
    """Its event in the trace is over when it is dispatched: a hundredth of its time."""
    x, kernel = jnp.ones((64, 32, 32, 32)), jnp.ones((3, 3, 32, 32))
    program = jax.jit(ij.conv3x3, compiler_options=ij.cpu_compiler_options())
    compiled = program.lower(x, kernel).compile()
    step = Step(lambda: jax.block_until_ready(compiled(x, kernel)), compiled=lambda: compiled)
    step.take()
    summary = profile_summary.profile(step, None)
    assert summary["longest"][0]["kind"] == "convolutions"
    assert 0.5 * summary["step_ms"] < summary["kinds_ms"]["convolutions"] <= summary["step_ms"]
