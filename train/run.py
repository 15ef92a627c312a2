"""One training run, from recipe to held-out acceptance.

Owned here: the run directory

    recipe.yaml, provenance.json   the resolved recipe; command, revision, versions, device
    recipe.<step>.yaml, provenance.<step>.json
                                   the same of the part that went on from there, where it differs from what was before
    drafter.json                   what the drafter is (see `train.export`)
    checkpoints/  metrics.jsonl  events/
    .lock                          names the process that writes there, while it does
"""

import dataclasses
import json
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from flax import nnx

from configs.console import say
from configs.device import keep_compiled_programs, keep_freed_memory
from configs.errors import UserError
from configs.files import write_atomic
from configs.processes import held_by_first, leads
from configs.provenance import provenance
from configs.schema import Batches, Recipe
from models.sharding import make_mesh, own_mesh, part_of_rows
from models.sources import load_target
from models.target import Target, TargetConfig
from models.tokenizer import Tokenizer, load_tokenizer
from pipelines.batches import RowSource, TrainBatches
from pipelines.prepare import Prepared, describe_vocabulary, draft_vocabulary, prepare
from train.acceptance import Acceptance, heldout_acceptance
from train.checkpoint import LAYOUT, check_identity, whole_steps
from train.export import write_description
from train.objectives import objective_of


@dataclasses.dataclass(frozen=True)
class Assembly:
    """Everything a recipe describes, loaded and prepared."""

    trainee: Any
    prepared: Prepared
    draft_vocab: np.ndarray | None
    target: TargetConfig
    target_fingerprint: str

    @property
    def config(self) -> Any:
        return self.trainee.drafter.config

    def rows(self, split: str, section: Batches) -> RowSource:
        """Packed rows of a split."""
        first = section.responses if split == "train" else None
        return self.prepared.rows(split, self.config.target_hidden_size, section.row_length, first)


@dataclasses.dataclass(frozen=True)
class Material:
    """What is loaded and prepared before there is a drafter; recipes with the same target and data share it."""

    target: Target
    tokenizer: Tokenizer
    prepared: Prepared


def gather(recipe: Recipe, target: Target | None = None) -> Material:
    """Loads the target where it is not given, prepares the data where missing."""
    target = target or target_of(recipe)
    tokenizer = load_tokenizer(recipe.target.source, recipe.target.chat_template_args)
    return Material(target, tokenizer, prepare(recipe, target, tokenizer))


def assemble(recipe: Recipe, material: Material | None = None) -> Assembly:
    """Gathers the material where it is not given, builds the trainee at step 0."""
    material = material or gather(recipe)
    target, prepared = material.target, material.prepared
    objective = objective_of(recipe.drafter.kind)
    config = objective.drafter_config(recipe, target, material.tokenizer)
    vocab = draft_vocabulary(recipe, prepared, target.config)
    if vocab is not None:
        config = dataclasses.replace(config, draft_vocab_size=len(vocab))
    trainee = objective.make_trainee(recipe, config, target, vocab)
    return Assembly(trainee, prepared, vocab, target.config, target.fingerprint)


def target_of(recipe: Recipe) -> Target:
    """The recipe's target, loaded, on devices of this process alone until training begins."""
    say(f"target: loading {recipe.target.source}")
    return load_target(recipe.target.source, recipe.target.dtype, own_mesh(recipe.mesh))


def train_drafter(recipe: Recipe, *, resume: bool = False) -> Path:
    """Prepares the data where missing and trains by `recipe`; returns the run's directory, which `export` takes.

    Raises:
      UserError: the recipe cannot be followed, or its directory holds a run and `resume` is not set.
      InterruptedError: SIGTERM or SIGINT came; the step is saved, and `resume` goes on from it.
    """
    if run(recipe, resume=resume) is not None:
        raise InterruptedError(f"{recipe.run_dir}: stopped by a signal; go on with resume=True")
    return recipe.run_dir


def train(recipe: Recipe, *, config: str, overrides: Sequence[str], resume: bool) -> int:
    """`run`, then what to do next is said; returns the exit code (128 + signal when interrupted)."""
    stopped = run(recipe, resume=resume)
    if stopped is not None:
        say(f"next: python -m train --config {shlex.join([config, *overrides])} --resume")
        return 128 + stopped
    out = shlex.quote(f"exports/{recipe.run.name}")
    say(f"next: python -m train export --run {shlex.quote(str(recipe.run_dir))} --out {out}")
    return 0


def run(recipe: Recipe, *, resume: bool, material: Material | None = None) -> signal.Signals | None:
    """Prepares (where it is not given), trains, measures; the signal that stopped it, if one did.

    Raises:
      UserError: the recipe cannot be followed, or its directory holds a run and `resume` is not set.
    """
    keep_compiled_programs()
    keep_freed_memory()
    folder = recipe.run_dir
    with held_by_first(folder, wait=False):
        refuse_overwriting(folder, resume)
        assembly = assemble(recipe, material)
        identity, begun = identity_of(recipe, assembly), max(whole_steps(folder / "checkpoints"), default=0)
        if begun:
            check_identity(folder / "checkpoints" / str(begun), identity)
        origin = {
            "kind": recipe.drafter.kind,
            "target": assembly.target.name,
            "target_fingerprint": assembly.target_fingerprint,
            "chat_template_args": recipe.target.chat_template_args,
            "recipe": recipe.run.name,
        }
        if leads():
            describe_run(recipe, folder, begun)
            write_description(folder, assembly.config, assembly.draft_vocab, origin)
        return _fit(recipe, assembly, identity)


def _fit(recipe: Recipe, assembly: Assembly, identity: Mapping[str, Any]) -> signal.Signals | None:
    from train.trainer import fit

    folder, section, objective = recipe.run_dir, recipe.batches, objective_of(recipe.drafter.kind)
    rows = assembly.rows("train", section)
    say(f"batches: {rows.describe()}")
    heldout = assembly.rows("heldout", section)
    if assembly.draft_vocab is not None:
        say(f"draft vocabulary: {describe_vocabulary(heldout.responses, assembly.draft_vocab)}")

    def evaluate(model: nnx.Module, step: int) -> Acceptance:
        acceptance = heldout_acceptance(objective, model, heldout, batches.widest, recipe.loss.head_chunk)
        say(f"train: step {step}: held-out tau {acceptance.tau:.3f} ({_per_task(acceptance)})")
        if acceptance.confidence is not None:
            say(f"train: step {step}: confidence: {acceptance.confidence}")
        return acceptance

    batches = TrainBatches(recipe, rows, part_of_rows(make_mesh(recipe.mesh)))
    say(f"train: {recipe.train.steps} steps into {folder} (metrics.jsonl, events/ for TensorBoard, checkpoints/)")

    outcome = fit(
        assembly.trainee,
        objective.loss_of(recipe),
        batches,
        recipe=recipe,
        identity=identity,
        evaluate=evaluate,
    )
    if outcome.interrupted is not None:
        say(f"train: stopped by {outcome.interrupted.name}, saved step {outcome.step}")
    return outcome.interrupted


def _per_task(acceptance: Acceptance) -> str:
    return ", ".join(f"{name} {task['tau']:.2f}" for name, task in acceptance.tasks().items())


def identity_of(recipe: Recipe, assembly: Assembly) -> dict[str, Any]:
    """What a checkpoint is bound to: a resumed run must agree in every one of these."""
    config = assembly.config
    return {
        "layout": LAYOUT,
        "kind": recipe.drafter.kind,
        "target_fingerprint": assembly.target_fingerprint,
        "chat_template_args": recipe.target.chat_template_args,
        "width": config.width,
        "taps": list(config.target_layer_ids),
        "num_layers": config.num_layers,
        "draft_vocab_size": config.draft_vocab_size,
        **{name: getattr(config, name) for name in config.identity},
        "responses": assembly.prepared.responses.name,
        "batches": recipe.to_dict()["batches"],
        "loss": {name: getattr(recipe.loss, name) for name in ("weighting", "gamma", "ce", "kl", "tv")},
        "optimizer": {name: value for name, value in recipe.to_dict()["optimizer"].items() if value is not None},
        "steps": recipe.train.steps,
        "seed": recipe.run.seed,
        "target.dtype": recipe.target.dtype,
        "train.dtype": recipe.train.dtype,
        "features.mode": recipe.features.mode,
        "features.attention": recipe.features.attention,
        "features.dtype": recipe.features.dtype if recipe.features.mode == "cached" else None,
    }


def refuse_overwriting(run: Path, resume: bool) -> None:
    """Raises UserError when the run directory holds checkpoints and --resume was not given."""
    steps = whole_steps(run / "checkpoints")
    if steps and not resume:
        raise UserError(
            f"{run}: holds a run at step {steps[-1]}; go on with --resume, or choose another run.name or run.dir"
        )


def describe_run(recipe: Recipe, run: Path, begun: int) -> None:
    """Writes recipe.yaml and provenance.json, or what is new of them in a part that goes on from step `begun`."""
    _describe(run, "recipe", "yaml", begun=begun, text=yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    came_from = provenance(["python", "-m", "train", *sys.argv[1:]])
    _describe(run, "provenance", "json", begun=begun, text=json.dumps(came_from, indent=1) + "\n")


def _describe(run: Path, stem: str, suffix: str, *, begun: int, text: str) -> None:
    first = run / f"{stem}.{suffix}"
    if begun == 0 or not first.is_file():
        write_atomic(first, text)
        return
    later = [path for path in run.glob(f"{stem}.*.{suffix}") if path.name.split(".")[1].isdecimal()]
    latest = max(later, key=lambda path: int(path.name.split(".")[1]), default=first)
    if latest.read_text() != text:
        write_atomic(run / f"{stem}.{begun}.{suffix}", text)
