"""Our layout of a target's weights: [in, out], in one where they read the same input (`models.target.AXES`).

In: a reader of tensors by their Hugging Face names ([out, in]). Out: the tree `models.target.Target` takes, every
tensor put where it belongs as soon as it is made, so that no device ever holds the whole model; and the digest of every
tensor's values, which names the weights whatever type they are computed in.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.errors import UserError
from models.sharding import sharding_of
from models.target import AXES, TargetConfig

Read = Callable[[str], Any]  # a tensor by its Hugging Face name, [out, in]
CHUNK = 1 << 22  # values hashed together


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A source's tensors, and which of them nobody asked for, by the source's own names."""

    read: Read
    unread: Callable[[], list[str]]


def target_weights(
    config: TargetConfig, checkpoint: Checkpoint, dtype: jnp.dtype, mesh: jax.sharding.Mesh | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """All weights of a target, and the digest of every tensor they were made of by its Hugging Face name.

    Raises:
      UserError: a tensor has not the shape its config says, or the source holds one that is not computed with.
    """
    with ThreadPoolExecutor() as pool:
        digests: dict[str, str] = {}

        def tensor(name: str, *shape: int) -> Any:
            value = checkpoint.read(name)
            if value.shape != shape:
                raise UserError(f"target {config.name}: {name} has shape {value.shape}; its config says {shape}")
            digests[name] = tensor_digest(value, pool)
            return value

        weights = arranged(config, tensor, dtype, mesh)
    unread = checkpoint.unread()
    if unread:
        raise UserError(
            f"target {config.name}: its checkpoint holds {unread[0]}{_more(len(unread) - 1)}, which no part of a "
            f"{_family(config)} as computed here reads; expected a checkpoint without (is it of another family, or an "
            "adapter that is not merged?)"
        )
    return weights, digests


def _more(count: int) -> str:
    return f" (and {count} more)" if count else ""


def _family(config: TargetConfig) -> str:
    return "Qwen3" if config.qk_norm else "Qwen2" if config.qkv_bias else "Llama"


def tensor_digest(value: Any, pool: Executor) -> str:
    """Names a tensor's shape and values, whatever float type they lie in and on which device."""
    flat = np.asarray(value).reshape(-1)

    def part(start: int) -> bytes:
        return hashlib.sha256(np.ascontiguousarray(flat[start : start + CHUNK], np.float32).data).digest()

    digest = hashlib.sha256(str(tuple(value.shape)).encode())
    for piece in pool.map(part, range(0, len(flat), CHUNK)):
        digest.update(piece)
    return digest.hexdigest()


def arranged(
    config: TargetConfig, tensor: Callable[..., Any], dtype: jnp.dtype, mesh: jax.sharding.Mesh | None
) -> dict[str, Any]:
    """The tree `Target` takes, of tensors read by name and expected shape."""

    def put(name: str, value: Any) -> jax.Array:
        if mesh is None:
            return jnp.asarray(value, dtype)
        where = sharding_of(value.shape, AXES.get(name, ()), mesh)
        if isinstance(value, np.ndarray):
            return jax.device_put(value.astype(dtype), where)  # from the host to its own devices
        return jax.block_until_ready(jax.device_put(jnp.asarray(value, dtype), where))

    def joined(parts: list[Any]) -> Any:
        """Parts that lie head after head, joined head by head: [K, G, H, ...] and the like on dimension 1."""
        heads = [part.reshape(config.num_kv_heads, -1, config.head_dim, *part.shape[1:]) for part in parts]
        return (np if isinstance(heads[0], np.ndarray) else jnp).concatenate(heads, axis=1)

    def layer(index: int) -> dict[str, Any]:
        base = f"model.layers.{index}"
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        parts = {"q_proj": q, "k_proj": kv, "v_proj": kv}
        qkv = joined([tensor(f"{base}.self_attn.{part}.weight", size, d) for part, size in parts.items()])
        out = {
            "attention_norm": tensor(f"{base}.input_layernorm.weight", d),
            "qkv": qkv.reshape(-1, d).T,
            "out": tensor(f"{base}.self_attn.o_proj.weight", d, q).T,
            "mlp_norm": tensor(f"{base}.post_attention_layernorm.weight", d),
            "gate": tensor(f"{base}.mlp.gate_proj.weight", config.mlp_size, d).T,
            "up": tensor(f"{base}.mlp.up_proj.weight", config.mlp_size, d).T,
            "down": tensor(f"{base}.mlp.down_proj.weight", d, config.mlp_size).T,
        }
        if config.qkv_bias:
            out["qkv_bias"] = joined([tensor(f"{base}.self_attn.{part}.bias", size) for part, size in parts.items()])
        if config.qk_norm:
            out["q_norm"] = tensor(f"{base}.self_attn.q_norm.weight", config.head_dim)
            out["k_norm"] = tensor(f"{base}.self_attn.k_norm.weight", config.head_dim)
        return {name: put(name, value) for name, value in out.items()}

    d = config.hidden_size
    weights = {
        "embedding": put("embedding", tensor("model.embed_tokens.weight", config.vocab_size, d)),
        "layers": [layer(index) for index in range(config.num_layers)],
        "norm": put("norm", tensor("model.norm.weight", d)),
    }
    if not config.tied_head:
        weights["head"] = put("head", tensor("lm_head.weight", config.vocab_size, d))
    return weights
