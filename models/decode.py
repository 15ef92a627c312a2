"""The decode loop, all on device: draft a block, verify it in one target forward, commit what was accepted.

One step at anchor position p = length - 1 (the last committed token, not yet fed to the target):

    propose  a drafter proposes what follows the anchor, in slots 1..W-1 of a block, from what it read of positions < p
    verify   the target reads the block, each slot after its parent, and says its own token after every slot
    commit   accepted tokens and the bonus token; length grows by accepted + 1

Plain decoding is the same loop at width 1 with no drafter: it is what speculation is measured against, and with a
recorder in the drafter's place it writes the responses that drafters are trained on. A segment is a `lax.while_loop` of
steps; the host looks in only between segments.

The target's cache and the drafter's state are addressed by absolute position and count below `length - 1` alone: what
rejected tokens wrote is overwritten by the next step before anything may see it. Positions therefore follow the
accepted length and nothing else. When sampling, the draws of a step are fixed by the row's seed and the step's anchor
position.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from configs.errors import UserError
from models.attention import Chain, Tree
from models.cache import Cache, Pages, Slots
from models.drafters import ABSENT, SINGLE, Draft, Nothing, Proposal
from models.drafters.artifact import Artifact
from models.drafters.confidence import cut, needed_width, trimmed
from models.drafters.ngram import COPY_LEAST, Ngram, ngram_match
from models.rows import Rows, commit, make_rows
from models.sampling import distribution, keys
from models.sharding import abstract, constrain, platform
from models.target import Target
from models.verify import GREEDILY, Speculation, Verdict, all_finite, verify_block, verify_greedy, verify_tokens


@struct.dataclass
class Engine:
    """A target, and who drafts for it."""

    target: Target
    drafter: Any  # a `models.drafters.Kind`

    @property
    def plain(self) -> "Engine":
        """The same target with nobody to draft."""
        return Engine(self.target, Nothing())


@struct.dataclass
class DecodeState:
    """Rows being decoded, with what target and drafter know of their positions below length - 1."""

    rows: Rows
    cache: Cache
    drafter: Any


def make_engine(target: Target, artifact: Artifact) -> Engine:
    """The decoder's constants; the drafter computes in the target's type."""
    return Engine(target, artifact.bound(target))


@partial(jax.jit, static_argnames=("batch", "capacity", "page"))
def empty_state(engine: Engine, batch: int, capacity: int, page: int | None = None) -> DecodeState:
    """`batch` finished rows with room for `capacity` positions each, to be filled by `insert`.

    The target's cache has pages of `page` positions, or slots.
    """
    one = jnp.ones(batch, jnp.int32)
    rows = make_rows(jnp.zeros((batch, capacity), jnp.int32), one, one, 0 * one)
    cache = engine.target.empty_cache(batch, capacity, page)
    return _placed(DecodeState(rows, cache, engine.drafter.init_state(batch, capacity)), engine.target)


def abstract_state(engine: Engine, batch: int, capacity: int, page: int | None = None) -> DecodeState:
    """What `empty_state` makes, without values: shapes, types and places on the mesh of the engine's target."""
    mesh = engine.target.mesh
    assert mesh is not None

    def put(part: Any) -> Any:
        if isinstance(part, Slots):
            return jax.tree.map(lambda buffer: abstract(buffer, ("batch", "kv_heads"), mesh), part)
        if isinstance(part, Pages):  # the table is of rows
            pool: Any = (None, None, "kv_heads")
            return jax.tree.map(lambda array: abstract(array, pool if array.ndim > 2 else ("batch",), mesh), part)
        return abstract(part, ("batch",), mesh)

    state = jax.eval_shape(lambda engine: empty_state(engine, batch, capacity, page), engine)
    return jax.tree.map(put, state, is_leaf=lambda part: isinstance(part, Cache))


@partial(jax.jit, static_argnames=("capacity", "page"))
def prefill(
    engine: Engine,
    prompts: Int[Array, "B P"],
    lengths: Int[Array, " B"],
    stops: Int[Array, " B"],
    seeds: Int[Array, " B"],
    *,
    capacity: int,
    reach: int | Int[Array, ""] = 0,
    page: int | None = None,
) -> DecodeState:
    """A state with the prompts (padded on the right to P) prefilled; `capacity` >= stop + width - 1.

    The target's cache has pages of `page` positions, or slots.

    Prompts are read in chunks, by one program whatever their lengths; with `reach`, the text after them up to there
    too. A small chunk wastes little on a short prompt; an accelerator reads all weights for every chunk and wants large
    ones. The last chunk begins earlier where they do not divide the capacity.
    """
    batch, size = prompts.shape
    tokens = jnp.zeros((batch, capacity), jnp.int32).at[:, :size].set(prompts)
    chunk = min(64 if platform(engine.target.mesh) == "cpu" else 512, capacity)

    def read(index: Array, known: tuple[Cache, Any]) -> tuple[Cache, Any]:
        cache, drafter = known
        begin = jnp.minimum(index * chunk, capacity - chunk)
        piece = jax.lax.dynamic_slice_in_dim(tokens, begin, chunk, axis=1)
        positions = _positions(jnp.broadcast_to(begin, batch), chunk)
        _, features, cache = forward(engine, piece, Chain(positions), cache)
        return cache, engine.drafter.read(drafter, features, piece, positions)

    known = engine.target.empty_cache(batch, capacity, page), engine.drafter.init_state(batch, capacity)
    cache, drafter = jax.lax.fori_loop(0, -(-jnp.maximum(lengths.max(), reach) // chunk), read, known)
    return _placed(DecodeState(make_rows(tokens, lengths, stops, seeds), cache, drafter), engine.target)


@partial(jax.jit, donate_argnames="state")
def insert(
    engine: Engine,
    state: DecodeState,
    numbers: Int[Array, " R"],
    prompts: Int[Array, "R P"],
    lengths: Int[Array, " R"],
    stops: Int[Array, " R"],
    seeds: Int[Array, " R"],
) -> DecodeState:
    """`state` with prompts (padded on the right to P) prefilled into the rows of these numbers; >= B: dropped."""
    new = prefill(engine, prompts, lengths, stops, seeds, capacity=prompts.shape[1])

    def put(whole: Array, part: Array) -> Array:
        cleared = whole.at[numbers].set(jnp.zeros((), whole.dtype), mode="drop")
        return cleared.at[(numbers, *(slice(size) for size in part.shape[1:]))].set(part, mode="drop")

    rows, drafter = jax.tree.map(put, (state.rows, state.drafter), (new.rows, new.drafter))
    assert isinstance(new.cache, Slots)
    return _placed(DecodeState(rows, state.cache.insert(new.cache, numbers), drafter), engine.target)


Copying = Literal["none", "all", "some"]  # of the unfinished rows of a step


@partial(jax.jit, static_argnames=("draft", "speculation", "until"), donate_argnames="state")
def segment(
    engine: Engine,
    state: DecodeState,
    num_steps: int | Array,
    draft: Draft = SINGLE,
    speculation: Speculation = GREEDILY,
    floors: Float[Array, " C"] | None = None,
    until: Literal["all", "any"] = "all",
) -> DecodeState:
    """`state` after up to `num_steps` draft-verify-commit steps; ends early when all rows are done, or any gets done.

    Steps in which all rows copy, none or some are loops of their own inside one, since only the first need no drafter:
    a conditional would copy the caches. So are steps that verify one of the widths a block may be cut to, where its
    confidence falls under `floors`, one of each of `draft.cuts`. Rows that say how they are sampled are sampled so.
    """
    if state.rows.sampling is not None:
        speculation = dataclasses.replace(speculation, sampling=state.rows.sampling)

    before = state.rows.done

    def unfinished(carry: tuple[Array, DecodeState]) -> Array:
        count, done = carry[0], carry[1].rows.done
        over = jnp.all(done) if until == "all" else jnp.all(done) | jnp.any(done & ~before)
        return (count < num_steps) & ~over

    def run(carry: tuple[Array, DecodeState], copying: Copying) -> tuple[Array, DecodeState]:
        def applies(carry: tuple[Array, DecodeState]) -> Array:
            return unfinished(carry) & who_copies(carry[1].rows)[copying]

        def advance(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
            return carry[0] + 1, step(engine, carry[1], draft, speculation, copying, floors)

        going = applies if draft.copy else unfinished
        if draft.cuts and copying == "none":
            return cut_steps(engine, carry, going, draft, speculation, floors)
        return jax.lax.while_loop(going, advance, carry)

    def runs(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        alone = state.rows.done.shape[0] == 1
        for copying in ("all", "none") if alone else ("all", "none", "some"):
            carry = run(carry, copying)
        return carry

    begin = jnp.int32(0), state
    end = jax.lax.while_loop(unfinished, runs, begin) if draft.copy else run(begin, "none")
    return _placed(end[1], engine.target)


Steps = tuple[Array, DecodeState]  # how many were taken, and the state after them


def cut_steps(
    engine: Engine,
    carry: Steps,
    going: Callable[[Steps], Array],
    draft: Draft,
    speculation: Speculation,
    floors: Float[Array, " C"] | None,
) -> Steps:
    """Steps while `going`, each verifying the narrowest of the cuts and the draft's width that holds its drafts.

    Every step drafts for the next one, so that the width to verify is known where a loop of that width begins.
    """
    widths = jnp.array([*draft.cuts, draft.width])

    def drafted(state: DecodeState) -> tuple[Proposal, Array]:
        rows = state.rows
        proposal, _ = propose(engine, state, draft, speculation, _draws(rows)[:, 0], "none", floors)
        absent = dataclasses.replace(proposal, tokens=jnp.where(rows.done[:, None], ABSENT, proposal.tokens))
        return proposal, widths[jnp.searchsorted(widths, needed_width(absent))]

    def verified(carry: tuple[Steps, tuple[Proposal, Array]], width: int) -> tuple[Steps, tuple[Proposal, Array]]:
        (count, state), pending = carry
        copied = jnp.zeros(state.rows.done.shape, bool)
        state = judged(engine, state, trimmed(pending[0], width), copied, draft, speculation)
        steps = count + 1, state
        return steps, jax.lax.cond(going(steps), lambda: drafted(state), lambda: pending)

    def runs(carry: tuple[Steps, tuple[Proposal, Array]]) -> tuple[Steps, tuple[Proposal, Array]]:
        for width in (*draft.cuts, draft.width):
            carry = jax.lax.while_loop(
                lambda carry, width=width: going(carry[0]) & (carry[1][1] == width),
                partial(verified, width=width),
                carry,
            )
        return carry

    return jax.lax.while_loop(lambda carry: going(carry[0]), runs, (carry, drafted(carry[1])))[0]


@partial(jax.jit, static_argnames="width", donate_argnames="state")
def replay(engine: Engine, state: DecodeState, width: int) -> DecodeState:
    """`state` walked to its stops through text it holds already: each step commits what the text confirms of its draft.

    Where the text is the target's own greedy text, these are the steps decoding takes, for the price of drafting alone.
    `state` is `prefill`'s over prompts and answers, read to their ends, with the prompts' lengths as its lengths.
    """
    draft = Draft("drafter", width)

    def advance(rows: Rows) -> Rows:
        at = dataclasses.replace(state, rows=rows)
        proposal, _ = propose(engine, at, draft, GREEDILY, keys(rows.seed, rows.length - 1), "none")
        places = jnp.minimum(rows.length[:, None] + jnp.arange(width), rows.tokens.shape[1] - 1)
        verdict = verify_greedy(proposal.tokens, jnp.take_along_axis(rows.tokens, places, axis=1))
        lost = ~proposal.finite & ~rows.done
        rows = dataclasses.replace(rows, fault=jnp.where(lost, -rows.length, rows.fault), done=rows.done | lost)
        return commit(rows, verdict.accepted, verdict.tokens, engine.target.config.eos_ids)

    rows = jax.lax.while_loop(lambda rows: ~jnp.all(rows.done), advance, state.rows)
    return dataclasses.replace(state, rows=rows)


def replayed(
    engine: Engine, texts: Sequence[tuple[Sequence[int], int]], *, rows: int, capacity: int
) -> list[list[int]]:
    """Tokens committed by each step that decoding the texts at the drafter's full width takes (see `replay`).

    A text is (prompt and answer, the prompt's length); at most `rows` of them, each at most capacity - width + 1 long.
    Raises:
      UserError: the drafter's states are not finite.
    """
    tokens = np.zeros((rows, capacity), np.int32)
    lengths, stops = np.ones((2, rows), np.int32)  # rows past the texts are done from the start
    for row, (ids, prompt_length) in enumerate(texts):
        tokens[row, : len(ids)] = ids
        lengths[row], stops[row] = prompt_length, len(ids)
    zeros = np.zeros(rows, np.int32)
    state = prefill(engine, tokens, lengths, stops, zeros, capacity=capacity, reach=int(stops.max()))
    end = replay(engine, state, engine.drafter.width).rows
    runs, count, fault = jax.device_get((end.runs, end.num_steps, end.fault))
    if fault.any():
        raise UserError("the drafter's states are not finite; check its weights, or decode in float32")
    return [runs[row, : count[row]].tolist() for row in range(len(texts))]


def step(
    engine: Engine,
    state: DecodeState,
    draft: Draft,
    speculation: Speculation = GREEDILY,
    copying: Copying = "none",
    floors: Float[Array, " C"] | None = None,
) -> DecodeState:
    """One step for every unfinished row."""
    proposal, copied = propose(engine, state, draft, speculation, _draws(state.rows)[:, 0], copying, floors)
    return judged(engine, state, proposal, copied, draft, speculation)


def _draws(rows: Rows) -> Key[Array, "B 2"]:
    """Of each row, the keys that its step drafts and verifies by."""
    return jax.vmap(lambda key: jax.random.split(key, 2))(keys(rows.seed, rows.length - 1))


def judged(
    engine: Engine,
    state: DecodeState,
    proposal: Proposal,
    copied: Bool[Array, " B"],
    draft: Draft,
    speculation: Speculation,
) -> DecodeState:
    """`state` after the rows' proposals were verified and what was accepted of them committed."""
    rows = state.rows
    block = jnp.concatenate([rows.anchors[:, None], jnp.maximum(proposal.tokens, 0)], axis=1)
    root, parents = rows.length - 1, proposal.parents
    where = Chain(_positions(root, block.shape[1])) if parents is None else Tree(root, parents)
    hidden, features, cache = forward(engine, block, where, state.cache)
    logits = engine.target.logits(hidden)
    verdict = verify(_draws(rows)[:, 1], proposal, logits, speculation)
    if verdict.path is not None:  # what was accepted comes to lie side by side, as a chain's does
        path = verdict.path[:, : max(draft.width, draft.copy)]  # no branch is longer
        cache = cache.keep(root, path[:, 1:])
        block = jnp.take_along_axis(block, path, axis=1)
        features = jnp.take_along_axis(features, path[..., None], axis=1)
    broken, lost = ~all_finite(logits) & ~rows.done, ~proposal.finite & ~rows.done
    here = jnp.arange(len(copied)), rows.num_steps
    rows = dataclasses.replace(
        rows,
        copied=rows.copied.at[here].set(copied & ~rows.done, mode="drop"),
        offered=rows.offered.at[here].set((proposal.tokens >= 0).sum(axis=1), mode="drop"),
        fault=jnp.where(broken, rows.length, jnp.where(lost, -rows.length, rows.fault)),
        done=rows.done | broken | lost,
    )
    return DecodeState(
        rows=commit(rows, verdict.accepted, verdict.tokens, engine.target.config.eos_ids),
        cache=cache,
        drafter=engine.drafter.read(state.drafter, features, block, _positions(root, block.shape[1])),
    )


def propose(
    engine: Engine,
    state: DecodeState,
    draft: Draft,
    speculation: Speculation,
    key: Key[Array, " B"],
    copying: Copying,
    floors: Float[Array, " C"] | None = None,
) -> tuple[Proposal, Bool[Array, " B"]]:
    """What the rows' blocks hold after their anchors, cut where the draft has cuts, and which rows copied."""
    rows = state.rows
    given = {"key": key, "speculation": speculation}
    copies = jnp.broadcast_to(copying == "all", rows.done.shape)
    if copying == "all":
        return Ngram().propose(engine.target, None, rows, width=draft.copy, **given), copies
    if draft.width == 1:
        drafted = nothing_proposed(engine, rows, speculation)
    elif draft.kind == "ngram":
        drafted = Ngram().propose(engine.target, None, rows, width=draft.width, **given)
    elif draft.tree:
        size = {"width": draft.width, "nodes": draft.tree}
        drafted = engine.drafter.propose_tree(engine.target, state.drafter, rows, **size, speculation=speculation)
    else:
        drafted = engine.drafter.propose(engine.target, state.drafter, rows, width=draft.width, **given)
    if draft.cuts:
        assert floors is not None
        drafted = cut(drafted, draft.cuts, floors)
    if copying == "none":
        return drafted, copies
    copied = Ngram().propose(engine.target, None, rows, width=draft.copy, **given)
    size, copies = draft.widest - 1, can_copy(rows)
    if draft.tree:
        copied, drafted = copied.branching(), drafted.branching()

    def either(one: Array, other: Array) -> Array:
        return jnp.where(copies.reshape(-1, *(1,) * (one.ndim - 1)), one, other)

    return jax.tree.map(either, copied.padded(size), drafted.padded(size)), copies


def nothing_proposed(engine: Engine, rows: Rows, speculation: Speculation) -> Proposal:
    """A block of the anchor alone."""
    batch = rows.done.shape[0]
    q = None if speculation.sampling.greedy else jnp.zeros((batch, 0, engine.target.config.vocab_size))
    return Proposal(jnp.zeros((batch, 0), jnp.int32), None, q, jnp.ones(batch, bool))


def who_copies(rows: Rows) -> dict[Copying, Bool[Array, ""]]:
    """Which one it is of the unfinished rows."""
    copies = can_copy(rows)
    every, none = jnp.all(rows.done | copies), jnp.all(rows.done | ~copies)
    return {"none": none, "all": every, "some": ~(every | none)}


def can_copy(rows: Rows) -> Bool[Array, " B"]:
    """Which rows' last tokens occurred before."""
    return ngram_match(rows.tokens, rows.length)[1] >= COPY_LEAST


def forward(
    engine: Engine, tokens: Int[Array, "B T"], where: Chain | Tree, cache: Cache
) -> tuple[Float[Array, "B T D"], Float[Array, "B T LE"], Cache]:
    """The target's hidden states after T tokens, what the drafter reads of them, and the cache with them in it."""
    hidden, features, filled = engine.target(tokens, where, cache=cache, taps=engine.drafter.taps)
    assert filled is not None
    if engine.drafter.final:
        features = jnp.concatenate([features, engine.target.normed(hidden)], axis=-1)
    return hidden, features, filled


def verify(
    key: Key[Array, " B"], proposal: Proposal, logits: Float[Array, "B W V"], speculation: Speculation
) -> Verdict:
    """What is kept of every row's proposal, the target having said `logits` after each slot of its block."""
    if speculation.sampling.greedy:
        return verify_greedy(proposal.tokens, jnp.argmax(logits, axis=-1).astype(jnp.int32), proposal.parents)
    assert proposal.q is not None
    p = distribution(logits, speculation.sampling)
    if speculation.block and proposal.parents is None and proposal.tokens.shape[1] > 0:
        return jax.vmap(verify_block)(key, proposal.tokens, proposal.q, p)
    return jax.vmap(verify_tokens)(key, proposal.tokens, proposal.q, p, proposal.parents)


def _placed(state: DecodeState, target: Target) -> DecodeState:
    """`state` where its target's mesh has it: rows apart, and caches by heads too."""

    def held(part: Any) -> Any:
        return part.held(target.mesh) if isinstance(part, Cache) else constrain(part, target.mesh, "batch")

    return jax.tree.map(held, state, is_leaf=lambda part: isinstance(part, Cache))


def _positions(begin: Int[Array, " B"], size: int) -> Int[Array, "B T"]:
    return begin[:, None] + jnp.arange(size)
