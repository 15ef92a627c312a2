"""The artifact of an EAGLE-3 drafter: config.json and model.safetensors in the layout of EAGLE's authors.

    architectures ["LlamaForCausalLMEagle3"]     as published, which SGLang and vLLM load, speculators converts
    architectures ["WideblockEagle3DraftModel"]  norm_before_fc or norm_before_residual is set, which not all of them
                                                 compute; input_norm.weight [L*E] is the norm before fc
    eagle_aux_hidden_state_layer_ids             taps as vLLM counts them: tap l, what layer l gives, is input l + 1
    eagle_config.eagle_aux_hidden_state_layer_ids  the same as SGLang counts them: l
    num_target_layers, target_hidden_size, block_size (width: anchor and drafts), wideblock: as in `.artifact`

    fc.weight [D, L*E], midlayer.{input_layernorm, hidden_norm, post_attention_layernorm}.weight [D],
    midlayer.self_attn.{q,k,v}_proj.weight [heads * H, 2D], which read [embedding; hidden state], o_proj [D, N*H],
    midlayer.mlp.{gate,up,down}_proj.weight, norm.weight [D], lm_head.weight [Vd, D],
    d2t [Vd] int64 (token id less row), t2d [V] bool, where the draft vocabulary is not the whole one

Read too are those that `speculators` writes: its own config.json, layers.0 for midlayer, and an embedding, which must
be the target's own.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from configs.errors import UserError
from models.drafters.artifact import Artifact, Tensors, pop_vocabulary, read_tensors
from models.drafters.artifact_config import origin_of, rope_of, rope_scaling_of
from models.drafters.eagle3 import Eagle3Config, Eagle3Drafter, turned_weights
from models.drafters.eagle3_kind import Eagle3
from models.layers import reads_turned
from models.sharding import shard
from models.target import Target

KIND, PUBLISHED, OWN = "eagle3", "LlamaForCausalLMEagle3", "WideblockEagle3DraftModel"
ARCHITECTURES = (PUBLISHED, OWN, "Eagle3LlamaForCausalLM", "Eagle3Speculator", "Eagle3DraftModel")
WIDTH = 8  # of drafters that do not say: the published training unrolls seven steps
_TAPS = "eagle_aux_hidden_state_layer_ids"
_NORMS = {
    "embedding_norm": "midlayer.input_layernorm",
    "hidden_norm": "midlayer.hidden_norm",
    "mlp_norm": "midlayer.post_attention_layernorm",
    "norm": "norm",
}


@dataclasses.dataclass(frozen=True)
class Eagle3Artifact(Artifact):
    """An EAGLE-3 drafter on disk; `embedding` is the one it brings, if any."""

    kind: ClassVar = KIND
    title: ClassVar = "EAGLE-3"
    owns: ClassVar = "its LM head, but not its embedding"
    config_class: ClassVar = Eagle3Config
    parse: ClassVar = staticmethod(lambda raw, path: parse_config(raw, path))

    embedding: np.ndarray | None = None

    @classmethod
    def read(cls, raw: Mapping[str, Any], path: Path) -> "Eagle3Artifact":
        config, tensors = cls.parse(raw, path), read_tensors(path)
        embedding = tensors.pop("embed_tokens.weight", None)
        if config.draft_vocab_size is None and not np.any(tensors.get("d2t", 0)):
            tensors = {name: value for name, value in tensors.items() if name not in ("d2t", "t2d")}  # the whole one
        vocab = pop_vocabulary(config, tensors, path)
        return cls(config, _from_tensors(config, tensors, path), vocab, origin_of(raw, path), embedding=embedding)

    def drafter(self, dtype: str, mesh: jax.sharding.Mesh | None = None) -> Eagle3Drafter:
        weights = jax.tree.map(lambda weight: weight.astype(dtype), self.weights)
        if turned := mesh is None and reads_turned(dtype, mesh):
            weights = turned_weights(weights)
        drafter = Eagle3Drafter(self.config, weights, dtype, mesh, turned=turned)
        shard(drafter, mesh)
        return drafter

    def bound(self, target: Target) -> Eagle3:
        vocab = None if self.draft_vocab is None else jnp.asarray(self.draft_vocab, jnp.int32)
        return Eagle3(self.drafter(str(target.dtype), target.mesh), target.embedding[...], vocab)

    def described(self, dtype: str) -> dict[str, Any]:
        return config_json(self.config, self.origin, dtype)

    def tensors(self) -> dict[str, np.ndarray]:
        return _to_tensors(self.config, self.weights)

    def beyond_plain(self) -> dict[str, str]:
        words = {"norm_before_fc": "normed features", "norm_before_residual": "a normed residual stream"}
        return {name: word for name, word in words.items() if getattr(self.config, name)}

    def plain(self, where: Path) -> "Eagle3Artifact":
        if held := [f"drafter.{name} ({what})" for name, what in self.beyond_plain().items()]:
            raise UserError(
                f"{where}: --plain: the drafter was trained with {', '.join(held)}, which not all EAGLE-3 loaders "
                "compute; train without, or leave --plain out"
            )
        return self

    def misfits(self, target: Target) -> list[str]:
        if self.embedding is None or np.array_equal(
            np.asarray(self.embedding, np.float32), np.asarray(target.embedding[...], np.float32)
        ):
            return []
        return [f"embedding: the drafter brings one of its own, which is not that of {target.config.name}"]

    def traits(self) -> dict[str, Any]:
        vocab = self.config.draft_vocab_size or self.config.vocab_size
        return {"draft vocabulary": vocab, "norms": " and ".join(self.beyond_plain().values()) or "as published"}

    def details(self) -> dict[str, Any]:
        return {"draft vocabulary": self.config.draft_vocab_size or "the target's"}


def config_json(config: Eagle3Config, origin: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config.json of a drafter that comes from `origin`, its tensors being in `dtype`."""
    norms = {name: True for name in Eagle3Config.identity if getattr(config, name)}
    taps = list(config.target_layer_ids)
    return {
        "architectures": [OWN if norms else PUBLISHED],
        "model_type": "llama",
        "block_size": config.width,
        _TAPS: [tap + 1 for tap in taps],
        "eagle_config": {"use_aux_hidden_state": True, _TAPS: taps},
        **norms,
        "num_target_layers": config.num_target_layers,
        "num_hidden_layers": 1,
        "hidden_size": config.hidden_size,
        "target_hidden_size": config.target_hidden_size,
        "intermediate_size": config.mlp_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_eps,
        **rope_of(config.rope_theta, config.rope_scaling),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "max_position_embeddings": config.max_positions,
        "vocab_size": config.vocab_size,
        "draft_vocab_size": config.draft_vocab_size or config.vocab_size,
        "tie_word_embeddings": False,
        "dtype": dtype,
        "wideblock": dict(origin),
    }


def parse_config(raw: Mapping[str, Any], path: Path) -> Eagle3Config:
    """The shape a config.json describes, ours or that of `speculators`; refuses every field that we do not honour."""
    where = f"{path}/config.json"
    layer = raw.get("transformer_layer_config")
    raw = {**raw, **_LLAMA, **layer} if layer else raw
    unknown = sorted(set(raw) - _HONOURED - _WITHOUT_EFFECT - set(_ONLY))
    if unknown:
        raise UserError(
            f"{where}: {unknown[0]} is not known; this drafter may have parts we do not compute (without effect? take "
            "the field out)"
        )
    for name, allowed in _ONLY.items():
        if raw.get(name) not in (None, *allowed):
            raise UserError(f"{where}: {name}={raw[name]!r} is not supported; expected {allowed[0]!r}")
    try:
        theta, scaling = rope_scaling_of(raw, where)
        vocab, drafted = raw["vocab_size"], raw.get("draft_vocab_size")
        return Eagle3Config(
            width=raw.get("block_size") or _speculated(raw) or WIDTH,
            target_layer_ids=_taps(raw, where),
            num_target_layers=raw.get("num_target_layers"),
            target_hidden_size=raw.get("target_hidden_size") or raw["hidden_size"],
            hidden_size=raw["hidden_size"],
            num_heads=raw["num_attention_heads"],
            num_kv_heads=raw["num_key_value_heads"],
            head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
            mlp_size=raw["intermediate_size"],
            rms_eps=raw["rms_norm_eps"],
            rope_theta=theta,
            rope_scaling=scaling,
            max_positions=raw["max_position_embeddings"],
            vocab_size=vocab,
            draft_vocab_size=None if drafted in (None, vocab) else drafted,
            norm_before_fc=bool(raw.get("norm_before_fc")),
            norm_before_residual=bool(raw.get("norm_before_residual")),
        )
    except KeyError as error:
        raise UserError(f"{where}: field {error} is missing; expected an EAGLE-3 drafter config") from error


def _speculated(raw: Mapping[str, Any]) -> int | None:
    """The width `speculators` names: drafts, and the anchor."""
    methods = (raw.get("speculators_config") or {}).get("proposal_methods") or [{}]
    drafts = methods[0].get("speculative_tokens")
    return drafts and drafts + 1


def _taps(raw: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """By vLLM's count, else SGLang's, else the published default: the inputs of layers 2, n / 2 and n - 3 of n."""
    inputs, given = raw.get(_TAPS), (raw.get("eagle_config") or {}).get(_TAPS)
    if not inputs and given:
        return tuple(given)
    if not inputs:
        count = raw.get("num_target_layers")
        if count is None:
            raise UserError(f"{where}: neither {_TAPS} nor num_target_layers; add one of them")
        inputs = [2, count // 2, count - 3]
    return tuple(number - 1 for number in inputs)


_LLAMA = {  # what transformers leaves out of a layer's config, since it is its default
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "vocab_size": 32000,
}
_HONOURED = {
    *("architectures", "block_size", _TAPS, "eagle_config", "norm_before_fc", "norm_before_residual"),
    *("num_target_layers", "hidden_size", "target_hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"),
    *("max_position_embeddings", "vocab_size", "draft_vocab_size", "transformer_layer_config", "speculators_config"),
    *("speculators_model_type", "wideblock"),
}
_WITHOUT_EFFECT = {  # on what a drafter computes; its head is its own, and its embedding the target's
    *("auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "name_or_path"),
    *("attention_dropout", "initializer_range", "use_cache", "max_window_layers", "return_dict", "output_attentions"),
    *("output_hidden_states", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type"),
    *("chunk_size_feed_forward", "is_encoder_decoder", "attn_implementation", "_attn_implementation"),
    *("tie_word_embeddings", "speculators_version", "embed_requires_grad", "pretraining_tp", "target_vocab_size"),
    *("use_sliding_window", "target_model_type"),
}
_ONLY: dict[str, tuple[Any, ...]] = {  # what of these fields we compute
    "model_type": ("llama",),
    "num_hidden_layers": (1,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "bias": (False,),
    "qkv_bias": (False,),
    "hidden_act": ("silu",),
    "fc_norm": (False,),
    "norm_output": (False,),
    "sliding_window": (None,),
    "layer_types": (["full_attention"],),
}


def _to_tensors(config: Eagle3Config, weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    weights = {name: np.asarray(value) for name, value in weights.items()}
    kv = weights["kv"].reshape(-1, config.num_kv_heads, 2, config.head_dim)
    k, v = (part.reshape(len(kv), -1) for part in np.moveaxis(kv, 2, 0))
    attention = {"q": weights["q"], "k": k, "v": v, "o": weights["out"]}
    out = {"fc.weight": weights["fc"].T, "lm_head.weight": weights["lm_head"]}
    out |= {f"midlayer.self_attn.{part}_proj.weight": value.T for part, value in attention.items()}
    out |= {f"midlayer.mlp.{part}_proj.weight": weights[part].T for part in ("gate", "up", "down")}
    out |= {f"{foreign}.weight": weights[ours] for ours, foreign in _NORMS.items()}
    return out | ({"input_norm.weight": weights["input_norm"]} if config.norm_before_fc else {})


def _from_tensors(config: Eagle3Config, tensors: Mapping[str, np.ndarray], path: Path) -> dict[str, Any]:
    d, f, rows = config.hidden_size, config.mlp_size, config.draft_vocab_size or config.vocab_size
    left = Tensors({name.replace("layers.0.", "midlayer."): value for name, value in tensors.items()}, path)
    weights = {"fc": left.take("fc.weight", d, config.feature_size).T, "lm_head": left.take("lm_head.weight", rows, d)}
    weights |= {ours: left.take(f"{foreign}.weight", d) for ours, foreign in _NORMS.items()}
    if config.norm_before_fc:
        weights["input_norm"] = left.take("input_norm.weight", config.feature_size)
    sizes = {"gate": (f, d), "up": (f, d), "down": (d, f)}
    weights |= {part: left.take(f"midlayer.mlp.{part}_proj.weight", *shape).T for part, shape in sizes.items()}
    sizes = {"q": (config.q_size, 2 * d), "k": (config.kv_size, 2 * d), "v": (config.kv_size, 2 * d)}
    parts = {part: left.take(f"midlayer.self_attn.{part}_proj.weight", *shape).T for part, shape in sizes.items()}
    heads = (2 * d, config.num_kv_heads, config.head_dim)
    weights["q"] = parts["q"]
    weights["kv"] = np.stack([parts[part].reshape(heads) for part in ("k", "v")], axis=2).reshape(2 * d, -1)
    weights["out"] = left.take("midlayer.self_attn.o_proj.weight", d, config.q_size).T
    left.refuse_rest()
    return {name: jnp.asarray(value, jnp.float32) for name, value in weights.items()}
