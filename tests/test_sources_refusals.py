"""A target that cannot be read or computed exactly is refused in one line naming file and field."""

import json
from pathlib import Path

import pytest

from models.sources import load_target
from models.sources.gguf import open_gguf
from models.tokenizer import load_tokenizer
from tests.tiny_run import write_target


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return write_target(tmp_path / "target")


def edit(path: Path, **changes) -> str:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, r"model_type 'mamba'; expected one of llama, qwen2, qwen3"),
        ({"attention_bias": True}, r"attention_bias=True is not supported"),
        ({"rope_scaling": {"rope_type": "yarn"}}, r"rope_type 'yarn' is not supported"),
        ({"hidden_act": "gelu"}, r"hidden_act 'gelu' is not supported"),
        ({"intermediate_size": 64}, r"has shape \(48, 32\); its config says \(64, 32\)"),
        ({"num_hidden_layers": 3}, r"no tensor model\.layers\.2\."),
    ],
)
def test_config(target: Path, changes: dict, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        load_target(edit(target, **changes), "float32")
    assert "\n" not in str(caught.value)


def test_missing_field(target: Path):
    config = json.loads((target / "config.json").read_text())
    del config["vocab_size"]
    (target / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="field 'vocab_size' is missing"):
        load_target(str(target), "float32")


def test_truncated_safetensors(target: Path):
    file = target / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        load_target(str(target), "float32")


def test_nothing_there(tmp_path: Path):
    with pytest.raises(ValueError, match="expected smollm2-135m, a Hugging Face directory"):
        load_target(str(tmp_path / "nowhere"), "float32")


def test_no_tokenizer_and_no_template(target: Path):
    (target / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(ValueError, match="no chat template"):
        load_tokenizer(str(target))
    for file in target.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="no usable tokenizer"):
        load_tokenizer(str(target))


def test_truncated_gguf(tmp_path: Path):
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + b"\x03\x00\x00\x00" + b"\xff" * 20)
    with pytest.raises(ValueError, match=r"cut\.gguf: not a whole GGUF file"):
        open_gguf(tmp_path / "cut.gguf")


def test_an_open_quote_in_the_settings(tmp_path: Path):
    with pytest.raises(ValueError, match="No closing quotation"):
        load_target(f"{tmp_path}/x.yml tokenizer_path='a b", "float32")
