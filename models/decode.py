"""The speculative decoder: draft a block, verify it in one target forward, commit what was accepted; all on device.

One step at anchor position p = length - 1 (the last committed token, not yet fed to the target):

    draft    the drafter fills slots 1..W-1 of the block at p from the features of positions < p
    verify   the target reads anchor and drafts, positions p..p+W-1, and says its own token after each
    commit   accepted drafts and the bonus token; length grows by accepted + 1

With `Speculation.copy` a step copies instead where every row's last tokens occurred before: what followed them then is
the draft.

Both caches are addressed by absolute position and valid below `length - 1` alone (see `models.cache`): rows that
rejected tokens wrote are overwritten by the next step before anything may see them. Positions therefore follow the
accepted length and nothing else.

When sampling, the draws of a step are fixed by the row's seed and the step's anchor position.
"""

import dataclasses
import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from models import cache as kv_cache
from models.cache import KVCache
from models.drafters.artifact import Artifact
from models.drafters.dflash import Drafter, block_tokens
from models.generate import is_eos, placed
from models.layers import logits
from models.sampling import GREEDY, Sampling, distribution, draw, keys
from models.sharding import CACHE, constrain
from models.target import AXES, Target
from models.verify import all_finite, verify_block, verify_greedy, verify_tokens


@struct.dataclass
class Engine:
    """A target and its drafter, with the LM head rows the drafter is read through."""

    target: Target
    drafter: Drafter
    head: Float[Array, "Vd D"]
    draft_vocab: Int[Array, " Vd"] | None  # token id of each head row; None when rows are token ids


NOT_FINITE = -1  # a draft that is no token
COPY_LEAST, COPY_MOST = 2, 3  # a row can copy where its last so many tokens occurred before; no more are compared


@dataclasses.dataclass(frozen=True)
class Speculation:
    """How a step drafts and verifies. Every value of it is a program of its own."""

    width: int  # of the verified block; 1: nothing is drafted, and the drafter's context kept up to date
    drafts: Literal["drafter", "ngram"] = "drafter"
    sampling: Sampling = GREEDY
    deterministic: bool = False  # the drafter's most likely tokens, where it could draw its own
    block: bool = False  # block verification instead of token by token; matters when sampling
    copy: int = 0  # width of n-gram drafts that replace the others in steps where every row can copy; 0: in none


GREEDILY = Speculation(1)


@struct.dataclass
class DecodeState:
    """Rows being decoded. Invariant: both caches hold positions < length - 1."""

    tokens: Int[Array, "B S"]
    length: Int[Array, " B"]  # tokens committed, prompt included
    stop: Int[Array, " B"]  # length at which the row ends
    done: Bool[Array, " B"]
    seed: Int[Array, " B"]
    fault: Int[Array, " B"]  # length at which what is not finite ended the row; less than 0: the drafter's; 0: none
    cache: KVCache  # the target's
    context: KVCache  # the drafter's, of features
    num_steps: Int[Array, " B"]
    runs: Int[Array, "B S"]  # tokens committed by each step
    copied: Bool[Array, "B S"]  # which steps copied by `Speculation.copy`


Carry = tuple[Array, DecodeState]  # of a segment's loops: steps taken, and the rows after them


def make_engine(target: Target, artifact: Artifact) -> Engine:
    """The decoder's constants; the drafter computes in the target's type."""
    vocab = None if artifact.draft_vocab is None else jnp.asarray(artifact.draft_vocab, jnp.int32)
    head = target.head if vocab is None else target.head[vocab]
    head = constrain(head, target.mesh, *AXES["head"])
    return Engine(target, artifact.drafter(str(target.dtype), target.mesh), head, vocab)


@partial(jax.jit, static_argnames="capacity")
def start(
    engine: Engine,
    prompts: Int[Array, "B P"],
    lengths: Int[Array, " B"],
    stops: Int[Array, " B"],
    seeds: Int[Array, " B"],
    *,
    capacity: int,
    reach: int | Int[Array, ""] = 0,
) -> DecodeState:
    """A state with the prompts (padded on the right to P) prefilled; `capacity` >= stop + width.

    Prompts are read in chunks, by one program whatever their lengths; with `reach`, the text after them up to there
    too. A small chunk wastes little on a short prompt; an accelerator reads all weights for every chunk and wants large
    ones.
    """
    target, config = engine.target, engine.drafter.config
    batch, size = prompts.shape
    tokens = jnp.zeros((batch, capacity), jnp.int32).at[:, :size].set(prompts)
    chunk = math.gcd(64 if jax.default_backend() == "cpu" else 512, capacity)

    def read(index: Array, caches: tuple[KVCache, KVCache]) -> tuple[KVCache, KVCache]:
        cache, context = caches
        positions = jnp.broadcast_to(index * chunk + jnp.arange(chunk), (batch, chunk))
        piece = jax.lax.dynamic_slice_in_dim(tokens, index * chunk, chunk, axis=1)
        _, features, cache = target(piece, positions, cache=cache, taps=config.target_layer_ids)
        assert cache is not None
        return cache, kv_cache.write(context, engine.drafter.context(features, positions), positions[:, 0])

    shape = (batch, config.num_kv_heads, capacity, config.head_dim)
    context = kv_cache.empty_cache(config.num_layers, shape, target.dtype)
    empty = target.empty_cache(batch, capacity), constrain(context, target.mesh, *CACHE)
    cache, context = jax.lax.fori_loop(0, -(-jnp.maximum(lengths.max(), reach) // chunk), read, empty)
    zero = jnp.zeros(batch, jnp.int32)
    state = DecodeState(
        tokens=tokens,
        length=lengths,
        stop=stops,
        done=lengths >= stops,
        seed=seeds,
        fault=zero,
        cache=cache,
        context=context,
        num_steps=zero,
        runs=jnp.zeros((batch, capacity), jnp.int32),
        copied=jnp.zeros((batch, capacity), bool),
    )
    return placed(state, target)


@partial(jax.jit, static_argnames="how", donate_argnames="state")
def speculative_segment(engine: Engine, state: DecodeState, num_steps: int | Array, how: Speculation) -> DecodeState:
    """`state` after up to `num_steps` draft-verify-commit steps; ends early when all rows are done.

    Steps that copy and steps that draft are loops of their own inside one: a conditional would copy both caches.
    """

    def unfinished(carry: Carry) -> Array:
        step, state = carry
        return (step < num_steps) & ~jnp.all(state.done)

    def drafts(carry: Carry) -> Carry:
        step, state = carry
        return step + 1, speculative_step(engine, state, how)

    def copies(carry: Carry) -> Carry:
        step, state = carry
        rows = jnp.arange(state.done.shape[0])
        copied = state.copied.at[rows, state.num_steps].set(~state.done, mode="drop")
        plan = dataclasses.replace(how, drafts="ngram", width=how.copy)
        return step + 1, speculative_step(engine, dataclasses.replace(state, copied=copied), plan)

    def can_copy(carry: Carry) -> Array:
        state = carry[1]
        return jnp.all(state.done | (ngram_match(state.tokens, state.length)[1] >= COPY_LEAST))

    def both(carry: Carry) -> Carry:
        carry = jax.lax.while_loop(lambda carry: unfinished(carry) & can_copy(carry), copies, carry)
        return jax.lax.while_loop(lambda carry: unfinished(carry) & ~can_copy(carry), drafts, carry)

    state = jax.lax.while_loop(unfinished, both if how.copy else drafts, (jnp.int32(0), state))[1]
    return placed(state, engine.target)


@partial(jax.jit, static_argnames="how", donate_argnames="state")
def replay(engine: Engine, state: DecodeState, how: Speculation) -> DecodeState:
    """`state` walked to its stops through text it holds already: each step commits what the text confirms of its draft.

    Where the text is the target's own greedy text, these are the steps decoding takes, for the price of drafting alone.
    `state` is `start`'s over prompts and answers, read to their ends, with the prompts' lengths as its lengths.
    """

    def advance(state: DecodeState) -> DecodeState:
        drafts, _ = draft(engine, state, how, keys(state.seed, state.length - 1))
        places = jnp.minimum(state.length[:, None] + jnp.arange(how.width), state.tokens.shape[1] - 1)
        accepted, committed = verify_greedy(drafts, jnp.take_along_axis(state.tokens, places, axis=1))
        lost = (drafts == NOT_FINITE).any(axis=1) & ~state.done
        state = dataclasses.replace(state, fault=jnp.where(lost, -state.length, state.fault), done=state.done | lost)
        return commit(state, accepted, committed, engine.target.config.eos_ids)

    return jax.lax.while_loop(lambda state: ~jnp.all(state.done), advance, state)


def speculative_step(engine: Engine, state: DecodeState, how: Speculation) -> DecodeState:
    """One step for every unfinished row."""
    anchor = jnp.take_along_axis(state.tokens, state.length[:, None] - 1, axis=1)
    draws = jax.vmap(lambda key: jax.random.split(key, 2))(keys(state.seed, state.length - 1))
    drafts, q = draft(engine, state, how, draws[:, 0])
    said, features, cache = verify(engine, jnp.concatenate([anchor, drafts], axis=1), state)
    if how.sampling.greedy:
        accepted, committed = verify_greedy(drafts, jnp.argmax(said, axis=-1).astype(jnp.int32))
    else:
        rule = verify_block if how.block and how.width > 1 else verify_tokens
        assert q is not None
        accepted, committed = jax.vmap(rule)(draws[:, 1], drafts, q, distribution(said, how.sampling))
    broken, lost = ~all_finite(said) & ~state.done, (drafts == NOT_FINITE).any(axis=1) & ~state.done
    context = engine.drafter.context(features, _block_positions(state, how.width))
    state = dataclasses.replace(
        state,
        cache=cache,
        context=kv_cache.write(state.context, context, state.length - 1),
        fault=jnp.where(broken, state.length, jnp.where(lost, -state.length, state.fault)),
        done=state.done | broken | lost,
    )
    return commit(state, accepted, committed, engine.target.config.eos_ids)


def draft(
    engine: Engine, state: DecodeState, how: Speculation, key: Key[Array, " B"]
) -> tuple[Int[Array, "B W1"], Float[Array, "B W1 V"] | None]:
    """Drafts for slots 1..W-1 of every row's block, and the distributions they were drawn from (None when greedy).

    NOT_FINITE in place of a row's drafts where the drafter's states are.
    """
    if how.drafts == "drafter" and how.width > 1:
        hidden = block_hidden(engine, state, how.width)[:, 1:]
        tokens, q = _drafter_tokens(engine, state, how, key, hidden)
        tokens = jnp.where(jnp.isfinite(hidden).all(axis=(1, 2))[:, None], tokens, NOT_FINITE)
    else:
        tokens, q = ngram_tokens(state.tokens, state.length, how.width), None
    if q is None and not how.sampling.greedy:
        q = jax.nn.one_hot(tokens, engine.target.config.vocab_size)
    return tokens, q


def block_hidden(engine: Engine, state: DecodeState, width: int) -> Float[Array, "B W D"]:
    """The drafter's final hidden states of every row's block."""
    config, position = engine.drafter.config, state.length - 1
    anchor = jnp.take_along_axis(state.tokens, position[:, None], axis=1)[:, 0]
    block = engine.target.embed(block_tokens(anchor, width, config.mask_token_id))[:, None]
    return engine.drafter(block, position[:, None], state.context, None)[:, 0]


def _drafter_tokens(
    engine: Engine, state: DecodeState, how: Speculation, key: Key[Array, " B"], hidden: Float[Array, "B W1 D"]
) -> tuple[Int[Array, "B W1"], Float[Array, "B W1 V"] | None]:
    """Slot after slot, each given the token before it where the drafter has a Markov head."""
    anchor = jnp.take_along_axis(state.tokens, state.length[:, None] - 1, axis=1)[:, 0]
    drawn = not (how.sampling.greedy or how.deterministic)

    def choose(before: Array, hidden: Array, slot: Array) -> tuple[Array, Array | None]:
        scores = logits(engine.drafter.corrected(hidden, engine.target.embed(before)), engine.head)
        if not drawn:
            return _token_ids(engine, jnp.argmax(scores, axis=-1)), None
        q = distribution(scores, how.sampling)
        slots = jnp.broadcast_to(slot, q.shape[:-1])
        places = jax.vmap(lambda k, s, row: draw(jax.random.fold_in(k, s), row))(key, slots, q)
        return _token_ids(engine, places), _over_vocabulary(engine, q)

    if engine.drafter.markov is None and not drawn:
        return _token_ids(engine, jnp.argmax(logits(hidden, engine.head), axis=-1)), None

    def next_slot(before: Array, slot: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array | None]]:
        token, q = choose(before, *slot)
        return token, (token, q)

    slots = (hidden.swapaxes(0, 1), jnp.arange(how.width - 1))
    _, (tokens, q) = jax.lax.scan(next_slot, anchor, slots)
    return tokens.swapaxes(0, 1), None if q is None else q.swapaxes(0, 1)


def _token_ids(engine: Engine, rows: Int[Array, "*b"]) -> Int[Array, "*b"]:
    return (rows if engine.draft_vocab is None else engine.draft_vocab[rows]).astype(jnp.int32)


def _over_vocabulary(engine: Engine, q: Float[Array, "*b Vd"]) -> Float[Array, "*b V"]:
    """`q` with zeros for the tokens the draft vocabulary lacks."""
    if engine.draft_vocab is None:
        return q
    return jnp.zeros((*q.shape[:-1], engine.target.config.vocab_size)).at[..., engine.draft_vocab].set(q)


def ngram_tokens(tokens: Int[Array, "B S"], length: Int[Array, " B"], width: int) -> Int[Array, "B W1"]:
    """Prompt lookup: what followed the latest earlier occurrence of the row's last tokens, over and over at its end.

    Examples: row 5 6 7 5 6, width 3 -> 7 5; row 5 6 6, width 4 -> 6 6 6.
    """
    place, _ = ngram_match(tokens, length)
    period = jnp.maximum(length[:, None] - 1 - place, 1)
    return jnp.take_along_axis(tokens, place + 1 + jnp.arange(width - 1) % period, axis=1)


def ngram_match(tokens: Int[Array, "B S"], length: Int[Array, " B"]) -> tuple[Int[Array, "B 1"], Int[Array, " B"]]:
    """Where the row's last tokens occurred before (the place of the last one), and how many of them, up to COPY_MOST.

    The longest match wins, then the latest.
    """
    places = jnp.arange(tokens.shape[1])
    last = length[:, None] - 1
    matched, score = jnp.ones(tokens.shape, bool), jnp.zeros(tokens.shape, jnp.int32)
    for back in range(COPY_MOST):
        wanted = jnp.take_along_axis(tokens, jnp.maximum(last - back, 0), axis=1)
        matched = matched & (jnp.roll(tokens, back, axis=1) == wanted) & (places >= back) & (places < last)
        score = score + matched
    best = jnp.argmax(score * tokens.shape[1] + places * (score > 0), axis=1)[:, None]
    return best, jnp.take_along_axis(score, best, axis=1)[:, 0]


def verify(
    engine: Engine, block: Int[Array, "B W"], state: DecodeState
) -> tuple[Float[Array, "B W V"], Float[Array, "B W LD"], KVCache]:
    """The target's logits after each token of the block, the block's features, and the cache with the block in it."""
    positions = _block_positions(state, block.shape[1])
    taps = engine.drafter.config.target_layer_ids
    hidden, features, cache = engine.target(block, positions, cache=state.cache, taps=taps)
    assert cache is not None
    return engine.target.logits(hidden), features, cache


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
