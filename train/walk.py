"""What finished drafters accept of the target's own answers to task prompts: tau of decoding, with nothing timed.

In: a recipe, for its target, data directory and how answers are written there, and `Questions`. Out: the answers, which
all who ask the same share; tau of each drafter (`train.acceptance.task_acceptance`).
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.console import say
from configs.device import keep_compiled_programs
from configs.errors import UserError
from configs.schema import Recipe
from models.decode import make_engine
from models.drafters.artifact import check_fit, read_artifact
from models.target import Target
from models.tokenizer import load_tokenizer
from pipelines.prompt_files import Prompt, load_tasks
from pipelines.records import Responses
from pipelines.responses import prepare_responses
from train.acceptance import task_acceptance
from train.run import target_of


@dataclasses.dataclass(frozen=True)
class Questions:
    """What is asked: the first `task_prompts` prompts of `tasks` (as `load_tasks` reads them)."""

    tasks: Sequence[str]
    task_dir: str | None
    task_prompts: int
    max_prompt_tokens: int
    max_new_tokens: int


def walk_drafters(recipe: Recipe, drafters: Sequence[Path], questions: Questions) -> dict[str, Any]:
    """{questions, drafters: [{drafter, tau: the mean over tasks, tasks: {name: {tau, tau_interval, responses, tokens}},
    slots}]}, each drafter at its full width, greedily.

    Raises:
      UserError: no such task, no such artifact, or one for another target.
    """
    keep_compiled_programs()
    artifacts = [read_artifact(drafter) for drafter in drafters]
    arguments = [artifact.chat_template_args for artifact in artifacts]
    if any(given != recipe.target.chat_template_args for given in arguments):
        raise UserError(
            f"expected drafters trained with target.chat_template_args={recipe.target.chat_template_args}, got "
            f"{[dict(given) for given in arguments]}; override the recipe's, or walk them one by one"
        )
    target = target_of(recipe)
    for artifact, drafter in zip(artifacts, drafters, strict=True):
        check_fit(artifact, target, drafter)
    answers, found = task_answers(questions, recipe, target), []
    for artifact, drafter in zip(artifacts, drafters, strict=True):
        acceptance = task_acceptance(make_engine(target, artifact), answers)
        by_task = ", ".join(f"{name} {task['tau']:.2f}" for name, task in acceptance.tasks().items())
        say(f"walk: {drafter}: tau {acceptance.tau:.3f}: {by_task}")
        found.append({"drafter": str(drafter), **acceptance.to_dict()})
    return {"questions": json.loads(json.dumps(dataclasses.asdict(questions))), "drafters": found}


def task_answers(questions: Questions, recipe: Recipe, target: Target) -> Responses:
    """The target's greedy answers to the first open turn of every task prompt, written where missing."""
    asked = dataclasses.replace(
        recipe.responses,
        regenerate=True,
        server=None,
        temperatures=(0.0,),
        max_prompt_tokens=questions.max_prompt_tokens,
        max_new_tokens=questions.max_new_tokens,
    )
    folder = None if questions.task_dir is None else Path(questions.task_dir)
    tasks = load_tasks(",".join(questions.tasks), folder, questions.task_prompts)
    prompts = [_first_turn(prompt, name) for name, prompts in tasks.items() for prompt in prompts]
    tokenizer = load_tokenizer(recipe.target.source, recipe.target.chat_template_args)
    by_recipe = dataclasses.replace(recipe, responses=asked)
    return Responses(prepare_responses(by_recipe, target, tokenizer, {"tasks": prompts}) / "tasks")


def _first_turn(prompt: Prompt, task: str) -> Prompt:
    """`prompt` up to its first user turn that no answer follows, of the task of that name."""
    roles = [message.role for message in prompt.messages]
    ends = [
        end for end in range(1, len(roles) + 1) if roles[end - 1] == "user" and roles[end : end + 1] != ["assistant"]
    ]
    return dataclasses.replace(prompt, task=task, messages=prompt.messages[: ends[0]])
