"""The drafter artifact: config.json and model.safetensors in the public DFlash layout, written and read.

The one place that knows the foreign names of drafters. A drafter that plain DFlash code would run wrong (a Markov head,
in-block attention of another kind) or differently (a draft vocabulary) carries its own architecture name, so that no
loader takes it for the plain kind:

    architectures ["DFlashDraftModel"]     plain: layer_types says which layers look back `sliding_window` positions
                                           only; in-block attention is causal in these and bidirectional in the others
    architectures ["WideblockDraftModel"]  is_causal says otherwise for all layers, or dflash_config.draft_vocab_size
                                           or .markov_size is set;
                                           draft_vocab_ids [Vd] int32 holds the draft vocabulary's token ids,
                                           markov.into.weight [M, 2D] and markov.out.weight [D, M] the Markov head
    wideblock {target, target_fingerprint, ...}   where it comes from; other loaders ignore it

Drafters that others trained are read too: names with or without `model.`, dflash_config nested or at the top level,
both RoPE spellings, any float type, sharded files. A field that changes the computation and that we do not honour is
refused by name.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from models.drafter import Drafter, DrafterConfig
from models.layers import RopeScaling
from models.target import Target, fingerprint

PLAIN, OWN = "DFlashDraftModel", "WideblockDraftModel"
_NORMS = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A drafter on disk: its shape, its weights in our layout (float32), its draft vocabulary, where it comes from."""

    config: DrafterConfig
    weights: dict[str, Any]
    draft_vocab: np.ndarray | None
    origin: dict[str, Any]

    def drafter(self, dtype: str) -> Drafter:
        """The network, computing in `dtype`."""
        return Drafter(self.config, self.weights, dtype)

    @property
    def acceptance(self) -> list[float]:
        """Conditional acceptance of its slots on held-out responses, as far as training measured it; [0.5] if not."""
        return list(self.origin.get("heldout_acceptance") or [0.5])

    def shape_digest(self) -> str:
        """Names everything that decides what a step costs, and nothing that training changes."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self.config), sort_keys=True).encode()).hexdigest()[:16]


def write_artifact(artifact: Artifact, path: Path, dtype: str = "float32") -> None:
    """Writes the artifact's two files, each atomically, its tensors in `dtype`.

    Raises:
      OSError: the directory cannot be written.
    """
    from safetensors.numpy import save_file

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    path.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(value, kind) for name, value in _to_tensors(artifact).items()}
    if artifact.draft_vocab is not None:
        tensors["draft_vocab_ids"] = np.asarray(artifact.draft_vocab, np.int32)
    partial = path / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, path / "model.safetensors")
    partial = path / "config.json.partial"
    partial.write_text(json.dumps(config_json(artifact, dtype), indent=2) + "\n")
    os.replace(partial, path / "config.json")


def read_artifact(path: Path) -> Artifact:
    """The artifact in directory `path`.

    Raises:
      ValueError: not an artifact, a field or tensor missing, of the wrong shape or unsupported, a truncated file.
    """
    raw = read_config(path)
    config = parse_config(raw, path)
    tensors = _read_tensors(path)
    draft_vocab = tensors.pop("draft_vocab_ids", None)
    if (draft_vocab is None) != (config.draft_vocab_size is None):
        raise ValueError(f"{path}: dflash_config.draft_vocab_size and tensor draft_vocab_ids: one without the other")
    if draft_vocab is not None and not (
        draft_vocab.shape == (config.draft_vocab_size,)
        and 0 <= draft_vocab.min() <= draft_vocab.max() < config.vocab_size
    ):
        raise ValueError(
            f"{path}: draft_vocab_ids does not hold {config.draft_vocab_size} ids below {config.vocab_size}"
        )
    weights = _from_tensors(config, tensors, path)
    return Artifact(config, weights, draft_vocab, raw.get("wideblock", {}))


def check_fit(artifact: Artifact, target: Target, path: Path) -> None:
    """Raises ValueError, naming every field that differs, when the drafter was made for another target."""
    config, shape = artifact.config, target.config
    pairs = [
        ("hidden size", config.target_hidden_size, shape.hidden_size),
        ("drafter hidden size", config.hidden_size, shape.hidden_size),
        ("vocabulary", config.vocab_size, shape.vocab_size),
        ("target layers", config.num_target_layers, shape.num_layers),
        ("weights", artifact.origin.get("target_fingerprint", fingerprint(target)), fingerprint(target)),
    ]
    differing = [f"{name}: drafter expects {made}, {shape.name} has {has}" for name, made, has in pairs if made != has]
    taps = [tap for tap in config.target_layer_ids if not 0 <= tap < shape.num_layers]
    if taps:
        differing.append(f"taps: layers {taps} do not exist in {shape.name} ({shape.num_layers} layers)")
    if differing:
        raise ValueError(f"{path}: this drafter was made for another target ({'; '.join(differing)}); pass that target")


def beyond_plain(config: DrafterConfig) -> dict[str, str]:
    """What plain DFlash code does not compute of this drafter, in words, by the recipe's field."""
    parts = {"draft_vocab_size": "a draft vocabulary", "markov_size": "a Markov head"}
    held = {name: words for name, words in parts.items() if getattr(config, name)}
    if config.causal != _plain_causal(config.windows):
        held["causal"] = "causal in-block attention" if all(config.causal) else "bidirectional in-block attention"
    return held


def _plain_causal(windows: tuple[int | None, ...]) -> tuple[bool, ...]:
    """In-block attention of plain DFlash: causal in layers with a window."""
    return tuple(window is not None for window in windows)


def _to_tensors(artifact: Artifact) -> dict[str, np.ndarray]:
    config, weights, out = artifact.config, artifact.weights, {}
    out["fc.weight"] = np.asarray(weights["fc"]).T
    out["hidden_norm.weight"] = np.asarray(weights["hidden_norm"])
    out["norm.weight"] = np.asarray(weights["norm"])
    if config.markov_size is not None:
        out |= {f"markov.{part}.weight": np.asarray(weights["markov"][part]).T for part in ("into", "out")}
    for index, layer in enumerate(weights["layers"]):
        layer = {name: np.asarray(value) for name, value in layer.items()}
        base = f"layers.{index}"
        k, v = np.split(layer["kv"], [config.kv_size], axis=1)
        gate, up = np.split(layer["gate_up"], 2, axis=1)
        attention = {"q": layer["q"], "k": k, "v": v, "o": layer["out"]}
        out |= {f"{base}.self_attn.{part}_proj.weight": value.T for part, value in attention.items()}
        mlp = {"gate": gate, "up": up, "down": layer["down"]}
        out |= {f"{base}.mlp.{part}_proj.weight": value.T for part, value in mlp.items()}
        out |= {f"{base}.{foreign}.weight": layer[ours] for ours, foreign in _NORMS.items()}
    return out


def _from_tensors(config: DrafterConfig, tensors: Mapping[str, np.ndarray], path: Path) -> dict[str, Any]:
    left = dict(tensors)
    d, f, q, kv = config.hidden_size, config.mlp_size, config.q_size, config.kv_size

    def take(name: str, *shape: int) -> np.ndarray:
        if name not in left:
            raise ValueError(f"{path}: tensor {name} is missing; expected shape {list(shape)}")
        value = left.pop(name)
        if value.shape != shape:
            raise ValueError(f"{path}: tensor {name}: expected shape {list(shape)}, got {list(value.shape)}")
        return np.asarray(value, np.float32)

    def layer(index: int) -> dict[str, Any]:
        base = f"layers.{index}"
        parts = {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}
        attention = {part: take(f"{base}.self_attn.{part}_proj.weight", *shape).T for part, shape in parts.items()}
        parts = {"gate": (f, d), "up": (f, d), "down": (d, f)}
        mlp = {part: take(f"{base}.mlp.{part}_proj.weight", *shape).T for part, shape in parts.items()}
        sizes = {"q_norm": config.head_dim, "k_norm": config.head_dim}
        norms = {ours: take(f"{base}.{foreign}.weight", sizes.get(ours, d)) for ours, foreign in _NORMS.items()}
        return norms | {
            "q": attention["q"],
            "kv": np.concatenate([attention["k"], attention["v"]], axis=1),
            "out": attention["o"],
            "gate_up": np.concatenate([mlp["gate"], mlp["up"]], axis=1),
            "down": mlp["down"],
        }

    weights = {
        "fc": take("fc.weight", d, len(config.target_layer_ids) * config.target_hidden_size).T,
        "hidden_norm": take("hidden_norm.weight", d),
        "layers": [layer(index) for index in range(config.num_layers)],
        "norm": take("norm.weight", d),
    }
    if config.markov_size is not None:
        m = config.markov_size
        weights["markov"] = {
            "into": take("markov.into.weight", m, 2 * d).T,
            "out": take("markov.out.weight", d, m).T,
        }
    if left:
        raise ValueError(f"{path}: unknown tensor {sorted(left)[0]}; this drafter has parts we do not compute")
    return as_arrays(weights)


def as_arrays(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: as_arrays(value) for name, value in tree.items()}
    return [as_arrays(value) for value in tree] if isinstance(tree, list) else jnp.asarray(tree)


def config_json(artifact: Artifact, dtype: str) -> dict[str, Any]:
    """The artifact's config.json, its tensors being in `dtype`."""
    config = artifact.config
    own = beyond_plain(config)
    dflash = {"mask_token_id": config.mask_token_id, "target_layer_ids": list(config.target_layer_ids)}
    if own:
        dflash |= {name: getattr(config, name) for name in _EXTRAS}
    scaling = config.rope_scaling
    rope = {"rope_type": "llama3", **dataclasses.asdict(scaling)} if scaling else None
    out = {
        "architectures": [OWN if own else PLAIN],
        "model_type": "qwen3",
        "block_size": config.width,
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
        "rope_theta": config.rope_theta,
        "rope_scaling": rope,
        "rope_parameters": {"rope_theta": config.rope_theta, **(rope or {"rope_type": "default"})},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "sliding_window": max((window for window in config.windows if window), default=None),
        "use_sliding_window": any(config.windows),
        "max_position_embeddings": config.max_positions,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_head,
        "dtype": dtype,
        "wideblock": artifact.origin,
    }
    if "causal" in own:
        out["is_causal"] = all(config.causal)
    if not own:
        out["auto_map"] = {"AutoModel": "dflash.DFlashDraftModel"}
    return out


def parse_config(raw: Mapping[str, Any], path: Path) -> DrafterConfig:
    """The shape a config.json describes; refuses, by name, every field that we do not honour."""
    where = f"{path}/config.json"
    architecture = (raw.get("architectures") or [None])[0]
    if architecture not in (PLAIN, OWN):
        raise ValueError(f"{where}: architectures {architecture!r}; expected a drafter ({PLAIN} or {OWN})")
    dflash = {name: raw[name] for name in _PLACED_EITHER_WAY if name in raw} | (raw.get("dflash_config") or {})
    supported = {*_PLACED_EITHER_WAY, *(_EXTRAS if architecture == OWN else ())}
    unknown = sorted(set(dflash) - supported)
    if unknown:
        raise ValueError(
            f"{where}: dflash_config.{unknown[0]} is not supported; this drafter has parts we do not compute"
        )
    foreign = sorted(set(raw) - _HONOURED - _WITHOUT_EFFECT - set(_ONLY_HARMLESS))
    if foreign:
        raise ValueError(
            f"{where}: {foreign[0]} is not known; this drafter may have parts we do not compute (without effect? take "
            "the field out)"
        )
    for name, harmless in _ONLY_HARMLESS.items():
        if raw.get(name, harmless) not in (harmless, None):
            raise ValueError(f"{where}: {name}={raw[name]!r} is not supported; expected {harmless!r}")
    rope = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
    causal = raw.get("is_causal")
    try:
        windows = _windows(raw, where)
        return DrafterConfig(
            width=dflash["block_size"],
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
            rope_theta=float(raw["rope_theta"] if "rope_theta" in raw else rope["rope_theta"]),
            rope_scaling=_rope_scaling(scaling, where),
            max_positions=raw["max_position_embeddings"],
            vocab_size=raw["vocab_size"],
            tied_head=raw.get("tie_word_embeddings", False),
            mask_token_id=dflash["mask_token_id"],
            causal=_plain_causal(windows) if causal is None else (bool(causal),) * len(windows),
            windows=windows,
            draft_vocab_size=dflash.get("draft_vocab_size"),
            markov_size=dflash.get("markov_size"),
        )
    except KeyError as error:
        raise ValueError(f"{where}: field {error} is missing; expected a DFlash drafter config") from error


_EXTRAS = ("draft_vocab_size", "markov_size")
_HONOURED = {
    *("architectures", "block_size", "mask_token_id", "target_layer_ids", "dflash_config", "num_target_layers"),
    *("num_hidden_layers", "layer_types", "hidden_size", "target_hidden_size", "intermediate_size", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"),
    *("sliding_window", "use_sliding_window", "is_causal", "max_position_embeddings", "vocab_size"),
    *("tie_word_embeddings", "wideblock"),
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
}


def _windows(raw: Mapping[str, Any], where: str) -> tuple[int | None, ...]:
    """How far back each layer looks, by layer_types and sliding_window."""
    window, kinds = raw.get("sliding_window"), raw.get("layer_types") or ["full_attention"] * raw["num_hidden_layers"]
    if raw.get("use_sliding_window") and not raw.get("layer_types"):
        raise ValueError(f"{where}: use_sliding_window without layer_types; name the layers that have a window there")
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown or len(kinds) != raw["num_hidden_layers"]:
        raise ValueError(
            f"{where}: layer_types: expected full_attention or sliding_attention for each of "
            f"{raw['num_hidden_layers']} layers, got {kinds}"
        )
    if "sliding_attention" in kinds and not (isinstance(window, int) and window > 0):
        raise ValueError(f"{where}: sliding_window: expected a number of positions for sliding layers, got {window!r}")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _rope_scaling(raw: Mapping[str, Any] | None, where: str) -> RopeScaling | None:
    if not raw:
        return None
    if raw.get("rope_type") != "llama3":
        raise ValueError(f"{where}: rope_scaling {raw.get('rope_type')!r} is not supported; expected llama3 or none")
    fields = [field.name for field in dataclasses.fields(RopeScaling)]
    return RopeScaling(**{name: raw[name] for name in fields})


def read_config(path: Path) -> dict[str, Any]:
    """PATH/config.json as it stands."""
    file = path / "config.json"
    if not file.is_file():
        raise ValueError(f"{path}: no config.json; expected a drafter artifact (python -m train export writes one)")
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error}); write it again") from error


def is_drafter(path: Path) -> bool:
    """Whether `path` is a directory whose config.json has the fields of a drafter, whoever wrote it."""
    if not (path / "config.json").is_file():
        return False
    raw = read_config(path)
    return "dflash_config" in raw or any("Draft" in name for name in raw.get("architectures") or [])


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a directory, from one file or from the shards its index names, without a `model.` prefix."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    tensors: dict[str, np.ndarray] = {}
    for name in files:
        tensors |= _read_file(path / name)
    return {name.removeprefix("model."): value for name, value in tensors.items()}


def _read_file(file: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ValueError(f"{file}: missing; export the drafter again")
    try:
        with safe_open(file, framework="flax") as handle:
            names = list(handle.keys())
            return {name: np.asarray(handle.get_tensor(name)) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error}); export the drafter again") from error
