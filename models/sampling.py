"""From logits to a token: the sampling options, the distribution they define, and draws fixed by (seed, position)."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from configs.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Filters apply in the order of the fields, each to what the last one left."""

    temperature: float = 0.0  # 0: the most likely token, and no other option matters
    top_k: int | None = None  # the k most likely tokens
    top_p: float = 1.0  # the smallest set of most likely tokens holding this share (nucleus, arXiv 1904.09751)
    min_p: float = 0.0  # tokens at least this fraction as likely as the most likely one (arXiv 2407.01082)

    def __post_init__(self) -> None:
        checks = [
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
        ]
        for name, fine, expected in checks:
            if not fine:
                raise UserError(f"{name}: expected {expected}, got {getattr(self, name)}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


GREEDY = Sampling()


@struct.dataclass
class SamplingRows:
    """The same of rows that each have options of their own; one program serves them all."""

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]  # at least the vocabulary where none is asked for
    top_p: Float[Array, " B"]
    min_p: Float[Array, " B"]
    ordered: bool = struct.field(pytree_node=False, default=True)  # False: no row has top_k or top_p, and none sorts

    @property
    def greedy(self) -> bool:
        return False


def sampling_rows(rows: Sequence[Sampling]) -> SamplingRows:
    """The options of every row."""
    return SamplingRows(
        jnp.array([row.temperature for row in rows], jnp.float32),
        jnp.array([row.top_k or 2**31 - 1 for row in rows], jnp.int32),
        jnp.array([row.top_p for row in rows], jnp.float32),
        jnp.array([row.min_p for row in rows], jnp.float32),
    )


def distribution(logits: Float[Array, "*b V"], sampling: Sampling | SamplingRows) -> Float[Array, "*b V"]:
    """The probabilities tokens are drawn from, float32; a one-hot at temperature 0.

    A token as likely as the last one kept is kept too, so that ties need no order. Options of rows are those of the
    first dimension.
    """
    logits = logits.astype(jnp.float32)
    if isinstance(sampling, SamplingRows):
        return _by_row(logits, sampling)
    if sampling.greedy:
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    probabilities = jax.nn.softmax(logits, axis=-1)
    if sampling.top_p < 1.0:
        ordered = jnp.sort(probabilities, axis=-1, descending=True)
        before = jnp.cumsum(ordered, axis=-1) - ordered
        least = jnp.min(jnp.where(before < sampling.top_p, ordered, 1.0), axis=-1, keepdims=True)
        probabilities = _kept(probabilities, probabilities >= least)
    if sampling.min_p > 0.0:
        most = probabilities.max(axis=-1, keepdims=True)
        probabilities = _kept(probabilities, probabilities >= sampling.min_p * most)
    return probabilities


def _by_row(logits: Float[Array, "B *b V"], sampling: SamplingRows) -> Float[Array, "B *b V"]:
    """The same, filter by filter, where a filter that a row lacks changes nothing in it, to the bit."""
    apart = (-1, *(1,) * (logits.ndim - 1))
    temperature, top_k, top_p, min_p = (
        jnp.asarray(option).reshape(apart)
        for option in (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    )
    greedy = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    logits = logits / jnp.where(temperature > 0, temperature, 1.0)
    if sampling.ordered:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        place = jnp.broadcast_to(jnp.minimum(top_k, logits.shape[-1]) - 1, (*logits.shape[:-1], 1))
        least = jnp.take_along_axis(ordered, place, axis=-1)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
        probabilities = jax.nn.softmax(logits, axis=-1)
        share = jax.nn.softmax(jnp.where(ordered >= least, ordered, -jnp.inf), axis=-1)
        before = jnp.cumsum(share, axis=-1) - share
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        probabilities = jnp.where(top_p < 1, _kept(probabilities, logits >= least), probabilities)
    else:
        probabilities = jax.nn.softmax(logits, axis=-1)
    likely = _kept(probabilities, probabilities >= min_p * probabilities.max(axis=-1, keepdims=True))
    return jnp.where(temperature > 0, jnp.where(min_p > 0, likely, probabilities), greedy)


def _kept(probabilities: Array, mask: Array) -> Array:
    kept = jnp.where(mask, probabilities, 0.0)
    return kept / kept.sum(axis=-1, keepdims=True)


def draw(key: Key[Array, ""], probabilities: Float[Array, " V"]) -> Int[Array, ""]:
    """One token."""
    return jax.random.categorical(key, jnp.log(probabilities)).astype(jnp.int32)


def keys(seed: Int[Array, " B"], position: Int[Array, " B"]) -> Key[Array, " B"]:
    """One key a row, fixed by the row's seed and a position: a row's draws do not depend on its batch mates."""
    return jax.vmap(lambda s, p: jax.random.fold_in(jax.random.key(s), p))(seed, position)
