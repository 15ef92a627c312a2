"""The parts of decoding, each in a loop of its own on the device, timed in turn; for `serve.bench`."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.attention import Chain
from models.cache import Cache
from models.decode import DecodeState, Engine, forward, prefill, segment
from models.drafters import Draft
from models.layers import into_heads, logits, product
from models.target import Target
from serve.cost import candidate_widths, draft_segment

REPEATS = 9
STEPS = 16  # per repeat
CAPACITIES = (256, 512, 1024, 2048)


def time_parts(engine: Any, capacity: int = 512, context: int = 200, width: int = 4) -> dict[str, Any]:
    """Loops timed in turn: plain, bare forward, draft alone, verify alone, whole steps."""
    target, trained = engine.target, engine.drafter.width
    ids = np.random.default_rng(0).integers(0, target.config.vocab_size, (1, context)).astype(np.int32)
    length, zero = np.array([context], np.int32), np.zeros(1, np.int32)
    stop = length + STEPS * width
    state = prefill(engine, ids, length, stop, zero, capacity=capacity)
    plain = prefill(engine.plain, ids, length, stop, zero, capacity=capacity)

    def num_steps(name, end):
        return int(end.rows.num_steps[0]) if name in ("plain", "step") else STEPS

    widths = [w for w in candidate_widths(trained) if w in (1, 2, 4, 8, 16, 32, trained)]
    width, copy = min(width, trained), min(2 * width, trained)
    loops: dict[Any, tuple[Callable[[Any], Any], Any]] = {
        "plain": (lambda s: segment(engine.plain, s, STEPS), plain),
        "bare": (lambda cache: _forwards(target, cache, context), plain.cache),
        "step": (lambda s: segment(engine, s, STEPS, Draft("drafter", width, copy)), state),
    }
    for w in widths:
        loops["verify", w] = (partial(_verifications, engine), (jnp.zeros((1, w), jnp.int32), state))
        if w > 1:
            loops["draft", w] = (partial(draft_segment, engine, num_steps=STEPS, width=w), state)
    bandwidths, memory, kinds = [], np.ones(1 << 27, np.float32), np.zeros(1, bool)

    def look(name: Any, end: Any) -> int:
        nonlocal kinds
        if name == "step":
            kinds = np.asarray(end.rows.copied)[0, : int(end.rows.num_steps[0])]
        return num_steps(name, end)

    ms = in_turn(loops, look, lambda: bandwidths.append(read_bandwidth(memory)))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(target) if hasattr(leaf, "nbytes"))
    low, bandwidth, high = np.percentile(bandwidths, [25, 50, 75])
    floor = weights / bandwidth * 1e3
    alone = kinds.mean() * ms["verify", copy] + (1 - kinds.mean()) * (ms.get(("draft", width), 0) + ms["verify", width])
    return {
        "segment_overhead": round(ms["step"] / alone, 3),
        "plain_overhead": round(ms["plain"] / ms["bare"], 3),
        "plain_roofline": round(ms["plain"] / floor, 3),
        "plain_ms": round(ms["plain"], 2),
        "weight_bytes": weights,
        "read_bandwidth_bytes_per_second": {"median": round(bandwidth), "low": round(low), "high": round(high)},
        "verify_cost": {w: round(ms["verify", w], 2) for w in widths},
        "draft_cost": {w: round(ms["draft", w], 2) for w in widths if w > 1},
    }


def time_over_matmuls(engine: Any, capacity: int = 512) -> dict[str, Any]:
    """The plain loop at several capacities, and verification at several widths, over the matmuls they are made of."""
    target = engine.target
    zero, loops = np.zeros(1, np.int32), {}
    for size in CAPACITIES:
        ids = np.random.default_rng(0).integers(0, target.config.vocab_size, (1, size // 4)).astype(np.int32)
        length = np.array([ids.shape[1]], np.int32)
        rows = prefill(engine.plain, ids, length, length + STEPS, zero, capacity=size)
        loops["plain", size] = (lambda s: segment(engine.plain, s, STEPS), rows)
        if size == capacity:
            state = prefill(engine, ids, length, length + STEPS, zero, capacity=size)
    widths = [w for w in candidate_widths(engine.drafter.width) if w in (1, 2, 3, 4, 8, 16, 32)]
    for width in widths:
        loops["verify", width] = (partial(_verifications, engine), (jnp.zeros((1, width), jnp.int32), state))
        loops["matmuls", width] = (
            partial(_matmuls, target),
            jnp.ones((1, width, target.config.hidden_size), target.dtype),
        )

    def num_steps(name: Any, end: Any) -> int:
        return int(end.rows.num_steps[0]) if name[0] == "plain" else STEPS

    ms = in_turn(loops, num_steps)
    return {
        "plain_over_matmuls": {size: round(ms["plain", size] / ms["matmuls", 1], 3) for size in CAPACITIES},
        "verify_over_matmuls": {w: round(ms["verify", w] / ms["matmuls", w], 3) for w in widths},
        "matmuls_ms": {w: round(ms["matmuls", w], 2) for w in widths},
    }


@partial(jax.jit, donate_argnums=1)
def _forwards(target: Target, cache: Cache, context: int | jax.Array) -> tuple[jax.Array, Cache]:
    """STEPS forwards of one token, and nothing else of the plain loop."""

    def forward(step: jax.Array, carry: tuple[jax.Array, Cache]) -> tuple[jax.Array, Cache]:
        token, cache = carry
        positions = jnp.full((1, 1), context - 1) + step
        hidden, _, filled = target(token, Chain(positions), cache=cache)
        assert filled is not None
        return jnp.argmax(target.logits(hidden), axis=-1).astype(jnp.int32), filled

    return jax.lax.fori_loop(0, STEPS, forward, (jnp.zeros((1, 1), jnp.int32), cache))


@partial(jax.jit, donate_argnums=1)
def _verifications(engine: Engine, given: tuple[jax.Array, DecodeState]) -> tuple[jax.Array, DecodeState]:
    """STEPS forwards of a block [1, W] over the same context."""

    def again(_: jax.Array, given: tuple[jax.Array, DecodeState]) -> tuple[jax.Array, DecodeState]:
        block, state = given
        positions = state.rows.length[:, None] - 1 + jnp.arange(block.shape[1])
        hidden, _, cache = forward(engine, block, Chain(positions), state.cache)
        choices = jnp.argmax(engine.target.logits(hidden), axis=-1).astype(jnp.int32)
        return choices, dataclasses.replace(state, cache=cache)

    return jax.lax.fori_loop(0, STEPS, again, given)


@jax.jit
def _matmuls(target: Target, x: jax.Array) -> jax.Array:
    """STEPS passes of states [1, T, D] through every matrix of the target, LM head included, and nothing between."""

    def layers(_: jax.Array, first: jax.Array) -> jax.Array:
        x = first
        for layer in target.layers:
            q = into_heads(x, layer.matrix("qkv"), target.config.num_kv_heads, target.config.head_dim)[..., :-2, :]
            mixed = product(q.reshape(*x.shape[:2], -1), layer.matrix("out"))
            x = product(product(mixed, layer.matrix("gate")) + product(mixed, layer.matrix("up")), layer.matrix("down"))
        said = logits(x, target.head)[..., : x.shape[-1]]
        return first + (1e-9 * said).astype(first.dtype)  # so that nothing is left out

    return jax.lax.fori_loop(0, STEPS, layers, x)


def in_turn(
    loops: Mapping[Any, tuple[Callable[[Any], Any], Any]],
    num_steps: Callable[[Any, Any], int],
    between: Callable[[], Any] = lambda: None,
) -> dict[Any, float]:
    """Median ms a step of every loop {name: (loop, what it is given and consumes)}, run in turn REPEATS times.

    `num_steps(name, end)` is how many steps a run took; `between` is called after every round.
    """
    times: dict[Any, list[float]] = {name: [] for name in loops}
    for repeat in range(REPEATS + 1):  # the first compiles
        for name, (loop, given) in loops.items():
            fresh = jax.block_until_ready(jax.tree.map(jnp.copy, given))
            began = time.perf_counter()
            end = jax.block_until_ready(loop(fresh))
            taken = (time.perf_counter() - began) * 1e3
            times[name] += [taken / max(num_steps(name, end), 1)] if repeat else []
        between()
    return {name: float(np.median(values)) for name, values in times.items()}


def read_bandwidth(memory: np.ndarray) -> float:
    """Bytes per second of one pass over `memory`, which is far larger than the caches, by all cores."""
    cores = os.cpu_count() or 1
    parts = np.array_split(memory, cores)
    with ThreadPoolExecutor(cores) as pool:
        began = time.perf_counter()
        list(pool.map(np.max, parts))
        return memory.nbytes / (time.perf_counter() - began)
