"""The shipped prompts: enough, distinct, the same in every process, evaluation apart from training."""

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipelines.own import KINDS, TEMPLATES, evaluation, training_prompts
from pipelines.own.stories_everyday import STORIES as EVERYDAY_STORIES
from pipelines.own.templates import Person, draw_prompts, fill, listed, passage_makers, slot_names
from pipelines.prompt_files import Prompt, load_task, shipped_tasks
from pipelines.prompts import load_prompts, read_source

RUN_LENGTH = 13
WRONG_ARTICLE = re.compile(r"\b[aA] (?!one|euro)[aeio]\w|\b[aA]n (?!hour|honest)[bcdfghj-np-tvwyz][a-z]")


@pytest.fixture(scope="module")
def training() -> list[Prompt]:
    return training_prompts()


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[Prompt]]:
    return {name: load_task(name) for name in shipped_tasks()}


def text_of(prompt: Prompt) -> str:
    return prompt.messages[-1].content


def word_runs(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + RUN_LENGTH]) for i in range(len(words) - RUN_LENGTH + 1)}


def test_there_are_enough_distinct_prompts_of_every_kind(training: list[Prompt]) -> None:
    assert Counter(prompt.task for prompt in training) == dict.fromkeys(KINDS, 600)
    assert len({text_of(prompt) for prompt in training}) == len(training) >= 2000
    assert len({(prompt.task, prompt.id) for prompt in training}) == len(training)
    assert load_prompts(["own", "own:chat"], limit=None, seed=0) == load_prompts(["own"], limit=None, seed=0)
    assert read_source("own:code") == [prompt for prompt in training if prompt.task == "code"]


def test_every_kind_has_several_dozen_templates() -> None:
    assert set(TEMPLATES) == set(KINDS)
    assert min(len(templates) for templates in TEMPLATES.values()) >= 45


def test_prompts_are_clean_and_short(training: list[Prompt], shipped: dict[str, list[Prompt]]) -> None:
    for prompt in [*training, *(prompt for prompts in shipped.values() for prompt in prompts)]:
        text = text_of(prompt)
        assert text == text.strip()
        assert 12 <= len(text) <= 700, text
        assert "  " not in text.replace("    ", ""), text
        if prompt.task != "rewriting":  # whose texts hold mistakes to correct
            assert not WRONG_ARTICLE.search(text), text


def test_word_problems_have_whole_positive_answers(training: list[Prompt]) -> None:
    for prompt in [*training, *load_task("word-problems")]:
        if prompt.task == "word-problems":
            assert prompt.reference is not None
            assert int(prompt.reference) > 0
        else:
            assert prompt.reference is None


def test_a_story_is_answered_by_its_own_arithmetic() -> None:
    crates, *_ = EVERYDAY_STORIES
    assert "{a} crates with {b} {fruit}" in crates.text
    assert crates.answer(a=4, b=12, c=5) == 43


def test_evaluation_files_equal_what_the_module_makes(tmp_path: Path) -> None:
    for path in evaluation.write_tasks(tmp_path):
        assert path.read_bytes() == shipped_tasks()[path.stem].read_bytes(), (
            f"{path.name} is stale; run: python -m pipelines.own.evaluation"
        )


def test_evaluation_has_forty_distinct_prompts_a_kind(shipped: dict[str, list[Prompt]]) -> None:
    assert sorted(shipped) == sorted(KINDS)
    for kind, prompts in shipped.items():
        assert {prompt.task for prompt in prompts} == {kind}
        assert len({text_of(prompt) for prompt in prompts}) == len(prompts) == 40


def test_evaluation_shares_no_template_and_no_run_of_words_with_training(
    training: list[Prompt], shipped: dict[str, list[Prompt]]
) -> None:
    used = {template for templates in TEMPLATES.values() for template in templates}
    for templates in evaluation.TEMPLATES.values():
        assert not used & set(templates)
    known = set().union(*(word_runs(text_of(prompt)) for prompt in training))
    assert len(known) > 10_000
    for prompts in shipped.values():
        for prompt in prompts:
            assert not known & word_runs(text_of(prompt)), text_of(prompt)


def test_prompts_are_the_same_under_another_hash_seed(training: list[Prompt]) -> None:
    script = (
        "import json; from pipelines.prompts import load_prompts;"
        "prompts = load_prompts(['own'], limit=None, seed=5);"
        "print(json.dumps([[p.task, p.id, p.messages[0].content] for p in prompts]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONHASHSEED": "12345"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    here = [[p.task, p.id, p.messages[0].content] for p in load_prompts(["own"], limit=None, seed=5)]
    assert json.loads(out.stdout) == here
    assert len(here) == len(training)


def test_numbered_slots_get_different_words_and_shared_slots_the_same() -> None:
    rng = random.Random(1)
    people = (Person("Ann", "she", "her", "her"), Person("Bob", "he", "him", "his"))
    for _ in range(20):
        assert fill("{p} {p2} {p.he}", {"p": people}, rng) in ("Ann Bob she", "Bob Ann he")
    assert slot_names("{b.x} {a} {b} {{c}}") == ["b", "a"]
    (make,) = passage_makers(["Ask {p}: {question} {text}"], [("{p} sings.", "Who sings?")], {"p": people[:1]})
    assert make(rng) == ("Ask Ann: Who sings? Ann sings.", None)
    assert listed("a b,\n  c d, ") == ("a b", "c d")


def test_a_spent_template_drops_out() -> None:
    prompts = draw_prompts(
        "k",
        [lambda rng: ("one", None), lambda rng: (str(rng.randrange(9)), None)],
        count=8,
        prefix="x",
        seed=0,
    )
    assert len({text_of(prompt) for prompt in prompts}) == 8
    assert [prompt.id for prompt in prompts] == [f"x/{n}" for n in range(8)]
    assert draw_prompts("k", [lambda rng: ("one", "1")], count=3, prefix="x", seed=0)[0].reference == "1"
