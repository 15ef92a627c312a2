"""The target: a frozen decoder-only LLM (Llama, Qwen2 or Qwen3 family) with taps.

In: token ids and where they stand (`models.attention`). Out: hidden states, and the features the drafter reads. The
feature of layer l is the residual stream after layer l (0-based; `hidden_states[l + 1]` in Hugging Face terms), before
any final norm; several taps are concatenated on the last dimension in the order given.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from configs.errors import UserError
from models.attention import Chain, Packed, Where, attend
from models.cache import Cache, Slots, empty_pages, empty_slots, kept_dtype
from models.layers import (
    LEAST,
    Frozen,
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
from models.sharding import constrain, gathered, looked_up, platform


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """The architecture of a target, in our names; `sources` translates foreign ones."""

    name: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    rms_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied_head: bool
    qkv_bias: bool  # Qwen2
    qk_norm: bool  # Qwen3
    max_positions: int
    eos_ids: tuple[int, ...]

    @property
    def qkv_size(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


AXES: dict[str, tuple[str | None, ...]] = {  # logical axes of the weights, [in, out]; norms have none
    "embedding": ("vocab", "embed"),
    "head": ("head_rows", None),
    "qkv": ("embed", "kv_heads"),  # [D, K*(G+2)*H]: the G queries of a key/value head, its key, its value
    "qkv_bias": ("kv_heads", None, None),
    "out": ("heads", "embed"),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}


# Logical axes of the residual stream. The many tokens of packed rows stay with their rows and the weights come to them;
# the few of a decoding step go to the weights, which are far more: every device holds its part of all rows' states.
STATES: dict[bool, tuple[str | None, ...]] = {True: ("batch",), False: ("replica", None, "embed")}  # by: packed


MATRICES = ("qkv", "out", "gate", "up", "down")


class TargetLayer(nnx.Module):
    """One pre-norm decoder layer; weights come in as arrays (see `sources` for their names), matrices as they lie."""

    def __init__(self, weights: dict[str, Any], *, turned: bool):
        self.turned = turned
        for name in MATRICES:
            setattr(self, name, Frozen(weights[name], axes=AXES[name][::-1] if turned else AXES[name]))
        self.attention_norm = Frozen(weights["attention_norm"])
        bias = weights.get("qkv_bias")
        self.qkv_bias = None if bias is None else Frozen(bias, axes=AXES["qkv_bias"])
        self.q_norm = Frozen(weights["q_norm"]) if "q_norm" in weights else None
        self.k_norm = Frozen(weights["k_norm"]) if "k_norm" in weights else None
        self.mlp_norm = Frozen(weights["mlp_norm"])

    def matrix(self, name: str) -> Float[Array, "I O"]:
        """One of MATRICES, to be multiplied with from the left."""
        value = getattr(self, name)[...]
        return value.T if self.turned else value


class Target(nnx.Module):
    """The frozen LLM: embedding, layers, final norm, LM head ([V, D]; the embedding itself when tied).

    `fingerprint` names what it computes, see the function of that name; `mesh` says where (`models.sharding`). The
    layers' matrices lie [in, out], or [out, in] where they are `turned`.
    """

    def __init__(
        self,
        config: TargetConfig,
        weights: dict[str, Any],
        fingerprint: str,
        mesh: jax.sharding.Mesh | None = None,
        *,
        turned: bool = False,
    ):
        self.config, self.fingerprint, self.mesh = config, fingerprint, mesh
        self.embedding = Frozen(weights["embedding"], axes=AXES["embedding"])
        self.layers = nnx.List([TargetLayer(layer, turned=turned) for layer in weights["layers"]])
        self.norm = Frozen(weights["norm"])
        self.untied_head = None if config.tied_head else Frozen(weights["head"], axes=AXES["head"])
        self.frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)

    @property
    def head(self) -> Float[Array, "V D"]:
        return self.embedding[...] if self.untied_head is None else self.untied_head[...]

    @property
    def dtype(self) -> jnp.dtype:
        return self.embedding[...].dtype

    def embed(self, tokens: Int[Array, "*b"]) -> Float[Array, "*b D"]:
        return looked_up(self.embedding[...], tokens, self.mesh)

    def logits(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b V"]:
        """Float32 logits of the hidden states after the last layer."""
        return logits(self.normed(hidden), self.head, self.mesh)

    def normed(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        """The final norm: what the LM head reads."""
        return rms_norm(hidden, self.norm[...], self.config.rms_eps)

    def empty_cache(self, batch: int, capacity: int, page: int | None = None) -> Cache:
        """Room for `capacity` positions of `batch` rows: slots, or pages of `page` positions."""
        config = self.config
        shape, dtype = (batch, config.num_kv_heads, capacity, config.head_dim), kept_dtype(self.dtype, self.mesh)
        if page is None:
            return empty_slots(config.num_layers, shape, dtype).held(self.mesh)
        return empty_pages(config.num_layers, shape, dtype, page=page).held(self.mesh)

    @full_precision
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        where: Where,
        *,
        cache: Cache | None = None,
        taps: tuple[int, ...] = (),
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T LD"], Cache | None]:
        """Hidden states after the last layer (before the final norm), features of `taps`, and the updated cache.

        Without a cache the tokens are `Packed` rows. With one they are a `Chain` or `Tree`, whose keys and values are
        written at where.start..where.start + T - 1 of each row before anything is read.
        """
        count = tokens.shape[1]
        if isinstance(where, Chain):
            tokens, where = self._enough(tokens, where)
        x, tapped, angles = self.embed(tokens), {}, rotary(where.positions, self.frequencies)
        read: list[Cache] = []
        for index, layer in enumerate(self.layers):
            q, k, v = self._project(layer, x, angles, where)
            seen = Slots([k[..., :count]], [v[:, :, :count]])
            if cache is not None:
                assert not isinstance(where, Packed)
                seen = cache.layer(index).write(seen, where.start)
            read.append(seen)
            mixed = attend(q, seen, where, mesh=self.mesh)
            out, gate, up, down = (self._weight(layer, name, where) for name in ("out", "gate", "up", "down"))
            x = x + product(mixed.reshape(*x.shape[:2], -1), out, self.mesh)
            normed = rms_norm(x, layer.mlp_norm[...], self.config.rms_eps)
            x = x + swiglu(normed, gate, up, down, self.mesh)
            x = constrain(x, self.mesh, *STATES[isinstance(where, Packed)])
            tapped[index] = x
        chosen = [tapped[tap] for tap in taps]
        features = jnp.concatenate(chosen, axis=-1) if chosen else jnp.zeros((*x.shape[:2], 0), x.dtype)
        x, features = x[:, :count], features[:, :count]
        return x, features, None if cache is None else cache.of(read)

    def _enough(self, tokens: Int[Array, "B T"], where: Chain) -> tuple[Int[Array, "B T2"], Chain]:
        """Some more of the last token where a CPU computes in bfloat16 and tokens are fewer than LEAST.

        They take no more time (`models.layers.product`), and no sum over a row is then taken in another order for their
        being few: with it, a token's logits have the same bits whatever the width of the step.
        """
        more = -(-LEAST // len(tokens)) - tokens.shape[1]
        if more <= 0 or self.dtype != jnp.bfloat16 or platform(self.mesh) != "cpu":
            return tokens, where
        wider = ((0, 0), (0, more))
        return jnp.pad(tokens, wider, mode="edge"), Chain(jnp.pad(where.positions, wider, mode="edge"))

    def _weight(self, layer: TargetLayer, name: str, where: Where) -> Array:
        """A matrix as it is multiplied with: brought together for the many tokens of packed rows."""
        weight = layer.matrix(name)
        return gathered(weight, AXES[name], self.mesh) if isinstance(where, Packed) else weight

    def _project(self, layer: TargetLayer, x: Array, angles: Array, where: Where) -> tuple[Array, Array, Array]:
        """Rotated queries [B T N H], rotated keys [B K H T], values [B K T H]."""
        config = self.config
        normed = rms_norm(x, layer.attention_norm[...], config.rms_eps)
        qkv = into_heads(normed, self._weight(layer, "qkv", where), config.num_kv_heads, config.head_dim, self.mesh)
        if layer.qkv_bias is not None:
            qkv = qkv + layer.qkv_bias[...]
        q, k, v = qkv[..., :-2, :].reshape(*x.shape[:2], -1, config.head_dim), qkv[..., -2, :], qkv[..., -1, :]
        if layer.q_norm is not None and layer.k_norm is not None:
            q = rms_norm(q, layer.q_norm[...], config.rms_eps)
            k = rms_norm(k, layer.k_norm[...], config.rms_eps)
        return apply_rotary(q, angles), apply_rotary(k, angles).transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)


@partial(jax.jit, static_argnames=("taps", "final"))
def packed_features(
    target: Target, tokens: Int[Array, "B S"], where: Packed, *, taps: tuple[int, ...], final: bool = False
) -> Float[Array, "B S LE"]:
    """Features of packed rows, and the normed final hidden state after them if asked."""
    hidden, features, _ = target(tokens, where, taps=taps)
    return jnp.concatenate([features, target.normed(hidden)], axis=-1) if final else features


FINGERPRINT = "v2:"  # what a fingerprint begins with; one that does not was made of the config and the last norm alone
_NOT_COMPUTED_WITH = ("name", "max_positions", "eos_ids")


def fingerprint(config: TargetConfig, tensors: Mapping[str, str]) -> str:
    """A short name for what a target computes: its shape and all its weights, as they lie in its source.

    `tensors` are digests of the source's values by tensor name. Neither the target's name and limits nor the type it
    computes in are part of it; numbers count as float32, which they are computed with.
    """

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: rounded(item) for name, item in value.items()}
        return float(jnp.float32(value)) if isinstance(value, float) else value

    shape = {name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_COMPUTED_WITH}
    content = json.dumps([rounded(shape), dict(tensors)], sort_keys=True)
    return FINGERPRINT + hashlib.sha256(content.encode()).hexdigest()[:16]


def check_ids(ids: Sequence[int], config: TargetConfig, where: str) -> None:
    """Raises UserError for a token id outside the target's vocabulary: a gather would take another one's row."""
    if not ids or (min(ids) >= 0 and max(ids) < config.vocab_size):
        return
    place, token = next((i, token) for i, token in enumerate(ids) if not 0 <= token < config.vocab_size)
    raise UserError(
        f"{where}: token id {token} at place {place} is not in the vocabulary of {config.name}; expected 0 to "
        f"{config.vocab_size - 1}"
    )


def default_taps(num_target_layers: int, num_layers: int) -> tuple[int, ...]:
    """The DFlash tap rule: 36 target layers, 5 drafter layers -> (1, 9, 17, 25, 33)."""
    if num_layers == 1:
        return (num_target_layers // 2,)
    return tuple(round(1 + i * (num_target_layers - 4) / (num_layers - 1)) for i in range(num_layers))
