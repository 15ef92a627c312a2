"""The shipped evaluation prompts: templates, words and texts of their own, shared with no training prompt.

`python -m pipelines.own.evaluation [FOLDER]` writes FOLDER/KIND.jsonl for every kind (default configs/tasks).
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from pipelines.own import evaluation_sentences as sentences
from pipelines.own import evaluation_stories as stories
from pipelines.own import evaluation_texts as texts
from pipelines.own.templates import Maker, draw_prompts, passage_makers, sentence_makers, story_makers
from pipelines.prompt_files import Prompt, write_prompts

PROMPTS_PER_KIND = 40
SEED = 71

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "word-problems": tuple(item.text for item in stories.STORIES) + stories.STORY_REQUESTS,
    "code": sentences.CODE_TEMPLATES,
    "chat": sentences.CHAT_TEMPLATES,
    "rewriting": texts.NARRATIVE_TEMPLATES + texts.MESSAGE_TEMPLATES + texts.NOTE_TEMPLATES + texts.ERROR_TEMPLATES,
    "knowledge": sentences.KNOWLEDGE_TEMPLATES,
}


def evaluation_prompts() -> dict[str, list[Prompt]]:
    """Returns the evaluation prompts of every kind, PROMPTS_PER_KIND each."""
    makers: dict[str, list[Maker]] = {
        "word-problems": story_makers(stories.STORIES, stories.STORY_REQUESTS, {"person": stories.PEOPLE}),
        "code": sentence_makers(sentences.CODE_TEMPLATES, sentences.CODE_WORDS),
        "chat": sentence_makers(sentences.CHAT_TEMPLATES, sentences.CHAT_WORDS),
        "rewriting": [
            *passage_makers(texts.NARRATIVE_TEMPLATES, texts.NARRATIVES, {}),
            *passage_makers(texts.MESSAGE_TEMPLATES, texts.MESSAGES, {}),
            *passage_makers(texts.NOTE_TEMPLATES, texts.NOTES, {}),
            *passage_makers(texts.ERROR_TEMPLATES, texts.PLAIN_ERRORS, {}),
        ],
        "knowledge": sentence_makers(sentences.KNOWLEDGE_TEMPLATES, sentences.KNOWLEDGE_WORDS),
    }
    return {kind: draw_prompts(kind, makers[kind], count=PROMPTS_PER_KIND, prefix="eval", seed=SEED) for kind in makers}


def write_tasks(folder: Path) -> list[Path]:
    """Writes FOLDER/KIND.jsonl for every kind and returns the paths."""
    paths = []
    for kind, prompts in evaluation_prompts().items():
        paths.append(folder / f"{kind}.jsonl")
        write_prompts(paths[-1], prompts)
    return paths


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "configs" / "tasks"
    for path in write_tasks(target):
        print(path)
