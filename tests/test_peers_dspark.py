"""Our drafter with a Markov head of every type, a draft vocabulary and a confidence head in the DSpark model of
`speculators`, with a refiner in its XPress: config fields and tensors are found under their names, drafts and
confidences are the same; and what they save is read back as the same drafter."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import Packed
from models.drafters.artifact import check_fit, read_artifact, write_artifact
from models.drafters.mixing import HeadType
from models.target import packed_features
from serve.bench_peers import torch_target
from tests.test_peers_speculators import ANCHORS, LENGTH, WIDTH, backbone
from tests.tiny import make_artifact, make_target
from train.objectives.dflash import draft_context, slot_states, tokens_before
from train.objectives.trainee import Trainee

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
FIELDS = ("draft_vocab_size", "markov_rank", "markov_head_type", "sample_from_anchor")
FIELDS += ("enable_confidence_head", "confidence_head_with_markov", "xpress_rank", "xpress_mlp_ratio")
SHARED = ("transformer_layer_config", "block_size", "aux_hidden_state_layer_ids", "mask_token_id", "speculators_config")
TARGETS = ("embed_tokens", "lm_head", "verifier_lm_head", "verifier_norm")


@pytest.mark.parametrize("from_anchor", [False, True])
@pytest.mark.parametrize("head", ["vanilla", "gated", "rnn", "xpress"])
def test_drafts_and_confidence(tmp_path: Path, head: HeadType, from_anchor: bool):
    import torch
    from safetensors.torch import load_file
    from speculators.convert.dflash import DFlashConverter
    from speculators.models.dspark import DSparkDraftModel, DSparkSpeculatorConfig
    from speculators.models.xpress import XPressDraftModel, XPressSpeculatorConfig

    target, refines = make_target(tied_head=True), head == "xpress"
    artifact = make_artifact(
        tied_head=True,
        markov_rank=5,
        markov_head_type=head,
        confidence_head=not refines,
        draft_vocab_size=40,
        width=WIDTH + from_anchor,
        sample_from_anchor=from_anchor,
    )
    torch_target(target).save_pretrained(tmp_path / "target")
    write_artifact(artifact, tmp_path / "ours")
    said = json.loads((tmp_path / "ours/config.json").read_text())
    tensors = load_file(tmp_path / "ours/model.safetensors")
    base = DFlashConverter()._build_config(said, str(tmp_path / "target"), None)
    given = {name: getattr(base, name) for name in SHARED} | {name: said[name] for name in FIELDS if name in said}
    if refines:
        del given["enable_confidence_head"]
        theirs = XPressDraftModel(XPressSpeculatorConfig(**given)).eval()
    else:
        theirs = DSparkDraftModel(DSparkSpeculatorConfig(**given)).eval()
    theirs.load_vocab_mappings(tensors.pop("t2d"), tensors.pop("d2t"))
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert unexpected == [], "each of ours has its place"
    assert set(missing) <= {f"{name}.weight" for name in TARGETS} | {"t2d", "d2t"}
    theirs._load_verifier_weights(overwrite_embed_tokens=True, overwrite_lm_head=True)

    theirs.save_pretrained(tmp_path / "theirs")
    back = read_artifact(tmp_path / "theirs")
    assert back.config == dataclasses.replace(artifact.config, num_target_layers=None), "they do not say"
    assert jax.tree.all(jax.tree.map(np.array_equal, back.weights, artifact.weights))
    assert np.array_equal(back.draft_vocab, artifact.draft_vocab)
    check_fit(back, target, tmp_path)

    ids = np.random.default_rng(0).integers(3, 60, (1, LENGTH)).astype(np.int32)
    batch = {
        "tokens": jnp.asarray(ids),
        "positions": jnp.arange(LENGTH)[None],
        "segments": jnp.ones((1, LENGTH), jnp.int32),
    }
    features = packed_features(target, batch["tokens"], Packed(batch["positions"], batch["segments"]), taps=(0, 2))
    with torch.no_grad():
        hidden, logits, places = backbone(theirs, features, ids)
        places = places.view(ANCHORS, WIDTH)
        blocks = torch.tensor(ids[0])[places].long()
        # Slot k drafts what follows the token of its own place, or else of the one before: for the anchor's slot the
        # refiner reads the token before the anchor, a Markov head the anchor.
        first = torch.tensor(ids[0])[(places[:, :1] - int(refines)).clamp(min=0)].long()
        before = blocks if from_anchor else torch.cat([first, blocks[:, :-1]], dim=1)
        states, odds = hidden.view(ANCHORS, WIDTH, -1), None
        if refines:
            bias = theirs.refiner_head.block_bias(before, states)
        else:
            embedded = theirs.markov_head.prev_embeddings(before)
            bias = theirs.markov_head.block_bias(prev_token_ids=before, hidden_states=states)
            odds = theirs.confidence_head(torch.cat([states, embedded], dim=-1))
        drafted = logits.view(ANCHORS, WIDTH, -1) + bias

    anchors = places.numpy()[:, 0]
    trainee = Trainee(artifact.drafter("float32"), target, artifact.draft_vocab, online=False)
    labels = jnp.asarray([[ids[0, at + 1 : at + WIDTH + from_anchor] for at in anchors]])
    context = draft_context(trainee, batch, features)
    known = tokens_before(batch, jnp.asarray(anchors)[None], labels)[0]
    ours = slot_states(trainee, batch, jnp.asarray(anchors)[None], labels, context=context)[0]
    assert trainee.drafter.markov_w2 is not None
    matrix = jnp.concatenate([trainee.head[...], trainee.drafter.markov_w2[...]], axis=1)
    pairs = [(ours @ matrix.T, drafted)] + (
        [(trainee.drafter.acceptance_odds(ours, known), odds)] if not refines else []
    )
    for mine, its in pairs:
        expected = its.numpy()[:, not from_anchor :]  # the anchor's own slot drafts nothing
        assert np.abs(np.asarray(mine) - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())
