"""`PYTHONPATH=.libtpu python -m train.bench_attention`: one layer's attention compiled for a TPU, dense and by kernel.

Shapes of Qwen3-8B's drafter and target: 32 heads over 8, 128 wide, bfloat16. Says the temporary memory of each program,
its FLOPs and bytes, and the compiler's estimate of its time; a kernel counts what it says of itself. libtpu compiles
without a TPU (docs/tpu.md). The last line is all of it as one JSON object.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal

HEADS, KV_HEADS, SIZE = 32, 8, 128
LENGTH = 3072  # of a training row
PAGE, CONTEXT = 128, 4096  # of a cache


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m train.bench_attention", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--topology", default="v5p:2x2x1")
    parser.add_argument("--only", default="", help="programs whose names begin so")
    arguments = parser.parse_args()
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1")
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    device = topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology).devices[0]
    found = {}
    for name, program, operands in programs():
        if name.startswith(arguments.only):
            placed = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(device)), operands
            )
            found[name] = figures(jax.jit(program).lower(*placed).compile())
            print(f"{arguments.topology} {name}: {found[name]}", flush=True)
    print(json.dumps({arguments.topology: found}))


def figures(compiled: Any) -> dict[str, float]:
    """A compiled program's temporaries in MiB, TFLOP, GB and estimated milliseconds."""
    cost = compiled.cost_analysis()
    return {
        "temporary_mib": round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1),
        "tflop": round(cost["flops"] / 1e12, 3),
        "gb": round(cost["bytes accessed"] / 1e9, 3),
        "estimated_ms": round(1e3 * cost.get("optimal_seconds", 0), 3),
    }


def programs() -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """Name, function and the shapes of its operands."""
    for num_anchors, width in ((512, 16), (256, 64), (64, 128)):
        for kernel in ("flash", "dense"):
            yield f"blocks {num_anchors}x{width} {kernel}", *blocks(num_anchors, width, kernel)
    for kernel in ("splash", "dense"):
        yield f"row {kernel}", *row(kernel)
    for tokens in (1, 16, 64, 512):
        for page in (PAGE, PAGE // 2):
            yield f"chain of {tokens} {'by pages' if page == PAGE else 'gathered'}", *chain(tokens, page)


def shape(*sizes: int, dtype: str = "bfloat16") -> Any:
    import jax

    return jax.ShapeDtypeStruct(sizes, dtype)


def numbers(*sizes: int) -> Any:
    return shape(*sizes, dtype="int32")


def blocks(num_anchors: int, width: int, kernel: Literal["dense", "flash"]) -> tuple[Callable[..., Any], tuple]:
    """Blocks over a training row, forward and backward."""
    import jax

    from models.attention import Blocks, attend
    from models.cache import Slots

    def step(where: Any, arrays: Any, cotangent: Any) -> Any:
        def mixed(q: Any, k: Any, v: Any, keys: Any, values: Any) -> Any:
            return attend(q, Slots([keys], [values]), Blocks(*where, kernel=kernel), (k, v))

        output, backward = jax.vjp(mixed, *arrays)
        return output, backward(cotangent)

    slots = num_anchors * width
    where = [numbers(1, num_anchors)] * 2 + [numbers(1, LENGTH)] * 2
    q, own = shape(1, slots, HEADS, SIZE), shape(1, slots, KV_HEADS, SIZE)
    context = shape(1, KV_HEADS, SIZE, LENGTH), shape(1, KV_HEADS, LENGTH, SIZE)
    return step, (where, (q, own, own, *context), q)


def row(kernel: Literal["dense", "splash"]) -> tuple[Callable[..., Any], tuple]:
    """The target's own attention over a training row, forward: it is frozen."""
    from models.attention import Packed, attend
    from models.cache import Slots

    def step(q: Any, keys: Any, values: Any, positions: Any, segments: Any) -> Any:
        return attend(q, Slots([keys], [values]), Packed(positions, segments, kernel))

    context = shape(1, KV_HEADS, SIZE, LENGTH), shape(1, KV_HEADS, LENGTH, SIZE)
    return step, (shape(1, LENGTH, HEADS, SIZE), *context, numbers(1, LENGTH), numbers(1, LENGTH))


def chain(tokens: int, page: int) -> tuple[Callable[..., Any], tuple]:
    """Tokens of four rows over pages."""
    from models.attention import Chain, attend
    from models.cache import Pages

    def step(q: Any, keys: Any, values: Any, table: Any, positions: Any) -> Any:
        return attend(q, Pages([keys], [values], table), Chain(positions))

    rows, each = 4, CONTEXT // page
    pool = shape(rows * each, page, KV_HEADS, SIZE)
    return step, (shape(rows, tokens, HEADS, SIZE), pool, pool, numbers(rows, each), numbers(rows, tokens))


if __name__ == "__main__":
    main()
