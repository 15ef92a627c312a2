"""Export: a run's checkpoint becomes a drafter artifact (see `models.drafters.artifact`).

In: a run directory: drafter.json (what the drafter is; owned here) and the Orbax checkpoints. Out: an artifact, with a
model card beside it (README.md, see `train.card`). Or one GGUF file, for llama.cpp (see `models.drafters.gguf`). Or the
parameters alone as an Orbax checkpoint, for JAX programs:

    RUN/drafter.json  {"config": DrafterConfig fields, "draft_vocab": [token ids] or null, "origin": {...}}
    OUT/config.json   as the artifact's
    OUT/params        Orbax, float32, matrices [in, out]: fc [L*E, D], hidden_norm [D], norm [D],
                      layers/<i>/{q [D, K*G*H], kv [D, K*2*H], out [N*H, D], gate [D, F], up [D, F],
                      down [F, D], attention_norm [D], mlp_norm [D], q_norm [H], k_norm [H]}, markov_w1 [V, R],
                      markov_w2 [Vd, R], mixing/* (`models.drafters.mixing`), markov/{into, out} and draft_vocab_ids
                      [Vd] where there are any (letters: models.shapes; k before v)
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from configs.console import say
from configs.errors import UserError
from configs.files import replacing, write_atomic, write_json
from models.drafters.artifact import Artifact, artifact_class, interrupted, kind_of, read_artifact, write_artifact
from models.drafters.artifact_config import is_drafter, origin_of, read_config
from models.drafters.gguf import write_gguf
from models.drafters.mixing import resized
from models.layers import RopeScaling
from models.sources import EMBEDDED
from models.sources.gguf import embedded_file
from train.card import bare_card, card


@dataclasses.dataclass(frozen=True)
class Form:
    """How a drafter is to lie on disk.

    `plain` leaves the draft vocabulary out, so that any DFlash loader reads the drafter: it then drafts from the whole
    vocabulary, through the same head. A GGUF file needs one of the `target`; None: the embedded one's.
    """

    kind: Literal["dflash", "orbax", "gguf"] = "dflash"
    dtype: str | None = None  # float32 of a run, what a drafter lies in of a drafter
    plain: bool = False
    target: Path | None = None


DFLASH = Form()


def write_description(run: Path, config: Any, draft_vocab: np.ndarray | None, origin: Mapping[str, Any]) -> None:
    """Writes RUN/drafter.json."""
    vocab = None if draft_vocab is None else draft_vocab.tolist()
    write_json(run / "drafter.json", {"config": dataclasses.asdict(config), "draft_vocab": vocab, "origin": origin})


def read_description(run: Path) -> tuple[Any, np.ndarray | None, dict[str, Any]]:
    """(config, draft vocabulary, origin) from RUN/drafter.json.

    Raises:
      UserError: not a run directory, or its description is damaged.
    """
    file = run / "drafter.json"
    if not file.is_file():
        raise UserError(f"{run}: no drafter.json; expected a run directory (python -m train --config ... makes one)")
    try:
        raw = json.loads(file.read_text())
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in raw["config"].items()
        }
        if fields["rope_scaling"] is not None:
            fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
        vocab = None if raw["draft_vocab"] is None else np.array(raw["draft_vocab"], np.int32)
        return artifact_class(raw["origin"].get("kind")).config_class(**fields), vocab, raw["origin"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error}); it is written again by: python -m train ... --resume") from error


def export(run: str | Path, out: str | Path, which: str | int = "best", how: Form = DFLASH) -> None:
    """Writes the drafter of checkpoint `which` ("best", "last" or a step) of `run` into `out`.

    Raises:
      UserError: no such run or checkpoint, `out` holds something else, or plain DFlash cannot compute the drafter.
    """
    from train.checkpoint import load_params

    run, out = Path(run), Path(out)
    config, vocab, origin = read_description(run)
    how = dataclasses.replace(how, dtype=how.dtype or "float32")
    check_out(out, how)
    kind = artifact_class(origin.get("kind"))
    if how.plain:
        kind(config, {}, vocab, origin).plain(run)  # refused before anything is read
    params, metadata, step = load_params(run / "checkpoints", which)
    config, weights = trained_width(config, drafter_weights(params), metadata.get("width", config.width))
    acceptance = metadata.get("acceptance")  # of these parameters, if they were measured
    origin |= {"step": step} | ({} if acceptance is None else measured_of(acceptance))
    artifact = write(kind(config, weights, vocab, origin), out, how, run)
    if how.kind == "dflash":
        write_atomic(out / "README.md", card(run, out, dtype=str(how.dtype), acceptance=acceptance))
    size = sum(np.asarray(value).size for value in _leaves(artifact.weights))
    say(f"export: step {step} of {run}: {config.num_layers} layers, {size / 1e6:.1f} M parameters -> {out}")


def trained_width(config: Any, weights: dict[str, Any], width: int) -> tuple[Any, dict[str, Any]]:
    """The drafter `width` wide: a curriculum may have ended before its last width, and no slot beyond was trained."""
    if width == config.width:
        return config, weights
    say(f"export: blocks grew to {width} in training, not to drafter.width={config.width}: the drafter is {width} wide")
    config = dataclasses.replace(config, width=width)
    mixing = weights.get("mixing", {})
    if "mix_l" in mixing:
        weights = weights | {"mixing": mixing | {"mix_l": resized(mixing["mix_l"], config.slots(width))}}
    return config, weights


def convert(drafter: Path, out: Path, how: Form) -> None:
    """Writes a drafter that `read_drafter` reads into `out`, in another form or the same.

    Raises:
      UserError: as `export`.
    """
    artifact, raw = read_drafter(drafter), read_config(drafter)
    kept = raw.get("dtype") or raw.get("torch_dtype")
    kept = "bfloat16" if kept == "bfloat16" else "float32"
    how = dataclasses.replace(how, dtype=how.dtype or kept)
    check_out(out, how)
    written = write(artifact, out, how, drafter)
    old, new = drafter / "README.md", out / "README.md"
    if how.kind == "dflash" and written is artifact and how.dtype == kept and old.is_file():
        if out.resolve() != drafter.resolve():
            write_atomic(new, old.read_text(encoding="utf-8"))
    elif how.kind == "dflash":
        write_atomic(new, bare_card(drafter, out, written, str(how.dtype)))
    say(f"export: {drafter} -> {out}")


def write(artifact: Artifact, out: Path, how: Form, where: Path) -> Artifact:
    """Writes `artifact` in the form asked for; returns it as written.

    Raises:
      UserError: a weight is not finite, or plain DFlash cannot compute the drafter.
    """
    if not all(np.isfinite(value).all() for value in _leaves(artifact.weights)):
        raise UserError(f"{where}: a weight of this drafter is not finite; export another checkpoint")
    if how.plain:
        artifact = artifact.plain(where)
    if how.kind == "gguf":
        write_gguf(artifact, how.target or _embedded_target(artifact, out), out, how.dtype or "float32")
    elif how.kind == "orbax":
        write_orbax(artifact, out)
    else:
        write_artifact(artifact, out, how.dtype or "float32")
    return artifact


def _embedded_target(artifact: Artifact, out: Path) -> Path:
    """The embedded target's file, or a UserError where the drafter is not made for it."""
    if artifact.origin.get("target") != EMBEDDED:
        raise UserError(
            f"{out}: a GGUF drafter carries its target's tokenizer; name the GGUF file of "
            f"{artifact.origin.get('target', 'its target')} with --target (llama.cpp's convert_hf_to_gguf.py writes it)"
        )
    return embedded_file()


def check_out(out: Path, how: Form) -> None:
    """Raises UserError where `out` holds what is not a drafter, or one in a form that would be read instead."""
    if how.kind == "gguf":
        if out.suffix != ".gguf" or out.is_dir():
            raise UserError(f"{out}: expected a file for the drafter to be written to, --out NAME.gguf")
        return
    known = out.is_dir() and (is_drafter(out) or interrupted(out) or not any(out.iterdir()))
    if out.exists() and not known:
        raise UserError(f"{out}: exists and is not a drafter artifact; choose another --out")
    others = ("model.safetensors",) if how.kind == "orbax" else ("params", "model.safetensors.index.json")
    for name in others:
        if (out / name).exists():
            raise UserError(f"{out}: holds a drafter in another form ({name}); choose another --out")


def read_drafter(path: Path) -> Artifact:
    """The drafter in an artifact directory, or in an Orbax export.

    Raises:
      UserError: it is neither, or damaged.
    """
    from train.checkpoint import read_tree

    if not (path / "params").is_dir():
        return read_artifact(path)
    raw = read_config(path)
    tree = dict(read_tree(path / "params"))
    vocab = tree.pop("draft_vocab_ids", None)
    vocab = None if vocab is None else np.asarray(vocab)
    if any("gate" not in layer for layer in tree.get("layers", {}).values()):
        raise UserError(f"{path}: exported in an earlier layout (there is no layers/<i>/gate); export it again")
    kind = artifact_class(kind_of(raw, path))
    return kind(kind.parse(raw, path), drafter_weights({"drafter": tree}), vocab, origin_of(raw, path))


def write_orbax(artifact: Artifact, out: Path) -> None:
    """Writes OUT/params and OUT/config.json (see above).

    Raises:
      OSError: the disk refuses.
    """
    from train.checkpoint import write_tree

    tree = dict(artifact.weights)
    if "layers" in tree:
        tree["layers"] = {str(index): layer for index, layer in enumerate(tree["layers"])}
    if artifact.draft_vocab is not None:
        tree["draft_vocab_ids"] = np.asarray(artifact.draft_vocab, np.int32)
    config = out / "config.json"
    with replacing(config) as described:  # as `write_artifact`: never one's parameters under the other's description
        described.write_text(json.dumps(artifact.described("float32"), indent=1) + "\n")
        config.unlink(missing_ok=True)
        write_tree(tree, out / "params")


def measured_of(acceptance: Mapping[str, Any]) -> dict[str, Any]:
    """What an artifact keeps of its held-out acceptance (`train.acceptance`)."""
    confidence = {"confidence": acceptance["confidence"]} if "confidence" in acceptance else {}
    return {"heldout_acceptance": _prior(acceptance)} | confidence


def _prior(acceptance: Mapping[str, Any], least: int = 30) -> list[float]:
    """Conditional acceptance per slot as far as `least` steps reached it: where a decoder starts its estimates."""
    return [round(slot["acceptance"], 4) for slot in acceptance["slots"] if slot["reached"] >= least]


def drafter_weights(params: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's parameters in the layout `Drafter` takes: layers as a list."""
    weights = dict(params["drafter"])
    if "layers" in weights:
        layers = weights["layers"]
        weights["layers"] = [dict(layers[key]) for key in sorted(layers, key=int)]
    return weights


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    return [leaf for value in tree for leaf in _leaves(value)] if isinstance(tree, list) else [tree]
