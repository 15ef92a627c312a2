"""Keys and values of past positions: what a row's tokens left for those after them. Nothing else knows how they lie.

Three kinds answer alike. `Slots` gives every row one buffer of positions. `Pages` cuts rows into pages that lie
anywhere in a pool shared by all of them, as a table says. `Mirrored` is pages whose rows are read from slots.

A row is valid for positions below its length and nowhere else. Whatever a rejected draft left above is masked until the
next write covers it, so a chain of drafts is accepted or rejected by the length alone; only what a tree accepts out of
order has to be moved (`keep`).

Room. A step of T tokens writes the T positions from length - 1 on, so a row that ends at `stop` needs a capacity of
stop + T - 1: whoever makes a cache sees to that. A write that reaches past it would, as XLA has it, slide back over
valid positions and change what the row says. Here such a row gets NaN there instead, which ends it as logits that are
not finite do; a row whose write fits never notices.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from models.sharding import constrain, platform


class Cache(abc.ABC):
    """Keys and values of every layer, of positions 0..capacity-1 of B rows."""

    keys: list[Array]
    values: list[Array]

    @property
    @abc.abstractmethod
    def capacity(self) -> int:
        """Positions a row has room for."""

    @property
    @abc.abstractmethod
    def num_kv_heads(self) -> int: ...

    @abc.abstractmethod
    def read(self, begin: int | Int[Array, ""], size: int) -> tuple[Float[Array, "B K H C"], Float[Array, "B K C H"]]:
        """Keys and values of positions begin..begin+size-1 of every row, of a cache of one layer."""

    @abc.abstractmethod
    def write(self, new: "Slots", at: Int[Array, " B"]) -> "Cache":
        """Itself with the T positions of `new` at at..at+T-1 of each row (in place when donated)."""

    @abc.abstractmethod
    def insert(self, new: "Slots", rows: Int[Array, " R"]) -> "Cache":
        """Itself with `rows` cleared and `new` at their first positions; rows >= B are dropped.

        Cleared, since what a row before them left may be no numbers, which no mask hides: 0 x NaN is NaN.
        """

    @abc.abstractmethod
    def slots(self, places: Int[Array, "B C"]) -> "Slots":
        """What lies at `places` of each row."""

    def keep(self, start: Int[Array, " B"], path: Int[Array, "B D"] | None) -> "Cache":
        """Itself with the accepted nodes of a tree next to each other, after the tree was written at `start`.

        `path` holds the accepted nodes in order, node i being what lies at start + i (0 is the anchor, which stays);
        what is moved to start + 1.. beyond those accepted is not valid anyway, so a row's path may end in any nodes.
        None for a chain, where every node lies where it would be moved to.

        Example, start 7, path 2 3: what lies at 9 and 10 moves to 8 and 9.
        """
        if path is None:
            return self

        def moved(cache: "Cache") -> "Cache":
            return cache.write(cache.slots(start[:, None] + path), start + 1)

        # A loop of one round: outside of one, XLA's CPU backend copies every buffer that is read and written.
        away = (path != jnp.arange(1, path.shape[1] + 1)).any()
        _, kept = jax.lax.while_loop(lambda at: at[0], lambda at: (jnp.array(False), moved(at[1])), (away, self))
        return kept

    @abc.abstractmethod
    def held(self, mesh: jax.sharding.Mesh | None) -> "Cache":
        """Itself where the mesh has it: by heads, and rows apart where rows have buffers of their own."""

    def layer(self, index: int) -> "Cache":
        """A cache of that layer alone."""
        return dataclasses.replace(self, keys=[self.keys[index]], values=[self.values[index]])  # pyright: ignore

    def of(self, layers: Sequence["Cache"]) -> "Cache":
        """The cache of these layers, each a cache of one that came from here."""
        keys, values = [layer.keys[0] for layer in layers], [layer.values[0] for layer in layers]
        return dataclasses.replace(self, keys=keys, values=values)  # pyright: ignore


@struct.dataclass
class Slots(Cache):
    """One buffer a layer; index s is position s. Keys lie transposed, as the score matmul reads them."""

    keys: list[Float[Array, "B K H S"]]
    values: list[Float[Array, "B K S H"]]

    @property
    def capacity(self) -> int:
        return self.values[0].shape[2]

    @property
    def num_kv_heads(self) -> int:
        return self.values[0].shape[1]

    def read(self, begin: int | Int[Array, ""], size: int) -> tuple[Float[Array, "B K H C"], Float[Array, "B K C H"]]:
        (keys,), (values,) = self.keys, self.values
        if size == self.capacity:
            return keys, values
        piece = jax.lax.dynamic_slice_in_dim
        return piece(keys, begin, size, axis=3), piece(values, begin, size, axis=2)

    def write(self, new: "Slots", at: Int[Array, " B"]) -> "Slots":
        fits = _fits(new, at, self.capacity)

        def written(buffers: list[Array], parts: list[Array], axis: int) -> list[Array]:
            return [_write(buffer, part, at, fits, axis) for buffer, part in zip(buffers, parts, strict=True)]

        return Slots(written(self.keys, new.keys, 2), written(self.values, new.values, 1))

    def insert(self, new: "Slots", rows: Int[Array, " R"]) -> "Slots":
        size = new.capacity
        keys, values = zip(self.keys, new.keys, strict=True), zip(self.values, new.values, strict=True)

        def cleared(buffer: Array) -> Array:
            return buffer.at[rows].set(0, mode="drop")

        return Slots(
            [cleared(buffer).at[rows, :, :, :size].set(part, mode="drop") for buffer, part in keys],
            [cleared(buffer).at[rows, :, :size].set(part, mode="drop") for buffer, part in values],
        )

    def held(self, mesh: jax.sharding.Mesh | None) -> "Slots":
        return constrain(self, mesh, "batch", "kv_heads")

    def slots(self, places: Int[Array, "B C"]) -> "Slots":
        return Slots(
            [jnp.take_along_axis(buffer, places[:, None, None], axis=3) for buffer in self.keys],
            [jnp.take_along_axis(buffer, places[:, None, :, None], axis=2) for buffer in self.values],
        )


@struct.dataclass
class Pages(Cache):
    """A pool of pages a layer, and which of them hold a row: position s lies in page table[row, s // size].

    Example, pages of 4, table row 6 2: position 5 is the second of page 2.
    """

    keys: list[Float[Array, "P page K H"]]
    values: list[Float[Array, "P page K H"]]
    table: Int[Array, "B R"]

    @property
    def page(self) -> int:
        return self.values[0].shape[1]

    @property
    def capacity(self) -> int:
        return self.table.shape[1] * self.page

    @property
    def num_kv_heads(self) -> int:
        return self.values[0].shape[2]

    def read(self, begin: int | Int[Array, ""], size: int) -> tuple[Float[Array, "B K H C"], Float[Array, "B K C H"]]:
        places = jnp.broadcast_to(begin + jnp.arange(size), (self.table.shape[0], size))
        found = self.slots(places)
        return found.keys[0], found.values[0]

    def write(self, new: Slots, at: Int[Array, " B"]) -> "Pages":
        places = at[:, None] + jnp.arange(new.capacity)
        return self._scattered(new, self.table, jnp.minimum(places, self.capacity - 1), _fits(new, at, self.capacity))

    def insert(self, new: Slots, rows: Int[Array, " R"]) -> "Pages":
        pages = self.table.at[rows].get(mode="fill", fill_value=self.values[0].shape[0])  # beyond the pool: dropped
        places = jnp.broadcast_to(jnp.arange(new.capacity), (rows.shape[0], new.capacity))
        keys, values = ([pool.at[pages].set(0, mode="drop") for pool in pools] for pools in (self.keys, self.values))
        cleared = Pages(keys, values, self.table)
        return cleared._scattered(new, pages, places, jnp.ones(rows.shape[0], bool))

    def held(self, mesh: jax.sharding.Mesh | None) -> "Pages":
        keys, values = (constrain(pools, mesh, None, None, "kv_heads") for pools in (self.keys, self.values))
        return Pages(keys, values, constrain(self.table, mesh, "batch"))

    def slots(self, places: Int[Array, "B C"]) -> Slots:
        pages = jnp.take_along_axis(self.table, places // self.page, axis=1)
        keys, values = ([pool[pages, places % self.page] for pool in pools] for pools in (self.keys, self.values))
        return Slots([part.transpose(0, 2, 3, 1) for part in keys], [part.transpose(0, 2, 1, 3) for part in values])

    def _scattered(self, new: Slots, table: Array, places: Array, fits: Array) -> "Pages":
        pages = jnp.take_along_axis(table, places // self.page, axis=1)

        def scattered(pools: list[Array], parts: list[Array], axes: Sequence[int]) -> list[Array]:
            return [
                pool.at[pages, places % self.page].set(_or_nan(part, fits, pool.dtype).transpose(axes), mode="drop")
                for pool, part in zip(pools, parts, strict=True)
            ]

        keys, values = scattered(self.keys, new.keys, (0, 3, 1, 2)), scattered(self.values, new.values, (0, 2, 1, 3))
        return dataclasses.replace(self, keys=keys, values=values)


@struct.dataclass
class Mirrored(Cache):
    """Pages, and what rows have in them once more in slots: both are written, the slots are read.

    For CPUs, where gathering what lies in pages takes several times what attention over it does. A row whose pages were
    written as `Pages` is brought over before it is read (`bring`).
    """

    pages: Pages
    near: Slots

    @property
    def capacity(self) -> int:
        return self.near.capacity

    @property
    def num_kv_heads(self) -> int:
        return self.near.num_kv_heads

    def read(self, begin: int | Int[Array, ""], size: int) -> tuple[Float[Array, "B K H C"], Float[Array, "B K C H"]]:
        return self.near.read(begin, size)

    def write(self, new: Slots, at: Int[Array, " B"]) -> "Mirrored":
        return Mirrored(self.pages.write(new, at), self.near.write(new, at))

    def insert(self, new: Slots, rows: Int[Array, " R"]) -> "Mirrored":
        return Mirrored(self.pages.insert(new, rows), self.near.insert(new, rows))

    def held(self, mesh: jax.sharding.Mesh | None) -> "Mirrored":
        return Mirrored(self.pages.held(mesh), self.near.held(mesh))

    def slots(self, places: Int[Array, "B C"]) -> Slots:
        return self.near.slots(places)

    def layer(self, index: int) -> "Mirrored":
        return Mirrored(self.pages.layer(index), self.near.layer(index))  # pyright: ignore

    def of(self, layers: Sequence[Cache]) -> "Mirrored":
        pages, near = zip(*[(layer.pages, layer.near) for layer in layers], strict=True)  # pyright: ignore
        return Mirrored(self.pages.of(pages), self.near.of(near))  # pyright: ignore

    def bring(self, row: Int[Array, ""] | int) -> "Mirrored":
        """Itself with all that is in a row's pages in its slots, zeros where it has none."""
        own = dataclasses.replace(self.pages, table=self.pages.table[row][None])
        found = own.slots(jnp.arange(self.capacity)[None])
        return Mirrored(self.pages, jax.tree.map(lambda to, part: to.at[row].set(part[0]), self.near, found))


def kept_dtype(dtype: Any, mesh: jax.sharding.Mesh | None) -> jnp.dtype:
    """The type in which what tokens in `dtype` leave is kept: on a CPU, whose XLA writes into bfloat16 by turning the
    whole buffer into float32 and back, float32, which holds it exactly."""
    return jnp.dtype(jnp.float32) if platform(mesh) == "cpu" else jnp.dtype(dtype)


def empty_slots(num_layers: int, shape: Sequence[int], dtype: jnp.dtype) -> Slots:
    """Zeroed slots; `shape` is (B, K, S, H)."""
    batch, num_kv_heads, capacity, head_dim = shape
    return Slots(
        keys=[jnp.zeros((batch, num_kv_heads, head_dim, capacity), dtype) for _ in range(num_layers)],
        values=[jnp.zeros(shape, dtype) for _ in range(num_layers)],
    )


def empty_pages(num_layers: int, shape: Sequence[int], dtype: jnp.dtype, *, page: int) -> Pages:
    """Zeroed pages of `page` positions, every row given all of its own up front; `shape` is (B, K, S, H)."""
    batch, num_kv_heads, capacity, head_dim = shape
    each = -(-capacity // page)
    pool = (batch * each, page, num_kv_heads, head_dim)
    return Pages(
        keys=[jnp.zeros(pool, dtype) for _ in range(num_layers)],
        values=[jnp.zeros(pool, dtype) for _ in range(num_layers)],
        table=jnp.arange(batch * each, dtype=jnp.int32).reshape(batch, each),
    )


def _fits(new: Slots, at: Array, capacity: int) -> Array:
    """Which rows have room for `new`."""
    assert new.capacity <= capacity, f"{new.capacity} positions into a cache of {capacity}"
    return at + new.capacity <= capacity


def _or_nan(new: Array, fits: Array, dtype: jnp.dtype) -> Array:
    return jnp.where(fits[:, None, None, None], new.astype(dtype), jnp.nan)


def _write(buffer: Array, new: Array, at: Array, fits: Array, axis: int) -> Array:
    """One buffer; `axis` is the position dimension without the batch."""

    def update(buffer: Array, new: Array, at: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, at, axis)

    new = _or_nan(new, fits, buffer.dtype)
    if buffer.shape[0] == 1:  # a plain slice update: the batched form lowers to a scatter, slower at batch 1
        return update(buffer[0], new[0], at[0])[None]
    return jax.vmap(update)(buffer, new, at)
