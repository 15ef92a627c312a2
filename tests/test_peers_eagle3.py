"""EAGLE-3 in `speculators` (vLLM's library of drafters): its model of our artifact says the same logits at every
position and unrolled step, and what it saves is read here as the same drafter."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import whole
from models.drafters.artifact import check_fit, read_artifact, write_artifact
from models.target import packed_features
from serve.bench_peers import torch_target
from tests.tiny import make_eagle3, make_target
from train.objectives.eagle3 import chain_hidden, read
from train.objectives.trainee import Trainee

# Speculators and torch warn about themselves: parts of torch that are deprecated, flex_attention on a CPU.
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
LENGTH, STEPS = 40, 4
CASES = {
    "published": {},
    "vocabulary": {"draft_vocab_size": 30},
    "normed": {"draft_vocab_size": 30, "norm_before_fc": True, "norm_before_residual": True},
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_the_way_back(tmp_path: Path, case: str):
    target, artifact = make_target(tied_head=True), make_eagle3(**CASES[case])
    torch_target(target).save_pretrained(tmp_path / "target")
    write_artifact(artifact, tmp_path / "ours")
    theirs = loaded(tmp_path / "ours", tmp_path / "target")

    ids = np.random.default_rng(0).integers(3, 60, (1, LENGTH)).astype(np.int32)
    features = packed_features(target, jnp.asarray(ids), whole(jnp.asarray(ids)), taps=artifact.config.target_layer_ids)
    expected = their_logits(theirs, np.asarray(features), ids)

    where = whole(jnp.asarray(ids))
    batch = {"tokens": jnp.asarray(ids), "positions": where.positions, "segments": where.segments}
    anchors = np.arange(1, LENGTH - STEPS)[None]
    labels = anchors[..., None] + np.arange(1, STEPS + 1)
    trainee = Trainee(artifact.drafter("float32"), target, artifact.draft_vocab, online=False)
    context = read(trainee, batch, features)
    hidden = chain_hidden(trainee, batch, jnp.asarray(anchors), jnp.asarray(ids[0][labels]), context=context)
    ours = np.asarray(trainee.drafter.scored(hidden))[0]
    for step, logits in enumerate(expected):
        assert np.abs(ours[:, step] - logits[: anchors.shape[1]]).max() <= 1e-4

    theirs.save_pretrained(tmp_path / "saved")
    back = read_artifact(tmp_path / "saved")
    check_fit(back, target, tmp_path / "saved")
    assert back.config.target_layer_ids == artifact.config.target_layer_ids
    for name, value in artifact.tensors().items():
        assert np.array_equal(back.tensors()[name], value), name
    if artifact.draft_vocab is not None:
        assert back.draft_vocab.tolist() == artifact.draft_vocab.tolist()


def loaded(ours: Path, target: Path) -> Any:
    """Its model of our files, by what its converter makes of our config.json.

    The converter's own weights file is not used: version 0.9.0 writes an embedding of arbitrary values where a drafter
    has none, and leaves input_norm out.
    """
    from safetensors.torch import load_file
    from speculators.convert.eagle.eagle3_converter import Eagle3Converter
    from speculators.models.eagle3 import Eagle3DraftModel

    raw = json.loads((ours / "config.json").read_text())
    raw["target_vocab_size"] = raw["vocab_size"]
    given = {name: raw[name] for name in ("norm_before_residual", "eagle_aux_hidden_state_layer_ids") if name in raw}
    model = Eagle3DraftModel(Eagle3Converter()._build_eagle3_speculator_config(raw, str(target), **given)).eval()
    weights = {
        name.replace("midlayer", "layers.0"): value for name, value in load_file(ours / "model.safetensors").items()
    }
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) == {"embed_tokens.weight", "verifier_norm.weight", "verifier_lm_head.weight"}, "the target's"
    model.load_verifier_weights()
    return model


def their_logits(model: Any, features: np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
    """What its LM head says at every position of every unrolled step."""
    import torch
    from speculators.models.attention import create_float_mask

    model._attn_impl, model._create_mask_fn = "eager", create_float_mask
    model.config.transformer_layer_config._attn_implementation = "eager"
    said: list[np.ndarray] = []
    model.lm_head.register_forward_hook(lambda _, __, logits: said.append(logits[0].numpy()))
    shifted = {"hidden_states": torch.tensor(features[:, :-1]), "input_ids": torch.tensor(ids[:, 1:]).long()}
    with torch.no_grad():
        model(**shifted, document_ids=torch.zeros(1, LENGTH - 1, dtype=torch.long), ttt_steps=STEPS)
    return said
