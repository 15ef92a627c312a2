"""A GGUF file for llama.cpp holds the exported drafter: every tensor under its name there, its shape, the target's
tokenizer and head rows; what llama.cpp does not compute is refused."""

import dataclasses
from pathlib import Path

import gguf
import numpy as np
import pytest

from models.drafters.artifact import write_artifact
from models.layers import RopeScaling
from tests import test_sources_gguf
from tests.tiny import make_artifact, make_eagle3
from train.__main__ import main

FITTING = {
    "hidden_size": 64,
    "target_hidden_size": 64,
    "mlp_size": 96,
    "vocab_size": 96,
    "num_target_layers": 2,
    "target_layer_ids": (0, 1),
    "rope_theta": 5e5,
}
SCALED = RopeScaling(8.0, 1.0, 4.0, 8192)


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    model = test_sources_gguf.torch_model("llama")
    path = tmp_path_factory.mktemp("target") / "target.gguf"
    return test_sources_gguf.write_gguf(path, model, "llama", gguf.GGMLQuantizationType.F32)


def export(artifact, target: Path, folder: Path, *arguments: str) -> Path:
    write_artifact(artifact, folder / "drafter")
    out = folder / "drafter.gguf"
    call = ["export", "--drafter", str(folder / "drafter"), "--out", str(out), "--format", "gguf"]
    assert main([*call, "--target", str(target), *arguments]) == 0
    return out


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
def test_what_is_in_it(target: Path, tmp_path: Path, dtype: str):
    artifact = make_artifact(**FITTING, windows=(None, 8), draft_vocab_size=20, markov_rank=32)
    there = gguf.GGUFReader(target)
    read = gguf.GGUFReader(export(artifact, target, tmp_path, "--dtype", dtype))
    fields = {name: field.contents() for name, field in read.fields.items() if not name.startswith("GGUF.")}
    for name, field in there.fields.items():
        if name.startswith("tokenizer."):
            assert fields.pop(name) == field.contents()
    assert fields.pop("general.file_type") == {"float32": 0, "float16": 1, "bfloat16": 32, "q8_0": 7}[dtype]
    assert fields.pop("dflash.attention.layer_norm_rms_epsilon") == np.float32(1e-5)
    assert fields == {
        "general.architecture": "dflash",
        "tokenizer.ggml.mask_token_id": 60,
        "dflash.block_size": 6,
        "dflash.block_count": 2,
        "dflash.target_layers": [1, 2],
        "dflash.sample_from_anchor": False,
        "dflash.embedding_length": 64,
        "dflash.feed_forward_length": 96,
        "dflash.context_length": 512,
        "dflash.rope.freq_base": 5e5,
        "dflash.attention.causal": False,
        "dflash.attention.sliding_window": 8,
        "dflash.attention.sliding_window_pattern": [False, True],
        "dflash.attention.head_count": 4,
        "dflash.attention.head_count_kv": 2,
        "dflash.attention.key_length": 8,
        "dflash.attention.value_length": 8,
    }
    weights, vocab = artifact.weights, artifact.draft_vocab
    assert vocab is not None
    head = next(tensor.data for tensor in there.tensors if tensor.name == "output.weight")
    expected = {
        "fc.weight": weights["fc"].T,
        "enc.output_norm.weight": weights["hidden_norm"],
        "output_norm.weight": weights["norm"],
        "markov_w1.weight": weights["markov_w1"],
        "markov_w2.weight": weights["markov_w2"],
        "output.weight": np.asarray(head)[vocab],
        "d2t": vocab,
    }
    for index, layer in enumerate(weights["layers"]):
        pairs = np.asarray(layer["kv"]).reshape(64, 2, 2, 8)  # K heads of (key, value)
        parts = {
            "attn_norm": layer["attention_norm"],
            "attn_q": layer["q"].T,
            "attn_k": pairs[:, :, 0].reshape(64, 16).T,
            "attn_v": pairs[:, :, 1].reshape(64, 16).T,
            "attn_output": layer["out"].T,
            "attn_q_norm": layer["q_norm"],
            "attn_k_norm": layer["k_norm"],
            "ffn_norm": layer["mlp_norm"],
            "ffn_gate": layer["gate"].T,
            "ffn_up": layer["up"].T,
            "ffn_down": layer["down"].T,
        }
        expected |= {f"blk.{index}.{name}.weight": value for name, value in parts.items()}
    tensors = {tensor.name: tensor for tensor in read.tensors}
    assert set(tensors) == set(expected)
    assert tensors.pop("d2t").tensor_type.name == "I64"
    kinds = {"float32": ("F32", 0), "float16": ("F16", 2**-11), "bfloat16": ("BF16", 2**-8), "q8_0": ("Q8_0", 1 / 250)}
    kind, error = kinds[dtype]
    for name, tensor in tensors.items():
        assert tensor.tensor_type.name == ("F32" if "norm" in name else kind)
        value = np.asarray(expected[name])
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        limit = 0 if "norm" in name else error * np.abs(value).max()  # of a block's largest, with 8 bits
        assert found.shape == value.shape
        assert np.abs(found - value).max() <= limit, name


REFUSED = {
    "MLP head": make_artifact(**FITTING, markov_size=8),
    "sees more than the token before": make_artifact(**FITTING, markov_rank=32, markov_head_type="gated"),
    "drafts from the anchor's own slot": make_artifact(**FITTING, sample_from_anchor=True),
    "RoPE scaling": make_artifact(**FITTING, rope_scaling=SCALED),
    "in-block attention": make_artifact(**FITTING, windows=(8, None), causal=(True, False)),
    "window narrower": make_artifact(**FITTING, windows=(4, 4)),
    "layers of EAGLE-3": make_eagle3(),
    "vocabulary: this drafter expects 61, got 96": make_artifact(**FITTING | {"vocab_size": 61}),
    "target layers: this drafter expects 4, got 2": make_artifact(**FITTING | {"num_target_layers": 4}),
    "rows of 32": make_artifact(**FITTING, markov_rank=5),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refusals(target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str):
    write_artifact(REFUSED[words], tmp_path / "drafter")
    call = ["export", "--drafter", str(tmp_path / "drafter"), "--out", str(tmp_path / "out.gguf")]
    assert main([*call, "--format", "gguf", "--target", str(target), "--dtype", "q8_0"]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said
    assert not list(tmp_path.glob("*.gguf*"))


def test_refused_flags(target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_artifact(dataclasses.replace(make_artifact(**FITTING), origin={"target": "mine"}), tmp_path / "drafter")
    drafter, to = ["export", "--drafter", str(tmp_path / "drafter")], str(tmp_path / "x.gguf")
    calls = {
        "the GGUF file of mine with --target": ["--out", to, "--format", "gguf"],
        "--out NAME.gguf": ["--out", str(tmp_path / "x"), "--format", "gguf", "--target", str(target)],
        "--format gguf": ["--out", str(tmp_path / "x"), "--dtype", "q8_0"],
        "--target": ["--out", str(tmp_path / "x"), "--target", str(target)],
    }
    for words, arguments in calls.items():
        assert main([*drafter, *arguments]) == 2
        assert words in capsys.readouterr().err
