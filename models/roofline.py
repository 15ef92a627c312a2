"""The least a verification can take: what it must move and compute, on a machine of known bandwidth and peak.

One forward pass of the target over W tokens of each of B rows, after S positions of their caches, reads all weights
once (of the embedding, rows alone, unless the head is tied to it) and the keys and values of B (S + W) positions, and
does two operations a weight and token, and 4 N H a token, layer and position it attends to. With w bytes a weight and
no context the two meet at

    B W = peak / bandwidth * w / 2        tokens: 166 on a v5p in bfloat16, 560 on a v6e

which is the ridge of the roofline model (Williams et al., 2009): below it, more tokens a step cost nothing.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from models.target import TargetConfig


@dataclasses.dataclass(frozen=True)
class Machine:
    """One device: FLOP/s and bytes/s."""

    name: str
    peak: float
    bandwidth: float


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step moves and computes at least, by a machine of one device."""

    bytes: float
    flops: float

    def ms(self, machine: Machine) -> float:
        return 1e3 * max(self.bytes / machine.bandwidth, self.flops / machine.peak)


def num_matmul_weights(config: TargetConfig) -> int:
    """Weights every token meets: of the layers' matrices and the LM head."""
    q = config.num_heads * config.head_dim
    layer = config.hidden_size * (config.qkv_size + q + 3 * config.mlp_size)
    return config.num_layers * layer + config.vocab_size * config.hidden_size


def context_bytes(config: TargetConfig, itemsize: int) -> int:
    """Bytes of the keys and values of one position."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * itemsize


def verify_work(config: TargetConfig, itemsize: int, *, batch: int, width: int, context: int) -> Work:
    """Of one verification; `itemsize`: bytes of a weight, and of a number in the cache."""
    read = num_matmul_weights(config) * itemsize + batch * (context + width) * context_bytes(config, itemsize)
    seen = context + (width + 1) / 2  # positions a token attends to, on average
    attention = 4 * config.num_heads * config.head_dim * config.num_layers * seen
    return Work(read, batch * width * (2 * num_matmul_weights(config) + attention))


def ridge_width(config: TargetConfig, itemsize: int, machine: Machine, *, batch: int, context: int) -> float:
    """The width at which computing takes as long as reading: verification is free up to there at best.

    The solution of bytes(W) / bandwidth = flops(W) / peak; what the block's own positions add to either is left out.
    """
    alone = verify_work(config, itemsize, batch=batch, width=0, context=context)
    one = verify_work(config, itemsize, batch=batch, width=1, context=context)
    return alone.bytes / machine.bandwidth / (one.flops / machine.peak)


def measured_machine(name: str, dtype: str) -> Machine:
    """The device at hand: the best of a few large matmuls, and of a few sums over an array no cache holds."""
    import jax
    import jax.numpy as jnp

    size, count = (2048, 2**27) if jax.default_backend() == "cpu" else (8192, 2**30)
    square, long = jnp.ones((size, size), dtype), jnp.ones(count // jnp.dtype(dtype).itemsize, dtype)
    product, total = jax.jit(lambda x: x @ x), jax.jit(lambda x: x.sum(dtype=jnp.float32))
    return Machine(name, 2 * size**3 / best_seconds(product, square), count / best_seconds(total, long))


def best_seconds(run: Callable[[Any], Any], given: Any, repeats: int = 6) -> float:
    """The least wall time of `run(given)` after a first call."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run(given).block_until_ready()
        times.append(time.perf_counter() - began)
    return min(times[1:])
