"""The drafter artifact: config.json and model.safetensors in the public DFlash layout, written and read.

With `models.drafters.artifact_config` the one place that knows the foreign names of drafters. A drafter that plain
DFlash code would run wrong (a Markov head, in-block attention of another kind) or differently (a draft vocabulary)
carries its own architecture name, so that no loader takes it for the plain kind:

    architectures ["DFlashDraftModel"]     plain: layer_types says which layers look back `sliding_window` positions
                                           only; in-block attention is causal in these and bidirectional in the others
    architectures ["WideblockDraftModel"]  is_causal says otherwise for all layers, or one of these is set, by the
                                           names and tensors of PyPI `speculators` as far as it has them:
        draft_vocab_size                   d2t [Vd] int64: row i of the head is token i + d2t[i]; t2d [V] bool: which
                                           tokens have a row (before: draft_vocab_ids [Vd] int32, the tokens)
        sample_from_anchor                 block_size slots draft as many tokens, the anchor's slot the first of them;
                                           false: one token fewer, the anchor's slot drafts nothing
        markov_rank                        markov_head.markov_w1.weight [V, R], markov_head.markov_w2.weight [Vd, R]
        markov_head_type                   gated: markov_head.gate_proj.{weight [R, D + R], bias [R]}; rnn:
                                           markov_head.joint_proj.{weight [3 R, 2 R + D], bias [3 R]}; vanilla: neither
        xpress_rank                        refiner_head.{token_embed, readout, ...}.weight in place of markov_head's,
                                           refiner_head.mix_l [R, block_size, block_size]
        enable_confidence_head             confidence_head.proj.{weight [1, D + R], bias [1]}, R 0 without a Markov head
        markov_size                        markov.into.weight [M, 2D], markov.out.weight [D, M]: the MLP head
    wideblock {kind, target, target_fingerprint, chat_template_args, ...}
                                           its kind, and where it comes from; other loaders ignore it

Drafters that others trained are read too: names with or without `model.`, dflash_config nested or at the top level,
both RoPE spellings, any float type, sharded files, and what `speculators` itself writes (`.speculators_config`). A
field that changes the computation and that we do not honour is refused by name.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from configs.errors import UserError
from configs.files import replacing
from configs.paths import read_object
from models.drafters.artifact_config import (
    KIND,
    beyond_plain,
    config_json,
    origin_of,
    parse_config,
    plain_config,
    read_config,
)
from models.drafters.dflash import Drafter, DrafterConfig, turned_weights
from models.drafters.dflash_kind import DFlash
from models.drafters.speculators_config import TYPE
from models.layers import reads_turned
from models.sharding import constrain, shard
from models.target import AXES, FINGERPRINT, Target

CONFIG = "config.json"
_MARKOV = {name: f"markov_head.{name}.weight" for name in ("markov_w1", "markov_w2")}
_REFINER = {"markov_w1": "refiner_head.token_embed.weight", "markov_w2": "refiner_head.readout.weight"}
_PROJECTIONS = {"gated": "markov_head.gate_proj", "rnn": "markov_head.joint_proj"}
_NORMS = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A drafter on disk: its shape, its weights in our layout (float32), its draft vocabulary, where it comes from.

    A DFlash drafter; other kinds override what is theirs (`artifact_class`).
    """

    kind: ClassVar[str] = KIND
    title: ClassVar[str] = "DFlash"
    owns: ClassVar[str] = "neither its embedding nor its LM head"
    config_class: ClassVar[type] = DrafterConfig
    parse: ClassVar[Callable[[Mapping[str, Any], Path], Any]] = staticmethod(parse_config)

    config: Any
    weights: dict[str, Any]
    draft_vocab: np.ndarray | None
    origin: dict[str, Any]
    head: np.ndarray | None = None  # the LM head it brings of its draft vocabulary, if any

    @classmethod
    def read(cls, raw: Mapping[str, Any], path: Path) -> "Artifact":
        """That of config.json's content and the tensors beside it."""
        config, tensors = cls.parse(raw, path), read_tensors(path)
        draft_vocab = pop_vocabulary(config, tensors, path)
        head = tensors.pop("lm_head.weight", None) if TYPE in raw else None
        return cls(config, _from_tensors(config, tensors, path), draft_vocab, origin_of(raw, path), head=head)

    def drafter(self, dtype: str, mesh: jax.sharding.Mesh | None = None) -> Any:
        """The network on `mesh`, computing in `dtype`, which its weights are kept in and as it reads them: a step need
        not cast or turn them."""
        weights = jax.tree.map(lambda weight: weight.astype(dtype), self.weights)
        if turned := mesh is None and reads_turned(dtype, mesh):
            weights = turned_weights(weights)
        drafter = Drafter(self.config, weights, dtype, mesh, turned=turned)
        shard(drafter, mesh)
        return drafter

    def bound(self, target: Target) -> Any:
        """The drafter for `target`, in its type, on its mesh."""
        vocab = None if self.draft_vocab is None else jnp.asarray(self.draft_vocab, jnp.int32)
        head = target.head if vocab is None else target.head[vocab]
        head = constrain(head, target.mesh, *AXES["head"])
        return DFlash(self.drafter(str(target.dtype), target.mesh), head, vocab, self.confidence.get("temperature"))

    def described(self, dtype: str) -> dict[str, Any]:
        """Its config.json, the tensors being in `dtype`."""
        return config_json(self.config, self.origin, dtype)

    def tensors(self) -> dict[str, np.ndarray]:
        """Its weights as they lie on disk, by their public names."""
        return to_tensors(self)

    def vocabulary(self) -> dict[str, np.ndarray]:
        """The tensors that hold its draft vocabulary."""
        return {} if self.draft_vocab is None else vocabulary_maps(self.draft_vocab, self.config.vocab_size)

    def beyond_plain(self) -> dict[str, str]:
        """What code for the public kind does not compute of it, in words, by the recipe's field."""
        return beyond_plain(self.config)

    def plain(self, where: Path) -> "Artifact":
        """The same as code for the public kind computes it; UserError where that would be another drafter."""
        return dataclasses.replace(self, config=plain_config(self.config, where), draft_vocab=None)

    def misfits(self, target: Target) -> list[str]:
        """What beside its shape keeps it from drafting for `target`."""
        if self.head is None:
            return []
        own = target.head if self.draft_vocab is None else target.head[self.draft_vocab]
        if np.array_equal(np.asarray(self.head, np.float32), np.asarray(own, np.float32)):
            return []
        return [f"LM head: the drafter brings one of its own, which is not that of {target.config.name}"]

    def traits(self) -> dict[str, Any]:
        """What sets it apart from others of its size, for people."""
        config = self.config
        attention = dict.fromkeys("causal" if causal else "bidirectional" for causal in config.causal)
        return {
            "draft vocabulary": config.draft_vocab_size or config.vocab_size,
            "Markov head": f"{config.markov_head_type}, rank {config.markov_rank}" if config.markov_rank else "none",
            "MLP head": config.markov_size or "none",
            "confidence head": "yes" if config.confidence_head else "none",
            "in-block attention": ", ".join(attention),
            "drafts from": "the anchor's slot on" if config.sample_from_anchor else "the slot after the anchor on",
        }

    def details(self) -> dict[str, Any]:
        """The rest of its shape, for people."""
        windows = self.config.windows
        return {
            "mask token": self.config.mask_token_id,
            "windows": ", ".join(map(str, windows)) if any(windows) else "none",
        }

    @property
    def chat_template_args(self) -> dict[str, Any]:
        """The arguments of the target's chat template that it was trained with."""
        return dict(self.origin.get("chat_template_args") or {})

    @property
    def acceptance(self) -> list[float]:
        """Conditional acceptance of its slots on held-out responses, as far as training measured it; [0.5] if not."""
        return list(self.origin.get("heldout_acceptance") or [0.5])

    @property
    def confidence(self) -> dict[str, float]:
        """How its confidence was calibrated on held-out steps (`train.calibration`); {} where it was not."""
        return dict(self.origin.get("confidence") or {})

    def digest(self) -> str:
        """Names this drafter: its shape and every weight's value, in whatever type they lie on disk."""
        digest = hashlib.sha256(self.shape_digest().encode())
        for name, value in sorted(self.tensors().items()):
            digest.update(name.encode() + np.ascontiguousarray(value, np.float32).tobytes())
        if self.draft_vocab is not None:
            digest.update(np.asarray(self.draft_vocab, np.int32).tobytes())
        return digest.hexdigest()[:16]

    def shape_digest(self) -> str:
        """Names everything that decides what a step costs, and nothing that training changes."""
        later = getattr(self.config, "before", {})  # a field that came later names nothing new while it is as before
        shape = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in later or v != later[k]}
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]


def write_artifact(artifact: Artifact, path: Path, dtype: str = "float32") -> None:
    """Writes the artifact's two files, its tensors in `dtype`.

    Whoever reads meanwhile, or after a crash, finds the old pair, the new one, or no config.json, and so no drafter:
    never one's weights under the other's description.

    Raises:
      OSError: the directory cannot be written.
    """
    from safetensors.numpy import save_file

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    tensors = {name: np.ascontiguousarray(value, kind) for name, value in artifact.tensors().items()}
    tensors |= artifact.vocabulary()
    config = path / CONFIG
    with replacing(config) as described, replacing(path / "model.safetensors") as weights:
        described.write_text(json.dumps(artifact.described(dtype), indent=2) + "\n")
        save_file(tensors, weights, metadata={"format": "pt"})
        config.unlink(missing_ok=True)  # here the weights take their place, then the config


def interrupted(path: Path) -> bool:
    """Whether `path` was left without a config.json by `write_artifact`, killed."""
    return not (path / CONFIG).exists() and any(path.glob(f".{CONFIG}.*.partial"))


def read_artifact(path: Path) -> Artifact:
    """The artifact in directory `path`.

    Raises:
      UserError: not an artifact, a field or tensor missing, of the wrong shape, not finite or unsupported, a truncated
        file.
    """
    raw = read_config(path)
    return artifact_class(kind_of(raw, path)).read(raw, path)


def artifact_class(kind: str | None) -> type[Artifact]:
    """The artifact of a kind of drafter; a kind that is not known is refused when it is read."""
    from models.drafters.eagle3_artifact import Eagle3Artifact

    return Eagle3Artifact if kind == Eagle3Artifact.kind else Artifact


def kind_of(raw: Mapping[str, Any], path: Path) -> str:
    """The kind a config.json names, or the one its architecture is of."""
    named = origin_of(raw, path).get("kind")
    eagle3 = any("Eagle3" in str(name) for name in raw.get("architectures") or [])
    return str(named or ("eagle3" if eagle3 or raw.get("speculators_model_type") == "eagle3" else KIND))


def vocabulary_maps(draft_vocab: np.ndarray, vocab_size: int) -> dict[str, np.ndarray]:
    """d2t and t2d of a draft vocabulary, ascending token ids."""
    ids = np.asarray(draft_vocab, np.int64)
    return {"d2t": ids - np.arange(len(ids)), "t2d": np.isin(np.arange(vocab_size), ids)}


def pop_vocabulary(config: Any, tensors: dict[str, np.ndarray], path: Path) -> np.ndarray | None:
    """The draft vocabulary's token ids, by whichever map is there."""
    size, ids, offsets, kept = (
        config.draft_vocab_size,
        *(tensors.pop(n, None) for n in ("draft_vocab_ids", "d2t", "t2d")),
    )
    if ids is None and offsets is not None:
        ids = offsets + np.arange(len(offsets))
    if (ids is None) != (size is None):
        raise UserError(f"{path}: draft_vocab_size and tensor d2t (or draft_vocab_ids): one without the other")
    if ids is None:
        return None
    if ids.shape != (size,) or not 0 <= ids.min() <= ids.max() < config.vocab_size:
        raise UserError(f"{path}: its draft vocabulary does not hold {size} ids below {config.vocab_size}")
    if kept is not None and not np.array_equal(np.flatnonzero(kept), np.sort(ids)):
        raise UserError(f"{path}: tensors d2t and t2d name different draft vocabularies")
    return ids.astype(np.int32)


def check_fit(artifact: Artifact, target: Target, path: Path) -> None:
    """Raises UserError, naming every field that differs, when the drafter was made for another target."""
    config, shape = artifact.config, target.config
    pairs = [
        ("hidden size", config.target_hidden_size, shape.hidden_size),
        ("drafter hidden size", config.hidden_size, shape.hidden_size),
        ("vocabulary", config.vocab_size, shape.vocab_size),
        ("target layers", config.num_target_layers or shape.num_layers, shape.num_layers),
        ("weights", artifact.origin.get("target_fingerprint", target.fingerprint), target.fingerprint),
    ]
    differing = [
        f"{name}: drafter expects {made}, {shape.name} has {has}{_how_old(name, made)}"
        for name, made, has in pairs
        if made != has
    ]
    taps = [tap for tap in config.target_layer_ids if not 0 <= tap < shape.num_layers]
    if taps:
        differing.append(f"taps: layers {taps} do not exist in {shape.name} ({shape.num_layers} layers)")
    differing += artifact.misfits(target)
    if differing:
        raise UserError(f"{path}: this drafter was made for another target ({'; '.join(differing)}); pass that target")


def _how_old(name: str, made: Any) -> str:
    """What to do about a fingerprint that says nothing about most of the weights."""
    if name != "weights" or str(made).startswith(FINGERPRINT):
        return ""
    return (
        ": made before fingerprints held all weights, so the two cannot be compared; if this is the target it was "
        "trained for, take wideblock.target_fingerprint out of its config.json"
    )


def to_tensors(artifact: Artifact) -> dict[str, np.ndarray]:
    """The weights by their names in the public layout, [out, in], the draft vocabulary aside."""
    config, weights, out = artifact.config, artifact.weights, {}
    out["fc.weight"] = np.asarray(weights["fc"]).T
    out["hidden_norm.weight"] = np.asarray(weights["hidden_norm"])
    out["norm.weight"] = np.asarray(weights["norm"])
    if config.markov_size is not None:
        out |= {f"markov.{part}.weight": np.asarray(weights["markov"][part]).T for part in ("into", "out")}
    if config.markov_rank is not None:
        names = _REFINER if config.refines else _MARKOV
        out |= {foreign: np.asarray(weights[ours]) for ours, foreign in names.items()}
        for ours, foreign in _mixing_names(config).items():
            value = np.asarray(weights["mixing"][ours])
            out[foreign] = value.T if value.ndim == 2 else value
    if config.confidence_head:
        out["confidence_head.proj.weight"] = np.asarray(weights["confidence"]["proj"])[None]
        out["confidence_head.proj.bias"] = np.asarray(weights["confidence"]["bias"])
    for index, layer in enumerate(weights["layers"]):
        layer = {name: np.asarray(value) for name, value in layer.items()}
        base = f"layers.{index}"
        kv = layer["kv"].reshape(-1, config.num_kv_heads, 2, config.head_dim)
        k, v = (part.reshape(len(kv), -1) for part in np.moveaxis(kv, 2, 0))
        attention = {"q": layer["q"], "k": k, "v": v, "o": layer["out"]}
        out |= {f"{base}.self_attn.{part}_proj.weight": value.T for part, value in attention.items()}
        out |= {f"{base}.mlp.{part}_proj.weight": layer[part].T for part in ("gate", "up", "down")}
        out |= {f"{base}.{foreign}.weight": layer[ours] for ours, foreign in _NORMS.items()}
    return out


def _mixing_names(config: DrafterConfig) -> dict[str, str]:
    """Public names of the weights of `models.drafters.mixing`."""
    if config.refines:
        return {name: f"refiner_head.{name}" + ".weight" * (name != "mix_l") for name in config.mixing_shapes}
    base = _PROJECTIONS.get(config.markov_head_type)
    return {name: f"{base}.{'weight' if name == 'proj' else name}" for name in config.mixing_shapes}


class Tensors(dict[str, np.ndarray]):
    """The tensors of an artifact at `path`, of which those known are taken out."""

    def __init__(self, tensors: Mapping[str, np.ndarray], path: Path):
        super().__init__(tensors)
        self._path = path

    def take(self, name: str, *shape: int) -> np.ndarray:
        """That of this name and shape.

        Raises:
          UserError: it is missing, of another shape or not finite.
        """
        if name not in self:
            raise UserError(f"{self._path}: tensor {name} is missing; expected shape {list(shape)}")
        value = self.pop(name)
        if value.shape != shape:
            raise UserError(f"{self._path}: tensor {name}: expected shape {list(shape)}, got {list(value.shape)}")
        value = np.asarray(value, np.float32)
        if not np.isfinite(value).all():
            raise UserError(f"{self._path}: tensor {name} holds NaN or infinity; export an earlier checkpoint")
        return value

    def refuse_rest(self) -> None:
        """Raises UserError for a tensor that was not taken."""
        if self:
            raise UserError(f"{self._path}: unknown tensor {min(self)}; this drafter has parts we do not compute")


def _from_tensors(config: DrafterConfig, tensors: Mapping[str, np.ndarray], path: Path) -> dict[str, Any]:
    left = Tensors(tensors, path)
    d, f, q, kv, take = config.hidden_size, config.mlp_size, config.q_size, config.kv_size, left.take

    def layer(index: int) -> dict[str, Any]:
        base = f"layers.{index}"
        parts = {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}
        attention = {part: take(f"{base}.self_attn.{part}_proj.weight", *shape).T for part, shape in parts.items()}
        parts = {"gate": (f, d), "up": (f, d), "down": (d, f)}
        mlp = {part: take(f"{base}.mlp.{part}_proj.weight", *shape).T for part, shape in parts.items()}
        sizes = {"q_norm": config.head_dim, "k_norm": config.head_dim}
        norms = {ours: take(f"{base}.{foreign}.weight", sizes.get(ours, d)) for ours, foreign in _NORMS.items()}
        heads = (d, config.num_kv_heads, config.head_dim)
        return norms | {
            "q": attention["q"],
            "kv": np.stack([attention["k"].reshape(heads), attention["v"].reshape(heads)], axis=2).reshape(d, -1),
            "out": attention["o"],
            **mlp,
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
    if config.markov_rank is not None:
        sizes = {"markov_w1": config.vocab_size, "markov_w2": config.draft_vocab_size or config.vocab_size}
        names = _REFINER if config.refines else _MARKOV
        weights |= {name: take(names[name], v, config.markov_rank) for name, v in sizes.items()}
    if shapes := config.mixing_shapes:
        weights["mixing"] = {
            ours: take(foreign, *shapes[ours][::-1]).T if len(shapes[ours]) == 2 else take(foreign, *shapes[ours])
            for ours, foreign in _mixing_names(config).items()
        }
    if config.confidence_head:
        proj = take("confidence_head.proj.weight", 1, d + (config.markov_rank or 0))[0]
        weights["confidence"] = {"proj": proj, "bias": take("confidence_head.proj.bias", 1)}
    left.refuse_rest()
    return as_arrays(weights)


def as_arrays(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: as_arrays(value) for name, value in tree.items()}
    return [as_arrays(value) for value in tree] if isinstance(tree, list) else jnp.asarray(tree)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a directory, from one file or from the shards its index names, without a `model.` prefix."""
    index = path / "model.safetensors.index.json"
    files = sorted(set(read_object(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    tensors: dict[str, np.ndarray] = {}
    for name in files:
        tensors |= _read_file(path / name)
    return {name.removeprefix("model."): value for name, value in tensors.items()}


def _read_file(file: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise UserError(f"{file}: missing; export the drafter again")
    try:
        with safe_open(file, framework="flax") as handle:
            names = list(handle.keys())
            return {name: np.asarray(handle.get_tensor(name)) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({error}); export the drafter again") from error
