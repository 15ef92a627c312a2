"""llama.cpp (PyPI `xllamacpp`), given the embedded target in float32, writes what transformers' torch model wrote."""

import json

import pytest

from models.sources.gguf import embedded_file
from serve.bench_llama_cpp import llama_cpp_ms
from tests.test_embedded_target import REFERENCE

pytestmark = pytest.mark.peers


def test_same_tokens_and_its_own_times():
    rows = json.loads(REFERENCE.read_text())[:2]
    answers = {tuple(row["prompt_ids"]): row["greedy_ids"][:16] for row in rows}
    found = llama_cpp_ms(embedded_file(), [row["prompt_ids"] for row in rows], lambda ids: (answers[tuple(ids)], 7.0))
    assert found is not None
    assert found["equal_outputs"] == found["prompts"] == 2
    assert found["plain_ms_per_token"] == 7.0
    assert found["f32_ms_per_token"] > 0
    assert found["file_ms_per_token"] > 0
