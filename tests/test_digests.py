"""What was prepared is found again exactly where nothing that decides its content has changed."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from configs.schema import Recipe, load_recipe
from models.sources import load_target
from models.tokenizer import load_tokenizer
from pipelines import feature_store, responses
from pipelines.feature_store import FeatureStore
from pipelines.prompts import load_prompts
from pipelines.records import Responses
from pipelines.responses import prepare_responses
from tests.tiny_run import TEMPLATE, make_tiny, write_tokenizer

# As Qwen3's: with thinking off, the answer starts after an empty thought.
THINKING = TEMPLATE.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}",
)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(
        str(make_tiny(tmp_path).config), ["responses.max_new_tokens=3", "responses.max_prompt_tokens=60"]
    )


def changed(recipe: Recipe, section: str, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **changes)})


def directory(recipe: Recipe) -> Path:
    """Where the answers to three prompts lie, written if missing."""
    prompts = load_prompts(recipe.prompts.sources, limit=3, seed=0)
    tokenizer = load_tokenizer(recipe.target.source, recipe.target.chat_template_args)
    written = prepare_responses(recipe, load_target(recipe.target.source, "float32"), tokenizer, {"train": prompts})
    for prompt, response in zip(prompts, Responses(written / "train"), strict=True):
        assert list(response.prompt_ids) == tokenizer.encode_chat(prompt.chat())
    return written


def test_responses_follow_the_chat_template(recipe: Recipe):
    before = directory(recipe)
    write_tokenizer(Path(recipe.target.source), template=TEMPLATE.replace("<|im_end|>", "<|end|>"))
    assert directory(recipe) != before


def test_responses_follow_the_templates_arguments(recipe: Recipe):
    write_tokenizer(Path(recipe.target.source), template=THINKING)
    found = [directory(changed(recipe, "target", chat_template_args=args)) for args in ({}, {"enable_thinking": False})]
    tokenizer = load_tokenizer(recipe.target.source)
    first = [tokenizer.decode(Responses(path / "train")[0].prompt_ids) for path in found]
    assert [text.endswith("assistant\n<think></think>") for text in first] == [False, True]


def test_responses_follow_the_end_ids(recipe: Recipe):
    before = directory(recipe)
    (Path(recipe.target.source) / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 258]}))
    assert directory(recipe) != before


def test_responses_follow_the_weights(recipe: Recipe, tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    before = directory(recipe)
    file = Path(recipe.target.source) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] += 0.01
    save_file(tensors, file)
    assert directory(recipe) != before


def test_responses_and_features_follow_the_format(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before, features = directory(recipe), FeatureStore.of(recipe, (0,), tmp_path / "responses" / "a").directory
    monkeypatch.setattr(responses, "FORMAT", responses.FORMAT + 1)
    monkeypatch.setattr(feature_store, "FORMAT", feature_store.FORMAT + 1)
    assert directory(recipe) != before
    assert FeatureStore.of(recipe, (0,), tmp_path / "responses" / "a").directory != features


def test_the_targets_name_and_the_batch_change_nothing(recipe: Recipe, tmp_path: Path):
    before = directory(recipe)
    moved = shutil.copytree(recipe.target.source, tmp_path / "moved")
    assert directory(changed(recipe, "target", source=str(moved))) == before
    assert directory(changed(recipe, "responses", batch=3)) == before
