"""The confidence head learns how likely a slot's draft is to be accepted, and lies where other loaders have it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.errors import UserError
from models.drafters.artifact import read_artifact, write_artifact
from tests.test_loss import labels_by_hand, make_batch, settings_of
from tests.tiny import make_artifact, make_target
from train.export import Form, convert
from train.objectives.dflash import block_loss
from train.objectives.trainee import Trainee


def test_loss_by_hand():
    """A head that says b everywhere adds sum w (log(1 + e^b) - b a), a = 1 - TV, over the blocks: w a is known from the
    loss of total variation alone, sum w (1 - a)."""
    target, artifact = make_target(), make_artifact(markov_rank=3, confidence_head=True)
    batch, settings = make_batch(target, final=True), settings_of("tv", "decay")
    trainee = Trainee(artifact.drafter("float32"), target, None, online=False)
    head, odds = trainee.drafter.confidence, 0.7
    assert head is not None
    head.proj[...], head.bias[...] = jnp.zeros_like(head.proj[...]), jnp.array([odds])
    weights, blocks = 0.0, 0
    for width in (3, 6):
        labels = labels_by_hand(batch, batch[f"anchors_w{width}"], width)
        weights += float(((labels >= 0) * np.exp(-np.arange(width - 1) / settings.gamma)).sum())
        blocks += labels[..., 0].size

    def loss(trainee: Trainee) -> jax.Array:
        return block_loss(trainee, batch, settings)[0]

    both, gradient = nnx.jit(nnx.value_and_grad(loss))(trainee)
    trainee.drafter.confidence = None
    apart = float(nnx.jit(loss)(trainee))
    mean = weights / blocks
    assert float(both) - apart == pytest.approx(np.logaddexp(0, odds) * mean - odds * (mean - apart), rel=1e-5)
    slope = mean / (1 + np.exp(-odds)) - (mean - apart)
    assert float(gradient["drafter"]["confidence"]["bias"][...][0]) == pytest.approx(slope, rel=1e-4)


def test_names_and_forms(tmp_path: Path):
    """As `speculators` names them; plain DFlash drafts the same without it."""
    artifact = make_artifact(confidence_head=True)
    write_artifact(artifact, tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert config["enable_confidence_head"] is True
    assert config["confidence_head_with_markov"] is False
    tensors = artifact.tensors()
    assert tensors["confidence_head.proj.weight"].shape == (1, artifact.config.hidden_size)
    assert tensors["confidence_head.proj.bias"].shape == (1,)
    convert(tmp_path / "own", tmp_path / "plain", Form(plain=True))
    plain = read_artifact(tmp_path / "plain")
    assert not plain.config.confidence_head
    assert all((tensors[name] == value).all() for name, value in plain.tensors().items())
    convert(tmp_path / "own", tmp_path / "orbax", Form("orbax"))
    convert(tmp_path / "orbax", tmp_path / "again", Form())
    again = read_artifact(tmp_path / "again")
    assert jax.tree.all(jax.tree.map(lambda one, other: (one == other).all(), again.weights, artifact.weights))
    (tmp_path / "own" / "config.json").write_text(json.dumps(config | {"confidence_head_with_markov": True}))
    with pytest.raises(UserError, match="confidence_head_with_markov=True is not supported; expected False"):
        read_artifact(tmp_path / "own")
