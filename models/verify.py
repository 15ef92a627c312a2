"""Verification: how much of a draft is kept, and the token after it. Pure functions, used by every decode path.

Each is lossless: whatever was drafted, committed tokens are distributed exactly as the target's own loop would
distribute them. `tests/test_sampling_exact.py` enumerates that.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def verify_greedy(drafts: Int[Array, "B W1"], choices: Int[Array, "B W"]) -> tuple[Int[Array, " B"], Int[Array, "B W"]]:
    """Number of accepted drafts per row, and the tokens to commit (the first accepted + 1 of W count).

    `choices[:, i]` is the target's own token after the anchor and i drafts. Draft i (slot i + 1) is accepted if it and
    all before it equal the target's choice, so the committed tokens are the target's choices themselves: greedy
    speculative decoding is lossless because nothing else is ever written.

    Example: drafts 5 6 9, choices 5 6 7 8 -> 2 accepted, committed 5 6 and the bonus token 7.
    """
    agreed = jnp.cumprod(drafts == choices[:, :-1], axis=1)
    return agreed.sum(axis=1), choices


def verify_tokens(
    key: Key[Array, ""], drafts: Int[Array, " W1"], q: Float[Array, "W1 V"], p: Float[Array, "W V"]
) -> tuple[Int[Array, ""], Int[Array, " W"]]:
    """Rejection sampling token by token (arXiv 2211.17192, 2302.01318), one row.

    `q[i]` is the distribution draft i was drawn from, `p[i]` the target's at the same place. Draft i is accepted with
    probability min(1, p/q); at the first rejection the token comes from max(p - q, 0), normalised; after the last
    draft from p itself.
    """
    places = jnp.arange(drafts.shape[0])
    accept, replace = jax.random.split(key)
    ratio = p[places, drafts] / q[places, drafts]
    kept = jax.random.uniform(accept, drafts.shape) < ratio
    accepted = jnp.cumprod(kept.astype(jnp.int32)).sum()
    return accepted, _committed(replace, drafts, accepted, jnp.maximum(p[:-1] - q, 0.0), p)


def verify_block(
    key: Key[Array, ""], drafts: Int[Array, " W1"], q: Float[Array, "W1 V"], p: Float[Array, "W V"]
) -> tuple[Int[Array, ""], Int[Array, " W"]]:
    """Block verification (arXiv 2403.10444), one row: accepts at least as many drafts as `verify_tokens` on average.

    With w_0 = 1 and w_i = min(1, w_{i-1} p/q) the weight of the first i drafts, the longest i is kept whose uniform
    draw falls under h_i = r_i / (r_i + 1 - w_i), r_i = sum max(w_i p - q, 0) over the next token; h = w after the
    last draft. The token after i drafts comes from max(w_i p - q, 0), normalised.
    """
    num = drafts.shape[0]
    places = jnp.arange(num)

    def grow(weight: Array, ratio: Array) -> tuple[Array, Array]:
        weight = jnp.minimum(1.0, weight * ratio)
        return weight, weight

    _, weights = jax.lax.scan(grow, jnp.float32(1.0), p[places, drafts] / q[places, drafts])
    residual = jnp.maximum(jnp.concatenate([jnp.ones(1), weights[:-1]])[:, None] * p[:-1] - q, 0.0)
    rest = residual[1:].sum(axis=-1)
    inner = jnp.where(weights[:-1] < 1.0, rest / jnp.maximum(rest + 1 - weights[:-1], 1e-30), 1.0)
    threshold = jnp.concatenate([inner, weights[-1:]])
    accept, replace = jax.random.split(key)
    kept = jax.random.uniform(accept, (num,)) < threshold
    accepted = jnp.max(jnp.where(kept, places + 1, 0))
    return accepted, _committed(replace, drafts, accepted, residual, p)


def _committed(
    key: Key[Array, ""], drafts: Array, accepted: Array, residual: Float[Array, "W1 V"], p: Float[Array, "W V"]
) -> Int[Array, " W"]:
    """The drafts with, after the accepted ones, a token from their residual (from p after the last)."""
    chances = jnp.concatenate([residual, p[-1:]])[accepted]
    chances = jnp.where(chances.sum() > 0, chances, p[accepted])  # p = q: rounding alone brought us here
    token = jax.random.categorical(key, jnp.log(chances)).astype(jnp.int32)
    return jnp.append(drafts, 0).at[accepted].set(token)


def all_finite(logits: Float[Array, "B W V"]) -> Bool[Array, " B"]:
    """Which rows' logits hold neither NaN nor infinity."""
    return jnp.isfinite(logits).all(axis=(1, 2))
