"""The DFlash drafter (arXiv 2602.06036): reads the target's features, fills a whole block of W tokens in one pass.

Context: `hidden_norm(fc(features))` of the positions before the anchor, read by every layer through its key and value
projections alone. Block: the anchor token and W-1 mask tokens, embedded by the target's own embedding; only they make
queries. Slot i's final hidden state, under the target's LM head, predicts the token i positions after the anchor.
The drafter owns neither embedding nor head. Where it is to `sample_from_anchor` (DSpark, arXiv 2607.05147), the slot of
the anchor drafts too: slot i predicts the token i + 1 positions after it, and a block of W-1 slots drafts what W did.

An optional head makes a block one sentence and not W-1 independent guesses. The Markov head (DSpark, arXiv 2607.05147)
adds `W2 @ x` to each slot's logits, x of size R (`markov_rank`) made of the token before it (`.mixing`). The
MLP head, `markov_size` wide, corrects the hidden state instead: drafting then reads the LM head once a slot and not
once a block.
A confidence head (DSpark) says of every slot how likely its draft is to be accepted, and changes no draft.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from models.attention import Drafting, attend
from models.cache import Cache, Slots
from models.drafters.mixing import HeadType, Mixing, mixing_shapes, refined, seen_of
from models.layers import (
    RopeScaling,
    apply_rotary,
    full_precision,
    into_heads,
    product,
    rms_norm,
    rope_frequencies,
    rotary,
    swiglu,
)
from models.sharding import constrain, gathered, looked_up


@dataclasses.dataclass(frozen=True)
class DrafterConfig:
    """The architecture of a drafter and what it is bound to in its target."""

    identity: ClassVar = (
        "causal",
        "windows",
        "mask_token_id",
        "markov_rank",
        "markov_head_type",
        "markov_size",
        "confidence_head",
        "sample_from_anchor",
    )  # see `train.run.identity_of`
    before: ClassVar = {"markov_head_type": "vanilla", "sample_from_anchor": False}  # fields that came later

    width: int  # W: the anchor and W-1 drafted tokens
    num_layers: int
    target_layer_ids: tuple[int, ...]
    num_target_layers: int | None  # None: the drafter does not say
    target_hidden_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    rms_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_positions: int
    vocab_size: int
    tied_head: bool
    mask_token_id: int
    causal: tuple[bool, ...]  # in-block attention of each layer
    windows: tuple[int | None, ...]  # how far each layer's slots look back, themselves included; None: all the way
    draft_vocab_size: int | None
    markov_size: int | None  # width of the MLP head's hidden layer; None: no such head
    markov_rank: int | None = None  # R of the Markov head; None: no such head
    markov_head_type: HeadType = "vanilla"  # what it sees (`models.drafters.mixing`)
    confidence_head: bool = False
    sample_from_anchor: bool = False  # whether the anchor's own slot drafts

    def slots(self, width: int) -> int:
        """Slots of a block that drafts `width` - 1 tokens."""
        return width - self.sample_from_anchor

    @property
    def memory_size(self) -> int:
        """Numbers that the Markov head carries from slot to slot."""
        return (self.markov_rank or 0) if self.markov_head_type == "rnn" else 0

    @property
    def refines(self) -> bool:
        """Whether the Markov head sees a whole block at once, guessed pass after pass."""
        return self.markov_rank is not None and self.markov_head_type == "xpress"

    @property
    def mixing_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of the Markov head's own mixing (`models.drafters.mixing`); {} without."""
        if self.markov_rank is None:
            return {}
        return mixing_shapes(self.markov_head_type, self.markov_rank, self.hidden_size, self.slots(self.width))

    @property
    def feature_size(self) -> int:
        """Width of the features the drafter reads: all taps side by side."""
        return len(self.target_layer_ids) * self.target_hidden_size

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


AXES: dict[str, tuple[str | None, ...]] = {  # logical axes of the weights, [in, out]; norms have none
    "fc": ("features", "embed"),
    "q": ("embed", "kv_heads"),  # [D, K*G*H]
    "kv": ("embed", "kv_heads"),  # [D, K*2*H]: the key of a key/value head, its value
    "out": ("heads", "embed"),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
    "markov.into": ("embed", "mlp"),
    "markov.out": ("mlp", "embed"),
    "markov_w1": ("vocab", "embed"),  # [V, R]: looked up by the token before a slot
    "markov_w2": ("head_rows", None),  # [Vd, R]: further columns of the LM head
}


class DrafterLayer(nnx.Module):
    """One pre-norm layer. q reads the block alone; kv reads context and block."""

    attention_norm: nnx.Param
    q_norm: nnx.Param
    k_norm: nnx.Param
    mlp_norm: nnx.Param
    q: nnx.Param
    kv: nnx.Param
    out: nnx.Param
    gate: nnx.Param
    up: nnx.Param
    down: nnx.Param

    def __init__(self, weights: dict[str, Any], *, causal: bool, window: int | None):
        self.causal, self.window = causal, window
        for name in ("attention_norm", "q_norm", "k_norm", "mlp_norm"):
            setattr(self, name, nnx.Param(weights[name]))
        for name in ("q", "kv", "out", "gate", "up", "down"):
            setattr(self, name, nnx.Param(weights[name], axes=AXES[name]))


class MLPHead(nnx.Module):
    """A two-layer correction of a slot's hidden state, given the token before the slot."""

    def __init__(self, weights: dict[str, Any]):
        self.into = nnx.Param(weights["into"], axes=AXES["markov.into"])
        self.out = nnx.Param(weights["out"], axes=AXES["markov.out"])


class ConfidenceHead(nnx.Module):
    """A slot's log-odds of acceptance, linear in its hidden state and W1[token before it]."""

    def __init__(self, weights: dict[str, Any]):
        self.proj = nnx.Param(weights["proj"])  # [D], with a Markov head [D + R]
        self.bias = nnx.Param(weights["bias"])  # [1]


class Drafter(nnx.Module):
    """Parameters float32, computation in `dtype`, on `mesh` (`models.sharding`).

    Matrices lie [in, out], or all of them [out, in] where they are `turned`, to decode with (`models.layers.product`).
    """

    def __init__(
        self,
        config: DrafterConfig,
        weights: dict[str, Any],
        dtype: str = "float32",
        mesh: jax.sharding.Mesh | None = None,
        *,
        turned: bool = False,
    ):
        self.config, self.dtype, self.mesh, self.turned = config, dtype, mesh, turned
        self.fc = nnx.Param(weights["fc"], axes=AXES["fc"])
        self.hidden_norm = nnx.Param(weights["hidden_norm"])
        kinds = zip(weights["layers"], config.causal, config.windows, strict=True)
        self.layers = nnx.List([DrafterLayer(layer, causal=causal, window=window) for layer, causal, window in kinds])
        self.norm = nnx.Param(weights["norm"])
        self.markov = MLPHead(weights["markov"]) if config.markov_size else None
        self.markov_w1, self.markov_w2 = (
            nnx.Param(weights[name], axes=AXES[name]) if config.markov_rank else None
            for name in ("markov_w1", "markov_w2")
        )
        self.mixing = Mixing(weights["mixing"]) if config.mixing_shapes else None
        self.confidence = ConfidenceHead(weights["confidence"]) if config.confidence_head else None
        self.frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)

    @full_precision
    def context(self, features: Float[Array, "B S LE"], positions: Int[Array, "B S"]) -> Slots:
        """Keys and values of context positions, for every layer."""
        fused = constrain(product(features.astype(self.dtype), self._cast(self.fc), self.mesh), self.mesh, "batch")
        fused = rms_norm(fused, self._cast(self.hidden_norm), self.config.rms_eps)
        angles = rotary(positions, self.frequencies)
        pairs = [self._key_value(layer, fused, angles) for layer in self.layers]
        keys = [key.transpose(0, 2, 3, 1) for key, _ in pairs]
        return Slots(keys, [value.transpose(0, 2, 1, 3) for _, value in pairs]).held(self.mesh)

    @full_precision
    def __call__(
        self,
        block: Float[Array, "B A W D"],
        where: Drafting,
        context: Cache,
        *,
        remat: bool = False,
    ) -> Float[Array, "B A W D"]:
        """Final hidden states (after `norm`) of A blocks per row, each at its anchor, over a shared context.

        Each layer sees as far as its own `causal` and `window` say, whatever `where` says of them.
        """
        batch, _, width, _ = block.shape
        positions = where.anchors[:, :, None] + jnp.arange(width)
        angles = rotary(positions.reshape(batch, -1), self.frequencies)
        x = constrain(block.astype(self.dtype), self.mesh, "batch")
        for index, layer in enumerate(self.layers):
            step = partial(self._layer, layer, angles=angles, context=context.layer(index), where=where)
            x = (jax.checkpoint(step) if remat else step)(x)
        return rms_norm(x, self._cast(self.norm), self.config.rms_eps)

    @full_precision
    def corrected(self, hidden: Float[Array, "*b D"], before: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        """Hidden states of slots, given the embeddings of the tokens before them.

        `hidden + norm * silu([normed hidden; normed embedding] @ into) @ out`; as it is without an MLP head.
        """
        if self.markov is None:
            return hidden
        unit, eps = jnp.ones(hidden.shape[-1], self.dtype), self.config.rms_eps
        seen = jnp.concatenate([rms_norm(hidden, unit, eps), rms_norm(before.astype(self.dtype), unit, eps)], axis=-1)
        change = product(
            jax.nn.silu(product(seen, self._cast(self.markov.into), self.mesh)), self._cast(self.markov.out), self.mesh
        )
        return hidden + self._cast(self.norm) * change

    def embedded(self, tokens: Int[Array, "*b"]) -> Float[Array, "*b R"]:
        """W1[token], the Markov head's own embedding."""
        assert self.markov_w1 is not None
        return looked_up(self.markov_w1[...], tokens, self.mesh).astype(self.dtype)

    @full_precision
    def transition(
        self, before: Int[Array, "*b"], hidden: Float[Array, "*#b D"], memory: Float[Array, "*#b M"]
    ) -> tuple[Float[Array, "*b R"], Float[Array, "*b M"]]:
        """x of a Markov head (`models.drafters.mixing`) for slots after the tokens `before`, and what it remembers."""
        e = self.embedded(before)
        hidden, memory = (jnp.broadcast_to(part, (*e.shape[:-1], part.shape[-1])) for part in (hidden, memory))
        if self.mixing is None:
            return e, memory
        gated = self.config.markov_head_type == "gated"
        seen = jnp.concatenate([hidden, e] if gated else [memory, e, hidden], axis=-1)
        mixed = product(seen, self._cast(self.mixing.proj), self.mesh) + self._cast(self.mixing.bias)
        if gated:
            return jax.nn.sigmoid(mixed) * e, memory
        gate, candidate, out = jnp.split(mixed, 3, axis=-1)
        keep = jax.nn.sigmoid(gate)
        return jnp.tanh(out), keep * memory + (1 - keep) * jnp.tanh(candidate)

    @full_precision
    def seen(self, hidden: Float[Array, "*b S D"]) -> Float[Array, "*b S R2"]:
        """What the refiner sees of all slots of blocks, whatever their tokens."""
        assert self.mixing is not None
        return seen_of(self.mixing, self._cast, hidden, self.mesh)

    @full_precision
    def refined(
        self, seen: Float[Array, "*b S R2"], before: Int[Array, "*b W1"], earlier: Int[Array, "*b"]
    ) -> Float[Array, "*b W1 R"]:
        """x of the refiner, given the tokens before the slots that draft and the one before the anchor."""
        drafted, leading = before.shape[-1], seen.shape[-2] - before.shape[-1]
        tokens = jnp.concatenate([earlier[..., None]] * leading + [before], axis=-1)
        assert self.mixing is not None
        return refined(self.mixing, self._cast, seen, self.embedded(tokens), self.mesh)[..., -drafted:, :]

    def remembered(self, anchors: Int[Array, "*b"], hidden: Float[Array, "*b S D"]) -> Float[Array, "*b M"]:
        """The Markov head's memory before the first slot that drafts: nothing, or that of the anchor's own slot.

        `hidden` is of the slots that draft nothing, one or none.
        """
        memory = jnp.zeros((*anchors.shape, self.config.memory_size), self.dtype)
        if not self.config.memory_size or not hidden.shape[-2]:
            return memory
        return self.transition(anchors, hidden[..., 0, :], memory)[1]

    def scored_states(
        self,
        hidden: Float[Array, "*b S D"],
        before: Int[Array, "*b W1"],
        embedded: Float[Array, "*b W1 D"],
        earlier: Int[Array, "*b"],
    ) -> Float[Array, "*b W1 DR"]:
        """What the W1 slots that draft are judged by: `corrected` hidden states, ending in x with a Markov head.

        Given the hidden states of all S slots of their blocks, the tokens before those that draft, the embeddings of
        these, and the tokens before the anchors.
        """
        drafted = before.shape[-1]
        leading, drafting = hidden[..., :-drafted, :], hidden[..., -drafted:, :]
        if self.markov_w1 is None:
            return self.corrected(drafting, embedded)
        if self.config.refines:
            return jnp.concatenate([drafting, self.refined(self.seen(hidden), before, earlier)], axis=-1)
        memory = self.remembered(before[..., 0], leading)
        if not self.config.memory_size:
            x, _ = self.transition(before, drafting, memory[..., None, :])
        else:

            def slot(memory: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
                x, memory = self.transition(*given, memory)
                return memory, x

            slots = jnp.moveaxis(before, -1, 0), jnp.moveaxis(drafting, -2, 0)
            x = jnp.moveaxis(jax.lax.scan(slot, memory, slots)[1], 0, -2)
        return jnp.concatenate([drafting, x], axis=-1)

    def acceptance_odds(self, states: Float[Array, "*b DR"], before: Int[Array, "*b"]) -> Float[Array, "*b"]:
        """The confidence head's log-odds, of `scored_states`, that a slot's draft is accepted if those before it are:
        w . [hidden; W1[before]] + b (DSpark, arXiv 2607.05147)."""
        assert self.confidence is not None
        seen = states[..., : self.config.hidden_size]
        if self.markov_w1 is not None:
            seen = jnp.concatenate([seen, self.embedded(before)], axis=-1)
        return seen.astype(jnp.float32) @ self.confidence.proj[...] + self.confidence.bias[0]

    def _layer(self, layer: DrafterLayer, x: Array, *, angles: Array, context: Cache, where: Drafting) -> Array:
        shape, eps = x.shape, self.config.rms_eps
        flat = x.reshape(shape[0], -1, shape[-1])
        normed = rms_norm(flat, self._cast(layer.attention_norm), eps)
        q = self._into_heads(normed, layer.q).reshape(*flat.shape[:2], self.config.num_heads, -1)
        q = apply_rotary(rms_norm(q, self._cast(layer.q_norm), eps), angles)
        k, v = self._key_value(layer, normed, angles)
        where = dataclasses.replace(where, causal=layer.causal, window=layer.window)
        mixed = attend(q, context, where, (k, v), self.mesh)
        flat = flat + product(mixed.reshape(*flat.shape[:2], -1), self._cast(layer.out), self.mesh)
        normed = rms_norm(flat, self._cast(layer.mlp_norm), eps)
        gate, up, down = self._cast(layer.gate), self._cast(layer.up), self._cast(layer.down)
        flat = flat + swiglu(normed, gate, up, down, self.mesh)
        return constrain(flat.reshape(shape), self.mesh, "batch")

    def _key_value(self, layer: DrafterLayer, x: Array, angles: Array) -> tuple[Array, Array]:
        """Rotated keys and values [B T K H] of normed inputs [B T D]."""
        kv = self._into_heads(x, layer.kv)
        k = rms_norm(kv[..., 0, :], self._cast(layer.k_norm), self.config.rms_eps)
        return apply_rotary(k, angles), kv[..., 1, :]

    def _into_heads(self, x: Array, param: nnx.Param) -> Array:
        return into_heads(x, self._cast(param), self.config.num_kv_heads, self.config.head_dim, self.mesh)

    def _cast(self, param: nnx.Param) -> Array:
        value = param[...].astype(self.dtype)
        return value.T if self.turned else gathered(value, param.get_metadata().get("axes", ()), self.mesh)


def turned_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """A drafter's weights with the matrices that are multiplied with lying [out, in]."""

    def turn(path: tuple[Any, ...], weight: Array) -> Array:
        return weight.T if path[0].key not in ("markov_w1", "markov_w2") and weight.ndim == 2 else weight

    return jax.tree_util.tree_map_with_path(turn, weights)


def block_tokens(anchors: Int[Array, "*b"], slots: int, mask_token_id: int) -> Int[Array, "*b W"]:
    """A block's input, W `slots`: the anchor token, then mask tokens."""
    masked = jnp.full((*anchors.shape, slots - 1), mask_token_id, anchors.dtype)
    return jnp.concatenate([anchors[..., None], masked], axis=-1)
