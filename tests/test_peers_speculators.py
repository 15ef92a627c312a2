"""Our artifact through the converter of `speculators` (vLLM's library of drafters) and in its DFlash model: the same
logits at every slot, and the same gradients where `train.bench_peers` times the two."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.schema import load_recipe
from models.attention import Packed
from models.drafters.artifact import read_artifact, write_artifact
from models.target import packed_features
from serve.bench_peers import torch_target
from tests.tiny import make_artifact, make_target
from train.bench_peers import PLAIN, Theirs, make_batch
from train.objectives.dflash import block_hidden, block_loss, draft_context
from train.objectives.slots import loss_settings
from train.objectives.trainee import Trainee

# Speculators and torch warn about themselves: parts of torch that are deprecated, flex_attention on a CPU.
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
LENGTH, WIDTH, ANCHORS = 48, 6, 8


def backbone(theirs: Any, features: Any, ids: np.ndarray) -> tuple[Any, Any, Any]:
    """Hidden states, logits and places in the row of every slot of their blocks, at anchors that they choose."""
    import torch

    theirs._attn_impl = "eager"
    hidden, logits, _, _, places = theirs._backbone_forward(
        torch.tensor(np.asarray(features)),
        torch.tensor(ids, dtype=torch.long),
        torch.ones(1, LENGTH),
        torch.zeros(1, LENGTH, 32),
        torch.zeros(1, LENGTH, dtype=torch.long),
        max_anchors=ANCHORS,
    )
    return hidden, logits, places


def test_logits(tmp_path: Path):
    import torch
    from speculators.convert.dflash import DFlashConverter
    from speculators.models.dflash import DFlashDraftModel

    target, artifact = make_target(tied_head=True), make_artifact(tied_head=True)
    torch_target(target).save_pretrained(tmp_path / "target")
    write_artifact(artifact, tmp_path / "ours")
    DFlashConverter().convert(tmp_path / "ours", tmp_path / "theirs", str(tmp_path / "target"), validate=False)
    theirs = DFlashDraftModel.from_pretrained(str(tmp_path / "theirs"), dtype=torch.float32).eval()
    theirs.load_verifier_weights()
    back = read_artifact(tmp_path / "theirs")
    assert back.config == dataclasses.replace(artifact.config, num_target_layers=None), "they do not say"
    assert jax.tree.all(jax.tree.map(np.array_equal, back.weights, artifact.weights))

    ids = np.random.default_rng(0).integers(3, 60, (1, LENGTH)).astype(np.int32)
    batch = {
        "tokens": jnp.asarray(ids),
        "positions": jnp.arange(LENGTH)[None],
        "segments": jnp.ones((1, LENGTH), jnp.int32),
    }
    features = packed_features(target, batch["tokens"], Packed(batch["positions"], batch["segments"]), taps=(0, 2))
    with torch.no_grad():
        _, logits, places = backbone(theirs, features, ids)
    anchors = places.numpy().reshape(ANCHORS, WIDTH)[:, 0]
    trainee = Trainee(artifact.drafter("float32"), target, None, online=False)
    context = draft_context(trainee, batch, features)
    hidden = block_hidden(trainee, batch, jnp.asarray(anchors)[None], WIDTH, context=context)
    ours = np.asarray(hidden[0] @ trainee.head[...].T)
    assert np.abs(ours - logits.numpy().reshape(ANCHORS, WIDTH, -1)).max() <= 1e-4


def test_gradients(monkeypatch: pytest.MonkeyPatch):
    """Of every kind of weight, up to one factor: theirs is a mean over slots, ours over blocks."""
    import torch
    from speculators.models.dflash import core

    rows, anchors = 2, 5
    blocks = [f"drafter.width={WIDTH}", f"batches.blocks={{{WIDTH}: {anchors}}}"]
    recipe = load_recipe("smoke.yaml", [*PLAIN, *blocks, f"batches.rows={rows}", f"batches.row_length={LENGTH}"])
    target, artifact = make_target(), make_artifact(draft_vocab_size=40)
    trainee = Trainee(artifact.drafter("float32"), target, artifact.draft_vocab, online=False)
    batch, final = make_batch(recipe, target, trainee, anchors)
    places = torch.tensor(batch[f"anchors_w{WIDTH}"] + LENGTH * np.arange(rows)[:, None]).long().flatten()
    monkeypatch.setattr(core, "select_anchors", lambda *_: (places, torch.ones(len(places), dtype=torch.bool)))
    theirs = Theirs(trainee, target, recipe)
    theirs.loss(batch, final).backward()

    given = {name: jnp.asarray(value) for name, value in batch.items()}
    ours = nnx.grad(lambda model: block_loss(model, given, loss_settings(recipe))[0])(trainee)["drafter"]
    layer, block = ours["layers"][0], theirs.model.layers[0]
    pairs = {
        "fc": (ours["fc"], theirs.model.fc),
        "q": (layer["q"], block.self_attn.q_proj),
        "out": (layer["out"], block.self_attn.o_proj),
        "down": (layer["down"], block.mlp.down_proj),
    }
    factors = []
    for name, (mine, other) in pairs.items():
        mine, other = np.asarray(mine[...]).T, other.weight.grad.numpy()
        factors.append(float(np.sum(mine * other) / np.sum(other * other)))
        assert np.abs(mine - factors[-1] * other).max() <= 1e-4 * np.abs(mine).max(), name
    assert np.ptp(factors) <= 1e-3 * factors[0]
