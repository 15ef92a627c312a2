"""The EAGLE-3 drafter (arXiv 2503.01840): one decoder layer that drafts a token at a time.

What it reads at position t is a pair: the feature of t, fused from three taps of the target (`fc`), and the embedding
of the token at t + 1, which is known by the time the next one is asked for. The layer's queries, keys and values see
[normed embedding; normed hidden state]; its residual stream is the hidden state. What comes out, normed, is scored by
the drafter's own LM head over its draft vocabulary, and predicts the token at t + 2. Further drafts take that output in
place of the feature the target has not computed yet: step j of a chain from pair t stands at t + j, and sees the pairs
before t and the steps of its own chain.

Example, tokens a b c committed and features known of a b: the pairs are (a, b) and (b, c); step 0 is the last of them
and drafts d, step 1 takes step 0's output with d.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from models.attention import Drafting, attend
from models.cache import Cache, Slots
from models.layers import (
    RopeScaling,
    apply_rotary,
    full_precision,
    into_heads,
    logits,
    product,
    rms_norm,
    rope_frequencies,
    rotary,
    swiglu,
)
from models.sharding import constrain
from models.target import Target


@dataclasses.dataclass(frozen=True)
class Eagle3Config:
    """The architecture of a drafter and what it is bound to in its target."""

    identity: ClassVar = ("norm_before_fc", "norm_before_residual")  # see `train.run.identity_of`
    num_layers: ClassVar = 1

    width: int  # of the widest block: the anchor and as many drafts as training unrolled steps
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
    draft_vocab_size: int | None
    norm_before_fc: bool  # features are normed before they are fused
    norm_before_residual: bool  # the residual stream begins with the normed hidden state

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
    "q": ("embed", "kv_heads"),  # [2D, K*G*H]
    "kv": ("embed", "kv_heads"),  # [2D, K*2*H]: the key of a key/value head, its value
    "out": ("heads", "embed"),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
    "lm_head": ("head_rows", None),  # [Vd, D]
}
NORMS = ("embedding_norm", "hidden_norm", "mlp_norm", "norm")
Step = tuple[Float[Array, "B A K H"], Float[Array, "B A K H"]]  # the key and value a step of every chain left


class Eagle3Drafter(nnx.Module):
    """Parameters float32, computation in `dtype`, on `mesh` (`models.sharding`).

    Matrices lie [in, out], or all of them [out, in] where they are `turned`, to decode with (`models.layers.product`).
    """

    def __init__(
        self,
        config: Eagle3Config,
        weights: dict[str, Any],
        dtype: str = "float32",
        mesh: jax.sharding.Mesh | None = None,
        *,
        turned: bool = False,
    ):
        self.config, self.dtype, self.mesh, self.turned = config, dtype, mesh, turned
        self.input_norm = nnx.Param(weights["input_norm"]) if config.norm_before_fc else None
        for name in NORMS:
            setattr(self, name, nnx.Param(weights[name]))
        for name, axes in AXES.items():
            setattr(self, name, nnx.Param(weights[name], axes=axes))
        self.frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)

    @full_precision
    def fused(self, features: Float[Array, "B S LE"]) -> Float[Array, "B S D"]:
        """The hidden states that features stand for."""
        features = features.astype(self.dtype)
        if self.input_norm is not None:
            features = self._norm(features, "input_norm")
        return constrain(product(features, self._cast("fc"), self.mesh), self.mesh, "batch")

    @full_precision
    def context(
        self, hidden: Float[Array, "B S D"], embedded: Float[Array, "B S D"], positions: Int[Array, "B S"]
    ) -> Slots:
        """Keys and values of pairs: fused features of `positions`, embeddings of the tokens after them."""
        key, value = self._key_value(self._seen(hidden, embedded)[0], rotary(positions, self.frequencies))
        return Slots([key.transpose(0, 2, 3, 1)], [value.transpose(0, 2, 1, 3)]).held(self.mesh)

    @full_precision
    def step(
        self,
        hidden: Float[Array, "B A D"],
        embedded: Float[Array, "B A D"],
        where: Drafting,
        context: Cache,
        before: tuple[Step, ...],
    ) -> tuple[Float[Array, "B A D"], tuple[Step, ...]]:
        """The next hidden state of A chains per row, and what their steps left, this one's last.

        `where` has each chain's pair for its anchor, and is causal; `before` holds the earlier steps.
        """
        seen, residual = self._seen(hidden, embedded)
        angles = rotary(where.anchors + len(before), self.frequencies)
        query = self._into_heads(seen, "q").reshape(*seen.shape[:2], self.config.num_heads, -1)
        steps = (*before, self._key_value(seen, angles))
        keys, values = (jnp.stack(parts, axis=2) for parts in zip(*steps, strict=True))
        keys, values = (part.reshape(part.shape[0], -1, *part.shape[3:]) for part in (keys, values))
        mixed = attend(apply_rotary(query, angles), context, where, (keys, values))
        hidden = residual + product(mixed.reshape(*mixed.shape[:2], -1), self._cast("out"), self.mesh)
        normed = self._norm(hidden, "mlp_norm")
        hidden = hidden + swiglu(normed, self._cast("gate"), self._cast("up"), self._cast("down"), self.mesh)
        return constrain(hidden, self.mesh, "batch"), steps

    def scored(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b V"]:
        """Float32 logits over the draft vocabulary."""
        return logits(self._norm(hidden, "norm"), self._cast("lm_head"), self.mesh)

    def _seen(self, hidden: Array, embedded: Array) -> tuple[Array, Array]:
        """What queries, keys and values are made of [B T 2D], and the residual stream."""
        normed = self._norm(hidden, "hidden_norm")
        seen = jnp.concatenate([self._norm(embedded.astype(self.dtype), "embedding_norm"), normed], axis=-1)
        return seen, normed if self.config.norm_before_residual else hidden

    def _key_value(self, seen: Array, angles: Array) -> Step:
        kv = self._into_heads(seen, "kv")
        return apply_rotary(kv[..., 0, :], angles), kv[..., 1, :]

    def _into_heads(self, x: Array, name: str) -> Array:
        return into_heads(x, self._cast(name), self.config.num_kv_heads, self.config.head_dim, self.mesh)

    def _norm(self, x: Array, name: str) -> Array:
        return rms_norm(x, self._cast(name), self.config.rms_eps)

    def _cast(self, name: str) -> Array:
        value = getattr(self, name)[...].astype(self.dtype)
        return value.T if self.turned and name != "lm_head" else value


def turned_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """A drafter's weights with the matrices that are multiplied with lying [out, in]."""
    return {name: weight if name == "lm_head" else weight.T for name, weight in weights.items()}


def random_weights(config: Eagle3Config, rng: jax.Array) -> dict[str, Any]:
    """Fresh weights: normal(0.02) matrices, unit norms."""
    d, vocab = config.hidden_size, config.draft_vocab_size or config.vocab_size
    shapes = {
        "fc": (config.feature_size, d),
        "q": (2 * d, config.q_size),
        "kv": (2 * d, 2 * config.kv_size),
        "out": (config.q_size, d),
        "gate": (d, config.mlp_size),
        "up": (d, config.mlp_size),
        "down": (config.mlp_size, d),
        "lm_head": (vocab, d),
    }
    keys = jax.random.split(rng, len(shapes))
    matrices = {
        name: 0.02 * jax.random.normal(key, shape, jnp.float32)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    input_norm = {"input_norm": jnp.ones(config.feature_size)} if config.norm_before_fc else {}
    return matrices | {name: jnp.ones(d) for name in NORMS} | input_norm


def target_weights(config: Eagle3Config, target: Target, head: Float[Array, "V D"], rng: jax.Array) -> dict[str, Any]:
    """Weights taken from the target: its last layer, final norm and `head`; fc passes the last tap through.

    What the layer reads of embeddings is fresh.
    """
    layer = list(target.layers)[-1]

    def wide(variable: Any) -> Array:
        return jnp.asarray(variable[...], jnp.float32)

    weights, d = random_weights(config, rng), config.hidden_size
    qkv = jnp.asarray(layer.matrix("qkv"), jnp.float32).reshape(d, config.num_kv_heads, -1, config.head_dim)
    for name, part in (("q", qkv[:, :, :-2]), ("kv", qkv[:, :, -2:])):
        weights[name] = weights[name].at[d:].set(part.reshape(d, -1))
    last = jnp.eye(config.target_hidden_size, d)
    weights["fc"] = jnp.concatenate([jnp.zeros_like(last)] * (len(config.target_layer_ids) - 1) + [last])
    weights |= {name: jnp.asarray(layer.matrix(name), jnp.float32) for name in ("out", "gate", "up", "down")}
    taken = {"mlp_norm": wide(layer.mlp_norm), "hidden_norm": wide(layer.attention_norm), "norm": wide(target.norm)}
    return weights | taken | {"lm_head": jnp.asarray(head, jnp.float32)}
