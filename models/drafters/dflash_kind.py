"""The DFlash drafter as a kind: its network bound to a target, proposing a block in one pass."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from models.attention import Block
from models.cache import Slots, empty_slots, kept_dtype
from models.drafters import Proposal
from models.drafters.confidence import odds_of_likeliest
from models.drafters.dflash import Drafter, block_tokens
from models.drafters.tree import BRANCHES, best_tree
from models.layers import logits
from models.rows import Rows
from models.sampling import distribution, draw
from models.target import Target
from models.verify import Speculation


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
        hidden = self.block_hidden(target, state, rows, width)[:, 1:]
        tokens, q, odds = self._tokens(target, rows.anchors, hidden, key, speculation)
        if self.network.confidence is not None:
            before = jnp.concatenate([rows.anchors[:, None], tokens[:, :-1]], axis=1)
            odds = self.network.acceptance_odds(self.network.scored_states(hidden, before, target.embed(before)))
        confidence = jax.nn.sigmoid(odds / (self.temperature or 1.0))
        if q is None and not speculation.sampling.greedy:
            q = jax.nn.one_hot(tokens, target.config.vocab_size)
        return Proposal(tokens, None, q, jnp.isfinite(hidden).all(axis=(1, 2)), confidence)

    def propose_tree(
        self, target: Target, state: Slots, rows: Rows, *, width: int, nodes: int, speculation: Speculation
    ) -> Proposal:
        """The likeliest continuations of the anchor (`models.drafters.tree`), at the temperature of the sampling."""
        hidden = self.block_hidden(target, state, rows, width)[:, 1:]
        states = self._states(hidden)
        temperature = speculation.sampling.temperature or 1.0

        def following(slot: Array, before: Array) -> tuple[Array, Array]:
            scores = self._slot_logits(target, states[:, slot][:, None], before)
            chances, places = jax.lax.top_k(jax.nn.log_softmax(scores / temperature), min(BRANCHES, len(self.head)))
            return chances, self._token_ids(places)

        tokens, parents = best_tree(following, rows.anchors, depth=width - 1, nodes=nodes)
        q = None if speculation.sampling.greedy else jax.nn.one_hot(tokens, target.config.vocab_size)
        return Proposal(tokens, parents, q, jnp.isfinite(hidden).all(axis=(1, 2)))

    def block_hidden(self, target: Target, state: Slots, rows: Rows, width: int) -> Float[Array, "B W D"]:
        """The final hidden states of every row's block."""
        block = target.embed(block_tokens(rows.anchors, width, self.network.config.mask_token_id))
        return self.network(block[:, None], Block(rows.length[:, None] - 1), state)[:, 0]

    def _tokens(
        self,
        target: Target,
        anchors: Int[Array, " B"],
        hidden: Float[Array, "B W1 D"],
        key: Key[Array, " B"],
        speculation: Speculation,
    ) -> tuple[Int[Array, "B W1"], Float[Array, "B W1 V"] | None, Float[Array, "B W1"]]:
        """Slot after slot, given the token before it where the network has a head for that; q where it was drawn, and
        the log-odds of each slot's likeliest token."""
        states = self._states(hidden)
        if not (self.network.markov or self.network.markov_w2 or speculation.draws):
            tokens = self._token_ids(jnp.argmax(states, axis=-1))
            return tokens, None, odds_of_likeliest(states)

        def next_slot(before: Array, slot: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array | None, Array]]:
            state, number = slot
            scores = self._slot_logits(target, state, before)
            odds = odds_of_likeliest(scores)
            if not speculation.draws:
                token, q = self._token_ids(jnp.argmax(scores, axis=-1)), None
            else:
                chances = distribution(scores, speculation.sampling)
                places = jax.vmap(lambda k, row: draw(jax.random.fold_in(k, number), row))(key, chances)
                token, q = self._token_ids(places), self._over_vocabulary(chances, target.config.vocab_size)
            return token, (token, q, odds)

        slots = (states.swapaxes(0, 1), jnp.arange(states.shape[1]))
        _, drafted = jax.lax.scan(next_slot, anchors, slots)
        tokens, q, odds = jax.tree.map(lambda part: part.swapaxes(0, 1), drafted)
        return tokens, q, odds

    def _states(self, hidden: Float[Array, "B W1 D"]) -> Float[Array, "B W1 _"]:
        """What `_slot_logits` needs of every slot: the LM head reads all of them at once, save under an MLP head, which
        changes what it reads."""
        mesh = self.network.mesh
        return hidden if self.network.markov is not None else logits(hidden, self.head, mesh)

    def _slot_logits(
        self, target: Target, state: Float[Array, "*#b _"], before: Int[Array, "*#b"]
    ) -> Float[Array, "*#b Vd"]:
        """A slot's logits given the token before it, or each of several; `state` is the slot's of `_states`."""
        if self.network.markov is not None:
            given = target.embed(before)
            return logits(
                self.network.corrected(jnp.broadcast_to(state, given.shape), given), self.head, self.network.mesh
            )
        if self.network.markov_w2 is None:
            return state
        return state + logits(self.network.transition(before), self.network.markov_w2[...], self.network.mesh)

    def _token_ids(self, rows: Int[Array, "*b"]) -> Int[Array, "*b"]:
        return (rows if self.draft_vocab is None else self.draft_vocab[rows]).astype(jnp.int32)

    def _over_vocabulary(self, q: Float[Array, "*b Vd"], size: int) -> Float[Array, "*b V"]:
        """`q` with zeros for the tokens the draft vocabulary lacks."""
        if self.draft_vocab is None:
            return q
        return jnp.zeros((*q.shape[:-1], size)).at[..., self.draft_vocab].set(q)
