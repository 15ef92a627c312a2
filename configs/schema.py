"""The recipe of a run: frozen dataclasses, read from YAML, every key checked (by pydantic, strictly).

In: a YAML file (a path, or a bare name looked up in this package) and `section.field=value` overrides.
Out: a `Recipe`. A recipe states every value that changes a result, so nothing here has a default: an unknown,
missing or mistyped key is refused with the file, the key, what was expected and the nearest valid key.
"""

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from configs.errors import UserError
from configs.paths import at_home, read_text


def _from_list(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Place = Annotated[str, AfterValidator(at_home)]  # names a file or directory: `~` is replaced
Places = Annotated[tuple[Place, ...], BeforeValidator(_from_list)]
Numbers = Annotated[tuple[Annotated[float, Field(ge=0.0)], ...], Field(min_length=1), BeforeValidator(_from_list)]
Ids = Annotated[tuple[int, ...], Field(min_length=1), BeforeValidator(_from_list)]
Built = TypeVar("Built")
Kind = Literal["dflash", "eagle3"]  # which rule drafts, see models.drafters
# Positions of a row that `models.kernels.blocks` can hold, heads of 128: by compiling it for v5e, v5p and v6e.
FLASH_ROWS = {"bfloat16": 16_384, "float32": 8_192}
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Run:
    name: str = Field(min_length=1)
    dir: Place | None = Field(min_length=1)  # where the run lives; runs/<name> when null
    data_dir: Place = Field(min_length=1)  # responses and features, shared by all runs that ask for the same ones
    seed: int = Field(ge=0, le=2**32 - 1)  # first weights, order of the rows, anchors


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Target:
    source: Place = Field(min_length=1)  # "smollm2-135m" (embedded) or a Hugging Face directory
    dtype: Literal["float32", "bfloat16"]
    chat_template_args: dict[str, bool | int | float | str]  # such as enable_thinking; evaluation and chat keep them


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prompts:
    sources: Places  # see pipelines.prompts
    limit: int = Field(ge=1)  # training prompts kept, balanced over the tasks
    heldout: int = Field(ge=1)  # further prompts kept aside for held-out acceptance
    seed: int = Field(ge=0, le=2**32 - 1)  # which prompts are kept, which held out; and the draws of sampled responses


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Responses:
    regenerate: bool  # false: train on the responses found in the prompt files; costs acceptance
    server: str | None = Field(pattern="^https?://")  # http://HOST:PORT/v1 that writes them; the target here when null
    max_prompt_tokens: int = Field(ge=1)
    max_new_tokens: int = Field(ge=2)
    temperatures: Numbers  # every prompt is answered once at each; 0 is greedy
    batch: int = Field(ge=1)  # rows generated together, or requests under way
    shard_size: int = Field(ge=1)  # responses per shard; a finished shard is never redone


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Features:
    mode: Literal["cached", "online"]
    dtype: Literal["float16", "bfloat16", "float32"]  # of the cache
    attention: Literal["dense", "splash"]  # of the target over packed rows; splash is a TPU kernel


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DFlash:
    kind: Kind
    num_layers: int = Field(ge=1)
    target_layer_ids: Ids | None  # taps; the DFlash default when null
    width: int = Field(ge=2)  # W: one anchor and W-1 drafted tokens
    causal: bool  # in-block attention
    attention: Literal["dense", "flash"]  # of blocks over their context, in training; flash is a TPU kernel
    sliding_window: int | None = Field(ge=1)  # how far slots look back, themselves included; all the way when null
    mask_token_id: int | None = Field(ge=0)  # an unused special token of the target when null
    draft_vocab_size: int | None = Field(ge=2)  # most frequent response tokens; the whole vocabulary when null
    markov_rank: int | None = Field(ge=1)  # R of DSpark's Markov head, on a slot's logits: W2 @ x(token before)
    markov_head_type: Literal["vanilla", "gated", "rnn", "xpress"]  # what x is made of: `models.drafters.mixing`
    markov_size: int | None = Field(ge=1)  # width of an MLP head in its place; no head when both are null
    confidence_head: bool  # DSpark's: trained beside the drafts to say how likely they are to be accepted
    sample_from_anchor: bool  # DSpark's: W-1 slots draft W-1 tokens, the anchor's own slot the first of them
    init: Literal["target", "random"]
    init_from: Place | None = Field(min_length=1)  # a drafter artifact to start from instead


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Eagle3:
    kind: Kind
    target_layer_ids: Ids  # taps: a low, a middle and a high layer
    width: int = Field(ge=2)  # W: the anchor and W-1 tokens drafted one after the other, which training unrolls
    norm_before_fc: bool  # norm the features before they are fused
    norm_before_residual: bool  # begin the residual stream with the normed hidden state
    draft_vocab_size: int | None = Field(ge=2)  # most frequent response tokens; the whole vocabulary when null
    init: Literal["target", "random"]
    init_from: Place | None = Field(min_length=1)  # a drafter artifact to start from instead


DRAFTERS = {"dflash": DFlash, "eagle3": Eagle3}  # the drafter section of each kind


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Batches:
    responses: int | None = Field(ge=1)  # the first so many of those written, tasks in proportion; all when null
    rows: int = Field(ge=1)  # packed rows per step
    row_length: int = Field(ge=2)  # context tokens per row
    blocks: dict[int, int]  # block width -> anchors per row; the widest is drafter.width
    curriculum: dict[int, float]  # width -> share of its held-out blocks accepted whole that makes them grow; {}: none


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Loss:
    weighting: Literal["dpace", "decay"]
    gamma: float = Field(ge=1e-6)  # decay length in slots (decay); unused by dpace
    ce: float = Field(ge=0.0, le=1.0)  # share of the cross-entropy of the response's own token
    kl: float = Field(ge=0.0, le=1.0)  # share of KL(target's distribution || drafter's)
    tv: float = Field(ge=0.0, le=1.0)  # share of their total variation; the three shares sum to 1
    head_chunk: int = Field(ge=1)  # block positions whose logits exist at once

    @property
    def taught(self) -> bool:
        """Whether the loss needs the target's distributions, and so its final hidden state."""
        return self.kl + self.tv > 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Optimizer:
    learning_rate: float = Field(ge=0.0)
    muon_learning_rate: float | None = Field(ge=0.0)  # of the layers' matrices under Muon; null: AdamW for all
    weight_decay: float = Field(ge=0.0)
    warmup_fraction: float = Field(ge=0.0, le=1.0)
    clip: float = Field(ge=1e-9)
    b1: float = Field(ge=0.0, lt=1.0)  # 1 would divide by zero: Adam corrects by 1 - b^step
    b2: float = Field(ge=0.0, lt=1.0)
    accumulation: int = Field(ge=1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Train:
    steps: int = Field(ge=1)
    remat: bool
    dtype: Literal["float32", "bfloat16"]  # of the drafter's computation; parameters stay float32
    eval_every: int = Field(ge=0)
    checkpoint_every: int = Field(ge=0)
    keep: int = Field(ge=1)
    log_every: int = Field(ge=1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Mesh:
    data: int = Field(ge=1)  # the axes are `models.sharding`'s
    fsdp: int = Field(ge=1)
    tensor: int = Field(ge=1)


@dataclasses.dataclass(frozen=True)
class Recipe:
    run: Run
    target: Target
    prompts: Prompts
    responses: Responses
    features: Features
    drafter: DFlash | Eagle3
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
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: expected sections ({', '.join(_names(Recipe))}), got {_describe(raw)}")
    for override in overrides:
        _apply(raw, override)
    return _build(raw, str(path))


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
      UserError: it cannot be read, is not UTF-8 or not YAML.
    """
    try:
        return yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


def find_recipe(name: str, folder: str = "") -> Path:
    """The path of a recipe given as a path or as a bare name of one shipped in configs/, or in a `folder` of it."""
    shipped = Path(str(resources.files("configs"))) / folder
    candidates = [Path(at_home(name)), shipped / name, shipped / f"{name}.yaml"]
    for path in candidates:
        if path.is_file():
            return path
    known = ", ".join(sorted(path.name for path in shipped.glob("*.yaml")))
    what = "study" if folder else "recipe"
    raise RecipeError(f"no {what} {name!r}: expected a file, or one of those shipped ({known})")


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
    "ici_tensor_parallelism": "mesh.tensor",
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


def _build(raw: dict[str, Any], where: str) -> Recipe:
    _check_keys(Recipe, raw, where, "")
    sections = typing.get_type_hints(Recipe) | {"drafter": _drafter_section(raw["drafter"])}
    recipe = Recipe(**{name: build(cls, raw[name], where, f"{name}.") for name, cls in sections.items()})
    width, blocks = recipe.drafter.width, recipe.batches.blocks
    if not blocks or max(blocks) != width or min(blocks) < 2 or min(blocks.values()) < 1:
        raise RecipeError(
            f"{where}: batches.blocks: expected widths from 2 to drafter.width={width}, the widest equal to it, "
            f"with at least one anchor each; got {blocks}"
        )
    if isinstance(recipe.drafter, DFlash) and recipe.drafter.markov_rank and recipe.drafter.markov_size:
        raise RecipeError(
            f"{where}: drafter.markov_rank and drafter.markov_size: expected at most one; set one to null"
        )
    if (
        isinstance(recipe.drafter, DFlash)
        and recipe.drafter.markov_head_type != "vanilla"
        and not recipe.drafter.markov_rank
    ):
        raise RecipeError(
            f"{where}: drafter.markov_head_type={recipe.drafter.markov_head_type}: expected a drafter.markov_rank, got "
            "null: there is no Markov head; set its rank, or vanilla"
        )
    loss = recipe.loss
    if abs(loss.ce + loss.kl + loss.tv - 1) > 1e-6:
        raise RecipeError(f"{where}: loss.ce + loss.kl + loss.tv: expected 1, got {loss.ce + loss.kl + loss.tv:g}")
    if recipe.responses.server and not recipe.responses.regenerate:
        raise RecipeError(
            f"{where}: responses.server: expected null with responses.regenerate=false; change one of them"
        )
    _check_curriculum(recipe, where)
    mesh = recipe.mesh
    for key, rows in (("batches.rows", recipe.batches.rows), ("responses.batch", recipe.responses.batch)):
        if rows % (mesh.data * mesh.fsdp):
            over = f"mesh.data={mesh.data} x mesh.fsdp={mesh.fsdp}"
            raise RecipeError(f"{where}: {key}={rows}: expected a multiple of {over}, which split the rows")
    if recipe.features.attention == "splash" and recipe.batches.row_length % 128:
        raise RecipeError(
            f"{where}: features.attention=splash: expected a batches.row_length that 128 divides, got "
            f"{recipe.batches.row_length}; change it, or take features.attention=dense"
        )
    flash = isinstance(recipe.drafter, DFlash) and recipe.drafter.attention == "flash"
    most = FLASH_ROWS[recipe.train.dtype]
    if flash and recipe.batches.row_length > most:
        raise RecipeError(
            f"{where}: drafter.attention=flash: expected a batches.row_length of at most {most} with train.dtype="
            f"{recipe.train.dtype} (a head's keys and values lie in the chip's vector memory), got "
            f"{recipe.batches.row_length}; change it, or take drafter.attention=dense"
        )
    return recipe


def _check_curriculum(recipe: Recipe, where: str) -> None:
    *narrower, widest = sorted(recipe.batches.blocks)
    curriculum = recipe.batches.curriculum
    between = all(max(narrower, default=1) < width < widest for width in curriculum)
    if not between or list(curriculum) != sorted(curriculum) or any(not 0 <= s <= 1 for s in curriculum.values()):
        raise RecipeError(
            f"{where}: batches.curriculum: expected growing widths between the two widest of batches.blocks, each with "
            f"a share of blocks accepted whole, from 0 to 1, such as {{16: 0.05, 24: 0.05}}; got {curriculum}"
        )
    if curriculum and not recipe.train.eval_every:
        raise RecipeError(
            f"{where}: batches.curriculum: expected a train.eval_every above 0, as held-out blocks make it grow; got 0"
        )


def build(cls: type[Built], raw: Any, where: str, prefix: str = "") -> Built:
    """A dataclass of `STRICT` fields from a mapping in file `where`, its keys named after `prefix` in errors.

    Raises:
      RecipeError: a key unknown, missing or of the wrong type.
    """
    _check_keys(cls, raw, where, prefix)
    try:
        return cls(**raw)
    except ValidationError as error:
        raise RecipeError(f"{where}: {prefix}{_explain(cls, error)}") from error


def _drafter_section(raw: Any) -> type:
    """The section of the kind that is named in it; a kind that is not known is refused in any."""
    kind = raw.get("kind") if isinstance(raw, dict) else None
    return DRAFTERS.get(kind, DFlash) if isinstance(kind, str) else DFlash


def _check_keys(cls: type, raw: Any, where: str, prefix: str) -> None:
    if not isinstance(raw, dict):
        raise RecipeError(f"{where}: {prefix}: expected a mapping of keys, got {_describe(raw)}")
    names = _names(cls)
    for key in raw:
        if key not in names:
            raise RecipeError(f"{where}: unknown key {prefix}{key}{_nearest(str(key), names)}")
    if missing := [prefix + name for name in names if name not in raw]:
        raise RecipeError(f"{where}: missing key {', '.join(missing)}: every recipe states every value")


_LIMITS = {"greater_than_equal": ("at least", "ge"), "less_than_equal": ("at most", "le"), "less_than": ("below", "lt")}


def _explain(cls: type, error: ValidationError) -> str:
    """The first mistake in our words: the field and the place in it, what was expected, what was got."""
    first = error.errors(include_url=False)[0]
    kind, got, (name, *place) = first["type"], first["input"], first["loc"]
    field = str(name)
    hint = typing.get_type_hints(cls)[field]
    if type(None) in typing.get_args(hint):
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    if kind == "finite_number":
        return f"{field}: expected a {'finite ' if got == got else ''}number, got {got}"
    if kind in _LIMITS:
        word, name = _LIMITS[kind]
        limit = first.get("ctx", {})[name]
        return f"{field}: expected {word} {limit}, got {type(limit)(got)}"
    if kind in ("string_too_short", "too_short"):
        return f"{field}: expected a value, got {got!r}; name one"
    if kind == "literal_error":
        choices = typing.get_args(hint)
        return f"{field}: expected one of {', '.join(choices)}, got {got!r}{_nearest(str(got), choices)}"
    if place:  # in a list, or a key or a value of a mapping
        key, *value = typing.get_args(hint)
        hint = key if typing.get_origin(hint) is tuple or "[key]" in place else value[0]
        field += "" if "[key]" in place else f"[{place[0]}]"
    remedy = " (YAML reads 6e-4 as text; write 6.0e-4)" if hint is float and isinstance(got, str) else ""
    return f"{field}: expected {_words(hint)}, got {_describe(got)}{remedy}"


def _words(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return f"a list of {args[0].__name__}"
    if origin is dict:
        return f"a mapping of {args[0].__name__} to {getattr(args[1], '__name__', args[1])}"
    return f"one of {', '.join(arg.__name__ for arg in args)}" if args else hint.__name__


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
