"""The optimizer does what the recipe says: warm-up and cosine, clipping, no decay of norm scales, AdamW by hand."""

import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from configs.schema import load_recipe
from train.trainer import learning_rate, make_optimizer

SECTION = dataclasses.replace(
    load_recipe("smoke.yaml").optimizer, learning_rate=1e-2, warmup_fraction=0.1, weight_decay=0.1, clip=1.0
)


def test_schedule_warms_up_and_falls_along_a_cosine():
    rate = learning_rate(SECTION, 100)
    values = [float(rate(step)) for step in range(101)]
    assert max(values) == pytest.approx(1e-2)
    assert int(np.argmax(values)) == 10, "a tenth of the steps is warm-up"
    assert values[0] < values[5] < values[10]
    low = values[100]
    assert values[55] == pytest.approx(low + (1e-2 - low) * 0.5 * (1 + math.cos(math.pi * 0.5)), rel=1e-3)
    assert all(a > b for a, b in itertools.pairwise(values[10:]))


def test_first_update_by_hand():
    """After one AdamW step every coordinate has moved by rate * sign(gradient); matrices decay too, norms do not."""
    params = {"matrix": jnp.full((2, 2), 3.0), "norm": jnp.full(2, 3.0)}
    gradients = {"matrix": jnp.array([[1e-3, -1e-3], [2e-3, 0.0]]), "norm": jnp.array([1e-3, -1e-3])}
    optimizer = make_optimizer(dataclasses.replace(SECTION, warmup_fraction=0.0), 100)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    rate = float(learning_rate(dataclasses.replace(SECTION, warmup_fraction=0.0), 100)(0))
    decay = rate * 0.1 * 3.0
    expected = -rate * np.sign(gradients["matrix"]) - decay
    assert np.allclose(updates["matrix"], expected, rtol=1e-3)
    assert np.allclose(updates["norm"], -rate * np.sign(gradients["norm"]), rtol=1e-3)


def test_clipping_is_by_the_global_norm():
    """One huge gradient scales all of them: the second moment then sees gradients of norm 1."""
    params = {"a": jnp.zeros((1, 1)), "b": jnp.zeros((1, 1))}
    gradients = {"a": jnp.full((1, 1), 30.0), "b": jnp.full((1, 1), 40.0)}
    optimizer = make_optimizer(SECTION, 100)
    _, state = optimizer.update(gradients, optimizer.init(params), params)
    moments = {name: float(value[0, 0]) for name, value in adam_moments(state).items()}
    assert moments["a"] == pytest.approx((1 - SECTION.b1) * 0.6)
    assert moments["b"] == pytest.approx((1 - SECTION.b1) * 0.8)


def adam_moments(state):
    """The first moment, wherever optax keeps it."""
    if hasattr(state, "mu"):
        return state.mu
    if isinstance(state, tuple):
        for part in state:
            found = adam_moments(part)
            if found is not None:
                return found
    return None
