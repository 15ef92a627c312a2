"""A GGUF of a Llama, Qwen2 or Qwen3, in every quantisation `gguf` writes, gives the logits that transformers' own
GGUF reader gives; what is not computed is refused."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from models.sources import load_target
from models.tokenizer import load_tokenizer
from tests.test_target_parity import SHAPE, forward

WIDE = {**SHAPE, "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32}
NAMES = {
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
LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def torch_model(family: str):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

    extra = {"rope_parameters": LLAMA31} if family == "llama31" else {}
    cls = {"llama": LlamaConfig, "llama31": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[family]
    shape = {key: value for key, value in WIDE.items() if family != "qwen2" or key != "head_dim"}
    if family == "qwen2":
        shape["num_attention_heads"], shape["num_key_value_heads"] = 2, 1
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(cls(**shape, **extra, tie_word_embeddings=False)).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (1.0 if "norm" in name else 0.0))
    return model


def write_gguf(path: Path, model, family: str, kind: gguf.GGMLQuantizationType, **changes) -> Path:
    """`model` as llama.cpp's converter lays it out: its names, a Llama's q and k rows interleaved."""
    config, arch = model.config, "llama" if family == "llama31" else family
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, changes.get("architecture", arch))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(changes.get("rope_dimensions", head_dim))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges(["t 1", "t 2"])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    for end, token in changes.get("ends", {}).items():
        {"eot": writer.add_eot_token_id, "eom": writer.add_eom_token_id}[end](token)
    for name, value in changes.get("extra", {}).items():
        writer.add_tensor(name, value)
    if changes.get("rope_freqs") is not None:
        writer.add_tensor("rope_freqs.weight", changes["rope_freqs"])
    for name, tensor in model.state_dict().items():
        value = tensor.numpy().astype(np.float32)
        module, _, suffix = name.rpartition(".")
        if module.startswith("model.layers."):
            _, _, index, part = module.split(".", 3)
            if arch == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config.num_attention_heads if "q_proj" in part else config.num_key_value_heads
                value = value.reshape(heads, 2, value.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
            target = f"blk.{index}.{NAMES[part]}.{suffix}"
        else:
            tops = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
            target = f"{tops[module]}.{suffix}"
        if value.ndim == 1:
            writer.add_tensor(target, value)
        else:
            writer.add_tensor(target, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits_of(path: Path, ids: np.ndarray) -> np.ndarray:
    target = load_target(str(path), "float32")
    hidden, _, _ = forward(target, ids, ())
    return np.asarray(target.logits(hidden))


IDS = np.random.default_rng(0).integers(0, 96, (2, 40))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantisations(tmp_path: Path, kind: str):
    """Against transformers reading the same file: same numbers out of the same blocks."""
    import torch
    from transformers import LlamaForCausalLM

    quantisation = gguf.GGMLQuantizationType[kind]
    path = write_gguf(tmp_path / "m.gguf", torch_model("llama"), "llama", quantisation)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
    assert np.abs(logits_of(path, IDS) - expected).max() <= 1e-4


@pytest.mark.parametrize("family", ["llama31", "qwen2", "qwen3"])
def test_families(tmp_path: Path, family: str):
    import torch

    from models.layers import RopeScaling, rope_frequencies

    model = torch_model(family)
    freqs = None
    if family == "llama31":
        scaled = np.array(rope_frequencies(32, 500000.0, RopeScaling(8.0, 1.0, 4.0, 8192)))
        freqs = (np.array(rope_frequencies(32, 500000.0, None)) / scaled).astype(np.float32)
    path = write_gguf(tmp_path / "m.gguf", model, family, gguf.GGMLQuantizationType.F32, rope_freqs=freqs)
    with torch.no_grad():
        expected = model(torch.tensor(IDS)).logits.numpy()
    assert np.abs(logits_of(path, IDS) - expected).max() <= 1e-4


def test_k_quant(tmp_path: Path):
    """The Python package only reads K-quants, so the blocks are bytes we choose; a weight is scale * quant - min."""
    import struct

    rows, columns = 4, 256
    block = struct.pack("<ee", 0.5, 0.25) + bytes([1] * 4 + [2] * 4 + [0x21] * 4) + bytes([0x43] * 128)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    data = np.frombuffer(block * rows, np.uint8).reshape(rows, -1)
    writer.add_tensor("a", data, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tensor,) = gguf.GGUFReader(str(tmp_path / "k.gguf")).tensors
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    assert values.shape == (rows, columns)
    assert values[0, 0] == 0.5 * 1 * 3 - 0.25 * 2
    assert values[0, 32] == 0.5 * 1 * 4 - 0.25 * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "mamba"}, "general.architecture 'mamba'; expected one of llama, qwen2, qwen3"),
        ({"rope_dimensions": 16}, r"llama\.rope\.dimension_count=16 is not supported; expected 32"),
        ({"rope_freqs": np.linspace(1, 8, 16, dtype=np.float32)}, "not the llama3 rule"),
    ],
)
def test_refused(tmp_path: Path, changes: dict, message: str):
    path = write_gguf(tmp_path / "m.gguf", torch_model("llama"), "llama", gguf.GGMLQuantizationType.F32, **changes)
    with pytest.raises(ValueError, match=message):
        load_target(str(path), "float32")


def test_a_tokenizer_that_is_not_rebuilt(tmp_path: Path):
    path = write_gguf(tmp_path / "m.gguf", torch_model("llama"), "llama", gguf.GGMLQuantizationType.F32)
    with pytest.raises(ValueError, match=r"\(llama-bpe\) is not rebuilt from the file; put the tokenizer\.json"):
        load_tokenizer(str(path))
