"""What is trained: a drafter, with what it borrows of the target. Whatever its kind."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from models.attention import BlockKernel, Kernel, Packed
from models.layers import Frozen
from models.target import AXES, Target, packed_features


class Trainee(nnx.Module):
    """The drafter with what it borrows from the target, frozen: embedding, LM head, the target itself when online."""

    def __init__(
        self,
        drafter: Any,  # a network, whatever its kind
        target: Target,
        draft_vocab: np.ndarray | None,
        *,
        online: bool,
        attention: Kernel = "dense",  # of the target
        blocks: BlockKernel = "dense",  # attention of the drafter's
    ):
        self.drafter = drafter
        self.attention: Kernel = attention
        self.blocks: BlockKernel = blocks
        self.target = target if online else None
        self.mesh = target.mesh
        self.embedding = Frozen(target.embedding[...], axes=AXES["embedding"])
        head, index = target.head, np.arange(target.config.vocab_size)
        if draft_vocab is not None:
            head = head[draft_vocab]
            index = np.full(target.config.vocab_size, -1)
            index[draft_vocab] = np.arange(len(draft_vocab))
        self.head = Frozen(head.astype(drafter.dtype), axes=AXES["head"])
        self.draft_index = Frozen(jnp.asarray(index, jnp.int32))  # token id -> row of head, -1 where it has none

    @property
    def width(self) -> int:
        return self.drafter.config.width


def row_features(trainee: Trainee, batch: dict[str, Array], *, final: bool) -> Float[Array, "B S LE"]:
    """A batch's features, cached or from the target's own forward; its final hidden state comes last if asked."""
    if trainee.target is None:
        return batch["features"]
    taps = trainee.drafter.config.target_layer_ids
    where = Packed(batch["positions"], batch["segments"], trainee.attention)
    return packed_features(trainee.target, batch["tokens"], where, taps=taps, final=final)
