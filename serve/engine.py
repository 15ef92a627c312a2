"""The server's device programs: rows that join and leave one batch, over pages that the host shares out.

The target's keys and values lie in a pool of pages (`models.cache.Pages`), the drafter's state in rows of its own. The
host says with every call which pages are whose, as a table [B, R]: NOWHERE where a row owns none. What is written there
is dropped, and what is read there are zeros: the pool's last page, past those that are shared out, is nobody's. So a
row that outgrows its pages would write nothing and read nothing in silence; the host sees to it that none does
(`serve.scheduler`), and every program here leaves other rows' pages alone.

Beside keys and values a page holds what the target's layers said of its tokens, which `Keeping` writes as the drafter
reads it. Where a prompt begins with pages that are known, the drafter reads those again instead of the target.

On a CPU rows that write are read from slots (`models.cache.Mirrored`): `bring` takes them there when a prompt is read.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from models.attention import TPU_PAGE, Chain
from models.cache import Cache, Mirrored, Pages, Slots, kept_dtype
from models.decode import DecodeState, Engine, forward, segment
from models.drafters import Draft, Proposal
from models.layers import logits
from models.rows import Rows, make_rows
from models.sampling import GREEDY, sampling_rows
from models.sharding import platform, whole_rows
from models.target import Target
from models.verify import Speculation

NOWHERE = 2**30  # in a table: no page


@struct.dataclass
class Kept:
    """What a drafter knows of rows, and by page what it was told."""

    rows: Any  # the drafter's own state
    pages: Pages  # features and, after them, the target's normed final state; as values of one layer, without keys


@struct.dataclass
class Keeping:
    """A kind that drafts as `kind` does and keeps what it reads."""

    kind: Any
    hidden_size: int = struct.field(pytree_node=False)
    final: bool = struct.field(pytree_node=False, default=True)

    @property
    def width(self) -> int:
        return self.kind.width

    @property
    def taps(self) -> tuple[int, ...]:
        return self.kind.taps

    def read(
        self, state: Kept, features: Float[Array, "B T LE"], tokens: Int[Array, "B T"], positions: Int[Array, "B T"]
    ) -> Kept:
        apart = features.reshape(*features.shape[:2], state.pages.num_kv_heads, -1).swapaxes(1, 2)
        return Kept(
            self.kind.read(state.rows, self.told(features), tokens, positions),
            state.pages.write(Slots([], [apart]), positions[:, 0]),
        )

    def told(self, features: Float[Array, "B T LE"]) -> Float[Array, "B T _"]:
        """What `kind` reads of what is kept."""
        return features if self.kind.final else features[..., : -self.hidden_size]

    def kept(self, state: Kept, places: Int[Array, "B T"]) -> Float[Array, "B T LE"]:
        """What was kept of these positions."""
        (apart,) = state.pages.slots(places).values
        return apart.swapaxes(1, 2).reshape(*places.shape, -1)

    def propose(self, target: Target, state: Kept, rows: Rows, **how: Any) -> Proposal:
        return self.kind.propose(target, state.rows, rows, **how)

    def propose_tree(self, target: Target, state: Kept, rows: Rows, **how: Any) -> Proposal:
        return self.kind.propose_tree(target, state.rows, rows, **how)


class News(NamedTuple):
    """What a segment brought each row."""

    tokens: Int[Array, "B T"]  # the first `count` are new
    count: Int[Array, " B"]
    runs: Int[Array, "B N"]  # tokens of each step, the first `num_steps` count
    copied: Bool[Array, "B N"]
    offered: Int[Array, "B N"]  # tokens drafted
    num_steps: Int[Array, " B"]
    done: Bool[Array, " B"]
    fault: Int[Array, " B"]


def page_size(mesh: jax.sharding.Mesh | None) -> int:
    """Positions of a page: as many as a TPU's kernel takes; elsewhere fewer, since full pages alone are found again."""
    return TPU_PAGE if platform(mesh) == "tpu" else 32


def batch_sizes(rows: int, mesh: jax.sharding.Mesh | None) -> list[int]:
    """How many rows a batch may have that needs up to `rows`: powers of two, and what the mesh divides."""
    return sorted({whole_rows(min(1 << power, rows), mesh) for power in range(rows.bit_length() + 1)})


def keeping(engine: Engine) -> Engine:
    """The engine, its drafter keeping what it reads."""
    return Engine(engine.target, Keeping(engine.drafter, engine.target.config.hidden_size))


@partial(jax.jit, static_argnames=("batch", "capacity", "pages", "page"))
def empty_state(engine: Engine, batch: int, capacity: int, *, pages: int, page: int) -> DecodeState:
    """`batch` finished rows of `capacity` positions, over a pool of `pages` pages of `page` positions."""
    target, kind = engine.target, engine.drafter.kind
    one, size = jnp.ones(batch, jnp.int32), (pages + 1) * page
    table = jnp.full((batch, capacity // page), NOWHERE, jnp.int32)
    rows = make_rows(jnp.zeros((batch, capacity), jnp.int32), one, one, 0 * one)
    rows = dataclasses.replace(rows, sampling=sampling_rows([GREEDY] * batch))
    cache = target.empty_cache(1, size, page)
    assert isinstance(cache, Pages)
    heads, width = cache.num_kv_heads, (len(kind.taps) + 1) * target.config.hidden_size
    pool = jnp.zeros((pages + 1, page, heads, width // heads), kept_dtype(target.dtype, target.mesh))
    kept = Kept(kind.init_state(batch, capacity), Pages([], [pool], table))
    paged = Pages(cache.keys, cache.values, table)
    if platform(target.mesh) != "cpu":
        return DecodeState(rows, paged, kept)
    near = target.empty_cache(batch, capacity)
    assert isinstance(near, Slots)
    return DecodeState(rows, Mirrored(paged, near), kept)


def resized(state: DecodeState, which: Int[Array, " B"]) -> DecodeState:
    """The rows of these numbers, in that order, over the same pages."""
    near = state.cache.near if isinstance(state.cache, Mirrored) else None
    rows, own, table, near = _picked((state.rows, state.drafter.rows, _pages(state).table, near), which)
    cache = state.cache if near is None else Mirrored(_pages(state), near)
    return _with_table(DecodeState(rows, cache, Kept(own, state.drafter.pages)), table)


@jax.jit
def _picked(parts: Any, which: Int[Array, " B"]) -> Any:
    return jax.tree.map(lambda part: part[which], parts)


@partial(jax.jit, static_argnames="chunk", donate_argnames="state")
def seat(
    engine: Engine,
    state: DecodeState,
    table: Int[Array, "B R"],
    row: Int[Array, ""],
    new: Rows,
    known: Array,
    chunk: int,
) -> DecodeState:
    """`state` with the one row of `new` in place of `row`, its first `known` positions in pages that it owns.

    The drafter reads what was kept of those, `chunk` positions at a time.
    """
    state = _with_table(state, table)
    rows = jax.tree.map(lambda whole, part: whole.at[row].set(part[0]), state.rows, new)
    fresh = jax.tree.map(lambda part: part.at[row].set(jnp.zeros((), part.dtype)), state.drafter.rows)
    state = dataclasses.replace(state, rows=rows, drafter=Kept(fresh, state.drafter.pages))
    keeping = engine.drafter

    def reread(index: Array, own: Any) -> Any:
        positions = (index * chunk + jnp.arange(chunk))[None]
        tokens = jax.lax.dynamic_slice_in_dim(new.tokens, index * chunk, chunk, axis=1)
        kept = Kept(own, _row(state.drafter.pages, row))
        return keeping.kind.read(own, keeping.told(keeping.kept(kept, positions)), tokens, positions)

    own = jax.tree.map(lambda part: part[row][None], fresh)
    own = jax.lax.fori_loop(0, -(-known // chunk), reread, own)
    put = jax.tree.map(lambda whole, part: whole.at[row].set(part[0]), fresh, own)
    return dataclasses.replace(state, drafter=Kept(put, state.drafter.pages))


def prefill(
    engine: Engine, state: DecodeState, table: Int[np.ndarray, "B R"], row: int, begin: int, chunk: int
) -> DecodeState:
    """`state` after target and drafter read `chunk` tokens of `row`, from position `begin` on.

    Positions past the row's length - 2 are read too; they count for nothing until they are read again.
    """
    rows, own = _picked((state.rows, state.drafter.rows), jnp.array([row]))
    pages = dataclasses.replace(_pages(state), table=jnp.asarray(table[row])[None])
    kept = dataclasses.replace(state.drafter.pages, table=jnp.array(pages.table))
    one = _read(engine, DecodeState(rows, pages, Kept(own, kept)), begin, chunk)  # the same program for any batch
    own = _put(state.drafter.rows, one.drafter.rows, row)
    read = DecodeState(state.rows, _with_pages(state.cache, _pages(one)), Kept(own, one.drafter.pages))
    return _with_table(read, jnp.asarray(table))


@partial(jax.jit, static_argnames="chunk", donate_argnames="one")
def _read(engine: Engine, one: DecodeState, begin: Array | int, chunk: int) -> DecodeState:
    """`prefill` of a batch of one."""

    def read(at: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        state = at[1]
        tokens = jax.lax.dynamic_slice(state.rows.tokens, (0, begin), (1, chunk))
        positions = (begin + jnp.arange(chunk))[None]
        _, features, cache = forward(engine, tokens, Chain(positions), state.cache)
        return jnp.array(False), DecodeState(
            state.rows, cache, engine.drafter.read(state.drafter, features, tokens, positions)
        )

    # A loop of one round: outside of one, XLA's CPU backend copies every buffer that is read and written.
    return jax.lax.while_loop(lambda at: at[0], read, (jnp.array(True), one))[1]


@partial(jax.jit, donate_argnames="parts")
def _put(parts: Any, one: Any, row: Array | int) -> Any:
    return jax.tree.map(lambda whole, part: whole.at[row].set(part[0]), parts, one)


@partial(jax.jit, donate_argnames="cache")
def _brought(cache: Mirrored, row: Array | int) -> Mirrored:
    return cache.bring(row)


def brought(state: DecodeState, row: int) -> DecodeState:
    """`state` with a row whose prompt is read where it is read from while it writes."""
    if not isinstance(state.cache, Mirrored):
        return state
    return dataclasses.replace(state, cache=_brought(state.cache, row))


@partial(jax.jit, static_argnames=("draft", "speculation", "most", "ordered"), donate_argnames="state")
def advance(
    engine: Engine,
    state: DecodeState,
    table: Int[Array, "B R"],
    live: Bool[Array, " B"],
    num_steps: int | Array,
    *,
    most: int,
    draft: Draft,
    speculation: Speculation,
    ordered: bool | None,
) -> tuple[DecodeState, News]:
    """`state` after up to `num_steps` (at most `most`) steps of the rows that are `live`, and what they brought.

    They end when one of those is done: its row is another's.
    `ordered` says how rows sample, see `SamplingRows`; None: every one of them is greedy.
    """
    sampling, length = state.rows.sampling, state.rows.length
    assert sampling is not None
    by_row = None if ordered is None else dataclasses.replace(sampling, ordered=ordered)
    begun = dataclasses.replace(state.rows, done=~live, num_steps=0 * length, fault=0 * length, sampling=by_row)
    state = _with_table(dataclasses.replace(state, rows=begun), table)
    state = segment(engine, state, num_steps, draft, speculation, until="any")
    rows = state.rows
    places = length[:, None] + jnp.arange(most * draft.widest)
    news = News(
        tokens=jnp.take_along_axis(rows.tokens, jnp.minimum(places, rows.tokens.shape[1] - 1), axis=1),
        count=rows.length - length,
        runs=rows.runs[:, :most],
        copied=rows.copied[:, :most],
        offered=rows.offered[:, :most],
        num_steps=rows.num_steps,
        done=rows.done,
        fault=rows.fault,
    )
    return dataclasses.replace(state, rows=dataclasses.replace(rows, sampling=sampling)), news


@partial(jax.jit, donate_argnames="state")
def cleaned(state: DecodeState, pages: Int[Array, " R"]) -> DecodeState:
    """`state` with zeros in these pages; those NOWHERE are left out."""

    def zero(cache: Pages) -> Pages:
        keys, values = ([pool.at[pages].set(0, mode="drop") for pool in pools] for pools in (cache.keys, cache.values))
        return Pages(keys, values, cache.table)

    drafter = dataclasses.replace(state.drafter, pages=zero(state.drafter.pages))
    return dataclasses.replace(state, cache=_with_pages(state.cache, zero(_pages(state))), drafter=drafter)


@partial(jax.jit, static_argnames=("count", "most"))
def logprobs(
    engine: Engine, state: DecodeState, row: Int[Array, ""], begin: Int[Array, ""], *, count: int, most: int
) -> tuple[Float[Array, " T"], Float[Array, "T N"], Int[Array, "T N"]]:
    """Of the `count` tokens of `row` at positions `begin` and on: their log-probabilities, and the `most` largest.

    As the target says them, before temperature and filters. Their tokens must be committed.
    """
    places = (begin - 1 + jnp.arange(count))[None]
    kept = engine.drafter.kept(Kept(None, _row(state.drafter.pages, row)), places)
    normed = kept[0, :, -engine.target.config.hidden_size :].astype(engine.target.dtype)
    scores = jax.nn.log_softmax(logits(normed, engine.target.head, engine.target.mesh))
    tokens = state.rows.tokens[row, jnp.minimum(places[0] + 1, state.rows.tokens.shape[1] - 1)]
    return jnp.take_along_axis(scores, tokens[:, None], axis=1)[:, 0], *jax.lax.top_k(scores, most)


def _pages(state: DecodeState) -> Pages:
    cache = state.cache.pages if isinstance(state.cache, Mirrored) else state.cache
    assert isinstance(cache, Pages)
    return cache


def _with_pages(cache: Cache, pages: Pages) -> Cache:
    return dataclasses.replace(cache, pages=pages) if isinstance(cache, Mirrored) else pages


def _row(pages: Pages, row: Array) -> Pages:
    """The pages as that row alone sees them."""
    return Pages(pages.keys, pages.values, pages.table[row][None])


def _with_table(state: DecodeState, table: Array) -> DecodeState:
    pages = dataclasses.replace(_pages(state), table=table)
    kept = Kept(state.drafter.rows, dataclasses.replace(state.drafter.pages, table=jnp.array(table)))
    return DecodeState(state.rows, _with_pages(state.cache, pages), kept)
