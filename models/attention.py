"""Attention of both networks: dense where all keys are at hand, in pieces of a cache as far as its rows reach.

A cache has room for more than its rows hold, and a step of a few tokens is so little work that reading the rest would
show. So a cache is read CHUNK positions at a time, in a loop that ends where the longest row does, with the softmax
carried along (the online softmax of arXiv 1805.02867, as in FlashAttention, arXiv 2205.14135). Pieces that a row does
not reach change nothing in it, to the bit.

The loop matters on a CPU for another reason: where the batch is one, a matmul that reads a buffer in the program that
writes it makes XLA write it twice, and copy the whole of it every step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.masks import context_mask

CHUNK = 256  # positions of a cache read together
FEW = 8  # rows; more of them are read whole: a piece is a copy, which costs many rows more than what it leaves out
HIDDEN = -1e30  # the score of what may not be seen


class Partial(NamedTuple):
    """Attention over some of the keys, float32: the largest score, the sum of exp(score - top), the values under it."""

    top: Float[Array, "B K GT 1"]
    total: Float[Array, "B K GT 1"]
    mixed: Float[Array, "B K GT H"]


def attention(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Grouped-query attention; query head n reads key/value head n // G. True in `mask` means visible.

    Written as matmuls of [G*T, H] by [H, S] per key/value head: XLA's CPU backend runs this five times faster than
    the same einsum with the group dimension left apart.
    """
    batch, num_tokens, num_heads, _ = q.shape
    grouped = group_heads(q, keys.shape[1])
    scores = jnp.einsum("bkqh,bkhs->bkqs", grouped, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, keys.shape[1], -1, num_tokens, mask.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, HIDDEN), axis=-1).astype(values.dtype)
    mixed = jnp.einsum(
        "bkqs,bksh->bkqh", weights.reshape(*grouped.shape[:3], -1), values, preferred_element_type=jnp.float32
    )
    return ungroup_heads(mixed.astype(q.dtype), num_heads)


def cached_attention(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    positions: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """The same over a cache indexed by position, causal: a query at position p sees the positions up to p."""
    part = _over_cache(
        group_heads(q, keys.shape[1]),
        keys,
        values,
        reach=positions.max() + 1,
        visible=lambda places: places <= positions[..., None],
    )
    return ungroup_heads((part.mixed / part.total).astype(q.dtype), q.shape[2])


def block_attention(
    q: Float[Array, "B A W N H"],
    k: Float[Array, "B A W K H"],
    v: Float[Array, "B A W K H"],
    context_keys: Float[Array, "B K H S"],
    context_values: Float[Array, "B K S H"],
    visible: Bool[Array, "B A #W S"],
    inside: Bool[Array, "W W"],
) -> Float[Array, "B A W N H"]:
    """Attention of every block over [context; its own block]: one softmax over both, mixed in float32.

    The two parts stay apart (no [Q, S + W] concatenation); they share the maximum and the sum. Weights and partial sums
    are float32 whatever the values are: the parts may cancel, and the scores' gradients do where values are alike.
    Weights are normed before they mix, so that the gradient meets the values as it came, in their own type.
    """
    batch, num_anchors, width, num_heads, head_dim = q.shape
    num_kv_heads, wide = k.shape[3], jnp.float32
    grouped = group_heads(q.reshape(batch, -1, num_heads, head_dim), num_kv_heads)
    outer = jnp.einsum("bkqh,bkhs->bkqs", grouped, context_keys, preferred_element_type=wide)
    outer = outer.reshape(batch, num_kv_heads, -1, num_anchors, width, visible.shape[-1])
    outer = jnp.where(visible[:, None, None], outer, HIDDEN)
    local = grouped.reshape(*outer.shape[:5], head_dim)
    inner = jnp.einsum("bkgawh,baukh->bkgawu", local, k, preferred_element_type=wide)
    inner = jnp.where(inside, inner, HIDDEN)

    top = jnp.maximum(outer.max(axis=-1, keepdims=True), inner.max(axis=-1, keepdims=True))
    outer, inner = (jnp.exp(part - jax.lax.stop_gradient(top)) for part in (outer, inner))
    total = outer.sum(axis=-1, keepdims=True) + inner.sum(axis=-1, keepdims=True)
    flat = (outer / total).reshape(*grouped.shape[:3], -1)
    mixed = jnp.einsum("bkqs,bksh->bkqh", flat, context_values.astype(wide)).reshape(local.shape)
    mixed = mixed + jnp.einsum("bkgawu,baukh->bkgawh", inner / total, v.astype(wide))
    mixed = mixed.astype(v.dtype).reshape(grouped.shape)
    return ungroup_heads(mixed, num_heads).reshape(q.shape)


def cached_block_attention(
    q: Float[Array, "B W N H"],
    k: Float[Array, "B W K H"],
    v: Float[Array, "B W K H"],
    context_keys: Float[Array, "B K H S"],
    context_values: Float[Array, "B K S H"],
    anchors: Int[Array, " B"],
    inside: Bool[Array, "W W"],
    *,
    window: int | None,
) -> Float[Array, "B W N H"]:
    """The same for one block a row, whose context is a cache indexed by position: what lies before `anchors`.

    It is read as far as it reaches, and has no gradient.
    """

    def visible(places: Int[Array, " C"]) -> Bool[Array, "B W C"]:
        mask = context_mask((anchors[:, None] - places)[:, None], q.shape[1], window)[:, 0]
        return jnp.broadcast_to(mask, (q.shape[0], q.shape[1], len(places)))

    grouped = group_heads(q, k.shape[2])
    outer = _over_cache(grouped, context_keys, context_values, reach=anchors.max(), visible=visible)
    own = jnp.broadcast_to(inside, (q.shape[0], *inside.shape))
    part = _joined(outer, _partial(grouped, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), own))
    return ungroup_heads((part.mixed / part.total).astype(q.dtype), q.shape[2])


def _partial(
    grouped: Float[Array, "B K GT H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    visible: Bool[Array, "B T S"],
) -> Partial:
    scores = jnp.einsum("bkqh,bkhs->bkqs", grouped, keys, preferred_element_type=jnp.float32)
    apart = scores.reshape(*scores.shape[:2], -1, *visible.shape[1:])
    scores = jnp.where(visible[:, None, None], apart, HIDDEN).reshape(scores.shape)
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    mixed = jnp.einsum("bkqs,bksh->bkqh", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return Partial(top, weights.sum(axis=-1, keepdims=True), mixed)


def _joined(first: Partial, second: Partial) -> Partial:
    """Attention over the keys of both; what is hidden everywhere weighs nothing beside what is not."""
    top = jnp.maximum(first.top, second.top)
    one, two = jnp.exp(first.top - top), jnp.exp(second.top - top)
    return Partial(top, first.total * one + second.total * two, first.mixed * one + second.mixed * two)


def _over_cache(
    grouped: Float[Array, "B K GT H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    *,
    reach: Int[Array, ""],
    visible: Callable[[Array], Array],
) -> Partial:
    """Attention over positions below `reach`, CHUNK at a time where rows are FEW.

    `visible` maps positions [C] to a mask [B T C]. Where CHUNK does not divide the capacity the last piece begins
    earlier; what it holds of the one before is hidden.
    """
    batch, _, capacity, _ = values.shape
    size = min(CHUNK, capacity) if batch <= FEW else capacity

    def piece(buffer: Array, begin: Array, axis: int) -> Array:
        return buffer if size == capacity else jax.lax.dynamic_slice_in_dim(buffer, begin, size, axis)

    def read(index: Array, seen: Partial) -> Partial:
        begin = jnp.minimum(index * size, capacity - size)
        places = begin + jnp.arange(size)
        mask = visible(places) & (places >= index * size)
        return _joined(seen, _partial(grouped, piece(keys, begin, axis=3), piece(values, begin, axis=2), mask))

    none = jnp.zeros((*grouped.shape[:3], 1), jnp.float32)
    nothing = Partial(none + HIDDEN, none, jnp.zeros(grouped.shape, jnp.float32))
    return jax.lax.fori_loop(0, -(-reach // size), read, nothing)


def group_heads(q: Float[Array, "B T N H"], num_kv_heads: int) -> Float[Array, "B K GT H"]:
    """Scaled queries, gathered under the key/value head they read."""
    batch, num_tokens, num_heads, head_dim = q.shape
    q = (q * head_dim**-0.5).reshape(batch, num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)
    return q.transpose(0, 2, 3, 1, 4).reshape(batch, num_kv_heads, -1, head_dim)


def ungroup_heads(x: Float[Array, "B K GT H"], num_heads: int) -> Float[Array, "B T N H"]:
    """The inverse arrangement of `group_heads`."""
    batch, num_kv_heads, _, head_dim = x.shape
    x = x.reshape(batch, num_kv_heads, num_heads // num_kv_heads, -1, head_dim)
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, -1, num_heads, head_dim)
