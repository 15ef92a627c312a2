"""A chain over pages through the kernel for TPUs (interpreted here) is the same gathered from them: rows that begin a
page, end one and fill their table, pages anywhere in a pool whose others hold no numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import Chain, attend
from models.cache import Pages
from models.kernels.paged import chain_attention
from tests.test_bfloat16_gradients import UNIT

PAGE, EACH = 128, 5  # of a row: the last step of the kernel is not full


@pytest.mark.parametrize(
    ("tokens", "heads", "dtype"), [(1, (4, 2), "float32"), (5, (3, 1), "float32"), (5, (4, 2), "bfloat16")]
)
def test_equal_to_gathered(tokens: int, heads: tuple[int, int], dtype: str):
    rng, (num_heads, num_kv_heads), size = np.random.default_rng(0), heads, 16
    start = np.array([0, PAGE - 1, 2 * PAGE, EACH * PAGE - tokens], np.int32)
    table = rng.permutation(30)[: len(start) * EACH].reshape(len(start), EACH)
    owned = np.zeros(30, bool)
    for row, pages in enumerate(table):
        owned[pages[: (start[row] + tokens - 1) // PAGE + 1]] = True

    def pool() -> jnp.ndarray:
        numbers = rng.standard_normal((30, PAGE, num_kv_heads, size))
        return jnp.asarray(np.where(owned[:, None, None, None], numbers, np.nan), dtype)

    keys, values, q = pool(), pool(), jnp.asarray(rng.standard_normal((len(start), tokens, num_heads, size)), dtype)
    found = chain_attention(
        q * size**-0.5, keys, values, jnp.asarray(table, jnp.int32), jnp.asarray(start), interpret=True
    )
    exact, *finite = (jnp.nan_to_num(part.astype(jnp.float32)) for part in (q, keys, values))
    seen = Pages([finite[0]], [finite[1]], jnp.asarray(table, jnp.int32))
    expected = np.asarray(attend(exact, seen, Chain(jnp.asarray(start[:, None] + np.arange(tokens)))))
    # bfloat16: two roundings, of the weights and of what comes out; the query's scale is a power of two.
    bound = 1e-6 if dtype == "float32" else 2 * UNIT
    assert np.linalg.norm(np.asarray(found, np.float32) - expected) <= bound * np.linalg.norm(expected)


def test_a_tpu_takes_it():
    """Chains over pages of a multiple of 128 positions; other pages are gathered."""
    for page, kernels in ((128, 1), (64, 0)):
        pool, ones = jnp.zeros((6, page, 2, 8)), jnp.ones((2, 1), jnp.int32)
        lowered = jax.jit(lambda q, pool, table, at: attend(q, Pages([pool], [pool], table), Chain(at)))
        traced = lowered.trace(jnp.zeros((2, 1, 4, 8)), pool, jnp.zeros((2, 3), jnp.int32), ones)
        assert traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") == kernels
        assert "tpu_custom_call" not in traced.lower(lowering_platforms=("cpu",)).as_text()
