"""Keys and values of past positions, one buffer per layer, addressed by absolute position.

A row's cache is valid for positions below the row's length and nowhere else. Whatever a rejected draft left above it
is masked until the next write covers it, so accepting and rejecting need no copying: the length alone says what
counts.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int


@struct.dataclass
class KVCache:
    """Per-layer buffers; index s is absolute position s. Keys lie transposed, as the score matmul reads them."""

    keys: list[Float[Array, "B K H S"]]
    values: list[Float[Array, "B K S H"]]

    @property
    def capacity(self) -> int:
        return self.values[0].shape[2]


def empty_cache(num_layers: int, shape: Sequence[int], dtype: jnp.dtype) -> KVCache:
    """A zeroed cache; `shape` is (B, K, S, H)."""
    batch, num_kv_heads, capacity, head_dim = shape
    return KVCache(
        keys=[jnp.zeros((batch, num_kv_heads, head_dim, capacity), dtype) for _ in range(num_layers)],
        values=[jnp.zeros(shape, dtype) for _ in range(num_layers)],
    )


def write(cache: KVCache, rows: KVCache, start: Int[Array, " B"]) -> KVCache:
    """`cache` with the T positions of `rows` at start..start+T-1 of each batch row (in place when donated)."""
    return KVCache(
        keys=[_write(buffer, new, start, axis=2) for buffer, new in zip(cache.keys, rows.keys, strict=True)],
        values=[_write(buffer, new, start, axis=1) for buffer, new in zip(cache.values, rows.values, strict=True)],
    )


def _write(buffer: Array, rows: Array, start: Array, *, axis: int) -> Array:
    """One buffer; `axis` is the position dimension without the batch."""

    def update(buffer: Array, rows: Array, start: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(buffer, rows.astype(buffer.dtype), start, axis)

    if buffer.shape[0] == 1:  # a plain slice update: the batched form lowers to a scatter, slower at batch 1
        return update(buffer[0], rows[0], start[0])[None]
    return jax.vmap(update)(buffer, rows, start)
