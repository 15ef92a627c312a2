"""config.json of a drafter: its shape in the public DFlash layout, written and read (see `.artifact`)."""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.paths import read_object
from models.drafters.dflash import DrafterConfig
from models.drafters.mixing import MLP_RATIO, PASSES, HeadType
from models.drafters.speculators_config import TYPE, in_public_words
from models.layers import RopeScaling

KIND, PLAIN, OWN = "dflash", "DFlashDraftModel", "WideblockDraftModel"


def beyond_plain(config: DrafterConfig) -> dict[str, str]:
    """What plain DFlash code does not compute of this drafter, in words, by the recipe's field."""
    parts = {"draft_vocab_size": "a draft vocabulary", "markov_size": "an MLP head"}
    parts |= {"markov_rank": "a refiner" if config.refines else "a Markov head"}
    parts |= {"confidence_head": "a confidence head"}
    parts |= {"sample_from_anchor": "drafts from the anchor's own slot"}
    held = {name: words for name, words in parts.items() if getattr(config, name)}
    if config.causal != _plain_causal(config.windows):
        held["causal"] = "causal in-block attention" if all(config.causal) else "bidirectional in-block attention"
    return held


def plain_config(config: DrafterConfig, where: Path) -> DrafterConfig:
    """`config` as plain DFlash computes it.

    Raises:
      UserError: it has parts whose absence would change the drafts it was trained to make.
    """
    held = [f"drafter.{name} ({what})" for name, what in beyond_plain(config).items() if name not in _DROPPED]
    if held:
        raise UserError(
            f"{where}: --plain: the drafter was trained with {', '.join(held)}, which plain DFlash loaders do not "
            "compute; train without, or export it under its own architecture name (leave --plain out)"
        )
    return dataclasses.replace(config, draft_vocab_size=None, confidence_head=False)


def _plain_causal(windows: tuple[int | None, ...]) -> tuple[bool, ...]:
    """In-block attention of plain DFlash: causal in layers with a window."""
    return tuple(window is not None for window in windows)


def config_json(config: DrafterConfig, origin: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config.json of a drafter that comes from `origin`, its tensors being in `dtype`."""
    own = beyond_plain(config)
    dflash = {"mask_token_id": config.mask_token_id, "target_layer_ids": list(config.target_layer_ids)}
    out = {
        "architectures": [OWN if own else PLAIN],
        "model_type": "qwen3",
        "block_size": config.slots(config.width),
        "dflash_config": dflash,
        "num_target_layers": config.num_target_layers,
        "num_hidden_layers": config.num_layers,
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in config.windows],
        "hidden_size": config.hidden_size,
        "target_hidden_size": config.target_hidden_size,
        "intermediate_size": config.mlp_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_eps,
        **rope_of(config.rope_theta, config.rope_scaling),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "sliding_window": max((window for window in config.windows if window), default=None),
        "use_sliding_window": any(config.windows),
        "max_position_embeddings": config.max_positions,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_head,
        "dtype": dtype,
        "wideblock": dict(origin),
    }
    if "causal" in own:
        out["is_causal"] = all(config.causal)
    if own:
        out |= {name: value for name in _EXTRAS if (value := getattr(config, name, None)) is not None}
        out |= {"sample_from_anchor": config.sample_from_anchor, "enable_confidence_head": config.confidence_head}
    if config.confidence_head:
        out["confidence_head_with_markov"] = config.markov_rank is not None
    if config.refines:
        out |= {"xpress_rank": out.pop("markov_rank"), "xpress_mlp_ratio": MLP_RATIO, "num_jacobi_passes": PASSES}
    elif config.markov_rank is not None:
        out["markov_head_type"] = config.markov_head_type
    if not own:
        out["auto_map"] = {"AutoModel": "dflash.DFlashDraftModel"}
    return out


def parse_config(raw: Mapping[str, Any], path: Path) -> DrafterConfig:
    """The shape a config.json describes; refuses, by name, every field that we do not honour."""
    where, kind = f"{path}/config.json", origin_of(raw, path).get("kind", KIND)
    if kind != KIND:
        raise UserError(f"{where}: a drafter of kind {kind!r}; expected dflash or eagle3, which decode here")
    if TYPE in raw:
        raw = in_public_words(raw, OWN, where)
    architecture = (raw.get("architectures") or [None])[0]
    if architecture not in (PLAIN, OWN):
        raise UserError(f"{where}: architectures {architecture!r}; expected a drafter ({PLAIN} or {OWN})")
    dflash = {name: raw[name] for name in (*_PLACED_EITHER_WAY, *_EXTRAS) if name in raw} | (
        raw.get("dflash_config") or {}
    )
    supported = {*_PLACED_EITHER_WAY, *(_EXTRAS if architecture == OWN else ())}
    unknown = sorted(set(dflash) - supported)
    if unknown:
        raise UserError(
            f"{where}: dflash_config.{unknown[0]} is not supported; this drafter has parts we do not compute"
        )
    foreign = sorted(set(raw) - _HONOURED - set(_EXTRAS) - _WITHOUT_EFFECT - set(_ONLY_HARMLESS))
    if foreign:
        raise UserError(
            f"{where}: {foreign[0]} is not known; this drafter may have parts we do not compute (without effect? take "
            "the field out)"
        )
    for name, harmless in _ONLY_HARMLESS.items():
        if raw.get(name, harmless) not in (harmless, None):
            raise UserError(f"{where}: {name}={raw[name]!r} is not supported; expected {harmless!r}")
    causal, confident = raw.get("is_causal"), bool(raw.get("enable_confidence_head"))
    from_anchor = bool(raw.get("sample_from_anchor"))
    if from_anchor and architecture == PLAIN:
        raise UserError(f"{where}: sample_from_anchor=True is not supported of {PLAIN}; expected False")
    rank, refiner = dflash.get("markov_rank") or None, dflash.get("xpress_rank") or None  # 0 with others: no such head
    if rank and refiner:
        raise UserError(f"{where}: markov_rank and xpress_rank: expected at most one; this drafter has both heads")
    if rank and "sample_from_anchor" not in raw and "wideblock" not in raw:
        raise UserError(
            f"{where}: sample_from_anchor is missing beside markov_rank, and loaders differ in what that means; "
            "add true (the anchor's own slot drafts) or false"
        )
    with_markov = bool(rank or refiner)
    if confident and raw.get("confidence_head_with_markov", with_markov) != with_markov:
        raise UserError(
            f"{where}: confidence_head_with_markov={not with_markov} is not supported; expected {with_markov} with "
            f"{'a' if with_markov else 'no'} Markov head"
        )
    try:
        windows = _windows(raw, where)
        theta, scaling = rope_scaling_of(raw, where)
        return DrafterConfig(
            width=dflash["block_size"] + from_anchor,
            num_layers=raw["num_hidden_layers"],
            target_layer_ids=tuple(dflash["target_layer_ids"]),
            num_target_layers=raw["num_target_layers"],
            target_hidden_size=raw.get("target_hidden_size", raw["hidden_size"]),
            hidden_size=raw["hidden_size"],
            num_heads=raw["num_attention_heads"],
            num_kv_heads=raw["num_key_value_heads"],
            head_dim=raw["head_dim"],
            mlp_size=raw["intermediate_size"],
            rms_eps=raw["rms_norm_eps"],
            rope_theta=theta,
            rope_scaling=scaling,
            max_positions=raw["max_position_embeddings"],
            vocab_size=raw["vocab_size"],
            tied_head=raw.get("tie_word_embeddings", False),
            mask_token_id=_mask_token(dflash["mask_token_id"], raw["vocab_size"], where),
            causal=_plain_causal(windows) if causal is None else (bool(causal),) * len(windows),
            windows=windows,
            draft_vocab_size=dflash.get("draft_vocab_size"),
            markov_size=dflash.get("markov_size"),
            markov_rank=rank or refiner,
            markov_head_type="xpress" if refiner else _head_type(raw.get("markov_head_type") if rank else None, where),
            confidence_head=confident,
            sample_from_anchor=from_anchor,
        )
    except KeyError as error:
        raise UserError(f"{where}: field {error} is missing; expected a DFlash drafter config") from error


def origin_of(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Its kind and where it comes from, as the drafter itself says; {} where it does not."""
    origin = raw.get("wideblock") or {}
    if not isinstance(origin, dict):
        raise UserError(f"{path}/config.json: wideblock: expected a mapping of fields, got {origin!r}; take it out")
    return origin


def _head_type(name: Any, where: str) -> Any:
    name = name or "vanilla"
    if name not in (known := tuple(kind for kind in typing.get_args(HeadType) if kind != "xpress")):
        raise UserError(f"{where}: markov_head_type: expected one of {', '.join(known)}, got {name!r}")
    return name


def _mask_token(token: Any, vocab_size: int, where: str) -> int:
    if not isinstance(token, int) or not 0 <= token < vocab_size:
        raise UserError(f"{where}: mask_token_id: expected 0 to {vocab_size - 1} (vocab_size), got {token!r}")
    return token


_DROPPED = ("draft_vocab_size", "confidence_head")  # without them it drafts the same, or more
_EXTRAS = ("draft_vocab_size", "markov_size", "markov_rank", "xpress_rank")
_HONOURED = {
    *("architectures", "block_size", "mask_token_id", "target_layer_ids", "dflash_config", "num_target_layers"),
    *("num_hidden_layers", "layer_types", "hidden_size", "target_hidden_size", "intermediate_size", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"),
    *("sliding_window", "use_sliding_window", "is_causal", "max_position_embeddings", "vocab_size"),
    *("tie_word_embeddings", "wideblock", "enable_confidence_head", "confidence_head_with_markov"),
    *("sample_from_anchor", "markov_head_type"),
    "num_jacobi_passes",  # the engine's own choice: PASSES here
}
_WITHOUT_EFFECT = {  # on what a drafter computes
    *("model_type", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "name_or_path"),
    *("attention_dropout", "initializer_range", "use_cache", "max_window_layers", "return_dict", "output_attentions"),
    *("output_hidden_states", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type"),
    *("chunk_size_feed_forward", "is_encoder_decoder", "attn_implementation", "_attn_implementation"),
}
_PLACED_EITHER_WAY = ("block_size", "mask_token_id", "target_layer_ids")
_ONLY_HARMLESS = {
    "attention_bias": False,
    "hidden_act": "silu",
    "input_embedding_scale": 1.0,
    "output_multiplier": 1.0,
    "final_logit_softcapping": None,
    "conv_kernel_size": None,
    "selector_rank": None,
    "xpress_mlp_ratio": MLP_RATIO,
}


def _windows(raw: Mapping[str, Any], where: str) -> tuple[int | None, ...]:
    """How far back each layer looks, by layer_types and sliding_window."""
    window, kinds = raw.get("sliding_window"), raw.get("layer_types") or ["full_attention"] * raw["num_hidden_layers"]
    if raw.get("use_sliding_window") and not raw.get("layer_types"):
        raise UserError(f"{where}: use_sliding_window without layer_types; name the layers that have a window there")
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown or len(kinds) != raw["num_hidden_layers"]:
        raise UserError(
            f"{where}: layer_types: expected full_attention or sliding_attention for each of "
            f"{raw['num_hidden_layers']} layers, got {kinds}"
        )
    if "sliding_attention" in kinds and not (isinstance(window, int) and window > 0):
        raise UserError(f"{where}: sliding_window: expected a number of positions for sliding layers, got {window!r}")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def rope_of(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The fields that say how positions rotate, in both spellings."""
    rope = {"rope_type": "llama3", **dataclasses.asdict(scaling)} if scaling else None
    return {
        "rope_theta": theta,
        "rope_scaling": rope,
        "rope_parameters": {"rope_theta": theta, **(rope or {"rope_type": "default"})},
    }


def rope_scaling_of(raw: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """Theta and scaling from the fields of either spelling; KeyError where there is no theta."""
    rope = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
    theta = float(raw["rope_theta"] if "rope_theta" in raw else rope["rope_theta"])
    if not scaling:
        return theta, None
    if scaling.get("rope_type") != "llama3":
        kind = scaling.get("rope_type")
        raise UserError(f"{where}: rope_scaling {kind!r} is not supported; expected llama3 or none")
    return theta, RopeScaling(**{field.name: scaling[field.name] for field in dataclasses.fields(RopeScaling)})


def read_config(path: Path) -> dict[str, Any]:
    """PATH/config.json as it stands."""
    file = path / "config.json"
    if not file.is_file():
        raise UserError(f"{path}: no config.json; expected a drafter artifact (python -m train export writes one)")
    return read_object(file)


def is_drafter(path: Path) -> bool:
    """Whether `path` is a directory whose config.json has the fields of a drafter, whoever wrote it."""
    if not (path / "config.json").is_file():
        return False
    raw = read_config(path)
    names = raw.get("architectures") or []
    return "dflash_config" in raw or TYPE in raw or any("Draft" in name or "Eagle3" in name for name in names)
