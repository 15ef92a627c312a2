"""Blocks over [context; own block] on a TPU, without ever holding [A * W, S] scores; forward and backward.

Flash attention (arXiv 2205.14135; backward as in 2307.08691) over two kinds of keys. A packed row holds one text after
the other, so a slot sees an interval of its row, and an interval of its own block: `Reach` holds their ends, no mask
exists in memory. A tile of queries is as many whole blocks as fill it, under all query heads of one key/value head. It
reads its own keys, then the row's in chunks, from the first that one of its slots sees to the last. Where anchors are
sorted, neighbours see nearly the same, and what no slot of a tile sees is skipped; in any order the result is the same.

Scores are held [keys, queries]: what there is one of for each query (its ends, the running maximum and sum) lies along
the lanes, and the softmax goes down the sublanes, which costs less than across the lanes.

Numerics. Scores, sums and what is accumulated are float32. Weights are rounded to the values' type before they mix, and
the same rounded weights are summed to norm them: they add up to one, so that values all alike come out as they are. The
backward pass takes its mean worth, sum(output * cotangent), of the float32 output: a rounded one would leave its error
in every score's gradient.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from models.kernels import on_platform

LANES = 128
TILE = 512  # queries of all heads in a tile, where a multiple of the width and of LANES comes near it
CHUNK = 512  # keys read together
VMEM = 60 * 2**20  # bytes a program may take of the vector memory: how long rows may be is `configs.schema.FLASH_ROWS`
HIDDEN = -1e30  # the score of what may not be seen
NT, TN, NN = (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ())), (((1,), (0,)), ((), ()))  # what a matmul contracts


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the queries of a row are cut; `slots` of them a tile under each query head."""

    slots: int
    group: int  # query heads of a key/value head
    chunk: int

    @property
    def queries(self) -> int:
        return self.slots * self.group


@struct.dataclass
class Reach:
    """What every slot sees: places first..last-1 of the row, and own_first..own_last-1 of its tile's own keys."""

    first: Int[Array, "B Q"]
    last: Int[Array, "B Q"]
    own_first: Int[Array, " Q"]
    own_last: Int[Array, " Q"]


def block_attention(
    q: Float[Array, "B Q N H"],
    own: tuple[Float[Array, "B Q K H"], Float[Array, "B Q K H"]],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    seen: tuple[Int[Array, "B A"], Int[Array, "B A"]],
    *,
    causal: bool,
    window: int | None,
) -> Float[Array, "B Q N H"]:
    """Attention of scaled queries, A blocks of W; a block's context is places seen[0]..seen[1]-1 of its row.

    Query head n reads key head n // (N / K). `causal` and `window` are `models.attention.Blocks`'s.
    """
    (batch, size, num_heads, head_dim), (num_kv_heads, length) = q.shape, keys.shape[1::2]
    width, group = size // seen[0].shape[1], num_heads // num_kv_heads
    tiling = _tiling(size, width, group, length)
    pad = -size % tiling.slots
    reach = _padded(_reach(seen, width, tiling, causal, window), pad)

    def rows(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))).swapaxes(1, 2)

    fill = -length % tiling.chunk
    keys = jnp.pad(keys.swapaxes(2, 3), ((0, 0), (0, 0), (0, fill), (0, 0)))
    values = jnp.pad(values, ((0, 0), (0, 0), (0, fill), (0, 0)))
    grouped = rows(q).reshape(batch, num_kv_heads, group, -1, head_dim)
    ends, tiles = _ends(reach, tiling), _tiles(reach, tiling)
    mixed: Array = _attention(tiling, tiles, ends, grouped, rows(own[0]), rows(own[1]), keys, values)
    return mixed.reshape(batch, num_heads, -1, head_dim)[:, :, :size].swapaxes(1, 2)


def _tiling(size: int, width: int, group: int, length: int) -> Tiling:
    step = math.lcm(width, LANES)
    slots = step * max(1, min(TILE // group, size) // step)
    return Tiling(slots, group, min(CHUNK, -(-length // LANES) * LANES))


def _reach(seen: tuple[Array, Array], width: int, tiling: Tiling, causal: bool, window: int | None) -> Reach:
    first, last = (jnp.repeat(end, width, axis=1) for end in seen)
    place = jnp.arange(first.shape[1])
    slot, own = place % width, place % tiling.slots
    begin = own - slot
    end = own + 1 if causal else begin + width
    if window is not None:
        first = jnp.maximum(first, last - (window - 1 - slot))
        begin, end = jnp.maximum(begin, own - window + 1), jnp.minimum(end, own + window)
    return Reach(first, last, begin, end)


def _padded(reach: Reach, pad: int) -> Reach:
    """With slots that see no context and, lest a maximum or sum be of nothing, the first of their tile's keys."""
    first, last = (jnp.pad(end, ((0, 0), (0, pad))) for end in (reach.first, reach.last))
    own_last = jnp.pad(reach.own_last, (0, pad), constant_values=1)
    return Reach(first, last, jnp.pad(reach.own_first, (0, pad)), own_last)


def _ends(reach: Reach, tiling: Tiling) -> Int[Array, "B 4 R"]:
    """The reach of every query, in the order of tiles: its heads, their slots."""
    each = (jnp.broadcast_to(end, reach.first.shape) for end in (reach.own_first, reach.own_last))
    ends = jnp.stack([reach.first, reach.last, *each], axis=1)
    return _by_tile(jnp.broadcast_to(ends[:, :, None], (*ends.shape[:2], tiling.group, ends.shape[2])), tiling)


def _by_tile(x: Array, tiling: Tiling) -> Array:
    """[B M G Q] -> [B M R], the lanes of all tiles one after the other."""
    batch, many = x.shape[:2]
    return x.reshape(batch, many, tiling.group, -1, tiling.slots).swapaxes(2, 3).reshape(batch, many, -1)


def _tiles(reach: Reach, tiling: Tiling) -> Int[Array, "2 B tiles"]:
    """The chunks of the row that each tile reads, from the first to before the last."""
    some, shape = reach.first < reach.last, (reach.first.shape[0], -1, tiling.slots)
    first = jnp.where(some, reach.first, jnp.iinfo(jnp.int32).max).reshape(shape).min(axis=2)
    last = jnp.where(some, reach.last, 0).reshape(shape).max(axis=2)
    return jnp.stack([first // tiling.chunk, -(-last // tiling.chunk)])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    tiling: Tiling, tiles: Array, ends: Array, q: Array, k: Array, v: Array, keys: Array, values: Array
) -> Array:
    return _forward(tiling, tiles, ends, q, k, v, keys, values)[0]


def _forward(tiling: Tiling, *operands: Array) -> tuple[Array, tuple[Array, ...]]:
    mixed, norm = on_platform(partial(_call_forward, tiling), *operands)
    return mixed.astype(operands[2].dtype), (*operands, mixed, norm)


def _backward(tiling: Tiling, kept: tuple[Array, ...], cotangent: Array) -> tuple[Array | None, ...]:
    *operands, mixed, norm = kept
    worth = (mixed * cotangent.astype(jnp.float32)).sum(axis=-1)
    worth = _by_tile(worth, tiling)[:, :, None]
    found = on_platform(partial(_call_backward, tiling), *operands, cotangent, norm, worth)
    return None, None, *(part.astype(operand.dtype) for part, operand in zip(found, operands[2:], strict=True))


_attention.defvjp(_forward, _backward)


def _call_forward(tiling: Tiling, tiles: Array, *operands: Array, interpret: bool) -> tuple[Array, Array]:
    ends, q, *_, keys, _ = operands
    specs, queries = _specs(tiling, q, keys.shape[2])
    norm = jax.ShapeDtypeStruct((*q.shape[:2], 1, ends.shape[2]), jnp.float32)
    call = _kernel(
        partial(_forward_tile, tiling),
        tiling,
        [*specs.values()],
        (specs["q"], _lanes(queries)),
        (jax.ShapeDtypeStruct(q.shape, jnp.float32), norm),
        scratch=[pltpu.VMEM((q.shape[-1], queries), jnp.float32)],
        operands=operands,
        matmuls=2,
        interpret=interpret,
    )
    return call(tiles, *operands)


def _call_backward(tiling: Tiling, tiles: Array, *operands: Array, interpret: bool) -> tuple[Array, ...]:
    q, k, v, keys, values = operands[1:6]
    specs, queries = _specs(tiling, q, keys.shape[2])
    outputs, like = ("q", "k", "v", "keys", "values"), lambda part, dtype: jax.ShapeDtypeStruct(part.shape, dtype)
    call = _kernel(
        partial(_backward_tile, tiling),
        tiling,
        [*specs.values(), specs["q"], _lanes(queries), _lanes(queries)],
        tuple(specs[name] for name in outputs),
        (*(like(part, part.dtype) for part in (q, k, v)), *(like(part, jnp.float32) for part in (keys, values))),
        scratch=[pltpu.VMEM((q.shape[-1], queries), jnp.float32)],
        operands=operands,
        matmuls=5,
        interpret=interpret,
    )
    return call(tiles, *operands)


def _specs(tiling: Tiling, q: Array, length: int) -> tuple[dict[str, Any], int]:
    """Where a tile's share of each operand lies; and the queries of a tile."""
    slots, head_dim = tiling.slots, q.shape[-1]
    own = pl.BlockSpec((None, None, slots, head_dim), lambda b, k, tile, _: (b, k, tile, 0))
    row = pl.BlockSpec((None, None, length, head_dim), lambda b, k, tile, _: (b, k, 0, 0))
    specs = {
        "ends": pl.BlockSpec((None, 4, tiling.queries), lambda b, k, tile, _: (b, 0, tile)),
        "q": pl.BlockSpec((None, None, tiling.group, slots, head_dim), lambda b, k, tile, _: (b, k, 0, tile, 0)),
        "k": own,
        "v": own,
        "keys": row,
        "values": row,
    }
    return specs, tiling.queries


def _lanes(queries: int) -> Any:
    """One number a query."""
    return pl.BlockSpec((None, None, 1, queries), lambda b, k, tile, _: (b, k, 0, tile))


def _kernel(
    body: Any,
    tiling: Tiling,
    in_specs: list[Any],
    out_specs: tuple[Any, ...],
    outputs: tuple[Any, ...],
    *,
    scratch: list[Any],
    operands: tuple[Array, ...],
    matmuls: int,
    interpret: bool,
) -> Any:
    """The call over rows, key/value heads and tiles; a head's tiles follow each other, so that its context stays."""
    q, keys = operands[1], operands[4]
    batch, num_kv_heads, group, size, head_dim = q.shape
    seen = keys.shape[2] / 2 + tiling.slots  # random anchors see half of a row
    scores = int(batch * num_kv_heads * group * size * seen)
    moved = sum(part.size * part.dtype.itemsize for part in (*operands, *outputs))
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, num_kv_heads, size // tiling.slots),
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=scratch,
        ),
        out_shape=outputs,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * matmuls * scores * head_dim, transcendentals=scores, bytes_accessed=moved
        ),
        interpret=interpret,
        name=f"block_attention_{'forward' if matmuls == 2 else 'backward'}",
    )


def matmul(a: Array, b: Array, contract: Any) -> Array:
    """float32 result; operands of float32 are not rounded."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, contract, precision=precision, preferred_element_type=jnp.float32)


def _scores(q: Array, keys: Array, place: Array | int, first: Array, last: Array) -> Float[Array, "C R"]:
    """Scores of keys that lie at place, place + 1, ..."""
    places = place + jax.lax.broadcasted_iota(jnp.int32, (keys.shape[0], q.shape[0]), 0)
    return jnp.where((first <= places) & (places < last), matmul(keys, q, NT), HIDDEN)


def _pieces(tiling: Tiling) -> list[tuple[int, int]]:
    """A tile's own keys, at most a chunk of them at a time: where each piece begins, its size."""
    return [(begin, min(tiling.chunk, tiling.slots - begin)) for begin in range(0, tiling.slots, tiling.chunk)]


def _forward_tile(
    tiling: Tiling,
    tiles: Any,
    ends: Any,
    q: Any,
    k: Any,
    v: Any,
    keys: Any,
    values: Any,
    mixed: Any,
    norm: Any,
    total_mixed: Any,
) -> None:
    queries = q[...].reshape(tiling.queries, -1)
    first, last, own_first, own_last = (ends[i : i + 1] for i in range(4))

    def add(scores: Array, values: Array, top: Array, total: Array) -> tuple[Array, Array]:
        higher = jnp.maximum(top, scores.max(axis=0, keepdims=True))
        weights = jnp.exp(scores - higher).astype(values.dtype)
        less = jnp.exp(top - higher)
        total_mixed[...] = total_mixed[...] * less + matmul(values, weights, TN)
        return higher, total * less + weights.astype(jnp.float32).sum(axis=0, keepdims=True)

    total_mixed[...] = jnp.zeros_like(total_mixed)
    carried = (jnp.full((1, tiling.queries), HIDDEN), jnp.zeros((1, tiling.queries)))
    for begin, size in _pieces(tiling):
        piece = pl.ds(begin, size)
        carried = add(_scores(queries, k[piece], begin, own_first, own_last), v[piece], *carried)

    def read(chunk: Array, carried: tuple[Array, Array]) -> tuple[Array, Array]:
        begin = pl.multiple_of(chunk * tiling.chunk, tiling.chunk)
        piece = pl.ds(begin, tiling.chunk)
        return add(_scores(queries, keys[piece], begin, first, last), values[piece], *carried)

    row, tile = pl.program_id(0), pl.program_id(2)
    top, total = jax.lax.fori_loop(tiles[0, row, tile], tiles[1, row, tile], read, carried)
    mixed[...] = (total_mixed[...] / total).T.reshape(mixed.shape)
    norm[...] = top + jnp.log(total)


def _backward_tile(
    tiling: Tiling,
    tiles: Any,
    ends: Any,
    q: Any,
    k: Any,
    v: Any,
    keys: Any,
    values: Any,
    cotangent: Any,
    norm: Any,
    worth: Any,
    by_q: Any,
    by_k: Any,
    by_v: Any,
    by_keys: Any,
    by_values: Any,
    total_by_q: Any,
) -> None:
    queries, given = (part[...].reshape(tiling.queries, -1) for part in (q, cotangent))
    first, last, own_first, own_last = (ends[i : i + 1] for i in range(4))

    def gradients(scores: Array, keys: Array, values: Array) -> tuple[Array, Array]:
        """By a piece's keys and values; that by the queries is added up."""
        weights = jnp.exp(scores - norm[...])
        by_scores = (weights * (matmul(values, given, NT) - worth[...])).astype(keys.dtype)
        total_by_q[...] += matmul(keys, by_scores, TN)
        return matmul(by_scores, queries, NN), matmul(weights.astype(values.dtype), given, NN)

    total_by_q[...] = jnp.zeros_like(total_by_q)
    for begin, size in _pieces(tiling):
        piece = pl.ds(begin, size)
        found = gradients(_scores(queries, k[piece], begin, own_first, own_last), k[piece], v[piece])
        by_k[piece], by_v[piece] = found[0].astype(by_k.dtype), found[1].astype(by_v.dtype)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        by_keys[...] = jnp.zeros_like(by_keys)
        by_values[...] = jnp.zeros_like(by_values)

    def read(chunk: Array, _: None) -> None:
        begin = pl.multiple_of(chunk * tiling.chunk, tiling.chunk)
        piece = pl.ds(begin, tiling.chunk)
        found = gradients(_scores(queries, keys[piece], begin, first, last), keys[piece], values[piece])
        by_keys[piece] += found[0]
        by_values[piece] += found[1]

    row, tile = pl.program_id(0), pl.program_id(2)
    jax.lax.fori_loop(tiles[0, row, tile], tiles[1, row, tile], read, None)
    by_q[...] = total_by_q[...].T.reshape(by_q.shape).astype(by_q.dtype)
