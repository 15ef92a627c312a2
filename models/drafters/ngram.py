"""Prompt lookup: where a row's last tokens occurred before in it, what followed them then is the draft."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int, Key

from models.drafters import Nothing, Proposal
from models.rows import Rows
from models.target import Target
from models.verify import Speculation

COPY_LEAST, COPY_MOST = 2, 8  # a row can copy where its last so many tokens occurred before; no more are compared


@struct.dataclass
class Ngram(Nothing):
    """The kind without weights or state: the rows themselves are all it reads."""

    def propose(
        self, target: Target, state: Any, rows: Rows, *, key: Key[Array, " B"], width: int, speculation: Speculation
    ) -> Proposal:
        tokens = ngram_tokens(rows.tokens, rows.length, width)
        q = None if speculation.sampling.greedy else jax.nn.one_hot(tokens, target.config.vocab_size)
        return Proposal(tokens, None, q, jnp.ones(tokens.shape[0], bool))


def ngram_tokens(tokens: Int[Array, "B S"], length: Int[Array, " B"], width: int) -> Int[Array, "B W1"]:
    """What followed the latest earlier occurrence of the row's last tokens, over and over at its end.

    Examples: row 5 6 7 5 6, width 3 -> 7 5; row 5 6 6, width 4 -> 6 6 6.
    """
    place, _ = ngram_match(tokens, length)
    period = jnp.maximum(length[:, None] - 1 - place, 1)
    return jnp.take_along_axis(tokens, place + 1 + jnp.arange(width - 1) % period, axis=1)


def ngram_match(tokens: Int[Array, "B S"], length: Int[Array, " B"]) -> tuple[Int[Array, "B 1"], Int[Array, " B"]]:
    """Where the row's last tokens occurred before (the place of the last one), and how many of them, up to COPY_MOST.

    The longest match wins, then the latest.
    """
    places = jnp.arange(tokens.shape[1])
    last = length[:, None] - 1
    matched, score = jnp.ones(tokens.shape, bool), jnp.zeros(tokens.shape, jnp.int32)
    for back in range(COPY_MOST):
        wanted = jnp.take_along_axis(tokens, jnp.maximum(last - back, 0), axis=1)
        matched = matched & (jnp.roll(tokens, back, axis=1) == wanted) & (places >= back) & (places < last)
        score = score + matched
    best = jnp.argmax(score * tokens.shape[1] + places * (score > 0), axis=1)[:, None]
    return best, jnp.take_along_axis(score, best, axis=1)[:, 0]
