"""The project's own training prompts: five kinds, made from templates by a fixed seed."""

from collections.abc import Callable, Mapping

from pipelines.own import chat, coding, knowledge, rewriting, word_problems
from pipelines.own.templates import Maker, draw_prompts
from pipelines.prompt_files import Prompt

PROMPTS_PER_KIND = 600
SEED = 2024

_MAKERS: Mapping[str, Callable[[], list[Maker]]] = {
    "word-problems": word_problems.makers,
    "code": coding.makers,
    "chat": chat.makers,
    "rewriting": rewriting.makers,
    "knowledge": knowledge.makers,
}
KINDS = tuple(_MAKERS)
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "word-problems": word_problems.TEMPLATES,
    "code": coding.TEMPLATES,
    "chat": chat.TEMPLATES,
    "rewriting": rewriting.TEMPLATES,
    "knowledge": knowledge.TEMPLATES,
}


def training_prompts(kind: str | None = None) -> list[Prompt]:
    """Returns the training prompts of one kind, or of all kinds one after the other.

    Word problems carry their answers as references; the other kinds have none.
    """
    kinds = KINDS if kind is None else (kind,)
    return [
        prompt
        for name in kinds
        for prompt in draw_prompts(name, _MAKERS[name](), count=PROMPTS_PER_KIND, prefix="train", seed=SEED)
    ]
