"""Who sees whom. True means visible.

Example, width 3, row of 6 context positions, anchors 1 and 4 (c: context seen, a: anchor, m: masked slot):

    block at 1: context positions < 1      -> c . . . . .   and its own a m m
    block at 4: context positions < 4      -> c c c c . .   and its own a m m

The anchor's own position is not context: it is seen as the block's first token only.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def cached_mask(positions: Int[Array, "B T"], capacity: int) -> Bool[Array, "B T S"]:
    """Causal attention into a cache indexed by absolute position."""
    return jnp.arange(capacity) <= positions[..., None]


def packed_mask(segments: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """Causal attention among the tokens of a packed row; tokens of different segments never meet."""
    same = segments[:, :, None] == segments[:, None, :]
    return same & jnp.tril(jnp.ones((segments.shape[1],) * 2, bool))


def context_mask(
    anchor_positions: Int[Array, "B A"],
    anchor_segments: Int[Array, "B A"],
    positions: Int[Array, "B S"],
    segments: Int[Array, "B S"],
    *,
    sliding_window: int | None,
) -> Bool[Array, "B A S"]:
    """Context a block may read: its own segment, strictly before its anchor, within the window if there is one."""
    distance = anchor_positions[:, :, None] - positions[:, None, :]
    mask = (anchor_segments[:, :, None] == segments[:, None, :]) & (distance > 0)
    return mask if sliding_window is None else mask & (distance <= sliding_window)


def block_mask(width: int, *, causal: bool) -> Bool[Array, "W W"]:
    """Attention inside a block: everyone sees everyone, or only earlier slots and itself."""
    full = jnp.ones((width, width), bool)
    return jnp.tril(full) if causal else full
