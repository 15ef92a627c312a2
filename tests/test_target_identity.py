"""A target's fingerprint is what it computes: the same for the same weights under any name, type and limits, another as
soon as one weight or one field of the computation is; drafters fit by it."""

import json
import shutil
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.drafters.artifact import check_fit
from models.sources import load_target
from tests.test_sources_gguf import torch_model, write_gguf
from tests.tiny import make_artifact, make_target
from tests.tiny_run import write_target


def edit(path: Path, **changes) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def change_weights(path: Path, change) -> None:
    file = path / "model.safetensors"
    save_file({name: change(name, value) for name, value in load_file(file).items()}, file, metadata={"format": "pt"})


def fingerprint(path: Path, dtype: str = "float32") -> str:
    return load_target(str(path), dtype).fingerprint


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return write_target(tmp_path / "target")


def test_name_type_ends_and_limits_do_not_count(target: Path, tmp_path: Path):
    copy = shutil.copytree(target, tmp_path / "elsewhere")
    edit(copy, eos_token_id=[256, 258], max_position_embeddings=128, dtype="bfloat16")
    assert fingerprint(copy) == fingerprint(target) == fingerprint(target, "bfloat16")


def test_the_type_of_the_file_does_not_count(target: Path, tmp_path: Path):
    """The same numbers, once as bfloat16 and once as float32."""
    change_weights(target, lambda _, value: value.astype(ml_dtypes.bfloat16))
    copy = shutil.copytree(target, tmp_path / "float32")
    change_weights(copy, lambda _, value: value.astype(np.float32))
    assert fingerprint(copy) == fingerprint(target)


@pytest.mark.parametrize("tensor", ["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"])
def test_a_merged_adapter_is_another_target(target: Path, tmp_path: Path, tensor: str):
    """One matrix of rank one more, in a folder of the same name."""
    copy = shutil.copytree(target, tmp_path / "merged" / "target")
    update = 1e-3 * np.outer(np.arange(2), np.ones(3)).astype(np.float32)

    def merged(name: str, value: np.ndarray) -> np.ndarray:
        return value + np.pad(update, [(0, value.shape[0] - 2), (0, value.shape[1] - 3)]) if name == tensor else value

    change_weights(copy, merged)
    assert load_target(str(copy), "float32").config == load_target(str(target), "float32").config
    assert fingerprint(copy) != fingerprint(target)


def test_a_field_of_the_computation_counts(target: Path):
    before = fingerprint(target)
    edit(target, rope_theta=20000.0)
    assert fingerprint(target) != before


def test_a_file_of_another_format_is_the_same_target_until_it_is_quantised(tmp_path: Path):
    model = torch_model("llama")
    model.save_pretrained(tmp_path / "directory")
    whole = write_gguf(tmp_path / "f32.gguf", model, "llama", gguf.GGMLQuantizationType.F32)
    small = write_gguf(tmp_path / "q8.gguf", model, "llama", gguf.GGMLQuantizationType.Q8_0)
    assert fingerprint(whole) == fingerprint(tmp_path / "directory")
    assert fingerprint(small) != fingerprint(whole)


def test_drafters_fit_by_it(tmp_path: Path):
    artifact = make_artifact()
    artifact.origin["target_fingerprint"] = make_target().fingerprint
    check_fit(artifact, make_target(name="moved", max_positions=64, eos_ids=(2, 3)), tmp_path)
    with pytest.raises(ValueError, match="weights: drafter expects"):
        check_fit(artifact, make_target(seed=1), tmp_path)


def test_a_fingerprint_of_the_old_kind_is_explained(tmp_path: Path):
    artifact = make_artifact()
    artifact.origin["target_fingerprint"] = "0123456789abcdef"
    with pytest.raises(ValueError, match=r"cannot be compared; .* take wideblock\.target_fingerprint out") as caught:
        check_fit(artifact, make_target(), tmp_path)
    assert "\n" not in str(caught.value)
    artifact.origin["target_fingerprint"] = make_target(seed=1).fingerprint
    with pytest.raises(ValueError, match="weights") as caught:
        check_fit(artifact, make_target(), tmp_path)
    assert "cannot be compared" not in str(caught.value)
