"""Chains over a paged cache on a TPU, read page by page where they lie: no row's keys are gathered.

A table says which pages of the pool are a row's own (`models.cache.Pages`). The pipeline fetches PAGES of them at a
time while those before are worked on; past a row's reach it keeps asking for the last one, which is there already. A
page is read once for all heads and all tokens of a tile, with the softmax carried along (as in `models.attention`).
Rounding is as there: float32 scores and sums, weights in the values' type where they mix.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from models.kernels.blocks import HIDDEN, LANES, NN, NT, VMEM, matmul

PAGES = 4  # fetched together
TILE = 512  # queries of the heads of a key/value head together


@partial(jax.jit, static_argnames="interpret")  # traced once for all layers
def chain_attention(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "P page K H"],
    values: Float[Array, "P page K H"],
    table: Int[Array, "B R"],
    start: Int[Array, " B"],
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Attention of scaled queries, token t of a row at position start + t, over its positions up to that.

    Query head n reads key head n // (N / K). The pages are of a multiple of LANES positions.
    """
    (batch, num_tokens, num_heads, head_dim), (pool, page, num_kv_heads, _) = q.shape, keys.shape
    group = num_heads // num_kv_heads
    tokens = min(num_tokens, max(8, TILE // group // 8 * 8))  # of a tile
    pad, num_pages = -num_tokens % tokens, table.shape[1]
    steps = -(-num_pages // PAGES)
    grouped = jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0))).reshape(batch, -1, num_kv_heads, group, head_dim)
    grouped = grouped.swapaxes(1, 2).reshape(batch, num_kv_heads, -1, head_dim)
    queries = tokens * group

    def spec_of(index: int) -> Any:
        """The page with this number among those of a step."""

        def place(b: Any, tile: Any, step: Any, table: Any, start: Any) -> tuple[Any, ...]:
            last = jax.lax.div(start[b] + (tile + 1) * tokens - 1, page)
            return table[b, jnp.minimum(jnp.minimum(step * PAGES + index, last), num_pages - 1)], 0, 0

        return pl.BlockSpec((None, page * num_kv_heads, head_dim), place)

    def flat(pages: Array) -> Array:
        return pages.reshape(pool, page * num_kv_heads, head_dim)

    asked = pl.BlockSpec((None, num_kv_heads, queries, head_dim), lambda b, tile, step, *_: (b, 0, tile, 0))
    scores = batch * num_heads * (num_tokens + pad) * num_pages * page // 2
    call = pl.pallas_call(
        partial(_tile, group=group, tokens=tokens, page=page, num_pages=num_pages),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, (num_tokens + pad) // tokens, steps),
            in_specs=[asked, *[spec_of(index) for index in range(PAGES)] * 2],
            out_specs=asked,
            scratch_shapes=[
                *[pltpu.VMEM((num_kv_heads, queries, LANES), jnp.float32)] * 2,
                pltpu.VMEM((num_kv_heads, queries, head_dim), jnp.float32),
                *[pltpu.VMEM((page * num_kv_heads, head_dim), jnp.float32)] * 2,
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(grouped.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * scores * head_dim,
            transcendentals=scores,
            bytes_accessed=2 * grouped.size * q.dtype.itemsize
            + 2 * batch * num_pages * page * num_kv_heads * head_dim * keys.dtype.itemsize // 2,
        ),
        interpret=interpret,
        name="chain_attention",
    )
    table = jnp.clip(table, 0, pool - 1)
    mixed = call(table, start, grouped, *[flat(keys)] * PAGES, *[flat(values)] * PAGES)
    mixed = mixed.reshape(batch, num_kv_heads, -1, group, head_dim).swapaxes(1, 2)
    return mixed.reshape(batch, -1, num_heads, head_dim)[:, :num_tokens]


def _tile(table: Any, start: Any, q: Any, *refs: Any, group: int, tokens: int, page: int, num_pages: int) -> None:
    """One step of one tile: PAGES pages, `refs` those of the keys, of the values, the output and what is carried."""
    keys, values, (mixed, top, total, carried, wide_keys, wide_values) = (
        refs[:PAGES],
        refs[PAGES : 2 * PAGES],
        refs[2 * PAGES :],
    )
    row, tile, step = (pl.program_id(axis) for axis in range(3))
    begin, num_kv_heads = start[row] + tile * tokens, q.shape[0]

    @pl.when(step == 0)
    def _() -> None:
        top[...] = jnp.full(top.shape, HIDDEN, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        carried[...] = jnp.zeros(carried.shape, jnp.float32)

    def read(first: Any, keys: Any, values: Any) -> None:
        """The page that begins at position `first`; heads lie side by side, so each is a strided read."""
        wide_keys[...], wide_values[...] = keys[...].astype(jnp.float32), values[...].astype(jnp.float32)
        query, place = (jax.lax.broadcasted_iota(jnp.int32, (q.shape[1], page), axis) for axis in (0, 1))
        seen = (first + place - begin) * group <= query  # token query // group
        for head in range(num_kv_heads):
            of_head = pl.ds(head, page, stride=num_kv_heads)
            scores = jnp.where(seen, matmul(q[head], wide_keys[of_head].astype(q.dtype), NT), HIDDEN)
            higher = jnp.maximum(top[head], scores.max(axis=1, keepdims=True))
            weights, less = jnp.exp(scores - higher[:, :1]), jnp.exp(top[head] - higher)
            found = matmul(weights.astype(q.dtype), wide_values[of_head].astype(q.dtype), NN)
            top[head] = higher
            total[head] = total[head] * less + weights.sum(axis=1, keepdims=True)
            carried[head] = carried[head] * less[:, :1] + found

    for index in range(PAGES):
        number = step * PAGES + index
        reached = (number * page < begin + tokens) & (number < num_pages)
        pl.when(reached)(partial(read, number * page, keys[index], values[index]))

    @pl.when(step == pl.num_programs(2) - 1)
    def _() -> None:
        for head in range(num_kv_heads):
            mixed[head] = (carried[head] / total[head][:, :1]).astype(mixed.dtype)
