"""The token that stands for "not yet drafted" is one that no chat of the target contains."""

import dataclasses
from pathlib import Path

import pytest

from models.sources import EMBEDDED
from models.target import TargetConfig
from models.tokenizer import load_tokenizer
from tests.tiny import TARGET
from tests.tiny_run import write_target, write_tokenizer

QWEN2 = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINKING = ("<tool_call>", "</tool_call>", "<think>", "</think>")  # not special, as in Qwen3's tokenizer
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
BY_ROLE = "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}<|im_end|>{% endfor %}"
NAMED = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def config(rows: int, *eos_ids: int) -> TargetConfig:
    return dataclasses.replace(TARGET, vocab_size=rows, eos_ids=eos_ids or (258,))


def found(path: Path, rows: int, *eos_ids: int, special=QWEN2, template: str = CHATML, added=(), **named: str) -> int:
    write_target(path)
    write_tokenizer(path, special, template, added=added, **NAMED, **named)
    return load_tokenizer(str(path)).unused_token_id(config(rows, *eos_ids))


def test_a_padding_row_of_the_embedding(tmp_path: Path):
    """Like Qwen3: 256 bytes, three special tokens, four more; the embedding has 320 rows, and row 263 no token."""
    assert found(tmp_path / "a", 320, added=THINKING) == 263


def test_no_special_token_that_the_template_writes(tmp_path: Path):
    """Like Qwen2, without a row to spare: the last is <|im_end|>, the one before it opens every turn."""
    with pytest.raises(ValueError, match=r"drafter\.mask_token_id: tiny has neither"):
        found(tmp_path / "a", 259)
    assert found(tmp_path / "b", 260, special=(*QWEN2, "<|box|>")) == 259


def test_no_token_that_the_target_may_write(tmp_path: Path):
    """</think> comes last but is text to the tokenizer; an end id and a role that is put together are no better."""
    special = ("<|box|>", "<|endoftext|>", "<|im_end|>", "<|user|>", "<|tool|>", "<|end_of_message|>")
    assert found(tmp_path / "a", 266, 258, 261, special=special, added=THINKING, template=BY_ROLE) == 256


def test_a_mask_token_is_what_it_says(tmp_path: Path):
    assert found(tmp_path / "a", 320, special=(*QWEN2, "<|mask|>", "<|box|>"), mask_token="<|mask|>") == 259


def test_the_embedded_target_keeps_its_own():
    """<empty_output>, the last special token; every row of its embedding is a token."""
    assert load_tokenizer(EMBEDDED).unused_token_id(config(49152, 2)) == 16


def test_a_template_that_refuses_roles(tmp_path: Path):
    template = "{% for m in messages %}{% if m['role'] in ('system', 'tool') %}{{ raise_exception('no') }}{% endif %}"
    template += "{{ '<|' + m['role'] + '|>' }}{% endfor %}"
    special = ("<|box|>", "<|endoftext|>", "<|im_end|>", "<|assistant|>")
    assert found(tmp_path / "a", 260, 258, special=special, template=template) == 256
