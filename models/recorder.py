"""Keeping what the target's layers say of every token, while it writes: a drafter kind that drafts nothing."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from models.drafters import Proposal


@dataclasses.dataclass(frozen=True)
class Tapped:
    """Which features are kept of a token: tapped layers, the normed final state too, their type."""

    taps: tuple[int, ...]
    final: bool
    dtype: str


@struct.dataclass
class Recorder:
    """Its state is the features of all positions read so far, of `hidden_size` a layer."""

    tapped: Tapped = struct.field(pytree_node=False)
    hidden_size: int = struct.field(pytree_node=False)
    width: int = struct.field(pytree_node=False, default=1)

    @property
    def taps(self) -> tuple[int, ...]:
        return self.tapped.taps

    @property
    def final(self) -> bool:
        return self.tapped.final

    def init_state(self, batch: int, capacity: int) -> Float[Array, "B S LE"]:
        size = (len(self.taps) + self.final) * self.hidden_size
        return jnp.zeros((batch, capacity, size), self.tapped.dtype)

    def read(
        self,
        state: Float[Array, "B S LE"],
        features: Float[Array, "B T LE"],
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
    ) -> Float[Array, "B S LE"]:
        rows = jnp.arange(state.shape[0])[:, None]
        return state.at[rows, positions].set(features.astype(state.dtype), mode="drop")

    def propose(self, *_: Any, **__: Any) -> Proposal:
        raise AssertionError("a recorder drafts nothing")
