"""Targets in Hugging Face directories: config.json and safetensors, one file or sharded."""

from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from configs.paths import read_object
from models.layers import RopeScaling
from models.sources.layout import Checkpoint
from models.target import TargetConfig

FAMILIES = ("llama", "qwen2", "qwen3")
_RECOMPUTED = (".rotary_emb.inv_freq",)  # buffers that older checkpoints hold beside the config they follow from


def directory_weights(path: Path, config: TargetConfig) -> Checkpoint:
    """The tensors of a directory's safetensors files, by name.

    Raises:
      UserError: no such file, a truncated one, or an adapter beside them.
    """
    if (path / "adapter_config.json").is_file():
        raise UserError(f"{path}: holds an adapter (adapter_config.json) beside the weights; merge it or take it away")
    files, asked = _tensor_files(path), set()

    def read(name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        asked.add(name)
        if name not in files:
            raise UserError(f"{path}: no tensor {name} in its safetensors files; expected a {config.name} checkpoint")
        try:
            with safe_open(files[name], framework="flax") as handle:
                return handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{files[name]}: cannot read {name} ({error}); the file is truncated") from error

    def unread() -> list[str]:
        left = {name for name in files if name not in asked and not name.endswith(_RECOMPUTED)}
        if config.tied_head and "lm_head.weight" in left:  # some savers write the embedding twice
            head, embedding = (np.asarray(read(name)) for name in ("lm_head.weight", "model.embed_tokens.weight"))
            left -= {"lm_head.weight"} if np.array_equal(head, embedding) else set()
        return sorted(left)

    return Checkpoint(read, unread)


def _tensor_files(path: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    from safetensors import SafetensorError, safe_open

    files = {}
    shards = sorted(path.glob("*.safetensors"))
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.is_file():
        shards = [whole]
    elif index.is_file():
        shards = sorted({path / shard for shard in read_object(index)["weight_map"].values()})
    if not shards:
        raise UserError(f"{path}: no *.safetensors file; expected model.safetensors or a sharded checkpoint")
    for shard in shards:
        try:
            with safe_open(shard, framework="numpy") as handle:
                files.update(dict.fromkeys(handle.keys(), shard))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{shard}: not a whole safetensors file ({error}); copy the checkpoint again") from error
    return files


def directory_config(path: Path) -> TargetConfig:
    """The architecture of a Hugging Face directory; refuses what the forward does not compute."""
    raw = read_object(path / "config.json")
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise UserError(f"{path}/config.json: model_type {family!r}; expected one of {', '.join(FAMILIES)}")
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
            eos_ids=eos_ids(path),
        )
    except KeyError as error:
        raise UserError(f"{path}/config.json: field {error} is missing; expected a {family} config") from error


def _refuse_unsupported(raw: dict[str, Any], family: str, path: Path) -> None:
    biased = ["mlp_bias"] if family == "qwen2" else ["mlp_bias", "attention_bias"]
    for field in [*biased, "use_sliding_window", "quantization_config"]:
        if raw.get(field):
            raise UserError(f"{path}/config.json: {field}={raw[field]!r} is not supported; expected it off")
    if raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"{path}/config.json: hidden_act {raw['hidden_act']!r} is not supported; expected silu")


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    """RoPE fields in either spelling: transformers 5 `rope_parameters` or the older `rope_scaling`."""
    return raw.get("rope_parameters") or raw.get("rope_scaling") or {}


def _rope_scaling(raw: dict[str, Any], path: Path) -> RopeScaling | None:
    rope = _rope(raw)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(f"{path}/config.json: rope_type {kind!r} is not supported; expected default or llama3")
    return RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_position_embeddings=int(rope["original_max_position_embeddings"]),
    )


def eos_ids(path: Path) -> tuple[int, ...]:
    """The ids that end an answer: all that generation_config.json and config.json name."""
    return tuple(dict.fromkeys([*named_ends(path / "generation_config.json"), *named_ends(path / "config.json")]))


def named_ends(file: Path) -> list[int]:
    """The eos_token_id of a JSON file, one or several; none where there is no such file or field."""
    named = read_object(file).get("eos_token_id") if file.is_file() else None
    return named if isinstance(named, list) else [] if named is None else [named]
