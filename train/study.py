"""A study: variants of a recipe trained on the same data for equally many supervised slots, and compared.

Every variant is trained (`train.run`), its last step exported, and the artifact walked over the target's own greedy
answers to task prompts, which all variants share (`models.decode.replay`: tau of decoding, with nothing timed). Owned
here: the study's directory

    <variant>.<seed>/run          the training run
    <variant>.<seed>/artifact     what was exported of it
    <variant>.<seed>/result.json  {variant, seed, asked: all that decides the rest, failed: why there is none or null,
                                  steps, positions, seconds_per_step, parameters, responses and answers (digests of
                                  the data), heldout and tasks (`train.acceptance`), decoding_steps: [of each answer],
                                  provenance}
    table.md                      all results side by side

A variant with a result is finished; a training that was stopped goes on from its checkpoint.
"""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from configs.console import say
from configs.device import drop_programs, keep_compiled_programs, keep_freed_memory
from configs.errors import UserError
from configs.files import held, write_atomic, write_json
from configs.paths import read_object
from configs.provenance import provenance
from configs.schema import Recipe
from configs.study import Study
from models.decode import make_engine
from models.drafters.artifact import read_artifact
from models.target import Target
from pipelines.batches import RowSource, TrainBatches, widest_in_turn
from pipelines.prepare import draft_vocabulary
from pipelines.records import Responses
from pipelines.supervision import supervision
from train.acceptance import task_acceptance
from train.checkpoint import read_metadata, whole_steps
from train.export import export
from train.metrics import read_metrics
from train.run import gather, run, target_of
from train.study_table import summary, table
from train.walk import Questions, task_answers

COUNTED = 64  # batches whose supervised slots are counted


def run_study(study: Study, out: Path, *, overrides: Sequence[str], resume: bool) -> int:
    """Trains and measures what has no result yet, writes the table; the exit code (128 + signal when interrupted).

    Raises:
      UserError: a recipe cannot be followed, or `out` holds another study, or some of this one and not `resume`.
    """
    recipes = study.recipes(out, overrides)
    with held(out, wait=False):
        _refuse_others(study, out, recipes, resume)
        keep_compiled_programs()
        keep_freed_memory()
        first = next(iter(recipes.values()))
        target = target_of(first)
        questions = Questions(**{field.name: getattr(study, field.name) for field in dataclasses.fields(Questions)})
        answers = task_answers(questions, first, target)
        for number, ((variant, seed), recipe) in enumerate(recipes.items(), start=1):
            file = out / f"{variant}.{seed}" / "result.json"
            say(f"study: {number} of {len(recipes)}: {variant}, seed {seed}{': done' if file.is_file() else ''}")
            if not file.is_file():
                result = _measured(study, recipe, target, answers)
                if isinstance(result, int):
                    return 128 + result
                write_json(file, {"variant": variant, "seed": seed, **result})
                drop_programs()
        results = [read_object(out / f"{variant}.{seed}" / "result.json") for variant, seed in recipes]
        write_atomic(out / "table.md", table(results))
    say((out / "table.md").read_text(encoding="utf-8"))
    say(json.dumps({"study": str(out), "results": [summary(result) for result in results]}))
    return 0


def _refuse_others(study: Study, out: Path, recipes: Mapping[tuple[str, int], Recipe], resume: bool) -> None:
    """Raises UserError where `out` holds results that would be mistaken for those of this study."""
    for (variant, seed), recipe in recipes.items():
        folder = out / f"{variant}.{seed}"
        file = folder / "result.json"
        if (file.is_file() or whole_steps(folder / "run" / "checkpoints")) and not resume:
            raise UserError(f"{out}: holds part of a study; go on with --resume, or choose another --out")
        if file.is_file() and read_object(file)["asked"] != _asked(study, recipe):
            raise UserError(f"{file}: not what the study asks of {variant} now; delete it, or choose another --out")


def _asked(study: Study, recipe: Recipe) -> dict[str, Any]:
    """All that decides a result, as JSON has it."""
    names = ("positions", "tasks", "task_dir", "task_prompts", "max_prompt_tokens", "max_new_tokens")
    asked = {"recipe": recipe.to_dict()} | {name: getattr(study, name) for name in names}
    return json.loads(json.dumps(asked))


def _measured(study: Study, recipe: Recipe, target: Target, answers: Responses) -> dict[str, Any] | int:
    """The result of one training, or the signal that stopped it."""
    from train.trainer import Diverged

    asked, folder = _asked(study, recipe), recipe.run_dir.parent
    material, section = gather(recipe, target), recipe.batches
    prepared = material.prepared
    rows = RowSource(Responses(prepared.responses / "train"), None, section.row_length, section.responses)
    slots = partial(slots_per_step, recipe, rows, draft_vocabulary(recipe, prepared, target.config))
    widths = list(widest_in_turn(section))
    each = slots(widths[0])  # where a curriculum begins
    if study.positions is not None:
        steps = max(1, round(study.positions / each))
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, steps=steps))
    steps = recipe.train.steps
    say(f"study: {steps} steps of {each:.0f} supervised slots (counted over {COUNTED} batches): {steps * each:.3g}")
    try:
        stopped = run(recipe, resume=True, material=material)
    except Diverged as error:
        return {"asked": asked, "failed": str(error)}
    if stopped is not None:
        return stopped
    shutil.rmtree(folder / "artifact", ignore_errors=True)
    export(folder / "run", folder / "artifact", "last")
    artifact = read_artifact(folder / "artifact")
    walked = task_acceptance(make_engine(target, artifact), answers)
    metadata = read_metadata(folder / "run" / "checkpoints" / str(steps))
    grown = metadata.get("grown", [])  # not there where an earlier revision trained it
    at_width = np.diff([0, *grown, steps])  # steps at each width in turn
    return {
        "asked": asked,
        "failed": None,
        "steps": steps,
        "positions": round(sum(slots(width) * taken for width, taken in zip(widths, at_width, strict=False))),
        "grown": grown,
        "seconds_per_step": seconds_per_step(read_metrics(folder / "run")),
        "parameters": sum(np.size(leaf) for leaf in jax.tree.leaves(artifact.weights)),
        "responses": prepared.responses.name,
        "answers": answers.folder.parent.name,
        "heldout": metadata["acceptance"],
        "tasks": walked.to_dict(),
        "decoding_steps": [len(walk.runs) for walk in walked.walks],
        "provenance": provenance(["python", "-m", "train", "study"]),
    }


def slots_per_step(recipe: Recipe, rows: RowSource, draft_vocab: np.ndarray | None, widest: int) -> float:
    """Supervised slots of an update whose widest blocks are so wide, the mean over the first batches."""
    batches = TrainBatches(recipe, rows)
    batches.widest = widest
    counts = [supervision(batch, draft_vocab).supervised for batch in itertools.islice(batches, COUNTED)]
    return float(np.mean(counts)) * recipe.optimizer.accumulation


def seconds_per_step(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """The median over neighbouring training lines of one process with no evaluation between; None without any."""
    intervals = [
        (after["seconds"] - before["seconds"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(lines)
        if before["kind"] == after["kind"] == "train" and after["seconds"] > before["seconds"]
    ]
    return median(intervals) if intervals else None
