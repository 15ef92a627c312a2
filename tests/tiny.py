"""Random networks so small that a test takes a second. Not tests: what the tests of models and decoder share."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.drafters.artifact import Artifact
from models.drafters.dflash import DrafterConfig
from models.drafters.eagle3 import Eagle3Config, random_weights
from models.drafters.eagle3_artifact import Eagle3Artifact
from models.sources.layout import tensor_digest
from models.target import Target, TargetConfig, fingerprint
from models.tokenizer import Tokenizer

TARGET = TargetConfig(
    name="tiny",
    vocab_size=61,
    hidden_size=32,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=48,
    rms_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    tied_head=False,
    qkv_bias=False,
    qk_norm=False,
    max_positions=512,
    eos_ids=(2,),
)


def make_target(seed: int = 0, dtype: str = "float32", **changes: Any) -> Target:
    """A target with random weights, large enough to have opinions."""
    config = dataclasses.replace(TARGET, **changes)
    rng = np.random.default_rng(seed)
    d, q = config.hidden_size, config.num_heads * config.head_dim

    def matrix(*shape: int) -> jnp.ndarray:
        return jnp.asarray(rng.standard_normal(shape) * 0.25, dtype)

    def norm(size: int) -> jnp.ndarray:
        return jnp.asarray(1 + 0.2 * rng.standard_normal(size), dtype)

    layers = [
        {
            "attention_norm": norm(d),
            "qkv": matrix(d, config.qkv_size),
            "out": matrix(q, d),
            "mlp_norm": norm(d),
            **dict(zip(("gate", "up"), matrix(d, 2, config.mlp_size).swapaxes(0, 1), strict=True)),
            "down": matrix(config.mlp_size, d),
        }
        for _ in range(config.num_layers)
    ]
    head = {"head": matrix(config.vocab_size, d)}
    weights = {"embedding": matrix(config.vocab_size, d) * 4, "layers": layers, "norm": norm(d), **head}
    with ThreadPoolExecutor() as pool:
        leaves = jax.tree_util.tree_leaves_with_path(weights)
        digests = {jax.tree_util.keystr(path): tensor_digest(leaf, pool) for path, leaf in leaves}
    return Target(config, weights, fingerprint(config, digests))


def make_drafter_config(**changes: Any) -> DrafterConfig:
    """A drafter for `make_target`'s target."""
    config = DrafterConfig(
        width=6,
        num_layers=2,
        target_layer_ids=(0, 2),
        num_target_layers=4,
        target_hidden_size=32,
        hidden_size=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp_size=48,
        rms_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        max_positions=512,
        vocab_size=61,
        tied_head=False,
        mask_token_id=60,
        causal=(False, False),
        windows=(None, None),
        draft_vocab_size=None,
        markov_size=None,
        markov_rank=None,
    )
    layers = changes.get("num_layers", config.num_layers)
    uniform = {"causal": config.causal[:1] * layers, "windows": config.windows[:1] * layers}
    return dataclasses.replace(config, **uniform | changes)


def make_artifact(seed: int = 0, **changes: Any) -> Artifact:
    """A drafter with random weights and norms, and a draft vocabulary if its size is given."""
    config = make_drafter_config(**changes)
    rng = np.random.default_rng(100 + seed)
    d = config.hidden_size

    def matrix(*shape: int) -> jnp.ndarray:
        return jnp.asarray(rng.standard_normal(shape) * 0.25, jnp.float32)

    def norm(size: int) -> jnp.ndarray:
        return jnp.asarray(1 + 0.2 * rng.standard_normal(size), jnp.float32)

    layers = [
        {
            "attention_norm": norm(d),
            "q": matrix(d, config.q_size),
            "kv": matrix(d, 2 * config.kv_size),
            "q_norm": norm(config.head_dim),
            "k_norm": norm(config.head_dim),
            "out": matrix(config.q_size, d),
            "mlp_norm": norm(d),
            **dict(zip(("gate", "up"), matrix(d, 2, config.mlp_size).swapaxes(0, 1), strict=True)),
            "down": matrix(config.mlp_size, d),
        }
        for _ in range(config.num_layers)
    ]
    weights = {"fc": matrix(config.feature_size, d), "hidden_norm": norm(d), "layers": layers, "norm": norm(d)}
    if config.markov_size is not None:
        size = config.markov_size
        weights["markov"] = {"into": matrix(2 * d, size), "out": matrix(size, d)}
    if config.markov_rank is not None:
        sizes = {"markov_w1": config.vocab_size, "markov_w2": config.draft_vocab_size or config.vocab_size}
        weights |= {name: 4 * matrix(size, config.markov_rank) for name, size in sizes.items()}
    if shapes := config.mixing_shapes:
        weights["mixing"] = {name: matrix(*shape) for name, shape in shapes.items()}
    if config.confidence_head:
        weights["confidence"] = {"proj": matrix(d + (config.markov_rank or 0)), "bias": matrix(1)}
    vocab = None
    if config.draft_vocab_size is not None:
        vocab = np.sort(rng.permutation(config.vocab_size)[: config.draft_vocab_size]).astype(np.int32)
    return Artifact(config, weights, vocab, {"target": "tiny"})


def make_eagle3(seed: int = 0, **changes: Any) -> Eagle3Artifact:
    """An EAGLE-3 drafter for `make_target`'s target, with random weights and norms."""
    like = make_drafter_config()
    names = [field.name for field in dataclasses.fields(Eagle3Config)]
    shared = {name: getattr(like, name) for name in names if hasattr(like, name)}
    norms = {"norm_before_fc": False, "norm_before_residual": False}
    config = Eagle3Config(**shared | {"target_layer_ids": (0, 1, 2)} | norms | changes)
    rng = np.random.default_rng(200 + seed)

    def random(weight: jnp.ndarray) -> jnp.ndarray:
        centre, spread = (1, 0.2) if weight.ndim == 1 else (0, 0.25)
        return jnp.asarray(centre + spread * rng.standard_normal(weight.shape), jnp.float32)

    weights = jax.tree.map(random, random_weights(config, jax.random.key(0)))
    vocab = None
    if config.draft_vocab_size is not None:
        vocab = np.sort(rng.permutation(config.vocab_size)[: config.draft_vocab_size]).astype(np.int32)
    return Eagle3Artifact(config, weights, vocab, {"kind": "eagle3", "target": "tiny"})


class Letters(Tokenizer):
    """Token ids as pairs of digits, so that stop strings can cross token boundaries."""

    def __init__(self):
        super().__init__(None, {})

    def decode(self, ids, *, skip_special=False):
        return "".join(f"{token:02d}" for token in ids)
