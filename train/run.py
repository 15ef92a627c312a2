"""One training run, from recipe to held-out acceptance.

Owned here: the run directory

    recipe.yaml, provenance.json   the resolved recipe; command, revision, versions, device
    drafter.json                   what the drafter is (see `train.export`)
    checkpoints/  metrics.jsonl  events/
    acceptance.json                held-out acceptance of the last step
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from flax import nnx

from configs.console import say
from configs.device import keep_compiled_programs
from configs.provenance import provenance
from configs.schema import Recipe
from models.sources import load_target
from models.target import Target, fingerprint
from models.tokenizer import load_tokenizer
from pipelines.batches import train_batches
from pipelines.prepare import Prepared, describe_rows, frequent_tokens, prepare
from pipelines.shards import write_json
from train.acceptance import Acceptance, heldout_acceptance
from train.build import drafter_config, new_drafter
from train.checkpoint import check_identity, find_step
from train.export import write_description
from train.loss import LossSettings, Trainee, block_loss


def train(recipe: Recipe, *, config: str, overrides: Sequence[str], resume: bool) -> int:
    """Prepares, trains, measures; returns the exit code (128 + signal when interrupted)."""
    keep_compiled_programs()
    run = recipe.run_dir
    refuse_overwriting(run, resume)
    run.mkdir(parents=True, exist_ok=True)
    say(f"target: loading {recipe.target.source}")
    target, tokenizer = load_target(recipe.target.source, recipe.target.dtype), load_tokenizer(recipe.target.source)
    shape = drafter_config(recipe, target, tokenizer)
    prepared = prepare(recipe, target, tokenizer)
    vocab = None
    if shape.draft_vocab_size is not None:
        vocab = frequent_tokens(prepared.read("train"), shape.draft_vocab_size, target.config.eos_ids)
        shape = drafter_config(recipe, target, tokenizer, draft_vocab_size=len(vocab))
    identity = identity_of(recipe, shape, target, prepared)
    if resume and (run / "checkpoints").is_dir() and any(run.glob("checkpoints/[0-9]*")):
        check_identity(run / "checkpoints" / str(find_step(run / "checkpoints", "last")), identity)
    describe_run(recipe, run)
    origin = {"target": target.config.name, "target_fingerprint": fingerprint(target), "recipe": recipe.run.name}
    write_description(run, shape, vocab, origin)
    trainee = Trainee(new_drafter(recipe, shape, target), target, vocab, online=recipe.features.mode == "online")
    del target
    return _fit_and_report(recipe, trainee, prepared, identity, command=" ".join([config, *overrides]))


def _fit_and_report(
    recipe: Recipe, trainee: Trainee, prepared: Prepared, identity: Mapping[str, Any], *, command: str
) -> int:
    from train.trainer import fit

    shape, run, section = trainee.drafter.config, recipe.run_dir, recipe.batches
    width = len(shape.target_layer_ids) * shape.target_hidden_size
    rows = prepared.rows("train", width, section.row_length)
    say(f"batches: {describe_rows(rows, prepared.read('train'), section.row_length)}")
    heldout, responses = prepared.rows("heldout", width, section.row_length), prepared.read("heldout")
    measured: dict[str, Acceptance] = {}

    def evaluate(model: nnx.Module, step: int) -> Mapping[str, float]:
        assert isinstance(model, Trainee)
        acceptance = heldout_acceptance(model, heldout, responses, recipe.loss.head_chunk)
        measured["last"] = acceptance
        say(f"train: step {step}: held-out tau {acceptance.tau:.3f} ({_per_task(acceptance)})")
        return acceptance.scalars()

    settings = LossSettings(
        weighting=recipe.loss.weighting,
        gamma=recipe.loss.gamma,
        head_chunk=recipe.loss.head_chunk,
        remat=recipe.train.remat,
    )
    batches = train_batches(rows, section.blocks, rows=section.rows, seed=recipe.run.seed)
    say(f"train: {recipe.train.steps} steps into {run} (metrics.jsonl, events/ for TensorBoard, checkpoints/)")

    def loss(trainee: Trainee, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return block_loss(trainee, batch, settings)

    outcome = fit(
        trainee,
        loss,
        batches,
        recipe=recipe,
        identity=identity,
        evaluate=evaluate,
    )
    if outcome.interrupted is not None:
        say(f"train: stopped by {outcome.interrupted.name}, saved step {outcome.step}")
        say(f"next: python -m train --config {command} --resume")
        return 128 + outcome.interrupted
    if measured:
        write_json(run / "acceptance.json", measured["last"].to_dict())
    say(f"next: python -m train export --run {run} --out exports/{recipe.run.name}")
    return 0


def _per_task(acceptance: Acceptance) -> str:
    return ", ".join(f"{name} {task['tau']:.2f}" for name, task in acceptance.tasks().items())


def identity_of(recipe: Recipe, shape: Any, target: Target, prepared: Prepared) -> dict[str, Any]:
    """What a checkpoint is bound to: a resumed run must agree in every one of these."""
    return {
        "target": target.config.name,
        "target_fingerprint": fingerprint(target),
        "width": shape.width,
        "taps": list(shape.target_layer_ids),
        "num_layers": shape.num_layers,
        "causal": shape.causal,
        "sliding_window": shape.sliding_window,
        "mask_token_id": shape.mask_token_id,
        "draft_vocab_size": shape.draft_vocab_size,
        "responses": prepared.responses.name,
        "batches": {
            "rows": recipe.batches.rows,
            "row_length": recipe.batches.row_length,
            "blocks": recipe.batches.blocks,
        },
        "loss": {"weighting": recipe.loss.weighting, "gamma": recipe.loss.gamma},
        "optimizer": recipe.to_dict()["optimizer"],
        "steps": recipe.train.steps,
        "seed": recipe.run.seed,
    }


def refuse_overwriting(run: Path, resume: bool) -> None:
    """Raises ValueError when the run directory holds checkpoints and --resume was not given."""
    steps = [path.name for path in run.glob("checkpoints/[0-9]*")]
    if steps and not resume:
        last = max(map(int, steps))
        raise ValueError(
            f"{run}: holds a run at step {last}; go on with --resume, or choose another run.name or run.dir"
        )


def describe_run(recipe: Recipe, run: Path) -> None:
    """Writes recipe.yaml and provenance.json."""
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    write_json(run / "provenance.json", provenance(["python", "-m", "train", *sys.argv[1:]]))
