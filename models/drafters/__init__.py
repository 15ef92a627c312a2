"""Kinds of drafters, one file or folder each: the rule that proposes the tokens which the target then verifies.

A kind is a pytree, its weights among the leaves, with the methods of `Kind`. It reads the target's features of every
token that is prefilled or committed, and proposes what may follow a row's last token, the anchor. Nothing outside its
files, its objective (`train.objectives`) and its section of artifact and recipe knows one kind from another.
"""

import dataclasses
from typing import Any, Literal, Protocol

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from models.rows import Rows
from models.target import Target
from models.verify import Speculation

ABSENT = -1  # a node that is none
TREES = {7: 4, 16: 8, 32: 16, 64: 16}  # nodes of the trees a step may draft, and the width of the block they come from


@struct.dataclass
class Proposal:
    """What may follow every row's anchor, as nodes of a tree whose root is the anchor.

    Node n lies in slot n + 1 of the block that is verified, the anchor in slot 0. Example: b or c may follow the
    anchor, and d may follow b: tokens b c d, parents 0 0 1.
    """

    tokens: Int[Array, "B N"]  # ABSENT where a row has fewer nodes; nothing follows an absent one
    parents: Int[Array, "B N"] | None  # the slot each node follows, lower than its own; None: a chain, 0 1 2 ...
    q: Float[Array, "B N V"] | None  # what each node was drawn from, zero where it is absent; None when greedy
    finite: Bool[Array, " B"]  # whether the states it came from were
    confidence: Float[Array, "B N"] | None = None  # of a chain, where its drafter says it (`.confidence`)

    def padded(self, size: int) -> "Proposal":
        """The same with absent nodes after it, `size` in all."""
        more = size - self.tokens.shape[1]
        q = None if self.q is None else jnp.pad(self.q, ((0, 0), (0, more), (0, 0)))
        tokens = jnp.pad(self.tokens, ((0, 0), (0, more)), constant_values=ABSENT)
        parents = None if self.parents is None else jnp.pad(self.parents, ((0, 0), (0, more)))
        return Proposal(tokens, parents, q, self.finite)

    def branching(self) -> "Proposal":
        """The same with its parents said: a chain as a tree of one branch."""
        chain = jnp.broadcast_to(jnp.arange(self.tokens.shape[1]), self.tokens.shape)
        return self if self.parents is not None else dataclasses.replace(self, parents=chain)


@dataclasses.dataclass(frozen=True)
class Draft:
    """What a step drafts: a chain of `kind` in a block of `width`, or of such a block a tree of so many nodes
    (`models.drafters.tree`); rows whose last tokens occurred before copy instead, in a block of width `copy`
    (`models.drafters.ngram`), where that is not 0. A chain's rows may end at one of the widths `cuts`, ascending, below
    its own (`models.drafters.confidence`)."""

    kind: Literal["drafter", "ngram"]  # the trained drafter, whatever it is, or what followed the same tokens before
    width: int  # of the drafted block; 1: nothing is drafted, and the drafter's state kept up to date
    copy: int = 0
    tree: int = 0
    cuts: tuple[int, ...] = ()

    @property
    def widest(self) -> int:
        """Slots verified at most, the anchor's included."""
        return max(self.tree + 1 if self.tree else self.width, self.copy)

    @property
    def name(self) -> str:
        """What the drafts are, to show."""
        return f"tree of {self.tree}" if self.tree else self.kind


SINGLE = Draft("drafter", 1)


class Kind(Protocol):
    """What the decode loop asks of a drafter."""

    @property
    def width(self) -> int:
        """The block width it was trained for."""
        ...

    @property
    def taps(self) -> tuple[int, ...]:
        """The target's layers whose features it reads."""
        ...

    @property
    def final(self) -> bool:
        """Whether the target's normed final hidden state follows them."""
        ...

    def init_state(self, batch: int, capacity: int) -> Any:
        """What it knows of rows of which it read nothing, with room for `capacity` positions."""
        ...

    def read(
        self,
        state: Any,
        features: Float[Array, "B T LE"],
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
    ) -> Any:
        """`state` after the target read T tokens at consecutive positions; what was known of these and later ones is
        void. Positions that turn out to lie past the row's end are read again before they count."""
        ...

    def propose(
        self,
        target: Target,
        state: Any,
        rows: Rows,
        *,
        key: Key[Array, " B"],
        width: int,
        speculation: Speculation,
    ) -> Proposal:
        """A chain of up to `width` - 1 nodes after every row's anchor."""
        ...

    # A kind that can draft trees has also
    #   propose_tree(target, state, rows, *, width, nodes, speculation) -> Proposal
    # of at most `nodes` nodes, at most `width` - 1 deep, none of them drawn (each row of q is one-hot).


@struct.dataclass
class Nothing:
    """No drafter: with it, the decode loop is the plain one."""

    width: int = struct.field(pytree_node=False, default=1)
    taps: tuple[int, ...] = struct.field(pytree_node=False, default=())
    final: bool = struct.field(pytree_node=False, default=False)

    def init_state(self, batch: int, capacity: int) -> None:
        return None

    def read(self, state: None, features: Array, tokens: Array, positions: Array) -> None:
        return None

    def propose(self, *_: Any, **__: Any) -> Proposal:
        raise AssertionError("nothing drafts here: only blocks of width 1, and copies, can be asked for")
