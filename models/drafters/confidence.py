"""Confidence: how likely a draft is to be accepted, said before it is verified; and blocks that end where it is low.

A drafter gives every node of a chain its chance to be accepted if the nodes before it are (`Proposal.confidence`): what
its confidence head says, or else the probability it has for its likeliest token; their log-odds are divided by a
temperature fitted to what the target accepted (`train.calibration`). A block is drafted whole and may end at one of a
few widths, its `cuts`: at a cut of width w the chance that slots 1..w are all accepted must reach a floor for slots w..
to be verified (DSpark, arXiv 2607.05147, cuts where the same product no longer pays).

Sampling stays exact: whether a slot is verified depends on the drafts before it and on the distribution it is drawn
from, never on its own draft or a later one, so that a node that is verified is distributed as its q says.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.drafters import ABSENT, Proposal


def odds_of_likeliest(logits: Float[Array, "*b V"]) -> Float[Array, "*b"]:
    """The log-odds of the likeliest token."""
    total = jnp.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1)  # 1 / p
    return -jnp.log(jnp.maximum(total - 1, 1e-6))


def cut(proposal: Proposal, cuts: tuple[int, ...], floors: Float[Array, " C"]) -> Proposal:
    """A chain whose rows end at the first of the widths `cuts`, ascending, at which they fall under its floor.

    Example: confidence .9 .5 .5, cuts 1 2: .9 is held to floors[0] and, if it reaches it, .45 to floors[1].
    """
    assert proposal.confidence is not None
    survival = jnp.cumprod(proposal.confidence, axis=1)
    passed = jnp.cumprod(survival[:, jnp.array(cuts) - 1] >= floors, axis=1).sum(axis=1)
    width = jnp.array([*cuts, survival.shape[1] + 1])[passed]
    kept = jnp.arange(1, survival.shape[1] + 1) < width[:, None]
    q = None if proposal.q is None else jnp.where(kept[..., None], proposal.q, 0.0)
    tokens = jnp.where(kept, proposal.tokens, ABSENT)
    return dataclasses.replace(proposal, tokens=tokens, q=q, confidence=None)


def trimmed(proposal: Proposal, width: int) -> Proposal:
    """A chain without what lies past a block of `width`, where every node is absent."""
    q = None if proposal.q is None else proposal.q[:, : width - 1]
    return dataclasses.replace(proposal, tokens=proposal.tokens[:, : width - 1], q=q)


def needed_width(proposal: Proposal) -> Int[Array, ""]:
    """Of the block that holds every row's nodes."""
    return (proposal.tokens >= 0).sum(axis=1).max() + 1
