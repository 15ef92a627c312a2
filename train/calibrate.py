"""Calibration of a drafter that is finished: what it accepts of held-out responses, kept in its config.json.

In: a drafter artifact and a recipe, whose held-out prompts the target answers where that is missing. Out: in the
artifact's `wideblock` section, `heldout_acceptance` and `confidence`, as the export of a run that measured them has
them; nothing else changes.
"""

from pathlib import Path

from configs.console import say
from configs.device import keep_compiled_programs
from configs.errors import UserError
from configs.files import write_json
from configs.schema import Recipe
from models.drafters.artifact import CONFIG, check_fit, read_artifact
from models.drafters.artifact_config import origin_of, read_config
from models.tokenizer import load_tokenizer
from pipelines.batches import RowSource
from pipelines.prompts import load_prompts, split_heldout
from pipelines.records import Responses
from pipelines.responses import prepare_responses
from train.acceptance import Acceptance, heldout_acceptance
from train.export import measured_of
from train.objectives import objective_of
from train.objectives.trainee import Trainee
from train.run import target_of


def calibrate(recipe: Recipe, drafter: Path) -> Acceptance:
    """Measures the artifact at `drafter` on the recipe's held-out prompts and keeps what it found there.

    Raises:
      UserError: no such artifact, or one of another kind or for another target; no such prompts.
    """
    keep_compiled_programs()
    artifact, raw, section = read_artifact(drafter), read_config(drafter), recipe.prompts
    if artifact.kind != "dflash":
        raise UserError(
            f"{drafter}: expected a drafter of kind dflash, which says how sure it is of a draft, got {artifact.kind}"
        )
    target = target_of(recipe)
    check_fit(artifact, target, drafter)
    tokenizer = load_tokenizer(
        recipe.target.source, {**recipe.target.chat_template_args, **artifact.chat_template_args}
    )
    prompts = load_prompts(section.sources, limit=section.limit + section.heldout, seed=section.seed)
    _, heldout = split_heldout(prompts, section.heldout, section.seed)
    answers = Responses(prepare_responses(recipe, target, tokenizer, {"heldout": heldout}) / "heldout")
    network = artifact.drafter(recipe.train.dtype, target.mesh)
    trainee = Trainee(network, target, artifact.draft_vocab, online=True)
    rows = RowSource(answers, None, recipe.batches.row_length)
    acceptance = heldout_acceptance(objective_of(artifact.kind), trainee, rows, trainee.width, recipe.loss.head_chunk)
    raw["wideblock"] = origin_of(raw, drafter) | measured_of(acceptance.to_dict())
    write_json(drafter / CONFIG, raw)
    say(f"calibrate: {drafter}: held-out tau {acceptance.tau:.3f}; confidence: {acceptance.confidence}")
    return acceptance
