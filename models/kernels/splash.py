"""Packed rows on a TPU: JAX's splash attention, forward and backward."""

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Float, Int

from models.kernels import on_platform

ROW = 128  # it takes rows of a multiple of so many positions


def packed_attention(
    q: Float[Array, "B S N H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    segments: Int[Array, "B S"],
) -> Float[Array, "B S N H"]:
    """Causal attention of scaled queries within their segment; query head n reads key head n // (N / K)."""
    operands = (q.transpose(0, 2, 1, 3), keys.swapaxes(2, 3), values, segments)
    return on_platform(_rows, *operands).transpose(0, 2, 1, 3)


def _rows(q: Array, keys: Array, values: Array, segments: Array, *, interpret: bool) -> Array:
    num_heads, length = q.shape[1:3]
    size = next(size for size in (512, 256, ROW) if length % size == 0)
    forward = {"block_q": size, "block_kv": size}
    backward = {"block_q_dkv": size, "block_kv_dkv": size, "use_fused_bwd_kernel": True}
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([splash.CausalMask((length, length))] * num_heads),
        block_sizes=splash.BlockSizes(**forward, **backward),
        interpret=interpret,
    )

    def row(q: Array, keys: Array, values: Array, segments: Array) -> Array:
        mixed = kernel(q, keys, values, segment_ids=splash.SegmentIds(segments, segments))
        assert isinstance(mixed, Array)  # not a pair with residuals
        return mixed

    return jax.vmap(row)(q, keys, values, segments)
