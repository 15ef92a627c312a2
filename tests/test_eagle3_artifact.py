"""An EAGLE-3 artifact has the public names and shapes, comes back as it was written, and is read in the layout of
`speculators` too; what would draft differently is refused in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.errors import UserError
from models.drafters.artifact import check_fit, read_artifact, write_artifact
from serve.inspect import inspect
from tests.tiny import make_eagle3, make_target

NAMES = {
    "fc.weight": (32, 96),
    "midlayer.input_layernorm.weight": (32,),
    "midlayer.hidden_norm.weight": (32,),
    "midlayer.post_attention_layernorm.weight": (32,),
    "midlayer.self_attn.q_proj.weight": (32, 64),
    "midlayer.self_attn.k_proj.weight": (16, 64),
    "midlayer.self_attn.v_proj.weight": (16, 64),
    "midlayer.self_attn.o_proj.weight": (32, 32),
    "midlayer.mlp.gate_proj.weight": (48, 32),
    "midlayer.mlp.up_proj.weight": (48, 32),
    "midlayer.mlp.down_proj.weight": (32, 48),
    "norm.weight": (32,),
    "lm_head.weight": (30, 32),
    "d2t": (30,),
    "t2d": (61,),
}


@pytest.mark.parametrize("norms", [{}, {"norm_before_fc": True, "norm_before_residual": True}], ids=["plain", "normed"])
def test_round_trip(tmp_path: Path, norms: dict[str, bool]):
    artifact = make_eagle3(draft_vocab_size=30, **norms)
    write_artifact(artifact, tmp_path)
    back = read_artifact(tmp_path)
    assert (back.config, back.origin, back.digest()) == (artifact.config, artifact.origin, artifact.digest())
    assert back.draft_vocab.tolist() == artifact.draft_vocab.tolist()
    check_fit(back, make_target(), tmp_path)
    assert inspect([str(tmp_path)]) == 0
    architecture = json.loads((tmp_path / "config.json").read_text())["architectures"]
    assert architecture == ["WideblockEagle3DraftModel" if norms else "LlamaForCausalLMEagle3"]


def test_public_names(tmp_path: Path):
    artifact = make_eagle3(draft_vocab_size=30)
    write_artifact(artifact, tmp_path)
    tensors, raw = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    assert {name: value.shape for name, value in tensors.items()} == NAMES
    assert (tensors["d2t"].dtype, tensors["t2d"].dtype) == (np.int64, np.bool_)
    assert np.flatnonzero(tensors["t2d"]).tolist() == artifact.draft_vocab.tolist()
    assert (tensors["d2t"] + np.arange(30)).tolist() == artifact.draft_vocab.tolist()
    key = artifact.weights["kv"].reshape(64, 2, 2, 8)[:, 1, 0]  # of the second key/value head
    assert np.array_equal(tensors["midlayer.self_attn.k_proj.weight"][8:], key.T)
    assert raw["eagle_aux_hidden_state_layer_ids"] == [1, 2, 3], "vLLM counts a layer's input"
    assert raw["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [0, 1, 2], "SGLang its output"
    assert (raw["draft_vocab_size"], raw["vocab_size"], raw["num_hidden_layers"]) == (30, 61, 1)


def rewritten(tmp_path: Path, tensors: dict[str, Any], **changes: Any) -> Path:
    """An artifact of the whole vocabulary with these tensors and fields in place of its own; None takes one out."""
    write_artifact(make_eagle3(), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps({name: value for name, value in raw.items() if value is not None}))
    held = load_file(tmp_path / "model.safetensors") | tensors
    save_file({name: value for name, value in held.items() if value is not None}, tmp_path / "model.safetensors")
    return tmp_path


def test_taps_that_are_not_named(tmp_path: Path):
    """The published ones: what goes into layers 2, n / 2 and n - 3."""
    unnamed = {"eagle_aux_hidden_state_layer_ids": None, "eagle_config": None}
    path = rewritten(tmp_path, {}, **unnamed, num_target_layers=30)
    assert read_artifact(path).config.target_layer_ids == (1, 14, 26)


def test_an_embedding_of_its_own(tmp_path: Path):
    target = make_target()
    own = np.asarray(target.embedding[...])
    check_fit(read_artifact(rewritten(tmp_path, {"embed_tokens.weight": own})), target, tmp_path)
    with pytest.raises(UserError, match="embedding: the drafter brings one of its own"):
        check_fit(read_artifact(rewritten(tmp_path, {"embed_tokens.weight": own + 1})), target, tmp_path)


REFUSED = {
    "layers": ({}, {"num_hidden_layers": 2}, "num_hidden_layers=2 is not supported; expected 1"),
    "norm": ({}, {"norm_output": True}, "norm_output=True is not supported; expected False"),
    "field": ({}, {"peculiar": 3}, "peculiar is not known"),
    "tensor": ({"midlayer.self_attn.q_norm.weight": np.ones(8, np.float32)}, {}, "unknown tensor midlayer"),
    "missing": ({"fc.weight": None}, {}, r"tensor fc.weight is missing; expected shape \[32, 96\]"),
    "vocabulary": ({}, {"draft_vocab_size": 61 - 1}, "draft_vocab_size and tensor d2t .* one without the other"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tmp_path: Path, case: str):
    tensors, fields, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as refusal:
        read_artifact(rewritten(tmp_path, tensors, **fields))
    assert "\n" not in str(refusal.value)
