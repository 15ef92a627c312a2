"""Decoding compiled for TPUs that are not here: whether a step fits a chip's memory, and what it should cost.

The program is the decode loop's own segment on abstract weights: a target with a drafter, or alone (width 1, which the
others are compared with). A step's estimate counts the cache as full of `context` positions.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import schema
from configs.console import say
from configs.errors import UserError
from models.aot import (
    Refusal,
    Report,
    Topology,
    describe,
    examine,
    mesh_over,
    room,
    save_program,
    times_the_chips,
)
from models.attention import CHUNK, FEW
from models.decode import Engine, abstract_state, segment
from models.drafters import TREES, Draft, Nothing
from models.drafters.artifact import Artifact, check_fit, read_artifact
from models.drafters.dflash import DrafterConfig
from models.drafters.dflash_weights import random_weights
from models.sharding import abstract, placed
from models.sources import abstract_target
from models.target import AXES, Target, TargetConfig, default_taps
from models.verify import GREEDILY, Speculation
from serve.session import context_capacity

LAYERS = 5  # of a DFlash drafter as published (arXiv 2602.06036)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is compiled: rows that decode together, the context they have room for, pages of so many positions, how
    tokens are sampled and verified."""

    rows: int
    context: int
    page: int | None
    dtype: str
    speculation: Speculation = GREEDILY


def compile_decoding(
    source: str, drafters: Sequence[str], chips: Topology, sizes: schema.Mesh, asked: Asked, save: Path | None = None
) -> dict[str, Any]:
    """A plain step and one of every drafter, said in lines and returned for JSON; `save` is for the last one's program.

    A drafter is the directory of an artifact, or `dflash/WIDTH` for its published shape; `/tree=NODES` drafts trees,
    `/vocab=SIZE` from so many tokens.
    Raises:
      UserError: no such target or drafter, the mesh divides neither them nor the topology, or a program of several
        chips is to be saved.
    """
    mesh = mesh_over(chips, sizes)
    if save is not None and mesh.size > 1:
        raise UserError(f"--save {save}: expected a program of one chip, got a mesh of {mesh.size}; drop one of both")
    target = abstract_target(source, asked.dtype, mesh)
    steps: dict[str, Any] = {}
    positions = target.config.max_positions
    if not asked.context <= positions:
        raise UserError(f"--context {asked.context}: expected at most the target's {positions} positions")
    for name in ("plain", *drafters):
        engine, draft = engine_of(name, target, mesh)
        state = abstract_state(
            engine, asked.rows, context_capacity(asked.context - draft.widest, draft.widest), asked.page
        )
        number = jax.ShapeDtypeStruct((), jnp.int32)
        lowered = segment.lower(engine, state, number, draft, asked.speculation)
        arguments = {"target": target, "drafter": engine.drafter, "cache": state.cache, "drafter state": state.drafter}
        pieces = asked.context / CHUNK if asked.rows <= FEW else 1.0
        found, seconds, program = examine(lowered, chips, arguments, trips=(1.0, pieces))
        say(f"decode step, {name}, width {draft.widest} (compiled in {seconds:.0f} s)")
        steps[name] = found.to_dict() | {"compile_seconds": seconds, "width": draft.widest}
        for line in describe(found):
            say(f"  {line}")
        if isinstance(found, Report) and steps["plain"].get("estimate"):
            steps[name]["over_plain"] = found.estimate / steps["plain"]["estimate"]
            plain = steps["plain"]["costliest"]
            more = {key: 1e3 * (seconds - plain.get(key, 0.0)) for key, seconds in found.costliest.items()}
            steps[name]["beyond_plain_ms"] = dict(sorted(more.items(), key=lambda item: -item[1]))
            say(f"  so: {steps[name]['over_plain']:.2f} of a plain step (estimated)")
        if not found.fits:
            steps[name]["advice"] = remedy(asked, sizes, found)
            say(f"  {steps[name]['advice']}")
        if name == drafters[-1] and save is not None and program is not None:
            save_program(program, save)
            say(f"  program: {save}")
    return {"topology": chips.name, "fits": all(step["fits"] for step in steps.values()), "steps": steps}


def remedy(asked: Asked, sizes: schema.Mesh, found: Report | Refusal) -> str:
    """What would make a step fit, by proportion: fewer rows, a shorter context, or weights over more chips."""
    share = room(found)
    if share <= 0:
        times = times_the_chips(found)
        return f"would fit: --mesh tensor={sizes.tensor * times}, on a topology of {times} times the chips"
    if rows := int(asked.rows * share):
        return f"would fit: --rows {rows}"
    return f"would fit: --rows 1 --context {int(asked.context * asked.rows * share)}"


def engine_of(name: str, target: Target, mesh: jax.sharding.Mesh) -> tuple[Engine, Draft]:
    """The abstract engine of a drafter by name, and what it drafts.

    Raises:
      UserError: no such drafter, or it does not fit the target.
    """
    if name == "plain":
        return Engine(target, Nothing()), Draft("drafter", 1)
    kind, width, *rest = name.split("/") if "/" in name else (name, "")
    options = {key: int(value) for key, _, value in (part.partition("=") for part in rest) if value.isdecimal()}
    known = len(options) == len(rest) and options.keys() <= {"tree", "vocab"} and options.get("tree", 16) in TREES
    known = known and 1 <= options.get("vocab", 1) <= target.config.vocab_size
    if Path(name).is_dir():
        artifact = read_artifact(Path(name))
        check_fit(artifact, target, Path(name))
        draft = Draft("drafter", artifact.config.width)
    elif kind == "dflash" and width.isdecimal() and int(width) > 1 and known:
        vocab = options.get("vocab")
        config = dataclasses.replace(published(target.config, int(width)), draft_vocab_size=vocab)
        artifact = Artifact(config, {}, None if vocab is None else np.arange(vocab, dtype=np.int32), {})
        draft = Draft("drafter", int(width), tree=options.get("tree", 0))
    else:
        nodes = ", ".join(map(str, TREES))
        raise UserError(
            f"--drafter {name}: expected an artifact's directory, or dflash/WIDTH and after it /tree=({nodes}) "
            f"or /vocab=SIZE, at most the target's {target.config.vocab_size}"
        )

    def build(target: Target) -> Any:
        weights = artifact.weights or random_weights(artifact.config, jax.random.key(0))
        return dataclasses.replace(artifact, weights=weights).bound(target)

    made = jax.eval_shape(build, target)
    fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    arrays = {  # what it borrows of the target lies where it lies there
        key: abstract(value, AXES.get(key, ()), mesh) for key, value in fields.items() if hasattr(value, "shape")
    }
    return Engine(target, dataclasses.replace(placed(made, mesh), **arrays)), draft


def published(target: TargetConfig, width: int) -> DrafterConfig:
    """A DFlash drafter of `width` for a target, as its paper shapes it: the target's layer, five times, five taps."""
    layers = max(1, min(LAYERS, target.num_layers - 3))  # taps lie from the second to the fourth last, once each
    shared = {field.name for field in dataclasses.fields(DrafterConfig)} & set(vars(target))
    return DrafterConfig(
        **{name: getattr(target, name) for name in shared - {"num_layers"}},
        width=width,
        num_layers=layers,
        target_layer_ids=default_taps(target.num_layers, layers),
        num_target_layers=target.num_layers,
        target_hidden_size=target.hidden_size,
        mask_token_id=target.vocab_size - 1,
        causal=(False,) * layers,
        windows=(None,) * layers,
        draft_vocab_size=None,
        markov_size=None,
    )
