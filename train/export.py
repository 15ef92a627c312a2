"""Export: a run's checkpoint becomes a drafter artifact (see `models.artifact`).

In: a run directory: drafter.json (what the drafter is; owned here) and the Orbax checkpoints. Out: an artifact, with a
model card beside it (README.md, see `train.card`).

    drafter.json  {"config": DrafterConfig fields, "draft_vocab": [token ids] or null, "origin": {...}}
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from configs.console import say
from models.artifact import Artifact, write_artifact
from models.drafter import DrafterConfig
from models.layers import RopeScaling
from pipelines.shards import write_json
from train.card import card


def write_description(
    run: Path, config: DrafterConfig, draft_vocab: np.ndarray | None, origin: Mapping[str, Any]
) -> None:
    """Writes RUN/drafter.json."""
    vocab = None if draft_vocab is None else draft_vocab.tolist()
    write_json(run / "drafter.json", {"config": dataclasses.asdict(config), "draft_vocab": vocab, "origin": origin})


def read_description(run: Path) -> tuple[DrafterConfig, np.ndarray | None, dict[str, Any]]:
    """(config, draft vocabulary, origin) from RUN/drafter.json.

    Raises:
      ValueError: not a run directory, or its description is damaged.
    """
    file = run / "drafter.json"
    if not file.is_file():
        raise ValueError(f"{run}: no drafter.json; expected a run directory (python -m train --config ... makes one)")
    try:
        raw = json.loads(file.read_text())
        fields = dict(raw["config"], target_layer_ids=tuple(raw["config"]["target_layer_ids"]))
        if fields["rope_scaling"] is not None:
            fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
        vocab = None if raw["draft_vocab"] is None else np.array(raw["draft_vocab"], np.int32)
        return DrafterConfig(**fields), vocab, raw["origin"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: damaged ({error}); it is written again by: python -m train ... --resume") from error


def export(run: Path, out: Path, which: str | int, dtype: str, *, plain: bool = False) -> Path:
    """Writes the artifact of checkpoint `which` ("best", "last" or a step) of `run` into `out`.

    `plain` leaves the draft vocabulary out, so that any DFlash loader reads the drafter: it then drafts from the whole
    vocabulary, through the same head.

    Raises:
      ValueError: no such run or checkpoint, `out` holds something that is not an artifact, or the drafter computes what
        plain DFlash cannot.
    """
    from train.checkpoint import load_params

    config, vocab, origin = read_description(run)
    if plain:
        config, vocab = plain_config(config, run), None
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "config.json").is_file())):
        raise ValueError(f"{out}: exists and is not a drafter artifact; choose another --out")
    params, _, step = load_params(run / "checkpoints", which)
    weights = drafter_weights(params)
    origin |= {"step": step, **_heldout_acceptance(run)}
    write_artifact(Artifact(config, weights, vocab, origin), out, dtype)
    (out / "README.md").write_text(card(run, out, config, origin, dtype))
    size = sum(np.asarray(value).size for value in _leaves(weights))
    say(f"export: step {step} of {run}: {config.num_layers} layers, {size / 1e6:.1f} M parameters -> {out}")
    return out


def plain_config(config: DrafterConfig, run: Path) -> DrafterConfig:
    """`config` as plain DFlash computes it.

    Raises:
      ValueError: it has parts whose absence would change the drafts it was trained to make.
    """
    parts = {"markov_size": "a Markov head", "causal": "causal in-block attention", "sliding_window": "a window"}
    held = [f"drafter.{name} ({what})" for name, what in parts.items() if getattr(config, name)]
    if held:
        raise ValueError(
            f"{run}: --plain: the drafter was trained with {', '.join(held)}, which plain DFlash loaders do not "
            "compute; train without, or export it under its own architecture name (leave --plain out)"
        )
    return dataclasses.replace(config, draft_vocab_size=None)


def _heldout_acceptance(run: Path, least: int = 30) -> dict[str, list[float]]:
    """Conditional acceptance per slot as far as `least` steps reached it: where a decoder starts its estimates."""
    file = run / "acceptance.json"
    if not file.is_file():
        return {}
    slots = json.loads(file.read_text())["slots"]
    return {"heldout_acceptance": [round(slot["acceptance"], 4) for slot in slots if slot["reached"] >= least]}


def drafter_weights(params: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's parameters in the layout `Drafter` takes: layers as a list."""
    weights = dict(params["drafter"])
    layers = weights["layers"]
    weights["layers"] = [dict(layers[key]) for key in sorted(layers, key=int)]
    return weights


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    return [leaf for value in tree for leaf in _leaves(value)] if isinstance(tree, list) else [tree]
