"""A recipe compiled for TPUs that are not here: whether its steps fit a chip's memory, and what they should cost.

The programs are the trainer's own step and the decoding step that writes responses, on abstract weights. Out, for
each, a `models.aot.Report`; of the train step also its model FLOPs (`train.flops`) and

    estimated_mfu   model FLOPs over the chips' peak times the estimate
    tokens_per_s    packed context tokens of a step over the estimate
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.console import say
from configs.schema import Recipe
from models import decode
from models.aot import (
    Refusal,
    Report,
    Topology,
    describe,
    examine,
    host_mesh,
    host_of,
    mesh_over,
    room,
    times_the_chips,
)
from models.decode import Engine
from models.drafters import SINGLE
from models.recorder import Recorder, Tapped
from models.sampling import Sampling
from models.sharding import MESH, abstract, whole_rows
from models.sources import abstract_target
from models.target import Target
from models.tokenizer import load_tokenizer
from models.verify import Speculation
from pipelines.prepare import taps_of
from train.flops import step_flops
from train.objectives import objective_of
from train.trainer import lower_step


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One program of a recipe; `model_flops` of all chips, where they are counted."""

    found: Report | Refusal
    compile_seconds: float
    model_flops: float | None = None


def compile_recipe(recipe: Recipe, chips: Topology) -> dict[str, Any]:
    """What a recipe takes of a topology: says it in lines, and returns it for JSON.

    Raises:
      UserError: the recipe and the topology do not go together, or the recipe cannot be followed.
    """
    step, responses = compile_step(recipe, chips), compile_responses(recipe, chips)
    result: dict[str, Any] = {"topology": chips.name, "fits": step.found.fits and responses.found.fits}
    sizes = ", ".join(f"{axis}={getattr(recipe.mesh, axis)}" for axis in MESH)
    say(f"compile: {recipe.run.name} on {chips.name}, mesh {sizes}, {recipe.batches.rows} rows a step")
    for name, outcome in (("train step", step), ("response-writing step of each host", responses)):
        say(f"{name} (compiled in {outcome.compile_seconds:.0f} s)")
        for line in describe(outcome.found):
            say(f"  {line}")
    result |= {"hbm_fraction": max(step.found.hbm_fraction, responses.found.hbm_fraction)}
    if isinstance(step.found, Report):
        assert step.model_flops is not None
        seconds, peak = step.found.estimate, len(chips.devices) * chips.chip.peak
        mfu = step.model_flops / peak / seconds
        tokens = recipe.batches.rows * recipe.batches.row_length / seconds
        say(f"  so: {mfu:.0%} of the peak in model FLOPs, {tokens:.0f} packed tokens/s (estimated)")
        result |= {
            "step_flops": step.model_flops,
            "estimated_step_seconds": seconds,
            "estimated_mfu": mfu,
            "tokens_per_s": tokens,
            "collective_bytes": sum(each["bytes"] for each in step.found.collectives.values()),
        }
    advice = [] if step.found.fits else [remedy(recipe, step.found)]
    advice += [] if responses.found.fits else [response_remedy(recipe, responses.found)]
    for line in advice:
        say(f"  {line}")
    result["advice"] = advice
    result["compile_seconds"] = step.compile_seconds + responses.compile_seconds
    programs = {"train_step": step, "response_step": responses}
    return result | {name: outcome.found.to_dict() for name, outcome in programs.items()}


def remedy(recipe: Recipe, found: Report | Refusal) -> str:
    """What would make a train step fit, by proportion: fewer rows at once, or weights over more chips."""
    shared, share = recipe.mesh.data * recipe.mesh.fsdp, room(found)
    rows = recipe.batches.rows // shared  # of one chip
    if rows * share >= 1:
        fewer = max(part for part in range(1, int(rows * share) + 1) if rows % part == 0)
        more = rows // fewer * recipe.optimizer.accumulation
        return f"would fit: batches.rows={fewer * shared} (optimizer.accumulation={more} for the same update)"
    if share > 0:
        return "would fit: fewer anchors (batches.blocks), a smaller loss.head_chunk, or mesh.tensor in place of fsdp"
    times = times_the_chips(found)
    return f"would fit: mesh.fsdp={recipe.mesh.fsdp * times}, on a topology of {times} times the chips"


def response_remedy(recipe: Recipe, found: Report | Refusal) -> str:
    """What would make the step that writes responses fit: fewer of them together, or the target over more chips."""
    shared = recipe.mesh.data * recipe.mesh.fsdp
    batch = int(recipe.responses.batch * room(found)) // shared * shared
    if batch > 0:
        return f"would fit: responses.batch={batch}"
    return "would fit: shorter responses (responses.max_new_tokens), or more of mesh.tensor"


def compile_step(recipe: Recipe, chips: Topology) -> Outcome:
    """The train step of a recipe.

    Raises:
      UserError: the recipe and the topology do not go together, or the recipe cannot be followed.
    """
    mesh = mesh_over(chips, recipe.mesh)
    target = abstract_target(recipe.target.source, recipe.target.dtype, mesh)
    objective, section = objective_of(recipe.drafter.kind), recipe.batches
    stated = getattr(recipe.drafter, "mask_token_id", 0) is not None
    tokenizer = None if stated else load_tokenizer(recipe.target.source, recipe.target.chat_template_args)
    config = objective.drafter_config(recipe, target, tokenizer)
    vocab = None if config.draft_vocab_size is None else np.arange(config.draft_vocab_size, dtype=np.int32)
    batch = abstract_batch(recipe, config.feature_size, target.config.hidden_size, mesh)

    def make_trainee(target: Target) -> Any:
        return objective.make_trainee(recipe, config, target, vocab)

    lowered, arguments = lower_step(recipe, target, make_trainee, objective.loss_of(recipe), batch, mesh)
    online = recipe.features.mode == "online"
    given = {"rows": section.rows, "row_length": section.row_length, "blocks": section.blocks}
    flops = step_flops(config, target.config, **given, online=online, taught=recipe.loss.taught)
    shape, rows = target.config, section.rows / len(chips.devices)
    attended = 4 * shape.num_heads * shape.head_dim * section.row_length / 2  # FLOPs of a token's, causal
    unsaid = rows * section.row_length * attended * (max(config.target_layer_ids) + 1) if online else 0.0  # by splash
    found, seconds, _ = examine(lowered, chips, arguments, silent_flops=unsaid)
    return Outcome(found, seconds, flops)


def abstract_batch(recipe: Recipe, feature_size: int, hidden_size: int, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """A batch of `pipelines.batches`, without its values."""
    section, rows = recipe.batches, ("batch",)
    sizes = {name: section.row_length for name in ("tokens", "positions", "segments")}
    sizes |= {f"anchors_w{width}": count for width, count in section.blocks.items()}
    batch = {name: jax.ShapeDtypeStruct((section.rows, size), jnp.int32) for name, size in sizes.items()}
    if recipe.features.mode == "cached":
        size = feature_size + (hidden_size if recipe.loss.taught else 0)
        shape = (section.rows, section.row_length, size)
        batch["features"] = jax.ShapeDtypeStruct(shape, jnp.dtype(recipe.features.dtype))
    return {name: abstract(array, rows, mesh) for name, array in batch.items()}


def compile_responses(recipe: Recipe, chips: Topology) -> Outcome:
    """One decoding step of `pipelines.responses`, which writes what the drafter is trained on, at all its rows: on one
    host's chips, since every host writes its own responses.

    Raises:
      UserError: as `compile_step`.
    """
    whole, host = mesh_over(chips, recipe.mesh), host_of(chips)
    mesh = whole if host is chips else host_mesh(host, recipe.mesh)
    target = abstract_target(recipe.target.source, recipe.target.dtype, mesh)
    section, cached = recipe.responses, recipe.features.mode == "cached"
    tapped = Tapped(taps_of(recipe, target), recipe.loss.taught, recipe.features.dtype)
    drafter = Recorder(tapped, target.config.hidden_size) if cached else decode.Nothing()
    engine, rows = Engine(target, drafter), whole_rows(section.batch, mesh)
    state = decode.abstract_state(engine, rows, section.max_prompt_tokens + section.max_new_tokens)
    speculation = Speculation(Sampling(section.temperatures[0]))
    steps = jax.ShapeDtypeStruct((), jnp.int32)
    lowered = decode.segment.lower(engine, state, steps, SINGLE, speculation)
    arguments = {"target": target, "cache": state.cache, "features": state.drafter}
    found, seconds, _ = examine(lowered, host, arguments, trips=(1, 1))  # of the segment, of the cache's pieces
    return Outcome(found, seconds)
