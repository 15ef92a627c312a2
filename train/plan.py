"""What a recipe would take at scale: hours of answers and training on so many chips, and storage, before renting any.

    answers    one decoding step of `rows` rows a chip takes the roofline's time (`models.roofline`) over `efficiency`;
               every chip holds the target and writes answers of the recipe's full length
    training   model FLOPs (`train.flops`) over the chips' peak times `mfu`, `epochs` times over the packed rows
    online     the target runs in every training step, and answers alone are kept: 4 bytes a token
    cached     features are kept as answers are written and read once an epoch, at the rate training takes them

All bfloat16; neither compilation, checkpoints nor evaluation are in it.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from configs.console import say
from configs.errors import UserError
from configs.schema import Recipe
from models.aot import CHIPS, Chip
from models.roofline import Machine, verify_work
from models.sharding import MESH
from models.sources import abstract_target
from models.target import TargetConfig
from models.tokenizer import load_tokenizer
from train.flops import step_flops
from train.objectives import objective_of

TOKEN_BYTES = 4
CHIPS_PER_HOST = {"v5p": 4, "v5e": 4, "v6e": 4}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is trained on, and how well the chips are used; rows are those a chip decodes together."""

    responses: int
    epochs: int
    mfu: float
    efficiency: float
    rows: int


def plan(recipe: Recipe, topologies: Sequence[str], scale: Scale) -> dict[str, Any]:
    """Hours and bytes by topology and feature mode: says them in lines, and returns them for JSON.

    Raises:
      UserError: an unknown topology or target.
    """
    sizes = [(name, *chips_of(name)) for name in topologies]
    mesh = jax.make_mesh((1,) * len(MESH), MESH, axis_types=(AxisType.Auto,) * len(MESH), devices=jax.devices()[:1])
    target = abstract_target(recipe.target.source, "bfloat16", mesh)
    section, taught = recipe.batches, recipe.loss.taught
    stated = getattr(recipe.drafter, "mask_token_id", 0) is not None
    tokenizer = None if stated else load_tokenizer(recipe.target.source, recipe.target.chat_template_args)
    drafter = objective_of(recipe.drafter.kind).drafter_config(recipe, target, tokenizer)
    tokens = scale.responses * section.row_length
    shape = {"rows": 1, "row_length": section.row_length, "blocks": section.blocks, "taught": taught}
    flops = {
        mode: step_flops(drafter, target.config, **shape, online=mode == "online") for mode in ("online", "cached")
    }
    width = drafter.feature_size + (target.config.hidden_size if taught else 0)
    stored = {"online": tokens * TOKEN_BYTES, "cached": tokens * width * jnp.dtype(recipe.features.dtype).itemsize}
    found = {}
    for name, chip, count in sizes:
        writing = answer_hours(target.config, recipe, chip, count, scale)
        modes = {}
        for mode in ("online", "cached"):
            training = scale.epochs * scale.responses * flops[mode] / (count * chip.peak * scale.mfu) / 3600
            rate = stored[mode] * scale.epochs / (training * 3600)
            modes[mode] = {
                "answer_hours": writing,
                "training_hours": training,
                "chip_hours": count * (writing + training),
                "stored_bytes": stored[mode],
                "read_bytes_per_second": rate,
                "read_bytes_per_second_per_host": rate / max(1, count // CHIPS_PER_HOST[chip.name]),
            }
        found[name] = {"chips": count} | modes
        for mode, each in modes.items():
            say(
                f"{name} ({count} chips), {mode}: answers {writing:.1f} h, training {each['training_hours']:.1f} h, "
                f"{each['chip_hours']:.0f} chip hours; {stored[mode] / 1e12:.2f} TB kept, "
                f"{each['read_bytes_per_second_per_host'] / 1e9:.3g} GB/s read by a host"
            )
    return {"recipe": recipe.run.name, "tokens": tokens, **dataclasses.asdict(scale), "topologies": found}


def answer_hours(target: TargetConfig, recipe: Recipe, chip: Chip, count: int, scale: Scale) -> float:
    """Hours in which `count` chips write all answers, their caches half full on average of the answer's length."""
    section = recipe.responses
    context = section.max_prompt_tokens + section.max_new_tokens // 2
    work = verify_work(target, 2, batch=scale.rows, width=1, context=context)
    step = work.ms(Machine(chip.name, chip.peak, chip.bandwidth)) / 1e3 / scale.efficiency
    return scale.responses * section.max_new_tokens * step / (scale.rows * count) / 3600


def chips_of(name: str) -> tuple[Chip, int]:
    """The chip of a topology and how many it has, such as 4 of v5p:2x2x1.

    Raises:
      UserError: no such chip.
    """
    kind, _, shape = name.partition(":")
    sizes = shape.split("x")
    if kind not in CHIPS or not all(size.isdecimal() and int(size) for size in sizes):
        raise UserError(f"topology {name!r}: expected {', '.join(CHIPS)} and its chips, such as v5p:2x2x1")
    return CHIPS[kind], math.prod(map(int, sizes))
