"""The ids that end an answer are all those that a target's files name."""

import json
from pathlib import Path

import gguf
import pytest

from models.sources import load_target
from tests.test_sources_gguf import torch_model, write_gguf
from tests.tiny_run import write_target


def test_a_gguf_and_the_file_beside_it(tmp_path: Path):
    ends = {"eot": 7, "eom": 9}
    path = write_gguf(tmp_path / "m.gguf", torch_model("llama"), "llama", gguf.GGMLQuantizationType.F32, ends=ends)
    assert set(load_target(str(path), "float32").config.eos_ids) == {2, 7, 9}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 11]}))
    assert set(load_target(str(path), "float32").config.eos_ids) == {2, 7, 9, 11}


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(256, [256, 258], {256, 258}), ([256, 257], 258, {256, 257, 258}), (None, 258, {258}), (256, None, {256})],
)
def test_both_files_of_a_directory(tmp_path: Path, config, generation, expected: set[int]):
    path = write_target(tmp_path / "target")
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, "eos_token_id": config}))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert set(load_target(str(path), "float32").config.eos_ids) == expected
