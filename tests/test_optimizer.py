"""Learning rates by step, and what the optimisers change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interflow_jax as ij


@pytest.mark.parametrize(
    ("epochs", "drop_after", "boundary"), [(100, 0.8, 80), (40, 0.5, 20), (5, 0.8, 4), (2, 0.5, 1)]
)
def test_the_rate_drops_where_the_paper_drops_it(epochs, drop_after, boundary):
    schedule = ij.learning_rate_schedule(epochs * 7, drop_after)
    rates = [float(schedule(step)) for step in (0, boundary * 7 - 1, boundary * 7, epochs * 7 - 1)]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-4, 1e-4], rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize(("kind", "late"), [("step", 1e-3), ("cosine", 0.0)])
def test_schedules_rise_hold_and_fall(kind, late, warmup):
    schedule = ij.learning_rate_schedule(40, 0.5, 1e-2, kind, warmup)
    assert schedule(warmup) == pytest.approx(1e-2)
    if warmup:
        assert (schedule(0), schedule(2)) == (0, pytest.approx(0.4e-2))
    assert schedule(40) == pytest.approx(late, abs=1e-9)
    if kind == "step":
        assert [schedule(19), schedule(21)] == pytest.approx([1e-2, 1e-3])
    else:
        assert schedule(20) > schedule(21) > 0


@pytest.mark.parametrize(
    ("name", "frozen", "moved"),
    [
        ("sgd", (), {"backbone": -0.05, "fusion": -0.05}),  # of every parameter alike
        ("adamw", (), {"backbone": -0.05, "fusion": -0.05}),  # apart from the gradient
        ("sgd", "backbone", {"backbone": 0.0, "fusion": -0.05}),
        ("sgd", ("backbone", "fusion/scale"), {"backbone": 0.0, "fusion": 0.0}),
    ],
)
def test_decay_reaches_every_parameter_that_is_not_frozen(name, frozen, moved):
    optimizer = ij.make_optimizer(0.1, name, weight_decay=0.5, frozen=frozen)
    params = {"backbone": {"kernel": jnp.ones(2)}, "fusion": {"scale": jnp.ones(())}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    for part, value in moved.items():
        np.testing.assert_allclose(jax.tree.leaves(updates[part])[0], value, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adam"}, "choose one of sgd, nesterov, adamw"),
        ({"name": "adamw", "momentum": 0.9}, "adamw has none"),
        ({"frozen": "back"}, "frozen is 'back', but no parameter is below it; .* with backbone"),
    ],
)
def test_what_cannot_be_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ij.make_optimizer(0.1, **arguments).init({"backbone": jnp.zeros(1)})
    with pytest.raises(ValueError, match="choose one of step, cosine"):
        ij.learning_rate_schedule(1, 0.5, kind="linear")  # pyright: ignore


def test_nesterov_looks_ahead_by_its_momentum():
    optimizer = ij.make_optimizer(0.1, "nesterov", momentum=0.5, weight_decay=0.0)
    params, state = jnp.zeros(1), optimizer.init(jnp.zeros(1))
    velocity = 0.0
    for gradient in (1.0, 3.0, -2.0):
        update, state = optimizer.update(jnp.array([gradient]), state, params)
        velocity = 0.5 * velocity + gradient
        np.testing.assert_allclose(update, [-0.1 * (gradient + 0.5 * velocity)], rtol=1e-6)


def test_a_gradient_is_clipped_by_the_norm_of_what_is_trained_before_its_decay():
    optimizer = ij.make_optimizer(1.0, momentum=0.0, frozen="backbone", clip_norm=2.0)
    params = {"backbone": jnp.ones(2), "a": jnp.ones(1), "b": jnp.ones(1)}
    for scale, clipped in ((0.1, 1.0), (1.0, 2 / 5)):  # of a norm of 5
        gradients = {
            "backbone": 1e6 * jnp.ones(2),
            "a": jnp.full(1, 3 * scale),
            "b": jnp.full(1, 4 * scale),
        }
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        np.testing.assert_allclose(updates["a"], -(scale * 3 * clipped + 5e-4), rtol=1e-5)
        np.testing.assert_allclose(updates["b"], -(scale * 4 * clipped + 5e-4), rtol=1e-5)
        assert not np.any(updates["backbone"])
