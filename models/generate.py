"""The plain autoregressive loop: one token per target forward, all on device.

It writes the responses drafters are trained on (many rows) and is the baseline speculation is measured against (one
row). A segment is a `lax.while_loop` of single steps; the host looks in only between segments.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from models.cache import KVCache
from models.sampling import GREEDY, Sampling, sample
from models.sharding import CACHE, constrain
from models.target import Target

Rows = TypeVar("Rows", bound=Any)  # a state of rows being written


@dataclasses.dataclass(frozen=True)
class Tapped:
    """Which features a loop keeps of the tokens it feeds: tapped layers, the normed final state too, their type."""

    taps: tuple[int, ...]
    final: bool
    dtype: str


@struct.dataclass
class PlainState:
    """Rows being written. Invariant: the cache holds positions < length - 1; the last token is not yet fed."""

    tokens: Int[Array, "B S"]
    length: Int[Array, " B"]  # tokens committed, prompt included
    stop: Int[Array, " B"]  # length at which the row ends
    done: Bool[Array, " B"]
    fault: Int[Array, " B"]  # the length at which logits were not finite and ended the row; 0: none
    seed: Int[Array, " B"]  # names the row's random draws, so that they do not depend on its batch mates
    cache: KVCache
    features: Float[Array, "B S LE"] | None  # of the tokens fed, where they are kept
    tapped: Tapped | None = struct.field(pytree_node=False)


@partial(jax.jit, static_argnames=("batch", "capacity", "tapped"))
def empty_rows(target: Target, batch: int, capacity: int, tapped: Tapped | None = None) -> PlainState:
    """A state of `batch` finished rows, to be filled by `insert`; keeps features if told which."""
    features = None
    if tapped is not None:
        width = (len(tapped.taps) + tapped.final) * target.config.hidden_size
        features = jnp.zeros((batch, capacity, width), tapped.dtype)
    state = PlainState(
        tokens=jnp.zeros((batch, capacity), jnp.int32),
        length=jnp.ones(batch, jnp.int32),
        stop=jnp.ones(batch, jnp.int32),
        done=jnp.ones(batch, bool),
        fault=jnp.zeros(batch, jnp.int32),
        seed=jnp.zeros(batch, jnp.int32),
        cache=target.empty_cache(batch, capacity),
        features=features,
        tapped=tapped,
    )
    return placed(state, target)


def placed(state: Rows, target: Target) -> Rows:
    """A state of rows, every array held to the mesh its target lies on: rows apart, and caches by heads too."""

    def held(part: Any) -> Any:
        return constrain(part, target.mesh, *(CACHE if isinstance(part, KVCache) else ("batch",)))

    return jax.tree.map(held, state, is_leaf=lambda part: isinstance(part, KVCache))


@partial(jax.jit, donate_argnames="state")
def insert(
    target: Target,
    state: PlainState,
    rows: Int[Array, " R"],
    prompts: Int[Array, "R P"],
    lengths: Int[Array, " R"],
    stops: Int[Array, " R"],
    seeds: Int[Array, " R"],
) -> PlainState:
    """`state` with prompts (padded on the right to P) prefilled into the given rows; rows >= B are dropped."""
    positions = jnp.broadcast_to(jnp.arange(prompts.shape[1]), prompts.shape)
    local = target.empty_cache(prompts.shape[0], prompts.shape[1])
    taps = state.tapped.taps if state.tapped else ()
    hidden, features, filled = target(prompts, positions, cache=local, taps=taps)
    size = prompts.shape[1]
    assert filled is not None
    kept = state.features
    if kept is not None:
        kept = kept.at[rows, :size].set(_kept_features(target, state, hidden, features), mode="drop")
    state = dataclasses.replace(
        state,
        tokens=state.tokens.at[rows, :size].set(prompts, mode="drop"),
        length=state.length.at[rows].set(lengths, mode="drop"),
        stop=state.stop.at[rows].set(stops, mode="drop"),
        done=state.done.at[rows].set(False, mode="drop"),
        seed=state.seed.at[rows].set(seeds, mode="drop"),
        features=kept,
        cache=KVCache(
            keys=[
                b.at[rows, :, :, :size].set(n, mode="drop") for b, n in zip(state.cache.keys, filled.keys, strict=True)
            ],
            values=[
                b.at[rows, :, :size].set(n, mode="drop") for b, n in zip(state.cache.values, filled.values, strict=True)
            ],
        ),
    )
    return placed(state, target)


@partial(jax.jit, static_argnames="sampling", donate_argnames="state")
def plain_segment(target: Target, state: PlainState, num_steps: int | Array, sampling: Sampling = GREEDY) -> PlainState:
    """`state` after up to `num_steps` tokens per unfinished row; ends early when every row is done."""

    def unfinished(carry: tuple[Array, PlainState]) -> Array:
        step, state = carry
        return (step < num_steps) & ~jnp.all(state.done)

    def advance(carry: tuple[Array, PlainState]) -> tuple[Array, PlainState]:
        step, state = carry
        return step + 1, plain_step(target, state, sampling)

    return placed(jax.lax.while_loop(unfinished, advance, (jnp.int32(0), state))[1], target)


def plain_step(target: Target, state: PlainState, sampling: Sampling) -> PlainState:
    """One token for every unfinished row."""
    positions = state.length[:, None] - 1
    fed = jnp.take_along_axis(state.tokens, positions, axis=1)
    taps = state.tapped.taps if state.tapped else ()
    hidden, features, cache = target(fed, positions, cache=state.cache, taps=taps)
    logits = target.logits(hidden[:, 0])
    token = sample(logits, state.seed, state.length, sampling)
    broken = ~jnp.isfinite(logits).all(axis=-1) & ~state.done
    length = jnp.where(state.done, state.length, state.length + 1)
    kept = jnp.take_along_axis(state.tokens, state.length[:, None], axis=1)[:, 0]
    placed = jnp.where(state.done, kept, token)
    rows = jnp.arange(token.shape[0])
    assert cache is not None
    seen = state.features
    if seen is not None:
        seen = seen.at[rows, positions[:, 0]].set(_kept_features(target, state, hidden, features)[:, 0])
    return dataclasses.replace(
        state,
        features=seen,
        tokens=state.tokens.at[rows, state.length].set(placed),
        length=length,
        done=state.done | (length >= state.stop) | is_eos(token, target.config.eos_ids) | broken,
        fault=jnp.where(broken, state.length, state.fault),
        cache=cache,
    )


def _kept_features(target: Target, state: PlainState, hidden: Array, features: Array) -> Array:
    assert state.tapped is not None
    if state.tapped.final:
        features = jnp.concatenate([features, target.normed(hidden)], axis=-1)
    return features.astype(state.tapped.dtype)


def is_eos(tokens: Int[Array, "*b"], eos_ids: tuple[int, ...]) -> Bool[Array, "*b"]:
    """Which tokens end an answer."""
    return jnp.isin(tokens, jnp.asarray(eos_ids, jnp.int32))


def repetition(tokens: Sequence[int], size: int = 4) -> float:
    """Share of an answer's n-grams that occurred before in it: 0 for fresh text, near 1 in a loop."""
    grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


REPETITIVE = 0.5  # an answer with more repeated 4-grams than this counts as repeating itself
