"""Blocks through the flash kernel for TPUs (interpreted here) are the dense ones, forward and backward."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import Blocks, attend
from models.cache import Slots
from tests.test_bfloat16_gradients import UNIT

NAMES = ("output", "q", "k", "v", "context keys", "context values")


@dataclasses.dataclass(frozen=True)
class Case:
    """A anchors of W slots over two packed rows of S positions, N query heads over K of width H."""

    A: int
    W: int
    S: int
    heads: tuple[int, int, int]
    causal: bool = False
    window: int | None = None
    ordered: bool = True


CASES = {
    "16 wide, grouped": Case(6, 16, 200, (4, 2, 8)),
    "odd width, causal": Case(9, 3, 150, (2, 2, 8), causal=True),
    "2 wide, window within a row's chunk": Case(70, 2, 140, (2, 1, 16), window=5),
    "window narrower than a causal block": Case(3, 40, 90, (3, 1, 8), causal=True, window=9),
    "anchors in any order, several chunks": Case(9, 8, 700, (2, 1, 8), window=300, ordered=False),
    "128 wide": Case(2, 128, 70, (2, 1, 8)),
}


def drawn(case: Case, dtype: str) -> tuple[Blocks, list[jnp.ndarray], jnp.ndarray]:
    """Random texts, padding after them; anchors, one of them at a text's beginning; arrays and a cotangent."""
    rng, rows = np.random.default_rng(case.S), 2
    positions, segments = np.zeros((2, rows, case.S), np.int32)
    for row in range(rows):
        ends = np.sort(rng.choice(np.arange(1, case.S), 3, replace=False)).tolist()
        for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False), start=1):
            segments[row, begin:end], positions[row, begin:end] = number, np.arange(end - begin)
    at = rng.integers(0, case.S, (rows, case.A))
    at[:, 0] = 0
    at = np.sort(at, axis=1) if case.ordered else at
    anchors, theirs = (jnp.asarray(np.take_along_axis(part, at, axis=1)) for part in (positions, segments))
    where = Blocks(anchors, theirs, jnp.asarray(positions), jnp.asarray(segments), case.causal, case.window)
    (num_heads, num_kv_heads, size), slots = case.heads, case.A * case.W
    shapes = [(rows, slots, num_heads, size), *[(rows, slots, num_kv_heads, size)] * 2]
    shapes += [(rows, num_kv_heads, size, case.S), (rows, num_kv_heads, case.S, size), shapes[0]]
    *arrays, cotangent = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    return where, [2 * arrays[0], *arrays[1:]], cotangent


def attended(
    where: Blocks, arrays: list[jnp.ndarray], cotangent: jnp.ndarray, mesh: jax.sharding.Mesh | None = None
) -> dict[str, np.ndarray]:
    """The output and what the cotangent makes of it."""

    def mixed(q, k, v, keys, values):
        return attend(q, Slots([keys], [values]), where, (k, v), mesh)

    @jax.jit
    def both(arrays, cotangent):
        output, backward = jax.vjp(mixed, *arrays)
        return output, *backward(cotangent)

    found = (np.asarray(part, np.float32) for part in both(arrays, cotangent))
    return dict(zip(NAMES, found, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_float32(name: str):
    where, arrays, cotangent = drawn(CASES[name], "float32")
    found = attended(dataclasses.replace(where, kernel="flash"), arrays, cotangent)
    for part, expected in attended(where, arrays, cotangent).items():
        assert np.abs(found[part] - expected).max() <= 1e-5 * np.abs(expected).max(), part


def test_bfloat16():
    """Off the float32 values by two roundings, of the weights and of what comes out, as dense is by one or two."""
    where, arrays, cotangent = drawn(CASES["16 wide, grouped"], "bfloat16")
    exact = attended(where, [part.astype(jnp.float32) for part in arrays], cotangent.astype(jnp.float32))
    found = attended(dataclasses.replace(where, kernel="flash"), arrays, cotangent)
    for part, expected in exact.items():
        assert np.linalg.norm(found[part] - expected) <= 2 * UNIT * np.linalg.norm(expected), part


def test_it_lowers_for_tpu():
    """Forward and backward are one kernel each, dense has none."""
    where, arrays, _ = drawn(Case(4, 16, 200, (2, 1, 64)), "bfloat16")

    def kernels(where: Blocks) -> int:
        def mixed(q, k, v, keys, values):
            return attend(q, Slots([keys], [values]), where, (k, v)).astype(jnp.float32).sum()

        traced = jax.jit(jax.value_and_grad(mixed, argnums=(0, 1, 2, 3, 4))).trace(*arrays)
        return traced.lower(lowering_platforms=("tpu",)).as_text().count("@tpu_custom_call")

    assert kernels(dataclasses.replace(where, kernel="flash")) == 2
    assert kernels(where) == 0
