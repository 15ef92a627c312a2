"""A token id outside the target's vocabulary is refused where it comes in: a gather would take another token's row."""

import dataclasses
import json
from pathlib import Path

import pytest

from configs.schema import load_recipe
from models.decode import make_engine
from models.drafters import Draft
from models.drafters.artifact import read_artifact, write_artifact
from models.sources import load_target
from models.tokenizer import load_tokenizer
from pipelines.prompts import load_prompts
from pipelines.records import Responses, write_responses
from pipelines.responses import prepare_responses
from serve.session import Decoder
from tests.tiny import Letters, make_artifact, make_target
from tests.tiny_run import SPECIAL, TEMPLATE, make_tiny, write_target, write_tokenizer


@pytest.mark.parametrize("token", [61, 100000, 2**40, -1])
@pytest.mark.parametrize("draft", [None, Draft("drafter", 4)], ids=["plain", "drafted"])
def test_prompts(token: int, draft: Draft | None):
    decoder = Decoder(make_engine(make_target(), make_artifact()), Letters(), draft)
    with pytest.raises(
        ValueError, match=f"prompt 1: token id {token} at place 1 is not in the vocabulary of tiny; expected 0 to 60"
    ):
        decoder.generate([[5, 6], [5, token, 7]], max_new_tokens=2)


@pytest.fixture
def world(tmp_path: Path):
    """(recipe, target, prompts) of a target of 260 tokens."""
    recipe = load_recipe(str(make_tiny(tmp_path).config))
    prompts = load_prompts(recipe.prompts.sources, limit=3, seed=0)
    return recipe, load_target(recipe.target.source, "float32"), prompts


def test_a_tokenizer_that_is_not_the_targets(world):
    """It has one token more, and the template writes it."""
    recipe, target, prompts = world
    template = TEMPLATE.replace("assistant\n", "assistant<|far|>\n")
    write_tokenizer(Path(recipe.target.source), (*SPECIAL, "<|far|>"), template)
    tokenizer = load_tokenizer(recipe.target.source)
    with pytest.raises(
        ValueError, match=r"prompt (sums|words)/\d+: token id 260 at place \d+ is not in the vocabulary"
    ):
        prepare_responses(recipe, target, tokenizer, {"train": prompts})


def test_given_answers(world):
    recipe, target, prompts = world
    write_tokenizer(Path(recipe.target.source), (*SPECIAL, "<|far|>"))
    recipe = dataclasses.replace(recipe, responses=dataclasses.replace(recipe.responses, regenerate=False))
    answered = [dataclasses.replace(prompt, response="a<|far|>") for prompt in prompts]
    with pytest.raises(ValueError, match=r"response to (sums|words)/\d+: token id 260 at place 1"):
        prepare_responses(recipe, target, load_tokenizer(recipe.target.source), {"train": answered})


def test_records_on_disk(world):
    recipe, target, prompts = world
    tokenizer = load_tokenizer(recipe.target.source)
    written = prepare_responses(recipe, target, tokenizer, {"train": prompts})
    found = list(Responses(written / "train"))
    found[1] = dataclasses.replace(found[1], response_ids=(3, 9999))
    write_responses(written / "train", 0, found)
    with pytest.raises(ValueError, match=r"train, record 1 .*prepare again\): token id 9999"):
        prepare_responses(recipe, target, tokenizer, {"train": prompts})


@pytest.mark.parametrize("token", [61, -1, None, "60"])
def test_the_mask_token_of_an_artifact(tmp_path: Path, token):
    write_artifact(make_artifact(), tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["dflash_config"]["mask_token_id"] = token
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: mask_token_id: expected 0 to 60 \(vocab_size\), got"):
        read_artifact(tmp_path)


def test_ids_that_end_an_answer(tmp_path: Path):
    path = write_target(tmp_path / "target")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 260]}))
    with pytest.raises(ValueError, match="ids that end an answer: token id 260 at place 1"):
        load_target(str(path), "float32")
