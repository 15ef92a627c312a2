"""Rows: the sequences being written, prompts and what follows them, with all that ends them."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from models.sampling import SamplingRows


@struct.dataclass
class Rows:
    """Invariant: whatever is known of a row's positions (caches, features) is of those below length - 1; the last
    token, the anchor of what comes next, is not yet fed to the target."""

    tokens: Int[Array, "B S"]
    length: Int[Array, " B"]  # tokens committed, prompt included
    stop: Int[Array, " B"]  # length at which the row ends
    done: Bool[Array, " B"]
    fault: Int[Array, " B"]  # length at which what is not finite ended the row; less than 0: the drafter's; 0: none
    seed: Int[Array, " B"]  # names the row's random draws, so that they do not depend on its batch mates
    num_steps: Int[Array, " B"]
    runs: Int[Array, "B S"]  # tokens committed by each step
    copied: Bool[Array, "B S"]  # which steps copied
    offered: Int[Array, "B S"]  # nodes verified by each step
    sampling: SamplingRows | None = None  # how each row's tokens are drawn; None: as the steps' speculation says

    @property
    def anchors(self) -> Int[Array, " B"]:
        return jnp.take_along_axis(self.tokens, self.length[:, None] - 1, axis=1)[:, 0]


def make_rows(
    tokens: Int[Array, "B S"], length: Int[Array, " B"], stop: Int[Array, " B"], seed: Int[Array, " B"]
) -> Rows:
    """Rows that hold prompts; those with no room for an answer are done."""
    zero = jnp.zeros_like(length)
    return Rows(
        tokens=tokens,
        length=length,
        stop=stop,
        done=length >= stop,
        fault=zero,
        seed=seed,
        num_steps=zero,
        runs=jnp.zeros(tokens.shape, jnp.int32),
        copied=jnp.zeros(tokens.shape, bool),
        offered=jnp.zeros(tokens.shape, jnp.int32),
    )


def commit(rows: Rows, accepted: Int[Array, " B"], committed: Int[Array, "B W"], eos_ids: Sequence[int]) -> Rows:
    """`rows` with the first accepted + 1 tokens appended, cut after an end token and at the row's stop."""
    width = committed.shape[1]
    slots = jnp.arange(width)
    ends = is_eos(committed, eos_ids)
    before_end = jnp.cumsum(ends, axis=1) - ends == 0
    room = (rows.stop - rows.length)[:, None]
    kept = (slots <= accepted[:, None]) & before_end & (slots < room) & ~rows.done[:, None]
    run = kept.sum(axis=1).astype(jnp.int32)
    length = rows.length + run
    numbers = jnp.arange(run.shape[0])
    where = jnp.where(kept, rows.length[:, None] + slots, rows.tokens.shape[1])  # beyond the row: dropped
    return dataclasses.replace(
        rows,
        tokens=rows.tokens.at[numbers[:, None], where].set(committed, mode="drop"),
        length=length,
        done=rows.done | (length >= rows.stop) | (ends & kept).any(axis=1),
        runs=rows.runs.at[numbers, rows.num_steps].set(run, mode="drop"),
        num_steps=rows.num_steps + ~rows.done,
    )


def is_eos(tokens: Int[Array, "*b"], eos_ids: Sequence[int]) -> Bool[Array, "*b"]:
    """Which tokens end an answer."""
    return jnp.isin(tokens, jnp.asarray(eos_ids, jnp.int32))
