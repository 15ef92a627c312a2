"""Verification: how much of a draft the target agrees with. Pure functions, used by every decode path."""

import jax.numpy as jnp
from jaxtyping import Array, Int


def verify_greedy(drafts: Int[Array, "B W1"], choices: Int[Array, "B W"]) -> tuple[Int[Array, " B"], Int[Array, "B W"]]:
    """Number of accepted drafts per row, and the tokens to commit (the first accepted + 1 of W count).

    `choices[:, i]` is the target's own token after the anchor and i drafts. Draft i (slot i + 1) is accepted if it and
    all before it equal the target's choice, so the committed tokens are the target's choices themselves: greedy
    speculative decoding is lossless because nothing else is ever written.

    Example: drafts 5 6 9, choices 5 6 7 8 -> 2 accepted, committed 5 6 and the bonus token 7.
    """
    agreed = jnp.cumprod(drafts == choices[:, :-1], axis=1)
    return agreed.sum(axis=1), choices
