"""bfloat16 on a CPU: a token's logits have the same bits however many are computed with it, which keeps
speculative decoding near what the plain loop writes."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.layers import logits, product

SCRIPT = """
import os
from configs.device import round_as_written
os.environ["XLA_FLAGS"] = ""
round_as_written()
assert "--xla_allow_excess_precision=false" in os.environ["XLA_FLAGS"]

import jax, jax.numpy as jnp, numpy as np
from models.attention import Chain
from tests.tiny import make_target

target = make_target(dtype="bfloat16", hidden_size=96, mlp_size=160, num_heads=6, num_kv_heads=2, head_dim=16)
ids = jnp.asarray(np.random.default_rng(0).integers(3, 60, (1, 48)), jnp.int32)

@jax.jit
def step(target, cache, tokens, start):
    hidden, _, cache = target(tokens, Chain(start[:, None] + jnp.arange(tokens.shape[1])), cache=cache, taps=(0, 2))
    return target.logits(hidden), cache

def logits_by(width):
    _, cache = step(target, target.empty_cache(1, 64), ids[:, :16], jnp.array([0]))
    found = []
    for start in range(16, 48, width):
        scores, cache = step(target, cache, ids[:, start : start + width], jnp.array([start]))
        found.append(np.asarray(scores[0]))
    return np.concatenate(found)

widest = logits_by(32)
for width in (1, 2, 4, 8, 16):
    np.testing.assert_array_equal(logits_by(width), widest, err_msg=f"width {width}")
print("equal")
"""


@pytest.mark.slow  # of the machine's own kernels
def test_logits_do_not_depend_on_the_width_of_a_step():
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).resolve().parent.parent,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.stdout == "equal\n", ended.stderr[-3000:]


@pytest.mark.parametrize("rows", [(1,), (3, 1), (2, 5), (40,)], ids=str)
def test_a_product_is_rounded_once_and_so_are_its_gradients(rows: tuple[int, ...]):
    """What rounding the float32 product and gradients gives, of the same bfloat16 operands."""
    rng = np.random.default_rng(0)
    x, weight, given = (
        jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((*rows, 64), (64, 24), (*rows, 24))
    )
    wide = jnp.float32
    expected, back = jax.vjp(lambda x, w: x @ w, x.astype(wide), weight.astype(wide))
    found, found_back = jax.vjp(product, x, weight)
    pairs = [(found, expected), *zip(found_back(given), back(given.astype(wide)), strict=True)]
    for value, exact in pairs:
        assert value.dtype == jnp.bfloat16
        np.testing.assert_allclose(value.astype(wide), exact, rtol=2**-8, atol=1e-6)
    scores = logits(x, weight.T)
    assert scores.dtype == wide
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
