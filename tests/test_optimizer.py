"""The optimizer does what the recipe says: warm-up and cosine, clipping, no decay of norms, AdamW and Muon by hand."""

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


def test_schedule_by_hand():
    """100 updates, a tenth of them warm-up: update 9 has the peak, the other 90 fall along a cosine to 2 % of it."""
    rate = learning_rate(SECTION, 100)
    values = [float(rate(update)) for update in range(100)]
    assert values[:10] == pytest.approx([1e-3 * part for part in range(1, 11)])
    assert int(np.argmax(values)) == 9
    assert values[54] == pytest.approx(2e-4 + (1e-2 - 2e-4) / 2), "half of the cosine"
    assert values[24] == pytest.approx(2e-4 + (1e-2 - 2e-4) * 0.5 * (1 + math.cos(math.pi / 6))), "a sixth of it"
    assert values[99] == pytest.approx(2e-4), "the last update"
    assert all(a > b for a, b in itertools.pairwise(values[9:]))


@pytest.mark.parametrize(
    ("fraction", "steps", "expected"),
    [
        (0.0, 3, [1.0, 0.51, 0.02]),
        (0.5, 4, [0.5, 1.0, 0.51, 0.02]),
        (1.0, 4, [0.25, 0.5, 0.75, 1.0]),
        (0.1, 1, [1.0]),
    ],
)
def test_every_update_learns(fraction: float, steps: int, expected: list[float]):
    rate = learning_rate(dataclasses.replace(SECTION, learning_rate=1.0, warmup_fraction=fraction), steps)
    assert [float(rate(update)) for update in range(steps)] == pytest.approx(expected)


def test_first_update_by_hand():
    """After one AdamW step every coordinate has moved by rate * sign(gradient); matrices decay too, norms do not.

    Warm-up over a tenth of 100 updates to 1e-2: the first rate is 1e-3. Decay 0.1 of a weight of 3: 3e-4.
    """
    params = {"matrix": jnp.full((2, 2), 3.0), "norm": jnp.full(2, 3.0)}
    gradients = {"matrix": jnp.array([[1e-3, -1e-3], [2e-3, 0.0]]), "norm": jnp.array([1e-3, -1e-3])}
    optimizer = make_optimizer(SECTION, 100)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["matrix"], [[-1.3e-3, 0.7e-3], [-1.3e-3, -0.3e-3]], rtol=1e-3)
    np.testing.assert_allclose(updates["norm"], [-1e-3, 1e-3], rtol=1e-3)


def test_clipping_is_by_the_global_norm():
    """One huge gradient scales all of them: the second moment then sees gradients of norm 1."""
    params = {"a": jnp.zeros((1, 1)), "b": jnp.zeros((1, 1))}
    gradients = {"a": jnp.full((1, 1), 30.0), "b": jnp.full((1, 1), 40.0)}
    optimizer = make_optimizer(SECTION, 100)
    _, state = optimizer.update(gradients, optimizer.init(params), params)
    moments = {name: float(value[0, 0]) for name, value in adam_moments(state).items()}
    assert moments["a"] == pytest.approx((1 - SECTION.b1) * 0.6)
    assert moments["b"] == pytest.approx((1 - SECTION.b1) * 0.8)


def test_muon_is_for_the_matrices_of_layers():
    """A matrix moves by rate * 0.2 sqrt(8) along U V^T of its gradient, all directions about alike, whatever its scale.

    Five Newton-Schulz steps bring singular values to 0.7 to 1.2. Norms, tables of tokens and vectors written as
    matrices are AdamW's. The first of Muon's rates is a tenth of 2e-2.
    """
    section = dataclasses.replace(SECTION, muon_learning_rate=2e-2, weight_decay=0.0)
    rng = np.random.default_rng(0)
    shapes = {"gate": (6, 8), "down": (8, 6), "norm": (6,), "row": (1, 6), "markov_w1": (9, 4), "lm_head": (9, 6)}
    gradients = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    gradients["down"] *= 1e-3
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    muon, adamw = (make_optimizer(one, 100) for one in (section, dataclasses.replace(section, muon_learning_rate=None)))
    updates, _ = muon.update(gradients, muon.init(params), params)
    without, _ = adamw.update(gradients, adamw.init(params), params)
    for name in ("norm", "row", "markov_w1", "lm_head"):
        np.testing.assert_array_equal(updates[name], without[name], err_msg=name)
    for name in ("gate", "down"):
        u, _, vt = np.linalg.svd(gradients[name], full_matrices=False)
        along = u.T @ np.asarray(updates[name]) @ vt.T / (-2e-3 * 0.2 * math.sqrt(8))
        values = np.diag(along)
        np.testing.assert_allclose(along - np.diag(values), 0.0, atol=2e-3, err_msg=name)
        assert ((values > 0.65) & (values < 1.25)).all(), values


def test_muon_decays_matrices():
    """A weight of 3 under a gradient of nothing: rate 2e-3 * decay 0.1 * 3."""
    section = dataclasses.replace(SECTION, muon_learning_rate=2e-2)
    params = {"gate": jnp.full((2, 2), 3.0), "norm": jnp.full(2, 3.0)}
    optimizer = make_optimizer(section, 100)
    nothing = {name: jnp.zeros_like(value) for name, value in params.items()}
    updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    np.testing.assert_allclose(updates["gate"], -6e-4, rtol=1e-5)
    np.testing.assert_allclose(updates["norm"], 0.0)


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
