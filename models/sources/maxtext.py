"""A target described by a MaxText config: base.yml-style keys from a file and `key=value` settings.

Understood are the keys below and no others: one that we do not know could change what the model computes, so it is
refused by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from configs.errors import UserError
from configs.paths import at_home, read_text
from models.layers import RopeScaling
from models.target import TargetConfig

_BLOCKS = ("llama2", "qwen3")  # MaxText's name of the decoder layers of every Llama, and of the dense Qwen3
_SHAPE = {
    "vocab_size": "vocab_size",
    "base_emb_dim": "hidden_size",
    "base_num_decoder_layers": "num_layers",
    "base_num_query_heads": "num_heads",
    "base_num_kv_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "base_mlp_dim": "mlp_size",
    "max_target_length": "max_positions",
}
_DEFAULT = {  # MaxText's own, of keys whose value we compute with
    "decoder_block": "llama2",
    "normalization_layer_epsilon": 1e-5,
    "logits_via_embedding": False,
    "rope_type": "default",
    "rope_use_scale": True,
    "rope_max_timescale": 10000,
    "use_qk_norm": False,
}
_EXPECTED = {  # computed in one way only
    "mlp_activations": ["silu", "linear"],
    "rope_min_timescale": 1,
    "rope_linear_scaling_factor": 1.0,
    "attention_bias": False,
    "fused_qkv": False,
    "fused_mlp": False,
    "num_experts": 1,
    "sliding_window_size": 0,
    "attn_logits_soft_cap": 0.0,
    "final_logits_soft_cap": 0.0,
    "param_scan_axis": 1,
    "quantization": "",
    "tokenizer_type": "huggingface",
}
_WITHOUT_EFFECT = {"model_name", "run_name", "scan_layers", "enable_dropout", "dtype", "weight_dtype", "remat_policy"}
PATHS = {"load_parameters_path", "tokenizer_path"}
UNDERSTOOD = sorted({*_SHAPE, *_DEFAULT, *_EXPECTED, *_WITHOUT_EFFECT, *PATHS, "normalize_embedding_logits"})


def read_settings(path: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    """Every key of the file and of `settings`, which win.

    Raises:
      UserError: not a mapping in YAML, a key that is not understood, or one whose value we do not compute.
    """
    try:
        held = yaml.safe_load(read_text(path))
        given = {key: yaml.safe_load(value) for key, value in settings.items()}
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not a readable MaxText config ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(held, dict):
        raise UserError(f"{path}: expected a MaxText config, a mapping of keys to values, got {type(held).__name__}")
    merged = {**held, **given}
    merged |= {key: at_home(merged[key]) for key in PATHS if isinstance(merged.get(key), str)}
    unknown = sorted(set(merged) - set(UNDERSTOOD))
    if unknown:
        names, understood = ", ".join(unknown), ", ".join(UNDERSTOOD)
        raise UserError(f"{path}: MaxText keys that are not understood: {names}; understood are {understood}")
    for key, expected in _EXPECTED.items():
        if merged.get(key, expected) != expected:
            raise UserError(f"{path}: {key}={merged[key]!r} is not supported; expected {expected!r}")
    return merged


def maxtext_config(path: Path, merged: Mapping[str, Any], eos_ids: tuple[int, ...]) -> TargetConfig:
    """The architecture that the settings describe.

    Raises:
      UserError: a key is missing or has a value we do not compute.
    """
    missing = [key for key in (*_SHAPE, "load_parameters_path") if key not in merged]
    if missing:
        raise UserError(f"{path}: missing {', '.join(missing)}; put them into the file or write key=value after it")
    values = _DEFAULT | dict(merged)
    if values["decoder_block"] not in _BLOCKS:
        raise UserError(f"{path}: decoder_block {values['decoder_block']!r}; expected {' or '.join(_BLOCKS)}")
    if values["use_qk_norm"] != (values["decoder_block"] == "qwen3"):
        raise UserError(f"{path}: use_qk_norm={values['use_qk_norm']} with decoder_block {values['decoder_block']}")
    tied = values["logits_via_embedding"]
    if tied and values.get("normalize_embedding_logits", True):
        raise UserError(
            f"{path}: logits_via_embedding=true divides the logits by sqrt(base_emb_dim) unless "
            "normalize_embedding_logits=false; expected that key with it"
        )
    if values["rope_type"] not in ("default", "llama3.1"):
        raise UserError(f"{path}: rope_type {values['rope_type']!r}; expected default or llama3.1")
    scaled = values["rope_type"] == "llama3.1" and values["rope_use_scale"]
    return TargetConfig(
        name=str(merged.get("model_name", path.stem)),
        **{ours: values[theirs] for theirs, ours in _SHAPE.items()},
        rms_eps=float(values["normalization_layer_epsilon"]),
        rope_theta=float(values["rope_max_timescale"]),
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192) if scaled else None,  # the constants MaxText has in its code
        tied_head=tied,
        qkv_bias=False,
        qk_norm=values["use_qk_norm"],
        eos_ids=eos_ids,
    )
