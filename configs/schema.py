"""The recipe of a run: frozen dataclasses, read from YAML, every key checked.

In: a YAML file (a path, or a bare name looked up in this package) and `section.field=value` overrides.
Out: a `Recipe`. A recipe states every value that changes a result, so nothing here has a default: an unknown,
missing or mistyped key is refused with the file, the key, what was expected and the nearest valid key.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from configs.errors import UserError
from configs.paths import at_home, read_text


@dataclasses.dataclass(frozen=True)
class Run:
    name: str
    dir: str | None  # where the run lives; runs/<name> when null
    data_dir: str  # responses and features, shared by all runs that ask for the same ones
    seed: int


@dataclasses.dataclass(frozen=True)
class Target:
    source: str  # "smollm2-135m" (embedded) or a Hugging Face directory
    dtype: Literal["float32", "bfloat16"]
    chat_template_args: dict[str, bool | int | float | str]  # such as enable_thinking; evaluation and chat keep them


@dataclasses.dataclass(frozen=True)
class Prompts:
    sources: tuple[str, ...]  # see pipelines.prompts
    limit: int  # training prompts kept, balanced over the tasks
    heldout: int  # further prompts kept aside for held-out acceptance


@dataclasses.dataclass(frozen=True)
class Responses:
    regenerate: bool  # false: train on the responses found in the prompt files; costs acceptance
    max_prompt_tokens: int
    max_new_tokens: int
    temperature: float  # 0 is greedy
    batch: int  # rows generated together
    shard_size: int  # responses per shard; a finished shard is never redone


@dataclasses.dataclass(frozen=True)
class Features:
    mode: Literal["cached", "online"]
    dtype: Literal["float16", "bfloat16", "float32"]  # of the cache
    attention: Literal["dense", "splash"]  # of the target over packed rows; splash is a TPU kernel


@dataclasses.dataclass(frozen=True)
class Drafter:
    num_layers: int
    target_layer_ids: tuple[int, ...] | None  # taps; the DFlash default when null
    width: int  # W: one anchor and W-1 drafted tokens
    causal: bool  # in-block attention
    sliding_window: int | None  # how far every layer's slots look back, themselves included; all the way when null
    mask_token_id: int | None  # an unused special token of the target when null
    draft_vocab_size: int | None  # most frequent response tokens; the whole vocabulary when null
    markov_size: int | None  # hidden width of the head that corrects a slot by the token before it; none when null
    init: Literal["target", "random"]
    init_from: str | None  # a drafter artifact to start from instead


@dataclasses.dataclass(frozen=True)
class Batches:
    rows: int  # packed rows per step
    row_length: int  # context tokens per row
    blocks: dict[int, int]  # block width -> anchors per row; the widest is drafter.width


@dataclasses.dataclass(frozen=True)
class Loss:
    weighting: Literal["dpace", "decay"]
    gamma: float  # decay length in slots (decay); unused by dpace
    soft: float  # 0: label is the response's token; 1: the target's whole distribution; between: a mixture
    head_chunk: int  # block positions whose logits exist at once


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float
    weight_decay: float
    warmup_fraction: float
    clip: float
    b1: float
    b2: float
    accumulation: int


@dataclasses.dataclass(frozen=True)
class Train:
    steps: int
    remat: bool
    dtype: Literal["float32", "bfloat16"]  # of the drafter's computation; parameters stay float32
    eval_every: int
    checkpoint_every: int
    keep: int
    log_every: int


@dataclasses.dataclass(frozen=True)
class Mesh:
    data: int
    fsdp: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    run: Run
    target: Target
    prompts: Prompts
    responses: Responses
    features: Features
    drafter: Drafter
    batches: Batches
    loss: Loss
    optimizer: Optimizer
    train: Train
    mesh: Mesh

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir) if self.run.dir else Path("runs") / self.run.name

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dictionaries and numbers, as YAML has them."""
        return _plain(dataclasses.asdict(self))


class RecipeError(UserError):
    """A recipe that cannot be used; the message names file, key, expected, got."""


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in file `name` with `section.field=value` overrides applied.

    Raises:
      RecipeError: file missing, not YAML, or a key unknown, missing or of the wrong type.
      UserError: the file cannot be read or is not UTF-8.
    """
    path = find_recipe(name)
    try:
        raw = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: expected sections ({', '.join(_names(Recipe))}), got {_describe(raw)}")
    for override in overrides:
        _apply(raw, override)
    recipe = _build(Recipe, raw, str(path), "")
    _check_ranges(recipe, str(path))
    return _at_home(recipe)


_PATHS = ("run.dir", "run.data_dir", "target.source", "prompts.sources", "drafter.init_from")


def _at_home(recipe: Recipe) -> Recipe:
    """`recipe` with `~` replaced in everything that names a file or directory."""
    for key in _PATHS:
        section, field = key.split(".")
        part = getattr(recipe, section)
        value = getattr(part, field)
        known = tuple(map(at_home, value)) if isinstance(value, tuple) else value and at_home(value)
        recipe = dataclasses.replace(recipe, **{section: dataclasses.replace(part, **{field: known})})
    return recipe


_AT_LEAST = {
    "run.seed": 0,
    "prompts.limit": 1,
    "prompts.heldout": 1,
    "responses.max_prompt_tokens": 1,
    "responses.max_new_tokens": 2,
    "responses.temperature": 0.0,
    "responses.batch": 1,
    "responses.shard_size": 1,
    "drafter.num_layers": 1,
    "drafter.width": 2,
    "drafter.sliding_window": 1,
    "drafter.mask_token_id": 0,
    "drafter.draft_vocab_size": 2,
    "drafter.markov_size": 1,
    "batches.rows": 1,
    "batches.row_length": 2,
    "loss.gamma": 1e-6,
    "loss.soft": 0.0,
    "loss.head_chunk": 1,
    "optimizer.learning_rate": 0.0,
    "optimizer.weight_decay": 0.0,
    "optimizer.warmup_fraction": 0.0,
    "optimizer.clip": 1e-9,
    "optimizer.b1": 0.0,
    "optimizer.b2": 0.0,
    "optimizer.accumulation": 1,
    "train.steps": 1,
    "train.eval_every": 0,
    "train.checkpoint_every": 0,
    "train.keep": 1,
    "train.log_every": 1,
    "mesh.data": 1,
    "mesh.fsdp": 1,
}
_AT_MOST = {"run.seed": 2**32 - 1, "loss.soft": 1.0, "optimizer.warmup_fraction": 1.0}
_BELOW = {"optimizer.b1": 1.0, "optimizer.b2": 1.0}  # 1 would divide by zero: Adam corrects by 1 - b^step
_NOT_EMPTY = ("run.name", "run.dir", "run.data_dir", "target.source", "drafter.target_layer_ids", "drafter.init_from")


def _check_ranges(recipe: Recipe, where: str) -> None:
    def value_of(key: str) -> Any:
        section, field = key.split(".")
        return getattr(getattr(recipe, section), field)

    limited = (
        (_AT_LEAST, "at least", float.__ge__),
        (_AT_MOST, "at most", float.__le__),
        (_BELOW, "below", float.__lt__),
    )
    for limits, word, inside in limited:
        for key, limit in limits.items():
            value = value_of(key)
            if value is not None and not inside(float(value), float(limit)):
                raise RecipeError(f"{where}: {key}: expected {word} {limit}, got {value}")
    for key in _NOT_EMPTY:
        if value_of(key) is not None and not value_of(key):
            raise RecipeError(f"{where}: {key}: expected a value, got {value_of(key)!r}; name one")
    width, blocks = recipe.drafter.width, recipe.batches.blocks
    if not blocks or max(blocks) != width or min(blocks) < 2 or min(blocks.values()) < 1:
        raise RecipeError(
            f"{where}: batches.blocks: expected widths from 2 to drafter.width={width}, the widest equal to it, "
            f"with at least one anchor each; got {blocks}"
        )
    if recipe.features.attention == "splash":
        length, devices = recipe.batches.row_length, math.prod(dataclasses.asdict(recipe.mesh).values())
        if length % 128 or devices > 1:
            raise RecipeError(
                f"{where}: features.attention=splash: expected a batches.row_length that 128 divides and a mesh of one "
                f"device, got {length} and {devices}; change them, or take features.attention=dense"
            )


def find_recipe(name: str) -> Path:
    """The path of a recipe given as a path or as a bare name of one shipped in configs/."""
    shipped = Path(str(resources.files("configs")))
    candidates = [Path(at_home(name)), shipped / name, shipped / f"{name}.yaml"]
    for path in candidates:
        if path.is_file():
            return path
    known = ", ".join(sorted(path.name for path in shipped.glob("*.yaml")))
    raise RecipeError(f"no recipe {name!r}: expected a file, or one of the shipped recipes ({known})")


MAXTEXT_NAMES = {  # what MaxText's command line calls some of our fields; accepted in overrides
    "run_name": "run.name",
    "steps": "train.steps",
    "dtype": "train.dtype",
    "eval_interval": "train.eval_every",
    "checkpoint_period": "train.checkpoint_every",
    "max_num_checkpoints_to_keep": "train.keep",
    "log_period": "train.log_every",
    "learning_rate": "optimizer.learning_rate",
    "warmup_steps_fraction": "optimizer.warmup_fraction",
    "adam_b1": "optimizer.b1",
    "adam_b2": "optimizer.b2",
    "adam_weight_decay": "optimizer.weight_decay",
    "gradient_clipping_threshold": "optimizer.clip",
    "gradient_accumulation_steps": "optimizer.accumulation",
    "max_target_length": "batches.row_length",
    "ici_data_parallelism": "mesh.data",
    "ici_fsdp_parallelism": "mesh.fsdp",
}


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if equals and "." not in key and key not in _names(Recipe):
        if key not in MAXTEXT_NAMES:
            known = ", ".join(MAXTEXT_NAMES)
            raise RecipeError(
                f"override {override!r}: expected section.field=value, for example train.steps=100, or one of "
                f"MaxText's keys that are understood here: {known}"
            )
        key = MAXTEXT_NAMES[key]
    section, dot, field = key.partition(".")
    if not (equals and dot and field):
        raise RecipeError(f"override {override!r}: expected section.field=value, for example train.steps=100")
    if section not in _names(Recipe):
        raise RecipeError(f"override {override!r}: no section {section!r}{_nearest(section, _names(Recipe))}")
    if not isinstance(raw.setdefault(section, {}), dict):
        raise RecipeError(f"override {override!r}: section {section!r} of the file is not a mapping")
    try:
        raw[section][field] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not valid YAML") from error


def _build(cls: type, raw: Any, where: str, prefix: str) -> Any:
    if not isinstance(raw, dict):
        raise RecipeError(f"{where}: {prefix or 'recipe'}: expected a mapping of keys, got {_describe(raw)}")
    names = _names(cls)
    for key in raw:
        if key not in names:
            raise RecipeError(f"{where}: unknown key {prefix}{key}{_nearest(str(key), names)}")
    missing = [name for name in names if name not in raw]
    if missing:
        listed = ", ".join(prefix + name for name in missing)
        raise RecipeError(f"{where}: missing key {listed}: every recipe states every value")
    hints = typing.get_type_hints(cls)
    values = {}
    for name in names:
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            values[name] = _build(typing.cast(type, hint), raw[name], where, f"{prefix}{name}.")
        else:
            values[name] = _check(hint, raw[name], f"{where}: {prefix}{name}")
    return cls(**values)


def _check(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`; the only conversions are list -> tuple and int -> float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        if type(None) not in args:
            if type(value) not in args:
                listed = ", ".join(arg.__name__ for arg in args)
                raise RecipeError(f"{where}: expected one of {listed}, got {_describe(value)}")
            return value
        (inner,) = [arg for arg in args if arg is not type(None)]
        return _check(inner, value, where)
    if origin is Literal:
        if value not in args:
            choices = ", ".join(map(str, args))
            raise RecipeError(f"{where}: expected one of {choices}, got {value!r}{_nearest(str(value), args)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise RecipeError(f"{where}: expected a list of {args[0].__name__}, got {_describe(value)}")
        return tuple(_check(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            held = getattr(args[1], "__name__", args[1])
            raise RecipeError(f"{where}: expected a mapping of {args[0].__name__} to {held}, got {_describe(value)}")
        return {_check(args[0], key, where): _check(args[1], item, f"{where}[{key}]") for key, item in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if hint is float and isinstance(value, float) and math.isnan(value):
        raise RecipeError(f"{where}: expected a number, got {value}")
    if type(value) is not hint:
        raise RecipeError(f"{where}: expected {hint.__name__}, got {_describe(value)}{_hint(hint, value)}")
    return value


def _hint(hint: type, value: Any) -> str:
    if hint is float and isinstance(value, str):
        return " (YAML reads 6e-4 as text; write 6.0e-4)"
    return ""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _nearest(key: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else f"; valid keys: {', '.join(names)}"


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"
