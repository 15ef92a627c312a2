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
    """Per-layer buffers; index s of the third dimension is absolute position s."""

    keys: list[Float[Array, "B K S H"]]
    values: list[Float[Array, "B K S H"]]

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]


def empty_cache(num_layers: int, shape: Sequence[int], dtype: jnp.dtype) -> KVCache:
    """A zeroed cache; `shape` is (B, K, S, H)."""
    return KVCache(
        keys=[jnp.zeros(shape, dtype) for _ in range(num_layers)],
        values=[jnp.zeros(shape, dtype) for _ in range(num_layers)],
    )


def write(
    buffer: Float[Array, "B K S H"], rows: Float[Array, "B K T H"], start: Int[Array, " B"]
) -> Float[Array, "B K S H"]:
    """`buffer` with `rows` at positions start..start+T-1 of each batch row (in place when donated)."""
    rows = rows.astype(buffer.dtype)
    if buffer.shape[0] == 1:  # a plain slice update: the batched form lowers to a scatter, slower at batch 1
        return jax.lax.dynamic_update_slice(buffer, rows, (0, 0, start[0], 0))
    return jax.vmap(lambda b, r, s: jax.lax.dynamic_update_slice(b, r, (0, s, 0)))(buffer, rows, start)
