"""A module's training switch is found from its signature."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from interflow_jax import Fusion, Interflow, switch_arguments


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
@pytest.mark.parametrize("train", [True, False])
def test_interflow_translates_train(switch, train):
    model = Interflow(module_with(switch), 2, Fusion("fixed", (1.0,)))
    images = jnp.zeros((1, 2, 2, 1))
    variables = model.init(jax.random.key(0), images)
    kernel = variables["params"]["fully_connected_channels_1"]["kernel"]
    logits = model.apply(variables, images, train=train).logits
    assert (logits == kernel * train).all()


def test_a_wrapper_s_signature_tells_nothing_unless_said():
    wrapper = nn.Sequential([nn.Dense(2)])
    assert switch_arguments(wrapper, True) == {}
    assert switch_arguments(wrapper, True, "deterministic") == {"deterministic": False}
    assert switch_arguments(nn.Dense(2), True) == {}
    assert switch_arguments(nn.BatchNorm(), True) == {"use_running_average": False}
    assert switch_arguments(nn.BatchNorm(), True, "none") == {}


@pytest.mark.parametrize(
    ("module", "switch", "message"),
    [
        (nn.Dense(2), "trian", "choose one of train, training"),
        (nn.Dense(2), "train", "Dense takes inputs; choose none"),
        (
            nn.BatchNorm(),
            "train",
            "BatchNorm takes x, use_running_average, mask; choose use_running_average or none",
        ),
    ],
)
def test_a_switch_that_is_not_there_is_named(module, switch, message):
    with pytest.raises(ValueError, match=message):
        switch_arguments(module, True, switch)
