"""Draft trees from one block: the likeliest continuations of the anchor, as many as a step is to verify.

A block gives every slot a distribution, whichever token precedes it (or, with a Markov head, for each that may). A path
of d tokens is as likely as the product over its slots, and of all paths the N likeliest are drafted: best-first
expansion (DDTree, arXiv 2604.12989; JetSpec, arXiv 2606.18394), which maximises the expected number of accepted tokens
if the drafter is right about its chances. A path is never likelier than a shorter part of itself, so the N likeliest
form a tree; and no level has more than N of them, so the N likeliest paths of every length are all there is to choose
from. Everything has static shapes and runs on the device.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.drafters import ABSENT

BRANCHES = 16  # tokens that may follow one node

# The likeliest tokens of a slot and their log probabilities [B M K], given the tokens [B M] before it; M may be 1 where
# they make no difference.
Following = Callable[[Int[Array, ""], Int[Array, "B M"]], tuple[Float[Array, "B #M K"], Int[Array, "B #M K"]]]


def best_tree(
    following: Following, anchors: Int[Array, " B"], *, depth: int, nodes: int
) -> tuple[Int[Array, "B N"], Int[Array, "B N"]]:
    """Tokens and parents (`models.drafters.Proposal`) of the `nodes` likeliest paths of up to `depth` tokens.

    Likeliest first, and a part of a path before the whole where they tie, so parents come before their children.

    Example: slots of a 0.6 b 0.4, and c 0.9 d 0.1; three nodes: a, a c (0.54), b -> tokens a c b, parents 0 1 0.
    """
    root = jnp.pad(jnp.zeros((len(anchors), 1)), ((0, 0), (0, nodes - 1)), constant_values=-jnp.inf)

    def grow(paths: tuple[Array, Array], slot: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        """The likeliest paths of one token more; which path of the level before each goes on from."""
        tokens, scores = paths
        chances, ids = following(slot, tokens)
        grown = scores[..., None] + chances
        scores, chosen = jax.lax.top_k(grown.reshape(len(anchors), -1), nodes)
        ids = jnp.broadcast_to(ids, grown.shape).reshape(len(anchors), -1)
        tokens = jnp.take_along_axis(ids, chosen, axis=1).astype(jnp.int32)
        return (tokens, scores), (tokens, scores, slot * nodes + chosen // grown.shape[-1])

    begin = jnp.broadcast_to(anchors[:, None], root.shape), root
    _, levels = jax.lax.scan(grow, begin, jnp.arange(depth))
    tokens, scores, before = (level.swapaxes(0, 1).reshape(len(anchors), -1) for level in levels)
    best, chosen = jax.lax.top_k(scores, nodes)
    rows = jnp.arange(len(anchors))[:, None]
    slots = jnp.zeros((len(anchors), (depth + 1) * nodes), jnp.int32)  # of every path; the root's level first, slot 0
    slots = slots.at[rows, nodes + chosen].set(jnp.arange(1, nodes + 1))
    there = best > -jnp.inf
    parents = slots[rows, before[rows, chosen]]
    return jnp.where(there, tokens[rows, chosen], ABSENT), jnp.where(there, parents, 0)
