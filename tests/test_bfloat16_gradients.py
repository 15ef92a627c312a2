"""In bfloat16 a gradient is the float32 one within the rounding of its own terms, also where large terms cancel: a
drafter that is nearly sure, and values that are nearly alike.

bfloat16 keeps 8 bits, so a rounding is off by at most UNIT = 2^-8 of the number rounded. Every bound below is that,
times the number of roundings on the way, times the sum of the absolute terms that the result is a sum of.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import BlockKernel, Blocks, attend
from models.cache import Slots
from train.objectives.slots import LossSettings, head_loss

UNIT = 2.0**-8


def rounded(values: np.ndarray) -> jnp.ndarray:
    """As bfloat16, so that both computations begin with the same numbers."""
    return jnp.asarray(values, jnp.bfloat16)


@pytest.mark.parametrize(("ce", "kl", "tv"), [(1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.1, 0.0, 0.9)])
def test_head_gradient_of_a_drafter_that_is_nearly_sure(ce: float, kl: float, tv: float):
    """Logits of the labels lead by about ten: the label's probability is over 0.99, and so is the teacher's."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 40, (2, 3, 5))
    head = rounded(rng.standard_normal((40, 32)))
    hidden = rounded(np.asarray(head, np.float32)[labels] * 0.5 + 0.05 * rng.standard_normal((2, 3, 5, 32)))
    teacher = rounded(np.asarray(hidden, np.float32) + 0.05 * rng.standard_normal(hidden.shape))

    settings = LossSettings("decay", gamma=1e9, ce=ce, kl=kl, tv=tv, head_chunk=16, remat=False)

    def gradient(dtype: str) -> np.ndarray:
        def loss(hidden):
            final = teacher.astype(dtype) if settings.taught else None
            return head_loss(hidden, None, head.astype(dtype), jnp.asarray(labels), final, settings, None)[0]

        return np.asarray(jax.grad(loss)(hidden.astype(dtype)), np.float32)

    wide = np.asarray(head, np.float64)
    scores = np.asarray(hidden, np.float64) @ wide.T
    belief = np.exp(scores - scores.max(-1, keepdims=True))
    belief /= belief.sum(-1, keepdims=True)
    assert np.take_along_axis(belief, labels[..., None], -1).mean() > 0.95
    said = np.asarray(teacher, np.float64) @ wide.T
    said = np.exp(said - said.max(-1, keepdims=True))
    said /= said.sum(-1, keepdims=True)
    side = np.sign(belief - said) / 2
    error = ce * (belief - np.eye(40)[labels]) + kl * (belief - said)
    error += tv * belief * (side - (belief * side).sum(-1, keepdims=True))
    terms = np.abs(error) @ np.abs(wide)  # what the gradient is a sum of
    exact = error @ wide
    np.testing.assert_allclose(gradient("float32"), exact, atol=1e-5)
    # Where the distributions agree on a token to float32's last bits, TV has a kink and either side's gradient.
    smooth = (np.abs(belief - said) > 2**-23 * belief).all(axis=-1) | (tv == 0)
    assert smooth.mean() > 0.8
    # Two roundings: of each slot's error, and of the gradient; 1e-6 for float32's own.
    assert (np.abs(gradient("bfloat16") - exact) <= 2 * UNIT * terms + 1e-6)[smooth].all()


def attention_case(seed: int) -> tuple[dict[str, jnp.ndarray], jnp.ndarray]:
    """q, k, v of two blocks of four slots over eight context positions, values all near 8; and a cotangent."""
    rng = np.random.default_rng(seed)
    shapes = {"q": (1, 2, 4, 4, 8), "k": (1, 2, 4, 2, 8), "v": (1, 2, 4, 2, 8)}
    shapes |= {"context_keys": (1, 2, 8, 8), "context_values": (1, 2, 8, 8)}
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    for name in ("v", "context_values"):
        arrays[name] = 8 + 0.1 * arrays[name]
    return {name: rounded(value) for name, value in arrays.items()}, rounded(rng.standard_normal(shapes["q"]))


def mixed(arrays: dict[str, jnp.ndarray], kernel: BlockKernel = "dense") -> jnp.ndarray:
    context = Slots([arrays["context_keys"]], [arrays["context_values"]])
    q, *own = (arrays[name].reshape(1, 8, -1, 8) for name in "qkv")
    zeros = jnp.zeros((1, 8), jnp.int32)
    where = Blocks(jnp.full((1, 2), 8), zeros[:, :2], jnp.arange(8)[None], zeros, kernel=kernel)
    return attend(q, context, where, (own[0], own[1])).reshape(arrays["q"].shape)


def in_float32(arrays: dict[str, jnp.ndarray]) -> dict[str, jnp.ndarray]:
    return {name: value.astype(jnp.float32) for name, value in arrays.items()}


def test_attention_over_values_that_cancel():
    """Equal weights, context values c and block values near -c: what is left is far smaller than either part."""
    arrays, _ = attention_case(0)
    arrays["q"] = jnp.zeros_like(arrays["q"])
    arrays["context_values"] = rounded(np.tile([[1.01], [-0.37]], (1, 2, 4, 8)))
    total = np.asarray(arrays["context_values"], np.float32).sum(axis=2)  # [B K H]
    part = -total[:, None, None] / 4 * (1 + 1e-2 * np.arange(8))
    arrays["v"] = rounded(np.broadcast_to(part, (1, 2, 4, 2, 8)))
    exact = np.asarray(mixed(in_float32(arrays)), np.float64)
    assert np.abs(exact).max() < 0.03, "twelve values of about 1 nearly cancel"
    # One rounding, of the result; float32's own are 2^-24 of values near 1.
    assert (np.abs(np.asarray(mixed(arrays), np.float64) - exact) <= UNIT * np.abs(exact) + 1e-6).all()


@pytest.mark.parametrize(("kernel", "seed"), [("dense", 0), ("dense", 1), ("dense", 2), ("flash", 0)])
def test_attention_gradients_where_values_are_nearly_alike(kernel: BlockKernel, seed: int):
    """The gradient by a score is its weight times (its own value's worth less the mean worth): 8 less nearly 8."""
    arrays, cotangent = attention_case(seed)

    def gradients(arrays: dict[str, jnp.ndarray]) -> dict[str, np.ndarray]:
        found = jax.grad(lambda a: (mixed(a, kernel).astype(jnp.float32) * cotangent.astype(jnp.float32)).sum())(arrays)
        return {name: np.asarray(value, np.float32) for name, value in found.items()}

    exact, found = gradients(in_float32(arrays)), gradients(arrays)
    for name, value in exact.items():
        # Rounded are the query times its scale, what each part adds, and the result: three times, none of them on a
        # number near 8 that cancels.
        assert np.linalg.norm(found[name] - value) <= 3 * UNIT * np.linalg.norm(value), name
