"""The embedded SmolLM2 is read exactly: its tokenizer and chat template, and greedy continuations that transformers'
torch model wrote (`tests.make_reference`)."""

import json
from pathlib import Path

import numpy as np
import pytest

from models.decode import Engine, prefill, segment
from models.drafters import Nothing
from models.sources import EMBEDDED, load_target
from models.tokenizer import Tokenizer, load_tokenizer

REFERENCE = Path(__file__).parent / "reference_smollm2.json"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(EMBEDDED)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (
            "def f(x):\n    return x**2  # 1024",
            [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 216, 907, 216, 33, 32, 34, 36],
        ),
        ("<|im_start|>user\nHi<|im_end|>", [1, 4093, 198, 26843, 2]),
    ],
)
def test_known_ids(tokenizer: Tokenizer, text: str, ids: list[int]):
    assert tokenizer.encode(text) == ids


@pytest.mark.parametrize(
    "text", ["Zürich, 17 °C — naïve café 😀", "a\tb\r\n  c", "x=3.14159;y=-2", "日本語とمرحبا", " "]
)
def test_round_trip(tokenizer: Tokenizer, text: str):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chat_template_adds_the_default_system_message(tokenizer: Tokenizer):
    ids = tokenizer.encode_chat([{"role": "user", "content": "Name three rivers."}])
    text = tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_end|>\n<|im_start|>user\nName three rivers.<|im_end|>\n<|im_start|>assistant\n")


def test_digits_stand_alone(tokenizer: Tokenizer):
    assert len(tokenizer.encode("2024")) == 4


def test_reference_continuations():
    """Four shipped prompts of 41 to 84 tokens in one batch, 48 tokens each."""
    rows = json.loads(REFERENCE.read_text())
    target, size, new = load_target(EMBEDDED, "float32"), 160, 48
    prompts = np.zeros((4, size), np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        prompt[: len(row["prompt_ids"])] = row["prompt_ids"]
    lengths = np.array([len(row["prompt_ids"]) for row in rows], np.int32)
    numbers = np.arange(4, dtype=np.int32)
    engine = Engine(target, Nothing())
    state = prefill(engine, prompts, lengths, lengths + new, numbers, capacity=256)
    tokens = np.asarray(segment(engine, state, 100).rows.tokens)
    for row, written, length in zip(rows, tokens, lengths, strict=True):
        assert len(row["greedy_ids"]) == new
        assert written[length : length + new].tolist() == row["greedy_ids"]
