"""Answers taken from prompt files end as the chat template ends an assistant's turn, so that a drafter learns the end
that the target itself writes."""

import dataclasses
import json
from pathlib import Path

import pytest

from configs.schema import Recipe, load_recipe
from models.sources import load_target
from models.tokenizer import load_tokenizer
from pipelines.prompts import load_prompts
from pipelines.records import Responses
from pipelines.responses import prepare_responses
from tests.tiny_run import TEMPLATE, make_tiny, write_tokenizer

END, IM_START, IM_END, SPARE = 256, 257, 258, 259  # the tiny tokenizer's special tokens
LLAMA2 = "{% for m in messages %}{{ m['content'] + ' <|spare|><|end|>' if m['role'] == 'assistant' else m['content'] }}"
LLAMA2 += "{% endfor %}"


def answers(root: Path, eos_ids: list[int], template: str = TEMPLATE, **changes) -> list[tuple[tuple[int, ...], bool]]:
    """(ids, finished) of the answers "ab" given to two prompts."""
    tiny = make_tiny(root)
    config = json.loads((root / "target" / "config.json").read_text())
    (root / "target" / "config.json").write_text(json.dumps({**config, "eos_token_id": eos_ids}))
    write_tokenizer(root / "target", template=template)
    recipe: Recipe = load_recipe(str(tiny.config), ["responses.regenerate=false"])
    recipe = dataclasses.replace(recipe, responses=dataclasses.replace(recipe.responses, **changes))
    prompts = [
        dataclasses.replace(prompt, response="ab") for prompt in load_prompts(recipe.prompts.sources, limit=2, seed=0)
    ]
    source = recipe.target.source
    written = prepare_responses(recipe, load_target(source, "float32"), load_tokenizer(source), {"train": prompts})
    return [(response.response_ids, response.finished) for response in Responses(written / "train")]


def ids(text: str) -> tuple[int, ...]:
    """Of text of printable ASCII: byte-level alphabets sort "!" first."""
    return tuple(ord(letter) - ord("!") for letter in text)


def test_the_turns_own_end_among_several(tmp_path: Path):
    """ChatML ends a turn with <|im_end|>, which is the second of two end ids."""
    assert answers(tmp_path, [END, IM_END]) == [((*ids("ab"), IM_END), True)] * 2


def test_what_stands_before_the_end_id_belongs_to_the_end(tmp_path: Path):
    (first, finished), _ = answers(tmp_path, [END, IM_END], LLAMA2)
    space = first[2]
    assert first == (*ids("ab"), space, SPARE, END)
    assert space not in (*ids("ab"), END, IM_START, IM_END, SPARE)
    assert finished


def test_a_cut_answer_is_not_finished(tmp_path: Path):
    assert answers(tmp_path, [END, IM_END], max_new_tokens=2) == [(ids("ab"), False)] * 2


def test_a_turn_that_ends_in_none_of_them(tmp_path: Path):
    """One end id can only be meant; of several nobody knows which."""
    assert answers(tmp_path / "one", [END])[0] == ((*ids("ab"), END), True)
    with pytest.raises(ValueError, match=r"ends an answer with '<\|im_end\|>\\n', which holds none .* \(256, 259\)"):
        answers(tmp_path / "two", [END, SPARE])
