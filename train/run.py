"""One training run, from recipe to held-out acceptance.

Owned here: the run directory

    recipe.yaml, provenance.json   the resolved recipe; command, revision, versions, device
    drafter.json                   what the drafter is (see `train.export`)
    checkpoints/  metrics.jsonl  events/
    acceptance.json                held-out acceptance of the last step
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from flax import nnx

from configs.console import say
from configs.device import keep_compiled_programs, keep_freed_memory
from configs.provenance import provenance
from configs.schema import Recipe
from models.drafter import DrafterConfig
from models.sharding import make_mesh, weight_sharding
from models.sources import load_target
from models.sources.layout import one_device
from models.target import TargetConfig
from models.tokenizer import load_tokenizer
from pipelines.batches import RowSource, train_batches
from pipelines.prepare import Prepared, describe_rows, frequent_tokens, prepare
from pipelines.shards import write_json
from train.acceptance import Acceptance, heldout_acceptance
from train.build import drafter_config, new_drafter
from train.checkpoint import check_identity, find_step, whole_steps
from train.export import write_description
from train.loss import LossSettings, Trainee, block_loss


@dataclasses.dataclass(frozen=True)
class Assembly:
    """Everything a recipe describes, loaded and prepared."""

    trainee: Trainee
    prepared: Prepared
    draft_vocab: np.ndarray | None
    target: TargetConfig
    target_fingerprint: str

    @property
    def config(self) -> DrafterConfig:
        return self.trainee.drafter.config

    def rows(self, split: str, row_length: int) -> RowSource:
        """Packed rows of a split."""
        return self.prepared.rows(split, self.config.target_hidden_size, row_length)


def assemble(recipe: Recipe) -> Assembly:
    """Loads the target, prepares the data where missing, builds the trainee at step 0."""
    say(f"target: loading {recipe.target.source}")
    mesh = make_mesh(recipe.mesh.data, recipe.mesh.fsdp)
    place = partial(weight_sharding, mesh=mesh) if mesh.size > 1 else one_device
    target = load_target(recipe.target.source, recipe.target.dtype, place)
    tokenizer = load_tokenizer(recipe.target.source, recipe.target.chat_template_args)
    config = drafter_config(recipe, target, tokenizer)
    prepared = prepare(recipe, target, tokenizer)
    vocab = None
    if config.draft_vocab_size is not None:
        vocab = frequent_tokens(prepared.read("train"), config.draft_vocab_size, target.config.eos_ids)
        config = dataclasses.replace(config, draft_vocab_size=len(vocab))
    drafter = new_drafter(recipe, config, target)
    trainee = Trainee(drafter, target, vocab, online=recipe.features.mode == "online")
    return Assembly(trainee, prepared, vocab, target.config, target.fingerprint)


def loss_settings(recipe: Recipe) -> LossSettings:
    section = recipe.loss
    return LossSettings(section.weighting, section.gamma, section.soft, section.head_chunk, recipe.train.remat)


def train_drafter(recipe: Recipe, *, resume: bool = False) -> Path:
    """Prepares the data where missing and trains by `recipe`; returns the run's directory, which `export` takes.

    Raises:
      ValueError: the recipe cannot be followed, or its directory holds a run and `resume` is not set.
      InterruptedError: SIGTERM or SIGINT came; the step is saved, and `resume` goes on from it.
    """
    if train(recipe, config=recipe.run.name, overrides=[], resume=resume):
        raise InterruptedError(f"{recipe.run_dir}: stopped by a signal; go on with resume=True")
    return recipe.run_dir


def train(recipe: Recipe, *, config: str, overrides: Sequence[str], resume: bool) -> int:
    """Prepares, trains, measures; returns the exit code (128 + signal when interrupted)."""
    keep_compiled_programs()
    keep_freed_memory()
    run = recipe.run_dir
    refuse_overwriting(run, resume)
    run.mkdir(parents=True, exist_ok=True)
    assembly = assemble(recipe)
    identity = identity_of(recipe, assembly)
    if whole_steps(run / "checkpoints"):
        check_identity(run / "checkpoints" / str(find_step(run / "checkpoints", "last")), identity)
    describe_run(recipe, run)
    origin = {
        "target": assembly.target.name,
        "target_fingerprint": assembly.target_fingerprint,
        "chat_template_args": recipe.target.chat_template_args,
        "recipe": recipe.run.name,
    }
    write_description(run, assembly.config, assembly.draft_vocab, origin)
    return _fit_and_report(recipe, assembly, identity, command=" ".join([config, *overrides]))


def _fit_and_report(recipe: Recipe, assembly: Assembly, identity: Mapping[str, Any], *, command: str) -> int:
    from train.trainer import fit

    run, section, prepared = recipe.run_dir, recipe.batches, assembly.prepared
    rows = assembly.rows("train", section.row_length)
    say(f"batches: {describe_rows(rows, prepared.read('train'), section.row_length)}")
    heldout, responses = assembly.rows("heldout", section.row_length), prepared.read("heldout")
    measured: dict[str, Acceptance] = {}

    def evaluate(model: nnx.Module, step: int) -> Mapping[str, float]:
        assert isinstance(model, Trainee)
        acceptance = heldout_acceptance(model, heldout, responses, recipe.loss.head_chunk)
        measured["last"] = acceptance
        say(f"train: step {step}: held-out tau {acceptance.tau:.3f} ({_per_task(acceptance)})")
        return acceptance.scalars()

    settings = loss_settings(recipe)
    batches = train_batches(rows, section.blocks, rows=section.rows, seed=recipe.run.seed)
    say(f"train: {recipe.train.steps} steps into {run} (metrics.jsonl, events/ for TensorBoard, checkpoints/)")

    def loss(trainee: Trainee, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return block_loss(trainee, batch, settings)

    outcome = fit(
        assembly.trainee,
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


def identity_of(recipe: Recipe, assembly: Assembly) -> dict[str, Any]:
    """What a checkpoint is bound to: a resumed run must agree in every one of these."""
    config, section = assembly.config, recipe.batches
    return {
        "target_fingerprint": assembly.target_fingerprint,
        "chat_template_args": recipe.target.chat_template_args,
        "width": config.width,
        "taps": list(config.target_layer_ids),
        "num_layers": config.num_layers,
        "causal": config.causal,
        "windows": config.windows,
        "mask_token_id": config.mask_token_id,
        "draft_vocab_size": config.draft_vocab_size,
        "markov_size": config.markov_size,
        "responses": assembly.prepared.responses.name,
        "batches": {"rows": section.rows, "row_length": section.row_length, "blocks": section.blocks},
        "loss": {"weighting": recipe.loss.weighting, "gamma": recipe.loss.gamma, "soft": recipe.loss.soft},
        "optimizer": recipe.to_dict()["optimizer"],
        "steps": recipe.train.steps,
        "seed": recipe.run.seed,
    }


def refuse_overwriting(run: Path, resume: bool) -> None:
    """Raises ValueError when the run directory holds checkpoints and --resume was not given."""
    steps = whole_steps(run / "checkpoints")
    if steps and not resume:
        raise ValueError(
            f"{run}: holds a run at step {steps[-1]}; go on with --resume, or choose another run.name or run.dir"
        )


def describe_run(recipe: Recipe, run: Path) -> None:
    """Writes recipe.yaml and provenance.json."""
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    write_json(run / "provenance.json", provenance(["python", "-m", "train", *sys.argv[1:]]))
