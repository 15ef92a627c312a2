"""Attention on TPUs: Pallas kernels that never hold all scores. `models.attention.attend` alone calls them.

Elsewhere than on a TPU they are interpreted, which is slow: it is for tests.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax.sharding import PartitionSpec

from models.sharding import TABLE

Result = TypeVar("Result")
ROWS, HEADS = TABLE["batch"], TABLE["kv_heads"]  # mesh axes


def on_platform(kernel: Callable[..., Result], *operands: jax.Array) -> Result:
    """`kernel(*operands, interpret=...)`: compiled for a TPU, interpreted elsewhere."""

    def run(interpret: bool) -> Callable[..., Result]:
        return lambda *operands: kernel(*operands, interpret=interpret)

    return jax.lax.platform_dependent(*operands, tpu=run(interpret=False), default=run(interpret=True))


def on_mesh(
    kernel: Callable[..., Result],
    mesh: jax.sharding.Mesh | None,
    inputs: tuple[PartitionSpec, ...],
    output: PartitionSpec,
) -> Callable[..., Result]:
    """`kernel`, every device calling it for its own rows and heads: XLA cannot split a kernel by itself."""
    if mesh is None:
        return kernel
    return jax.shard_map(kernel, mesh=mesh, in_specs=inputs, out_specs=output, check_vma=False)
