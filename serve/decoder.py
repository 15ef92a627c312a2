"""The speculative decoder: draft a block, verify it in one target forward, commit what was accepted; all on device.

One step at anchor position p = length - 1 (the last committed token, not yet fed to the target):

    draft    the drafter fills slots 1..W-1 of the block at p from the features of positions < p
    verify   the target reads anchor and drafts, positions p..p+W-1, and says its own token after each
    commit   accepted drafts and the bonus token; length grows by accepted + 1

Both caches are addressed by absolute position and valid below `length - 1` alone (see `models.kv_cache`): rows that
rejected tokens wrote are overwritten by the next step before anything may see them. Positions therefore follow the
accepted length and nothing else.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from models import kv_cache
from models.artifact import Artifact
from models.drafter import Drafter, block_tokens
from models.generate import is_eos
from models.kv_cache import KVCache
from models.layers import logits
from models.masks import cached_mask
from models.target import Target
from serve.verify import verify_greedy


@struct.dataclass
class Engine:
    """A target and its drafter, with the LM head rows the drafter is read through."""

    target: Target
    drafter: Drafter
    head: Float[Array, "Vd D"]
    draft_vocab: Int[Array, " Vd"] | None  # token id of each head row; None when rows are token ids


@struct.dataclass
class DecodeState:
    """Rows being decoded. Invariant: both caches hold positions < length - 1."""

    tokens: Int[Array, "B S"]
    length: Int[Array, " B"]  # tokens committed, prompt included
    stop: Int[Array, " B"]  # length at which the row ends
    done: Bool[Array, " B"]
    cache: KVCache  # the target's
    context: KVCache  # the drafter's, of features
    num_steps: Int[Array, " B"]
    runs: Int[Array, "B S"]  # tokens committed by each step


def make_engine(target: Target, artifact: Artifact) -> Engine:
    """The decoder's constants; the drafter computes in the target's type."""
    vocab = None if artifact.draft_vocab is None else jnp.asarray(artifact.draft_vocab, jnp.int32)
    head = target.head if vocab is None else target.head[vocab]
    return Engine(target, artifact.drafter(str(target.dtype)), head, vocab)


@partial(jax.jit, static_argnames="capacity")
def start(
    engine: Engine,
    prompts: Int[Array, "B P"],
    lengths: Int[Array, " B"],
    stops: Int[Array, " B"],
    *,
    capacity: int,
) -> DecodeState:
    """A state with the prompts (padded on the right to P) prefilled; `capacity` >= stop + width."""
    target, config = engine.target, engine.drafter.config
    batch, size = prompts.shape
    positions = jnp.broadcast_to(jnp.arange(size), prompts.shape)
    mask = cached_mask(positions, size)
    local = target.empty_cache(batch, size)
    _, features, filled = target(prompts, positions, mask, cache=local, taps=config.target_layer_ids)
    assert filled is not None
    shape = (batch, config.num_kv_heads, capacity, config.head_dim)
    context = kv_cache.empty_cache(config.num_layers, shape, features.dtype)
    zero = jnp.zeros(batch, jnp.int32)
    return DecodeState(
        tokens=jnp.zeros((batch, capacity), jnp.int32).at[:, :size].set(prompts),
        length=lengths,
        stop=stops,
        done=lengths >= stops,
        cache=kv_cache.write(target.empty_cache(batch, capacity), filled, zero),
        context=kv_cache.write(context, engine.drafter.context(features, positions), zero),
        num_steps=zero,
        runs=jnp.zeros((batch, capacity), jnp.int32),
    )


@partial(jax.jit, static_argnames="width", donate_argnames="state")
def speculative_segment(engine: Engine, state: DecodeState, num_steps: int | Array, width: int) -> DecodeState:
    """`state` after up to `num_steps` draft-verify steps of blocks `width` wide; ends early when all rows are done."""

    def unfinished(carry: tuple[Array, DecodeState]) -> Array:
        step, state = carry
        return (step < num_steps) & ~jnp.all(state.done)

    def advance(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        step, state = carry
        return step + 1, speculative_step(engine, state, width)

    return jax.lax.while_loop(unfinished, advance, (jnp.int32(0), state))[1]


def speculative_step(engine: Engine, state: DecodeState, width: int) -> DecodeState:
    """One draft-verify-commit step for every unfinished row."""
    anchor = jnp.take_along_axis(state.tokens, state.length[:, None] - 1, axis=1)
    drafts = draft(engine, anchor[:, 0], state.length - 1, state.context, width)
    choices, features, cache = verify(engine, jnp.concatenate([anchor, drafts], axis=1), state)
    accepted, committed = verify_greedy(drafts, choices)
    context = engine.drafter.context(features, _block_positions(state, width))
    return commit(
        dataclasses.replace(state, cache=cache, context=kv_cache.write(state.context, context, state.length - 1)),
        accepted,
        committed,
        engine.target.config.eos_ids,
    )


def draft(
    engine: Engine, anchor: Int[Array, " B"], position: Int[Array, " B"], context: KVCache, width: int
) -> Int[Array, "B W1"]:
    """The drafter's greedy tokens for slots 1..W-1 of the blocks at `position`."""
    config = engine.drafter.config
    block = engine.target.embed(block_tokens(anchor, width, config.mask_token_id))[:, None]
    places = jnp.arange(context.capacity)
    mask = places < position[:, None]
    if config.sliding_window is not None:
        mask = mask & (places >= position[:, None] - config.sliding_window)
    hidden = engine.drafter(block, position[:, None], context, mask[:, None])[:, 0, 1:]
    if config.markov_size is None:
        return _best_tokens(engine, hidden)

    def next_slot(before: Array, slot: Array) -> tuple[Array, Array]:
        token = _best_tokens(engine, engine.drafter.corrected(slot, engine.target.embed(before)))
        return token, token

    _, tokens = jax.lax.scan(next_slot, anchor, hidden.swapaxes(0, 1))
    return tokens.swapaxes(0, 1)


def _best_tokens(engine: Engine, hidden: Float[Array, "*b D"]) -> Int[Array, "*b"]:
    best = jnp.argmax(logits(hidden, engine.head), axis=-1).astype(jnp.int32)
    return best if engine.draft_vocab is None else engine.draft_vocab[best]


def verify(
    engine: Engine, block: Int[Array, "B W"], state: DecodeState
) -> tuple[Int[Array, "B W"], Float[Array, "B W LD"], KVCache]:
    """The target's own token after each of the block, the block's features, and the cache with the block in it."""
    positions = _block_positions(state, block.shape[1])
    mask = cached_mask(positions, state.cache.capacity)
    taps = engine.drafter.config.target_layer_ids
    hidden, features, cache = engine.target(block, positions, mask, cache=state.cache, taps=taps)
    assert cache is not None
    return jnp.argmax(engine.target.logits(hidden), axis=-1).astype(jnp.int32), features, cache


def commit(
    state: DecodeState, accepted: Int[Array, " B"], committed: Int[Array, "B W"], eos_ids: tuple[int, ...]
) -> DecodeState:
    """`state` with accepted drafts and the bonus token appended, cut after an end token and at the row's stop."""
    width = committed.shape[1]
    slots = jnp.arange(width)
    ends = is_eos(committed, eos_ids)
    before_end = jnp.cumsum(ends, axis=1) - ends == 0
    room = (state.stop - state.length)[:, None]
    kept = (slots <= accepted[:, None]) & before_end & (slots < room) & ~state.done[:, None]
    run = kept.sum(axis=1).astype(jnp.int32)
    length = state.length + run
    rows = jnp.arange(run.shape[0])
    where = jnp.where(kept, state.length[:, None] + slots, state.tokens.shape[1])  # beyond the row: dropped
    return dataclasses.replace(
        state,
        tokens=state.tokens.at[rows[:, None], where].set(committed, mode="drop"),
        length=length,
        done=state.done | (length >= state.stop) | (ends & kept).any(axis=1),
        runs=state.runs.at[rows, state.num_steps].set(run, mode="drop"),
        num_steps=state.num_steps + ~state.done,
    )


def _block_positions(state: DecodeState, width: int) -> Int[Array, "B W"]:
    return state.length[:, None] - 1 + jnp.arange(width)
