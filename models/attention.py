"""Attention of both networks: `attend`, told by a `where` who sees whom. Nothing else makes a mask.

Dense where all keys are at hand; in pieces of a cache, as far as its rows reach, where they are not.

A cache has room for more than its rows hold, and a step of a few tokens is so little work that reading the rest would
show. So a cache is read CHUNK positions at a time, in a loop that ends where the longest row does, with the softmax
carried along (the online softmax of arXiv 1805.02867, as in FlashAttention, arXiv 2205.14135). Pieces that a row does
not reach change nothing in it, to the bit.

The loop matters on a CPU for another reason: where the batch is one, a matmul that reads a buffer in the program that
writes it makes XLA write it twice, and copy the whole of it every step.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from models.cache import Cache, Pages, Slots

CHUNK = 256  # positions of a cache read together
FEW = 8  # rows; more of them are read whole: a piece is a copy, which costs many rows more than what it leaves out
HIDDEN = -1e30  # the score of what may not be seen
TPU_PAGE = 128  # a TPU's kernel takes pages of a multiple of so many positions
Kernel = Literal["dense", "splash"]
BlockKernel = Literal["dense", "flash"]


@struct.dataclass
class Packed:
    """Rows of several texts, one after the other: a token sees those of its own segment, up to itself.

    Example, segments 1 1 2 2: token 1 sees 0 1, token 3 sees 2 3.
    """

    positions: Int[Array, "B S"]  # in their text
    segments: Int[Array, "B S"]
    kernel: Kernel = struct.field(pytree_node=False, default="dense")

    def mask(self) -> Bool[Array, "B S S"]:
        same = self.segments[:, :, None] == self.segments[:, None, :]
        return same & jnp.tril(jnp.ones((self.segments.shape[1],) * 2, bool))


@struct.dataclass
class Chain:
    """T consecutive tokens of every row over a cache that holds them already: a token sees the positions up to its own.

    Example, positions 5 6: the first sees 0..5, the second 0..6.
    """

    positions: Int[Array, "B T"]

    @property
    def start(self) -> Int[Array, " B"]:
        """Where the tokens lie in the cache, the first of them."""
        return self.positions[:, 0]

    @property
    def reach(self) -> Int[Array, ""]:
        return self.positions.max() + 1

    def mask(self, places: Int[Array, " C"]) -> Bool[Array, "B T C"]:
        return places <= self.positions[..., None]


@struct.dataclass
class Tree:
    """An anchor and N nodes of every row over a cache that holds them already, node i at root + i (the anchor is 0).

    A node sees the positions before the root, its ancestors and itself; its own position is as far behind the root as
    it has ancestors. `parents[:, i - 1]` is the parent of node i, less than i.

    Example, root 7, parents 0 0 1: node 3 sees 0..6, the anchor at 7, node 1 at 8 and itself at 10, not node 2 at 9;
    its position is 9. A chain has parents 0 1 2.
    """

    root: Int[Array, " B"]
    parents: Int[Array, "B N"]

    @property
    def start(self) -> Int[Array, " B"]:
        return self.root

    @property
    def positions(self) -> Int[Array, "B T"]:
        return self.root[:, None] + ancestors(self.parents).sum(axis=-1, dtype=jnp.int32) - 1

    @property
    def reach(self) -> Int[Array, ""]:
        return self.root.max() + self.parents.shape[1] + 1

    def mask(self, places: Int[Array, " C"]) -> Bool[Array, "B T C"]:
        size = self.parents.shape[1] + 1
        node = places - self.root[:, None]
        seen = jnp.take_along_axis(ancestors(self.parents), jnp.clip(node, 0, size - 1)[:, None], axis=2)
        return (node < 0)[:, None] | (seen & (node < size)[:, None])


def ancestors(parents: Int[Array, "B N"]) -> Bool[Array, "B T T"]:
    """Which of an anchor and N nodes are which one's ancestors or itself: paths of up to 1, 2, 4, ... steps."""
    size = parents.shape[1] + 1
    above = jnp.pad(parents, ((0, 0), (1, 0)))[..., None] == jnp.arange(size)
    seen = above | jnp.eye(size, dtype=bool)
    for _ in range((size - 1).bit_length()):
        seen = (seen[..., None] & seen[..., None, :, :]).any(axis=-2)
    return seen


@struct.dataclass
class Blocks:
    """A blocks of every row over packed rows of context: a slot sees its own block, and its text before the anchor.

    In the block it sees every slot, or if `causal` those up to itself; with a `window`, of block and context what is
    less than that away from it. The anchor's own position is not context: it is seen as the block's first slot alone.
    Queries may be those of a block's last slots alone, the earlier ones being keys and values.

    Example, width 3, one text of 6, anchors 1 and 4 (c: context seen, a: anchor, m: masked slot):

        block at 1: c . . . . .   and its own a m m
        block at 4: c c c c . .   and its own a m m

    With window 3 the anchor at 4 sees positions 2 and 3, slot 1 position 3, slot 2 none.
    """

    anchors: Int[Array, "B A"]  # their positions
    anchor_segments: Int[Array, "B A"]
    positions: Int[Array, "B S"]  # of the context
    segments: Int[Array, "B S"]
    causal: bool = struct.field(pytree_node=False, default=False)
    window: int | None = struct.field(pytree_node=False, default=None)
    kernel: BlockKernel = struct.field(pytree_node=False, default="dense")

    def mask(self, width: int) -> Bool[Array, "B A #W S"]:
        """Context, by slot."""
        same = self.anchor_segments[:, :, None] == self.segments[:, None, :]
        distance = jnp.where(same, self.anchors[:, :, None] - self.positions[:, None, :], 0)
        return _context_mask(distance, width, self.window)

    def reach(self) -> tuple[Int[Array, "B A"], Int[Array, "B A"]]:
        """Context as places of the packed row, from the first to before the last; a window leaves the nearest of it."""
        whole = dataclasses.replace(self, window=None).mask(1)[:, :, 0]
        places = jnp.arange(self.positions.shape[1])
        return jnp.where(whole, places, places.size).min(axis=-1), jnp.where(whole, places + 1, 0).max(axis=-1)


@struct.dataclass
class Block:
    """The same for one block a row over a cache, which holds the context before the anchor and has no gradient."""

    anchors: Int[Array, "B 1"]
    causal: bool = struct.field(pytree_node=False, default=False)
    window: int | None = struct.field(pytree_node=False, default=None)


Where = Packed | Chain | Tree  # of the target's tokens
Drafting = Blocks | Block  # of the drafter's


class Partial(NamedTuple):
    """Attention over some of the keys, float32: the largest score, the sum of exp(score - top), the values under it."""

    top: Float[Array, "B K GT 1"]
    total: Float[Array, "B K GT 1"]
    mixed: Float[Array, "B K GT H"]


def whole(tokens: Int[Array, "B S"]) -> Packed:
    """Where every row is one text from its beginning on."""
    return Packed(jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape), jnp.zeros_like(tokens))


def attend(
    q: Float[Array, "B T N H"],
    seen: Cache,
    where: Where | Drafting,
    own: tuple[Float[Array, "B Q K H"], Float[Array, "B Q K H"]] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Float[Array, "B T N H"]:
    """Attention of rotated queries over one layer's keys and values `seen`; query head n reads key head n // G.

    `seen` holds the tokens themselves (`Packed`), a cache with them in it (`Chain`, `Tree`), or the context of blocks,
    whose `own` keys and values are beside it (`Blocks`, whose Q are A blocks of W, and `Block`). `mesh` is where all of
    these lie, split by rows and heads: kernels have to be told.
    """
    if isinstance(where, Packed):
        keys, values = seen.read(0, seen.capacity)
        if where.kernel == "splash":
            return _by_splash(q, keys, values, where, mesh)
        return _dense(q, keys, values, where.mask())
    if isinstance(where, Blocks):
        assert own is not None
        if where.kernel == "flash":
            return _by_flash(q, own, *seen.read(0, seen.capacity), where, mesh)
        return _blocks(q, *own, *seen.read(0, seen.capacity), where)
    if isinstance(where, Chain) and isinstance(seen, Pages) and seen.page % TPU_PAGE == 0:
        return _over_pages(q, seen, where, mesh)
    grouped = _group_heads(q, seen.num_kv_heads)
    if isinstance(where, Block):
        assert own is not None
        part = _block(grouped, *own, seen, where, asked=q.shape[1])
    else:
        part = _over_cache(grouped, seen, reach=where.reach, visible=where.mask)
    return _normed(part, q)


def _normed(part: Partial, q: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    return _ungroup_heads((part.mixed / part.total).astype(q.dtype), q.shape[2])


def _dense(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """All keys at once, written as matmuls of [G*T, H] by [H, S] per key/value head.

    XLA's CPU backend runs this five times faster than the same einsum with the group dimension left apart.
    """
    batch, num_tokens, num_heads, _ = q.shape
    grouped = _group_heads(q, keys.shape[1])
    scores = jnp.einsum("bkqh,bkhs->bkqs", grouped, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, keys.shape[1], -1, num_tokens, mask.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, HIDDEN), axis=-1).astype(values.dtype)
    mixed = jnp.einsum(
        "bkqs,bksh->bkqh", weights.reshape(*grouped.shape[:3], -1), values, preferred_element_type=jnp.float32
    )
    return _ungroup_heads(mixed.astype(q.dtype), num_heads)


def _by_splash(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    where: Packed,
    mesh: jax.sharding.Mesh | None,
) -> Float[Array, "B T N H"]:
    from models.kernels import HEADS, ROWS, on_mesh
    from models.kernels.splash import packed_attention

    tokens, heads = PartitionSpec(ROWS, None, HEADS), PartitionSpec(ROWS, HEADS)
    call = on_mesh(packed_attention, mesh, (tokens, heads, heads, PartitionSpec(ROWS)), tokens)
    return call(q * q.shape[-1] ** -0.5, keys, values, where.segments)


def _by_flash(
    q: Float[Array, "B T N H"],
    own: tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]],
    context_keys: Float[Array, "B K H S"],
    context_values: Float[Array, "B K S H"],
    where: Blocks,
    mesh: jax.sharding.Mesh | None,
) -> Float[Array, "B T N H"]:
    """The same as `_blocks` where every slot asks."""
    assert own[0].shape[1] == q.shape[1]
    from models.kernels import HEADS, ROWS, on_mesh
    from models.kernels.blocks import block_attention

    tokens, heads = PartitionSpec(ROWS, None, HEADS), PartitionSpec(ROWS, HEADS)
    kernel = partial(block_attention, causal=where.causal, window=where.window)
    call = on_mesh(kernel, mesh, (tokens, tokens, heads, heads, PartitionSpec(ROWS)), tokens)
    return call(q * q.shape[-1] ** -0.5, own, context_keys, context_values, where.reach())


def _over_pages(
    q: Float[Array, "B T N H"], seen: Pages, where: Chain, mesh: jax.sharding.Mesh | None
) -> Float[Array, "B T N H"]:
    """A chain over pages: where they lie by a kernel on a TPU, gathered elsewhere."""
    from models.kernels import HEADS, ROWS, on_mesh
    from models.kernels.paged import chain_attention

    def kernel(q: Array, keys: Array, values: Array, table: Array, positions: Array) -> Array:
        return chain_attention(q * q.shape[-1] ** -0.5, keys, values, table, positions[:, 0])

    def gathered(q: Array, keys: Array, values: Array, table: Array, positions: Array) -> Array:
        chain = Chain(positions)
        grouped = _group_heads(q, keys.shape[2])
        seen = Pages([keys], [values], table)
        return _normed(_over_cache(grouped, seen, reach=chain.reach, visible=chain.mask), q)

    tokens, pool, rows = PartitionSpec(ROWS, None, HEADS), PartitionSpec(None, None, HEADS), PartitionSpec(ROWS)
    split = on_mesh(kernel, mesh, (tokens, pool, pool, rows, rows), tokens)
    operands = (q, seen.keys[0], seen.values[0], seen.table, where.positions)
    return jax.lax.platform_dependent(*operands, tpu=split, default=gathered)


def _blocks(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B Q K H"],
    v: Float[Array, "B Q K H"],
    context_keys: Float[Array, "B K H S"],
    context_values: Float[Array, "B K S H"],
    where: Blocks,
) -> Float[Array, "B T N H"]:
    """One softmax over [context; own block] of every block, mixed in float32.

    The two parts stay apart (no [Q, S + W] concatenation); they share the maximum and the sum. Weights and partial sums
    are float32 whatever the values are: the parts may cancel, and the scores' gradients do where values are alike.
    Weights are normed before they mix, so that the gradient meets the values as it came, in their own type.
    """
    (batch, num_queries, num_heads, head_dim), num_anchors = q.shape, where.anchors.shape[1]
    num_kv_heads, asked, width, wide = k.shape[2], num_queries // num_anchors, k.shape[1] // num_anchors, jnp.float32
    k, v = (part.reshape(batch, num_anchors, width, num_kv_heads, head_dim) for part in (k, v))
    visible = where.mask(width)[:, :, -asked:]
    grouped = _group_heads(q, num_kv_heads)
    outer = jnp.einsum("bkqh,bkhs->bkqs", grouped, context_keys, preferred_element_type=wide)
    outer = outer.reshape(batch, num_kv_heads, -1, num_anchors, asked, visible.shape[-1])
    outer = jnp.where(visible[:, None, None], outer, HIDDEN)
    local = grouped.reshape(*outer.shape[:5], head_dim)
    inner = jnp.einsum("bkgawh,baukh->bkgawu", local, k, preferred_element_type=wide)
    inner = jnp.where(_block_mask(width, where)[-asked:], inner, HIDDEN)

    top = jnp.maximum(outer.max(axis=-1, keepdims=True), inner.max(axis=-1, keepdims=True))
    outer, inner = (jnp.exp(part - jax.lax.stop_gradient(top)) for part in (outer, inner))
    total = outer.sum(axis=-1, keepdims=True) + inner.sum(axis=-1, keepdims=True)
    flat = (outer / total).reshape(*grouped.shape[:3], -1)
    mixed = jnp.einsum("bkqs,bksh->bkqh", flat, context_values.astype(wide)).reshape(local.shape)
    mixed = mixed + jnp.einsum("bkgawu,baukh->bkgawh", inner / total, v.astype(wide))
    return _ungroup_heads(mixed.astype(v.dtype).reshape(grouped.shape), num_heads)


def _block(
    grouped: Float[Array, "B K GT H"],
    k: Float[Array, "B W K H"],
    v: Float[Array, "B W K H"],
    context: Cache,
    where: Block,
    *,
    asked: int,
) -> Partial:
    """The same of the last `asked` slots of one block a row over a cache, read as far as it reaches."""
    batch, width = k.shape[:2]

    def visible(places: Int[Array, " C"]) -> Bool[Array, "B T C"]:
        mask = _context_mask((where.anchors - places)[:, None], width, where.window)[:, 0]
        return jnp.broadcast_to(mask, (batch, width, len(places)))[:, -asked:]

    outer = _over_cache(grouped, context, reach=where.anchors.max(), visible=visible)
    inside = jnp.broadcast_to(_block_mask(width, where)[-asked:], (batch, asked, width))
    return _joined(outer, _partial(grouped, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), inside))


def _context_mask(distance: Int[Array, "B A S"], width: int, window: int | None) -> Bool[Array, "B A #W S"]:
    """Context each slot of a block may read, by how far before the anchor it lies: 1 or more away."""
    mask = (distance > 0)[:, :, None]
    if window is None:
        return mask
    return mask & (distance[:, :, None] + jnp.arange(width)[:, None] < window)


def _block_mask(width: int, where: Drafting) -> Bool[Array, "W W"]:
    """Attention inside a block."""
    slots = jnp.arange(width)
    apart = slots[:, None] - slots
    mask = apart >= 0 if where.causal else jnp.ones((width, width), bool)
    return mask if where.window is None else mask & (jnp.abs(apart) < where.window)


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
    return Partial(top, jax.lax.platform_dependent(weights, cpu=_summed_in_order, default=_summed), mixed)


def _summed(weights: Float[Array, "B K Q S"]) -> Float[Array, "B K Q 1"]:
    return weights.sum(axis=-1, keepdims=True)


def _summed_in_order(weights: Float[Array, "B K Q S"]) -> Float[Array, "B K Q 1"]:
    """The same, added up from the first position to the last: what is hidden between changes no bit.

    XLA's CPU backend reduces in lanes, so that a token's sum hangs on where in a tree its ancestors lie. Its products,
    which mix the values, add up in order; of fewer columns than 16 not all do.
    """
    ones = jnp.ones((weights.shape[-1], 16), weights.dtype)
    return jnp.einsum("bkqs,sn->bkqn", weights, ones)[..., :1]


def _joined(first: Partial, second: Partial) -> Partial:
    """Attention over the keys of both; what is hidden everywhere weighs nothing beside what is not."""
    top = jnp.maximum(first.top, second.top)
    one, two = jnp.exp(first.top - top), jnp.exp(second.top - top)
    return Partial(top, first.total * one + second.total * two, first.mixed * one + second.mixed * two)


def _over_cache(
    grouped: Float[Array, "B K GT H"],
    seen: Cache,
    *,
    reach: Int[Array, ""],
    visible: Callable[[Array], Array],
) -> Partial:
    """Attention over positions below `reach`, CHUNK at a time where rows are FEW, or a server's: of rooms mostly empty.

    `visible` maps positions [C] to a mask [B T C]. Where CHUNK does not divide the capacity the last piece begins
    earlier; what it holds of the one before is hidden.
    """
    capacity = seen.capacity
    size = min(CHUNK, capacity) if grouped.shape[0] <= FEW or not isinstance(seen, Slots) else capacity

    def read(index: Array, before: Partial) -> Partial:
        begin = jnp.minimum(index * size, capacity - size)
        places = begin + jnp.arange(size)
        mask = visible(places) & (places >= index * size)
        return _joined(before, _partial(grouped, *seen.read(begin, size), mask))

    none = jnp.zeros((*grouped.shape[:3], 1), jnp.float32)
    nothing = Partial(none + HIDDEN, none, jnp.zeros(grouped.shape, jnp.float32))
    return jax.lax.fori_loop(0, -(-reach // size), read, nothing)


def _group_heads(q: Float[Array, "B T N H"], num_kv_heads: int) -> Float[Array, "B K GT H"]:
    """Scaled queries, gathered under the key/value head they read."""
    batch, num_tokens, num_heads, head_dim = q.shape
    q = (q * head_dim**-0.5).reshape(batch, num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)
    return q.transpose(0, 2, 3, 1, 4).reshape(batch, num_kv_heads, -1, head_dim)


def _ungroup_heads(x: Float[Array, "B K GT H"], num_heads: int) -> Float[Array, "B T N H"]:
    """The inverse arrangement of `_group_heads`."""
    batch, num_kv_heads, _, head_dim = x.shape
    x = x.reshape(batch, num_kv_heads, num_heads // num_kv_heads, -1, head_dim)
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, -1, num_heads, head_dim)
