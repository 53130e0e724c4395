"""A module's training switch is found from its signature."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from interflow_jax import Interflow, switch_arguments


def module_with(switch):
    """A backbone whose map is one where it trains by a switch of this name."""
    inverted = switch in ("deterministic", "use_running_average")
    body = f"def call(self, x, {switch}): return [x * 0 + ({switch} != {inverted})]"
    namespace = {}
    exec(body, namespace)
    return type("Switched", (nn.Module,), {"__call__": namespace["call"]})()


@pytest.mark.parametrize(
    "switch", ["train", "training", "is_training", "deterministic", "use_running_average"]
)
def test_interflow_translates_train(switch):
    model = Interflow(module_with(switch), 2, "softmax")  # pyright: ignore
    images = jnp.zeros((1, 2, 2, 1))
    variables = model.init(jax.random.key(0), images)
    kernel = variables["params"]["fully_connected_channels_1"]["kernel"]
    for train in (True, False):
        logits = model.apply(variables, images, train=train).branch_logits
        assert (logits == kernel[None] * train).all()


@pytest.mark.parametrize(
    ("module", "switch", "expected"),
    [
        (nn.Sequential([nn.Dense(2)]), None, {}),  # a wrapper's signature tells nothing
        (nn.Sequential([nn.Dense(2)]), "deterministic", {"deterministic": False}),
        (nn.Dense(2), None, {}),
        (nn.BatchNorm(), None, {"use_running_average": False}),
        (nn.BatchNorm(), "none", {}),
        (nn.Dense(2), "trian", "choose one of train, training"),
        (nn.Dense(2), "train", "Dense takes inputs; choose none"),
        (nn.BatchNorm(), "train", "use_running_average, mask; choose use_running_average or none"),
    ],
)
def test_a_switch_is_the_signature_s_or_the_one_said(module, switch, expected):
    if isinstance(expected, dict):
        assert switch_arguments(module, True, switch) == expected
        return
    with pytest.raises(ValueError, match=expected):
        switch_arguments(module, True, switch)
