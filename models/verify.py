"""Verification: how much of a proposal is kept, and the token after it. Pure functions, used by every decode path.

Each is lossless: whatever was drafted, committed tokens are distributed exactly as the target's own loop would
distribute them. `tests/test_sampling_exact.py` enumerates that. Proposals are trees (`models.drafters.Proposal`): the
anchor is slot 0 of a block, node n slot n + 1, and `parents` the slot each node follows; None is a chain, in which each
follows the slot before it.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from models.attention import ancestors
from models.sampling import GREEDY, Sampling, SamplingRows


@dataclasses.dataclass(frozen=True)
class Speculation:
    """The rule of verification, and of drawing drafts for it. Every value of it is a program of its own."""

    sampling: Sampling | SamplingRows = GREEDY
    deterministic: bool = False  # the drafter's most likely tokens, where it could draw its own
    block: bool = False  # block verification instead of token by token; matters when sampling

    @property
    def draws(self) -> bool:
        """Whether drafts are drawn from the drafter's distribution."""
        return not (self.sampling.greedy or self.deterministic)


GREEDILY = Speculation()


class Verdict(NamedTuple):
    """What is kept of a proposal: a path of `accepted` nodes from the anchor down, and the token after it."""

    accepted: Int[Array, "*b"]
    tokens: Int[Array, "*b W"]  # the first accepted + 1 count
    path: Int[Array, "*b W"] | None  # the slots kept, anchor first; as many count; None: those of a chain, 0 1 2 ...


def verify_greedy(
    drafts: Int[Array, "B W1"], choices: Int[Array, "B W"], parents: Int[Array, "B W1"] | None = None
) -> Verdict:
    """The longest path whose nodes are what the target itself would have said.

    `choices[:, i]` is the target's own token after slot i. A node is accepted if its parent is and it equals the
    target's choice there, so the committed tokens are the target's choices themselves: greedy speculative decoding is
    lossless because nothing else is ever written.

    Example: drafts 5 6 9, choices 5 6 7 8 -> 2 accepted, committed 5 6 and the bonus token 7. As a tree, drafts 4 5 7
    with parents 0 0 2, choices 5 9 7 8 -> slots 0 2 3, committed 5 7 8.
    """
    if parents is None:
        agreed = jnp.cumprod(drafts == choices[:, :-1], axis=1)
        return Verdict(agreed.sum(axis=1), choices, None)

    said = drafts == jnp.take_along_axis(choices, parents, axis=1)
    twins = (drafts[:, :, None] == drafts[:, None]) & (parents[:, :, None] == parents[:, None])
    first = ~jnp.tril(twins, -1).any(axis=-1)  # of siblings with the same token
    branch = ancestors(parents)[:, 1:, 1:]
    kept = ((said & first)[:, None] | ~branch).all(axis=-1)
    path = jax.vmap(_path)(kept)
    return Verdict(kept.sum(axis=1), jnp.take_along_axis(choices, path, axis=1), path)


def verify_tokens(
    key: Key[Array, ""],
    drafts: Int[Array, " W1"],
    q: Float[Array, "W1 V"],
    p: Float[Array, "W V"],
    parents: Int[Array, " W1"] | None = None,
) -> Verdict:
    """Rejection sampling node by node (arXiv 2211.17192, 2302.01318; over trees 2305.09781), one row.

    `q[n]` is the distribution node n was drawn from (siblings independently), `p[i]` the target's after slot i. The
    walk begins at the anchor with r = p[0], what the next token is to be distributed as. Every node that follows the
    slot reached is accepted with probability min(1, r/q), and then r = p of its slot; where it is rejected, r becomes
    max(r - q, 0), normalised, which its next sibling meets. The token after the last accepted one comes from r.
    """
    num = drafts.shape[0]
    accept, replace = jax.random.split(key)

    def consider(walk: tuple[Array, Array], node: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        at, rest = walk
        token, q, parent, slot, uniform = node
        child = (parent == at) & (token >= 0)
        kept = child & (uniform < rest[token] / q[token])
        left = jnp.maximum(rest - q, 0.0)
        total = left.sum()
        left = jnp.where(total > 0, left / total, p[at])  # r = q: rounding alone brought us here
        rest = jnp.where(kept, p[slot], jnp.where(child, left, rest))
        return (jnp.where(kept, slot, at), rest), kept

    slots = jnp.arange(1, num + 1)
    follows = slots - 1 if parents is None else parents
    nodes = (drafts, q, follows, slots, jax.random.uniform(accept, (num,)))
    (_, rest), kept = jax.lax.scan(consider, (jnp.int32(0), p[0]), nodes)
    token, path, accepted = jax.random.categorical(replace, jnp.log(rest)).astype(jnp.int32), _path(kept), kept.sum()
    tokens = jnp.append(drafts, 0)[jnp.append(path[1:] - 1, num)].at[accepted].set(token)
    return Verdict(accepted, tokens, None if parents is None else path)


def _path(kept: Bool[Array, " W1"]) -> Int[Array, " W"]:
    """The anchor's slot and those of the nodes kept, in order; then the others."""
    return jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.argsort(~kept, stable=True).astype(jnp.int32) + 1])


def verify_block(
    key: Key[Array, ""], drafts: Int[Array, " W1"], q: Float[Array, "W1 V"], p: Float[Array, "W V"]
) -> Verdict:
    """Block verification (arXiv 2403.10444) of a chain, one row: accepts at least as many drafts as `verify_tokens` on
    average.

    With w_0 = 1 and w_i = min(1, w_{i-1} p/q) the weight of the first i drafts, the longest i is kept whose uniform
    draw falls under h_i = r_i / (r_i + 1 - w_i), r_i = sum max(w_i p - q, 0) over the next token; h = w after the
    last draft. The token after i drafts comes from max(w_i p - q, 0), normalised.
    """
    num = drafts.shape[0]
    places = jnp.arange(num)

    def grow(weight: Array, ratio: Array) -> tuple[Array, Array]:
        weight = jnp.minimum(1.0, weight * ratio)
        return weight, weight

    ratios = jnp.where(drafts >= 0, p[places, drafts] / q[places, drafts], 0.0)
    _, weights = jax.lax.scan(grow, jnp.float32(1.0), ratios)
    residual = jnp.maximum(jnp.concatenate([jnp.ones(1), weights[:-1]])[:, None] * p[:-1] - q, 0.0)
    rest = residual[1:].sum(axis=-1)
    inner = jnp.where(weights[:-1] < 1.0, rest / jnp.maximum(rest + 1 - weights[:-1], 1e-30), 1.0)
    threshold = jnp.concatenate([inner, weights[-1:]])
    accept, replace = jax.random.split(key)
    kept = jax.random.uniform(accept, (num,)) < threshold
    accepted = jnp.max(jnp.where(kept, places + 1, 0))
    chances = jnp.concatenate([residual, p[-1:]])[accepted]
    chances = jnp.where(chances.sum() > 0, chances, p[accepted])  # p = q: rounding alone brought us here
    token = jax.random.categorical(replace, jnp.log(chances)).astype(jnp.int32)
    return Verdict(accepted, jnp.append(drafts, 0).at[accepted].set(token), None)


def all_finite(logits: Float[Array, "B W V"]) -> Bool[Array, " B"]:
    """Which rows' logits hold neither NaN nor infinity."""
    return jnp.isfinite(logits).all(axis=(1, 2))
