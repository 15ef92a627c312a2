"""The EAGLE-3 drafter as a kind: its network bound to a target, proposing a chain step by step."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from models.attention import Block
from models.cache import Slots, empty_slots, kept_dtype
from models.drafters import Proposal
from models.drafters.eagle3 import Eagle3Drafter
from models.rows import Rows
from models.sampling import distribution, draw
from models.sharding import looked_up
from models.target import Target
from models.verify import Speculation


@struct.dataclass
class Pairs:
    """What is known of rows: keys and values of their pairs, that of (feature of t, token t + 1) at t.

    The feature of a row's last position but one waits for the anchor, which only `propose` and the next `read` know;
    since a row's length is not known when its features are read, all of them are kept.
    """

    cache: Slots
    fused: Float[Array, "B S D"]


@struct.dataclass
class Eagle3:
    """A drafter's network, with the target's embedding."""

    network: Eagle3Drafter
    embedding: Float[Array, "V D"]
    draft_vocab: Int[Array, " Vd"] | None  # token id of each head row; None when rows are token ids
    final: bool = struct.field(pytree_node=False, default=False)

    @property
    def width(self) -> int:
        return self.network.config.width

    @property
    def taps(self) -> tuple[int, ...]:
        return self.network.config.target_layer_ids

    def init_state(self, batch: int, capacity: int) -> Pairs:
        config, dtype = self.network.config, jnp.dtype(self.network.dtype)
        shape = (batch, config.num_kv_heads, capacity, config.head_dim)
        cache = empty_slots(1, shape, kept_dtype(dtype, self.network.mesh))
        return Pairs(cache, jnp.zeros((batch, capacity, config.hidden_size), dtype))

    def read(
        self,
        state: Pairs,
        features: Float[Array, "B T LE"],
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
    ) -> Pairs:
        """The pair of the position before the first is complete now, that of the last is not yet.

        A text's first token completes none: what is written for it at 0 is covered by the pair that follows.
        """
        start = positions[:, 0]
        at = jnp.maximum(start - 1, 0)
        fused = self.network.fused(features)
        waited = jnp.take_along_axis(state.fused, at[:, None, None], axis=1)
        hidden = jnp.concatenate([waited, fused[:, :-1]], axis=1)
        new = self.network.context(hidden, self._embed(tokens), positions - 1)
        cache = state.cache.write(_part(new, 0, 1), at)
        if tokens.shape[1] > 1:
            cache = cache.write(_part(new, 1, tokens.shape[1]), start)
        write = jax.vmap(lambda buffer, part, at: jax.lax.dynamic_update_slice_in_dim(buffer, part, at, 0))
        return Pairs(cache, write(state.fused, fused, start))

    def propose(
        self,
        target: Target,
        state: Pairs,
        rows: Rows,
        *,
        key: Key[Array, " B"],
        width: int,
        speculation: Speculation,
    ) -> Proposal:
        where = Block(rows.length[:, None] - 2, causal=True)
        hidden = jnp.take_along_axis(state.fused, jnp.maximum(where.anchors, 0)[..., None], axis=1)
        token, steps, tokens, chances = rows.anchors, (), [], []
        for number in range(width - 1):
            hidden, steps = self.network.step(hidden, self._embed(token)[:, None], where, state.cache, steps)
            token, q = self._drafted(self.network.scored(hidden[:, 0]), key, number, speculation)
            tokens.append(token)
            chances.append(q)
        q = None if speculation.sampling.greedy else jnp.stack(chances, axis=1)
        return Proposal(jnp.stack(tokens, axis=1), None, q, jnp.isfinite(hidden).all(axis=(1, 2)))

    def _drafted(
        self, scores: Float[Array, "B Vd"], key: Key[Array, " B"], number: int, speculation: Speculation
    ) -> tuple[Int[Array, " B"], Float[Array, "B V"] | None]:
        """The token of one step, and what it was drawn from, over the target's vocabulary."""
        if speculation.sampling.greedy:
            return self._token_ids(jnp.argmax(scores, axis=-1)), None
        if not speculation.draws:
            tokens = self._token_ids(jnp.argmax(scores, axis=-1))
            return tokens, jax.nn.one_hot(tokens, len(self.embedding))
        q = distribution(scores, speculation.sampling)
        drawn = jax.vmap(lambda key, row: draw(jax.random.fold_in(key, number), row))(key, q)
        if self.draft_vocab is not None:
            q = jnp.zeros((len(q), len(self.embedding))).at[:, self.draft_vocab].set(q)
        return self._token_ids(drawn), q

    def _token_ids(self, rows: Int[Array, " B"]) -> Int[Array, " B"]:
        return (rows if self.draft_vocab is None else self.draft_vocab[rows]).astype(jnp.int32)

    def _embed(self, tokens: Int[Array, "*b"]) -> Float[Array, "*b D"]:
        return looked_up(self.embedding, tokens, self.network.mesh)


def _part(new: Slots, begin: int, end: int) -> Slots:
    """The positions begin..end-1 of it."""
    return Slots([key[..., begin:end] for key in new.keys], [value[:, :, begin:end] for value in new.values])
