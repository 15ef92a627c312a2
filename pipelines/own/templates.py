"""Templates: sentences with {slots}, filled from word lists by a seeded generator.

A slot is named after its word list; a digit after the name ({person2}) asks for another word of that list.
Nothing here depends on Python's `hash`, so the same seed gives the same prompts in every process.
"""

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.prompt_files import Message, Prompt

Words = Mapping[str, Sequence[Any]]
# Draws one prompt: its text and its reference answer, if that is known.
Maker = Callable[[random.Random], tuple[str, str | None]]

TRIES_BEFORE_SPENT = 30


@dataclass(frozen=True)
class Person:
    """A name with its pronouns; `{person}` prints the name, `{person.his}` the pronoun."""

    name: str
    he: str
    him: str
    his: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Story:
    """A word problem: text with {slots}, the numbers each slot may take, and the answer to them.

    `answer` returns anything but a positive whole number where the numbers drawn make no sensible problem.
    """

    text: str
    answer: Callable[..., float]
    numbers: dict[str, Sequence[int]] = field(default_factory=dict)


def story(text: str, answer: Callable[..., float], **numbers: Sequence[int]) -> Story:
    """Returns a Story; the names of `numbers` are slots of the text and arguments of `answer`."""
    return Story(text, answer, numbers)


def fill(template: str, words: Words, rng: random.Random) -> str:
    """Returns the template with every slot filled, different words in numbered slots of one list."""
    chosen: dict[str, Any] = {}
    for name in slot_names(template):
        kind = name.rstrip(string.digits)
        taken = [value for slot, value in chosen.items() if slot.rstrip(string.digits) == kind]
        chosen[name] = rng.choice([word for word in words[kind] if word not in taken])
    return template.format(**chosen)


def slot_names(template: str) -> list[str]:
    """Returns the names of the slots in order of appearance, each once: "{a.x} {b} {a}" gives ["a", "b"]."""
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    return list(dict.fromkeys(name.partition(".")[0] for name in fields))


def sentence_makers(templates: Sequence[str], words: Words) -> list[Maker]:
    """Returns one maker a template, without reference answers."""

    def make(template: str) -> Maker:
        return lambda rng: (fill(template, words, rng), None)

    return [make(template) for template in templates]


def story_makers(stories: Sequence[Story], requests: Sequence[str], words: Words) -> list[Maker]:
    """Returns one maker a story; a request is text with a {story} slot that says how to answer."""

    def make(story: Story) -> Maker:
        def draw(rng: random.Random) -> tuple[str, str]:
            numbers, answer = draw_numbers(story, rng)
            text = fill(story.text, {**words, **{name: [value] for name, value in numbers.items()}}, rng)
            return rng.choice(requests).format(story=text), str(answer)

        return draw

    return [make(story) for story in stories]


def passage_makers(templates: Sequence[str], passages: Sequence[tuple[str, str]], words: Words) -> list[Maker]:
    """Returns one maker a template with the slots {text} and {question}.

    A passage (text, question) fills both and has slots itself; slots that both name get the same word.
    """

    def make(template: str) -> Maker:
        def draw(rng: random.Random) -> tuple[str, None]:
            text, question = rng.choice(passages)
            return fill(template.replace("{text}", text).replace("{question}", question), words, rng), None

        return draw

    return [make(template) for template in templates]


def draw_numbers(story: Story, rng: random.Random) -> tuple[dict[str, int], int]:
    """Returns numbers for the story's slots that have a positive whole answer, and that answer."""
    for _ in range(10_000):
        numbers = {name: rng.choice(values) for name, values in story.numbers.items()}
        answer = story.answer(**numbers)
        if answer > 0 and answer == int(answer):
            return numbers, int(answer)
    raise AssertionError(f"no whole positive answer found for {story.text!r}")


def draw_prompts(kind: str, makers: Sequence[Maker], *, count: int, prefix: str, seed: int) -> list[Prompt]:
    """Returns `count` distinct prompts with ids "{prefix}/{number}", drawn from the makers in turn.

    A maker that keeps repeating itself is spent and drops out; fewer prompts come back if all are.
    """
    rng = random.Random(f"{kind}/{prefix}/{seed}")
    seen: set[str] = set()
    prompts: list[Prompt] = []
    active = list(makers)
    while active:
        for maker in list(active):
            if len(prompts) == count:
                return prompts
            drawn = _draw_unseen(maker, seen, rng)
            if drawn is None:
                active.remove(maker)
                continue
            text, reference = drawn
            seen.add(text)
            prompts.append(Prompt(kind, f"{prefix}/{len(prompts)}", (Message("user", text),), reference))
    return prompts


def _draw_unseen(maker: Maker, seen: set[str], rng: random.Random) -> tuple[str, str | None] | None:
    for _ in range(TRIES_BEFORE_SPENT):
        text, reference = maker(rng)
        if text not in seen:
            return text, reference
    return None


def listed(text: str) -> tuple[str, ...]:
    """Returns the comma-separated phrases of a text that may run over several lines."""
    return tuple(" ".join(phrase.split()) for phrase in text.split(",") if phrase.strip())
