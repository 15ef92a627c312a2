"""Who sees whom. True means visible.

Example, width 3, row of 6 context positions, anchors 1 and 4 (c: context seen, a: anchor, m: masked slot):

    block at 1: context positions < 1      -> c . . . . .   and its own a m m
    block at 4: context positions < 4      -> c c c c . .   and its own a m m

The anchor's own position is not context: it is seen as the block's first token only.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def packed_mask(segments: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """Causal attention among the tokens of a packed row; tokens of different segments never meet."""
    same = segments[:, :, None] == segments[:, None, :]
    return same & jnp.tril(jnp.ones((segments.shape[1],) * 2, bool))


def context_distance(
    anchor_positions: Int[Array, "B A"],
    anchor_segments: Int[Array, "B A"],
    positions: Int[Array, "B S"],
    segments: Int[Array, "B S"],
) -> Int[Array, "B A S"]:
    """How far before its anchor a block's context lies, other segments at 0; a block reads what is 1 away or more."""
    distance = anchor_positions[:, :, None] - positions[:, None, :]
    return jnp.where(anchor_segments[:, :, None] == segments[:, None, :], distance, 0)


def context_mask(distance: Int[Array, "B A S"], width: int, window: int | None) -> Bool[Array, "B A #W S"]:
    """Context each slot of a block may read: strictly before the anchor, and less than `window` before the slot.

    Example, window 3: the anchor (slot 0) reads distances 1 and 2, slot 1 distance 1, slot 2 none.
    """
    mask = (distance > 0)[:, :, None]
    if window is None:
        return mask
    return mask & (distance[:, :, None] + jnp.arange(width)[:, None] < window)


def block_mask(width: int, *, causal: bool, window: int | None) -> Bool[Array, "W W"]:
    """Attention inside a block: everyone sees everyone, or only earlier slots and itself; less than `window` away."""
    slots = jnp.arange(width)
    apart = slots[:, None] - slots
    mask = apart >= 0 if causal else jnp.ones((width, width), bool)
    return mask if window is None else mask & (jnp.abs(apart) < window)
