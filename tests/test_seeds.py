"""A seed names draws and nothing else does: not what was written before an interruption; every seed up to 2**32 - 1
works, and prompts held out draw for themselves."""

import dataclasses
from pathlib import Path

import pytest

from configs.schema import Recipe, load_recipe
from models.decode import make_engine
from models.drafters import Draft
from models.sampling import Sampling
from models.sources import load_target
from models.tokenizer import load_tokenizer
from models.verify import Speculation
from pipelines import responses, shards
from pipelines.prompts import load_prompts
from pipelines.records import Response, Responses
from pipelines.responses import prepare_responses
from serve.cost import Cost
from serve.evaluate import Evaluator, Question
from serve.session import Decoder
from tests.tiny import Letters, make_artifact, make_target
from tests.tiny_run import Tiny, make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def world(tiny: Tiny):
    """(target, tokenizer, prompts)"""
    recipe = load_recipe(str(tiny.config))
    source = recipe.target.source
    prompts = load_prompts(recipe.prompts.sources, limit=20, seed=0)
    return load_target(source, "float32"), load_tokenizer(source), prompts


def sampling(tiny: Tiny, data: Path, seed: int = 0) -> Recipe:
    overrides = [f"run.data_dir={data}", f"prompts.seed={seed}", "responses.temperatures=[1.0]"]
    return load_recipe(str(tiny.config), overrides)


def sampled(tiny: Tiny, world, data: Path, seed: int = 0, splits: tuple[str, ...] = ("train",)) -> list[Response]:
    target, tokenizer, prompts = world
    written = prepare_responses(sampling(tiny, data, seed), target, tokenizer, dict.fromkeys(splits, prompts))
    return [response for split in splits for response in Responses(written / split)]


def test_an_interruption_changes_no_sampled_answer(tiny: Tiny, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = sampled(tiny, world, tmp_path / "a")
    write, count = shards.write_shard, 0

    def dies_at_the_second(*arguments):
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(responses.shards, "write_shard", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        sampled(tiny, world, tmp_path / "b")
    monkeypatch.undo()
    (mark,) = (tmp_path / "b").rglob("train/*.json")
    assert sampled(tiny, world, tmp_path / "b") == whole
    assert mark.is_file()


def test_held_out_prompts_draw_for_themselves(tiny: Tiny, world, tmp_path: Path):
    """The same prompts in both splits."""
    both = sampled(tiny, world, tmp_path, splits=("train", "heldout"))
    train, heldout = both[:20], both[20:]
    assert [r.prompt_ids for r in train] == [r.prompt_ids for r in heldout]
    assert all(a.response_ids != b.response_ids for a, b in zip(train, heldout, strict=True))


@pytest.mark.parametrize("seed", [3407, 2**31, 2**32 - 1])
def test_every_seed_samples(tiny: Tiny, world, tmp_path: Path, seed: int):
    texts = {response.response_ids for response in sampled(tiny, world, tmp_path, seed)}
    assert len(texts) == 20
    assert texts.isdisjoint({response.response_ids for response in sampled(tiny, world, tmp_path, 1)})


def test_the_largest_seed_trains(tiny: Tiny, tmp_path: Path):
    """From first weights over batches to the last checkpoint."""
    done = tiny.called(tmp_path / "run", f"run.seed={2**32 - 1}", "train.steps=2", f"run.data_dir={tmp_path}/data")
    assert done.returncode == 0, done.stderr


def test_decoders_take_the_same_seeds():
    decoder = Decoder(
        make_engine(make_target(), make_artifact()), Letters(), Draft("drafter", 3), Speculation(Sampling(1.0))
    )

    def texts(*seeds: int) -> list[list[int]]:
        return [answer.ids for answer in decoder.generate([[5, 6, 7]] * 2, max_new_tokens=12, seeds=seeds)]

    last, first = texts(2**32 - 1, 0)
    assert last != first
    assert texts(0, 2**32 - 1) == [first, last]
    for bad in ((2**32, 0), (-1, 0), (1,)):
        with pytest.raises(ValueError, match="seeds: expected 2 of 0 to 4294967295, one a prompt"):
            texts(*bad)


def test_evaluation_draws_by_its_seed_alone():
    """At full width too, where answers are decoded in batches: one seed, whatever stands beside it."""
    engine = make_engine(make_target(eos_ids=()), make_artifact())
    questions = [Question("t", str(number), "", [5 + number, 6, 7]) for number in range(3)]

    def runs(seed: int, *asked: Question) -> list[list[int]]:
        options = {"cost": Cost(1.0, {}, {}), "prior": [0.5], "speculation": Speculation(Sampling(1.0)), "seed": seed}
        evaluator = Evaluator(engine, Letters(), 40, **options)
        answers = [(question, *[evaluator.answer(question, None)] * 2) for question in asked]
        return [decoded.full_width_runs for decoded in evaluator.at_full_width(answers)]

    together = runs(7, *questions)
    assert [runs(7, question)[0] for question in questions] == together
    assert runs(8, *questions) != together


def test_greedy_answers_do_not_depend_on_it(tiny: Tiny, world, tmp_path: Path):
    target, tokenizer, prompts = world
    found = []
    for seed in (0, 2**32 - 1):
        recipe = sampling(tiny, tmp_path, seed)
        recipe = dataclasses.replace(recipe, responses=dataclasses.replace(recipe.responses, temperatures=(0.0,)))
        found.append(prepare_responses(recipe, target, tokenizer, {"train": prompts[:3]}))
    assert found[0] == found[1]
