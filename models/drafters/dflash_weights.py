"""The weights that training of a DFlash drafter begins with: drawn, or taken from its target's own last layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from models.drafters.dflash import DrafterConfig
from models.drafters.mixing import new_mixing, silenced
from models.layers import rms_norm
from models.target import Target


def random_weights(config: DrafterConfig, rng: jax.Array) -> dict[str, Any]:
    """Fresh weights: normal(0.02) matrices, output projections scaled down by depth, unit norms."""
    d, keys = config.hidden_size, iter(jax.random.split(rng, 8 * config.num_layers + 1))

    def matrix(*shape: int, scale: float = 1.0) -> Array:
        return 0.02 * scale * jax.random.normal(next(keys), shape, jnp.float32)

    depth = (2 * config.num_layers) ** -0.5
    layers = [
        {
            "attention_norm": jnp.ones(d),
            "q": matrix(d, config.q_size),
            "kv": matrix(d, 2 * config.kv_size),
            "q_norm": jnp.ones(config.head_dim),
            "k_norm": jnp.ones(config.head_dim),
            "out": matrix(config.q_size, d, scale=depth),
            "mlp_norm": jnp.ones(d),
            "gate": matrix(d, config.mlp_size),
            "up": matrix(d, config.mlp_size),
            "down": matrix(config.mlp_size, d, scale=depth),
        }
        for _ in range(config.num_layers)
    ]
    fc = matrix(len(config.target_layer_ids) * config.target_hidden_size, d)
    return {"fc": fc, "hidden_norm": jnp.ones(d), "layers": layers, "norm": jnp.ones(d)} | head_weights(config, rng)


def head_weights(config: DrafterConfig, rng: jax.Array) -> dict[str, Any]:
    """The weights of the heads there are, which change nothing yet."""
    return markov_weights(config, rng) | confidence_weights(config)


def confidence_weights(config: DrafterConfig) -> dict[str, Any]:
    """Those of the confidence head, to which all is one; {} without one."""
    if not config.confidence_head:
        return {}
    return {"confidence": {"proj": jnp.zeros(config.hidden_size + (config.markov_rank or 0)), "bias": jnp.zeros(1)}}


def markov_weights(config: DrafterConfig, rng: jax.Array) -> dict[str, Any]:
    """The weights of the Markov or MLP head, which changes nothing yet; {} without one."""

    def matrix(*shape: int) -> Array:
        return 0.02 * jax.random.normal(jax.random.fold_in(rng, 1), shape)

    if config.markov_rank is not None:
        rows = config.draft_vocab_size or config.vocab_size
        w1 = matrix(config.vocab_size, config.markov_rank)
        weights = {"markov_w1": w1, "markov_w2": jnp.zeros((rows, config.markov_rank))}
        mixing = new_mixing(config.mixing_shapes, jax.random.fold_in(rng, 2))
        return weights | ({"mixing": mixing} if mixing else {})
    if config.markov_size is not None:
        into = matrix(2 * config.hidden_size, config.markov_size)
        return {"markov": {"into": into, "out": jnp.zeros((config.markov_size, config.hidden_size))}}
    return {}


def target_weights(
    config: DrafterConfig, target: Target, rng: jax.Array, draft_vocab: np.ndarray | None = None
) -> dict[str, Any]:
    """Weights taken from the target's own last layers; fc passes the last tap through; `rng` is the head's.

    Context skips the layers' own attention norm, so all of them and `hidden_norm` get one common scale, and what a
    layer's norm has on top of it goes into its q/k/v: context makes the keys a block token would. Targets without
    per-head q/k norms give them the root mean square their projections have.
    """
    taken = list(target.layers)[-config.num_layers :]
    scales = [jnp.asarray(layer.attention_norm[...], jnp.float32) for layer in taken]
    common = jnp.mean(jnp.stack(scales), axis=0)
    layers = [_from_target_layer(layer, common, config) for layer in taken]
    last = jnp.eye(config.target_hidden_size, config.hidden_size)
    fc = jnp.concatenate([jnp.zeros_like(last)] * (len(config.target_layer_ids) - 1) + [last])
    norm = jnp.asarray(target.norm[...], jnp.float32)
    heads = target_head_weights(config, target, rng, draft_vocab) | confidence_weights(config)
    return {"fc": fc, "hidden_norm": common, "layers": layers, "norm": norm} | heads


def target_head_weights(
    config: DrafterConfig, target: Target, rng: jax.Array, draft_vocab: np.ndarray | None
) -> dict[str, Any]:
    """`markov_weights` that know the target: W1 begins as its embedding, and W2 as its LM head where x sees hidden
    states, and so has something to say of them at once."""
    weights, rank = markov_weights(config, rng), config.markov_rank
    if rank is not None:
        weights["markov_w1"] = projected_embedding(target, rank, rng)
        if config.markov_head_type in ("rnn", "xpress"):
            weights["mixing"] = silenced(config.markov_head_type, weights["mixing"])
            weights["markov_w2"] = projected_head(target, rank, draft_vocab)
    return weights


def projected_embedding(target: Target, rank: int, rng: jax.Array) -> Float[Array, "V R"]:
    """The target's embedding, every token's of root mean square 1, under a random projection that about keeps angles
    (Johnson-Lindenstrauss): tokens that mean alike begin alike, and what one teaches W2 holds for its neighbours."""
    embedding = jnp.asarray(target.embedding[...], jnp.float32)
    d = embedding.shape[1]
    projection = jax.random.normal(jax.random.fold_in(rng, 3), (d, rank)) / d**0.5
    return rms_norm(embedding, jnp.ones(d), 1e-6) @ projection


def projected_head(target: Target, rank: int, draft_vocab: np.ndarray | None) -> Float[Array, "Vd R"]:
    """The rows of the target's LM head for a draft vocabulary, less their mean, which changes no distribution, along
    their R principal directions, so that W2 @ x is about what a change of the hidden state along these would do to the
    logits: one of its own root mean square in each, about, where x is 1."""
    head = target.head if draft_vocab is None else target.head[draft_vocab]
    head = jnp.asarray(head, jnp.float32)
    head = head - head.mean(axis=0)
    _, directions = jnp.linalg.eigh(head.T @ head)
    usual = jnp.sqrt(jnp.mean(jnp.square(jnp.asarray(target.norm[...], jnp.float32))))
    rows = usual * (head @ directions[:, -rank:])
    return jnp.pad(rows, ((0, 0), (0, rank - rows.shape[1])))


def _from_target_layer(layer: Any, common: Array, config: DrafterConfig) -> dict[str, Any]:
    def wide(variable: Any) -> Array:
        return jnp.asarray(variable[...], jnp.float32)

    def matrix(name: str) -> Array:
        return jnp.asarray(layer.matrix(name), jnp.float32)

    excess = wide(layer.attention_norm) / jnp.where(common == 0, 1.0, common)
    qkv = (excess[:, None] * matrix("qkv")).reshape(len(common), config.num_kv_heads, -1, config.head_dim)
    q, kv = qkv[:, :, :-2], qkv[:, :, -2:]

    def head_norm(norm: Any, matrix: Array) -> Array:
        size = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(common[:, None, None, None] * matrix), axis=0)))
        return jnp.full(config.head_dim, size) if norm is None else wide(norm)

    return {
        "attention_norm": common,
        "q": q.reshape(len(common), -1),
        "kv": kv.reshape(len(common), -1),
        "q_norm": head_norm(layer.q_norm, q),
        "k_norm": head_norm(layer.k_norm, kv[:, :, :1]),
        "out": matrix("out"),
        "mlp_norm": wide(layer.mlp_norm),
        "gate": matrix("gate"),
        "up": matrix("up"),
        "down": matrix("down"),
    }
