"""Drafters as GGUF files of llama.cpp's architecture `dflash`, written from artifacts (read by llama.cpp's
src/models/dflash.cpp and common/speculative.cpp).

    general.architecture    "dflash"; the other keys of this file are named dflash.KEY:
    block_size              W, its anchor included; sample_from_anchor false: slot 0 drafts nothing
    target_layers           tap l as l + 1: llama.cpp counts what a layer reads, not what it writes
    attention.causal        in-block attention, of all layers alike
    attention.sliding_window, attention.sliding_window_pattern [layers]   where a layer has a window
    block_count, embedding_length, feed_forward_length, context_length, rope.freq_base and attention.{head_count,
    head_count_kv, key_length, value_length, layer_norm_rms_epsilon} as of any model there

    tokenizer.*             the target's own; tokenizer.ggml.mask_token_id is the drafter's

    fc.weight [D, L*E], enc.output_norm.weight [D] (hidden_norm), output_norm.weight [D] (norm)
    blk.<i>.{attn_q, attn_k, attn_v, attn_output, attn_q_norm, attn_k_norm, attn_norm, ffn_norm, ffn_gate, ffn_up,
    ffn_down}.weight        [out, in], split-half rotary order
    markov_w1.weight [V, R], markov_w2.weight [Vd, R]   with a Markov head (vanilla)
    d2t [Vd] int64, output.weight [Vd, D]   with a draft vocabulary: its token ids, their rows of the target's head

Embedding and head are else the target's, which llama.cpp lends the drafter. A tensor beyond these it refuses; a
confidence head stays out, which changes no draft.
"""

from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from configs.files import replacing
from models.drafters.artifact import Artifact, to_tensors
from models.drafters.dflash import DrafterConfig
from models.sources.gguf import LAYER, copy_fields, gguf_target, open_gguf
from models.target import TargetConfig

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
_ARCH, _MASK = "dflash", "tokenizer.ggml.mask_token_id"
_TOP = {
    "fc": "fc",
    "hidden_norm": "enc.output_norm",
    "norm": "output_norm",
    "markov_head.markov_w1": "markov_w1",
    "markov_head.markov_w2": "markov_w2",
}


def write_gguf(artifact: Artifact, target: Path, out: Path, dtype: str) -> None:
    """Writes `artifact` to `out` for the target in the GGUF file `target`, matrices in `dtype` (of TYPES), norms
    in float32.

    Raises:
      UserError: llama.cpp does not compute such a drafter, it is of another target, or q8_0 cannot hold its rows.
      OSError: the file cannot be written.
    """
    from gguf import GGUFWriter

    if missing := not_carried(artifact):
        raise UserError(f"{out}: a GGUF file does not carry {missing[0]}, which this drafter has; export one without")
    config, checkpoint = gguf_target(target, target.stem)
    _check_shapes(artifact.config, config, target)
    tensors = {_foreign(name): value for name, value in to_tensors(artifact).items() if "confidence" not in name}
    if artifact.draft_vocab is not None:
        head = checkpoint.read("model.embed_tokens.weight" if config.tied_head else "lm_head.weight")
        tensors |= {"d2t": artifact.draft_vocab.astype(np.int64), "output.weight": head[artifact.draft_vocab]}
    with replacing(out) as partial:
        writer = GGUFWriter(partial, _ARCH)
        copy_fields(open_gguf(target), writer, lambda name: name.startswith("tokenizer.") and name != _MASK)
        _describe(writer, artifact.config, dtype)
        for name, value in tensors.items():
            _add_tensor(writer, name, value, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def not_carried(artifact: Artifact) -> list[str]:
    """What the format does not carry of this drafter, since llama.cpp does not compute it so, in words."""
    config = artifact.config
    if not isinstance(config, DrafterConfig):
        return [f"the layers of {artifact.title}"]
    narrow = any(window and window < config.width for window in config.windows)
    parts = {
        "an MLP head (drafter.markov_size)": config.markov_size,
        "a Markov head that sees more than the token before (drafter.markov_head_type)": config.mixing_shapes,
        "drafts from the anchor's own slot (drafter.sample_from_anchor)": config.sample_from_anchor,
        "RoPE scaling": config.rope_scaling,
        "in-block attention that differs from layer to layer": len(set(config.causal)) > 1,
        "a window narrower than its bidirectional block": narrow and not any(config.causal),
    }
    return [words for words, value in parts.items() if value]


def _check_shapes(config: DrafterConfig, target: TargetConfig, path: Path) -> None:
    """Raises UserError, naming the first that differs, when the drafter was made for a target of another shape."""
    pairs = {
        "hidden size": (config.hidden_size, target.hidden_size),
        "target layers": (config.num_target_layers or target.num_layers, target.num_layers),
        "vocabulary": (config.vocab_size, target.vocab_size),
    }
    for name, (made, has) in pairs.items():
        if made != has:
            raise UserError(f"{path}: {name}: this drafter expects {made}, got {has}; pass the target it was made for")


def _foreign(name: str) -> str:
    """llama.cpp's name of an artifact's tensor."""
    module = name.removesuffix(".weight")
    if module in _TOP:
        return f"{_TOP[module]}.weight"
    _, index, part = module.split(".", 2)
    return f"blk.{index}.{LAYER[part]}.weight"


def _describe(writer: Any, config: DrafterConfig, dtype: str) -> None:
    """Adds every field but the tokenizer's."""
    from gguf import LlamaFileType

    kind = TYPES[dtype]
    writer.add_file_type(LlamaFileType[f"{'ALL' if kind == 'F32' else 'MOSTLY'}_{kind}"])
    writer.add_uint32(_MASK, config.mask_token_id)
    counts = {
        "block_size": config.width,
        "block_count": config.num_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.mlp_size,
        "context_length": config.max_positions,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    }
    for key, value in counts.items():
        writer.add_uint32(f"{_ARCH}.{key}", value)
    writer.add_float32(f"{_ARCH}.attention.layer_norm_rms_epsilon", config.rms_eps)
    writer.add_float32(f"{_ARCH}.rope.freq_base", config.rope_theta)
    writer.add_array(f"{_ARCH}.target_layers", [tap + 1 for tap in config.target_layer_ids])
    writer.add_bool(f"{_ARCH}.sample_from_anchor", False)
    writer.add_bool(f"{_ARCH}.attention.causal", all(config.causal))
    if any(config.windows):
        writer.add_uint32(f"{_ARCH}.attention.sliding_window", max(window for window in config.windows if window))
        writer.add_array(f"{_ARCH}.attention.sliding_window_pattern", [window is not None for window in config.windows])


def _add_tensor(writer: Any, name: str, value: np.ndarray, dtype: str) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import QuantError, quantize

    if value.dtype == np.int64:
        writer.add_tensor(name, value)
        return
    kind = GGMLQuantizationType[TYPES["float32" if value.ndim == 1 else dtype]]
    try:
        stored = quantize(np.ascontiguousarray(value, np.float32), kind)
    except QuantError as error:
        raise UserError(
            f"{name}: {dtype} takes rows of 32 values or a multiple, got {value.shape[1]}; use float16"
        ) from error
    writer.add_tensor(name, stored, raw_dtype=kind)
