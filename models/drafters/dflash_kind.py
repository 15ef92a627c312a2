"""The DFlash drafter as a kind: its network bound to a target, proposing a block in one pass."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from models.attention import Block
from models.cache import Slots, empty_slots, kept_dtype
from models.drafters import Proposal
from models.drafters.confidence import odds_of_likeliest
from models.drafters.dflash import Drafter, block_tokens
from models.drafters.mixing import PASSES
from models.drafters.tree import BRANCHES, best_tree
from models.layers import logits
from models.rows import Rows
from models.sampling import distribution, draw
from models.target import Target
from models.verify import GREEDILY, Speculation


@struct.dataclass
class DFlash:
    """A drafter's network, with the LM head rows it is read through. Its state is its keys and values of features."""

    network: Drafter
    head: Float[Array, "Vd D"]
    draft_vocab: Int[Array, " Vd"] | None  # token id of each head row; None when rows are token ids
    temperature: float | None = struct.field(pytree_node=False, default=None)  # of its confidence; None: not fitted
    final: bool = struct.field(pytree_node=False, default=False)

    @property
    def width(self) -> int:
        return self.network.config.width

    @property
    def taps(self) -> tuple[int, ...]:
        return self.network.config.target_layer_ids

    def init_state(self, batch: int, capacity: int) -> Slots:
        config = self.network.config
        shape = (batch, config.num_kv_heads, capacity, config.head_dim)
        return empty_slots(config.num_layers, shape, kept_dtype(self.network.dtype, self.network.mesh))

    def read(
        self,
        state: Slots,
        features: Float[Array, "B T LE"],
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
    ) -> Slots:
        return state.write(self.network.context(features, positions), positions[:, 0])

    def propose(
        self,
        target: Target,
        state: Slots,
        rows: Rows,
        *,
        key: Key[Array, " B"],
        width: int,
        speculation: Speculation,
    ) -> Proposal:
        hidden = self.block_hidden(target, state, rows, self.network.config.slots(width))
        tokens, q, odds, _ = self._tokens(target, rows, hidden, width, key, speculation)
        if self.network.confidence is not None:
            before = jnp.concatenate([rows.anchors[:, None], tokens[:, :-1]], axis=1)
            states = self.network.scored_states(hidden, before, target.embed(before), earlier_tokens(rows))
            odds = self.network.acceptance_odds(states, before)
        confidence = jax.nn.sigmoid(odds / (self.temperature or 1.0))
        if q is None and not speculation.sampling.greedy:
            q = jax.nn.one_hot(tokens, target.config.vocab_size)
        return Proposal(tokens, None, q, jnp.isfinite(hidden).all(axis=(1, 2)), confidence)

    def propose_tree(
        self, target: Target, state: Slots, rows: Rows, *, width: int, nodes: int, speculation: Speculation
    ) -> Proposal:
        """The likeliest continuations of the anchor (`models.drafters.tree`), at the temperature of the sampling.

        A Markov head that remembers does so along the likeliest chain, and a refiner guesses it, whatever branch a slot
        is asked about.
        """
        hidden = self.block_hidden(target, state, rows, self.network.config.slots(width))
        drafting = hidden[:, 1 - width :]
        states, memories = self._states(rows, hidden, width), jnp.zeros((*drafting.shape[:2], 0))
        if self.network.config.memory_size:
            *_, memories = self._tokens(target, rows, hidden, width, None, GREEDILY)
        temperature = speculation.sampling.temperature or 1.0

        def following(slot: Array, before: Array) -> tuple[Array, Array]:
            given = (part[:, slot][:, None] for part in (states, drafting, memories))
            scores, _ = self._slot_logits(target, before, *given)
            chances, places = jax.lax.top_k(jax.nn.log_softmax(scores / temperature), min(BRANCHES, len(self.head)))
            return chances, self._token_ids(places)

        tokens, parents = best_tree(following, rows.anchors, depth=width - 1, nodes=nodes)
        q = None if speculation.sampling.greedy else jax.nn.one_hot(tokens, target.config.vocab_size)
        return Proposal(tokens, parents, q, jnp.isfinite(hidden).all(axis=(1, 2)))

    def block_hidden(self, target: Target, state: Slots, rows: Rows, slots: int) -> Float[Array, "B W D"]:
        """The final hidden states of every row's block, the anchor's slot first."""
        block = target.embed(block_tokens(rows.anchors, slots, self.network.config.mask_token_id))
        return self.network(block[:, None], Block(rows.length[:, None] - 1), state)[:, 0]

    def _tokens(
        self,
        target: Target,
        rows: Rows,
        hidden: Float[Array, "B S D"],
        width: int,
        key: Key[Array, " B"] | None,
        speculation: Speculation,
    ) -> tuple[Int[Array, "B W1"], Float[Array, "B W1 V"] | None, Float[Array, "B W1"], Float[Array, "B W1 M"]]:
        """Slot after slot, given the token before it where the network has a head for that; q where it was drawn, the
        log-odds of each slot's likeliest token, and the head's memory before each slot. `hidden` is of all slots."""
        states = self._states(rows, hidden, width)
        leading, hidden = hidden[:, : 1 - width], hidden[:, 1 - width :]
        begun = self.network.remembered(rows.anchors, leading)
        if not (self._serial or speculation.draws):
            tokens = self._token_ids(jnp.argmax(states, axis=-1))
            return tokens, None, odds_of_likeliest(states), jnp.zeros((*tokens.shape, 0))

        def next_slot(carry: tuple[Array, Array], slot: tuple[Array, Array, Array]) -> tuple[Any, Any]:
            (before, memory), (state, seen, number) = carry, slot
            scores, after = self._slot_logits(target, before, state, seen, memory)
            odds = odds_of_likeliest(scores)
            if not speculation.draws:
                token, q = self._token_ids(jnp.argmax(scores, axis=-1)), None
            else:
                chances = distribution(scores, speculation.sampling)
                places = jax.vmap(lambda k, row: draw(jax.random.fold_in(k, number), row))(key, chances)
                token, q = self._token_ids(places), self._over_vocabulary(chances, target.config.vocab_size)
            return (token, after), (token, q, odds, memory)

        slots = (states.swapaxes(0, 1), hidden.swapaxes(0, 1), jnp.arange(width - 1))
        _, drafted = jax.lax.scan(next_slot, (rows.anchors, begun), slots)
        return jax.tree.map(lambda part: part.swapaxes(0, 1), drafted)

    @property
    def _serial(self) -> bool:
        """Whether a slot's logits wait for the token drafted before it."""
        return self.network.markov is not None or (
            self.network.markov_w2 is not None and not self.network.config.refines
        )

    def _states(self, rows: Rows, hidden: Float[Array, "B S D"], width: int) -> Float[Array, "B W1 _"]:
        """What `_slot_logits` needs of every slot that drafts: the LM head reads all of them at once, save under an MLP
        head, which changes what it reads. `hidden` is of all slots."""
        drafting = hidden[:, 1 - width :]
        if self.network.markov is not None:
            return drafting
        states = logits(drafting, self.head, self.network.mesh)
        return self._settled(rows, hidden, states) if self.network.config.refines else states

    def _settled(
        self, rows: Rows, hidden: Float[Array, "B S D"], states: Float[Array, "B W1 Vd"]
    ) -> Float[Array, "B W1 Vd"]:
        """The logits of a refiner whose guesses are followed by themselves, or were made PASSES times.

        They hang on no token that is drawn from them, so that draws of all slots are of one known distribution.
        """
        w2, earlier, seen = self.network.markov_w2, earlier_tokens(rows), self.network.seen(hidden)
        assert w2 is not None

        def guessed(scores: Array) -> Array:
            return self._token_ids(jnp.argmax(scores, axis=-1))

        def going(carry: tuple[Array, Array, Array, Array]) -> Array:
            number, _, guesses, last = carry
            return (number < PASSES) & (guesses != last).any()

        def again(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            number, _, guesses, _ = carry
            before = jnp.concatenate([rows.anchors[:, None], guesses[:, :-1]], axis=1)
            x = self.network.refined(seen, before, earlier)
            scores = states + logits(x, w2[...], self.network.mesh)
            return number + 1, scores, guessed(scores), guesses

        first = guessed(states)
        return jax.lax.while_loop(going, again, (jnp.int32(0), states, first, jnp.full_like(first, -1)))[1]

    def _slot_logits(
        self,
        target: Target,
        before: Int[Array, "*#b"],
        state: Float[Array, "*#b _"],
        hidden: Float[Array, "*#b D"],
        memory: Float[Array, "*#b M"],
    ) -> tuple[Float[Array, "*#b Vd"], Float[Array, "*#b M"]]:
        """A slot's logits given the token before it, or each of several, and what the head remembers after it; `state`
        is the slot's of `_states`."""
        if self.network.markov is not None:
            given = target.embed(before)
            corrected = self.network.corrected(jnp.broadcast_to(hidden, given.shape), given)
            return logits(corrected, self.head, self.network.mesh), memory
        if not self._serial:
            return state, memory
        assert self.network.markov_w2 is not None
        x, memory = self.network.transition(before, hidden, memory)
        return state + logits(x, self.network.markov_w2[...], self.network.mesh), memory

    def _token_ids(self, rows: Int[Array, "*b"]) -> Int[Array, "*b"]:
        return (rows if self.draft_vocab is None else self.draft_vocab[rows]).astype(jnp.int32)

    def _over_vocabulary(self, q: Float[Array, "*b Vd"], size: int) -> Float[Array, "*b V"]:
        """`q` with zeros for the tokens the draft vocabulary lacks."""
        if self.draft_vocab is None:
            return q
        return jnp.zeros((*q.shape[:-1], size)).at[..., self.draft_vocab].set(q)


def earlier_tokens(rows: Rows) -> Int[Array, " B"]:
    """The token before every row's anchor; the anchor itself where it is a row's first."""
    places = jnp.maximum(rows.length - 2, 0)[:, None]
    return jnp.take_along_axis(rows.tokens, places, axis=1)[:, 0]
