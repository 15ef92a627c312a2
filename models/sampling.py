"""From logits to a token: the sampling options, the distribution they define, and draws fixed by (seed, position)."""

import dataclasses

import jax
import jax.numpy as jnp
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


def distribution(logits: Float[Array, "*b V"], sampling: Sampling) -> Float[Array, "*b V"]:
    """The probabilities tokens are drawn from, float32; a one-hot at temperature 0.

    A token as likely as the last one kept is kept too, so that ties need no order.
    """
    logits = logits.astype(jnp.float32)
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


def _kept(probabilities: Array, mask: Array) -> Array:
    kept = jnp.where(mask, probabilities, 0.0)
    return kept / kept.sum(axis=-1, keepdims=True)


def draw(key: Key[Array, ""], probabilities: Float[Array, " V"]) -> Int[Array, ""]:
    """One token."""
    return jax.random.categorical(key, jnp.log(probabilities)).astype(jnp.int32)


def keys(seed: Int[Array, " B"], position: Int[Array, " B"]) -> Key[Array, " B"]:
    """One key a row, fixed by the row's seed and a position: a row's draws do not depend on its batch mates."""
    return jax.vmap(lambda s, p: jax.random.fold_in(jax.random.key(s), p))(seed, position)
