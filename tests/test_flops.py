"""The FLOPs we count for a step are those XLA counts in its compiled program, which adds elementwise work to them."""

from typing import Any

import jax
import pytest
from flax import nnx

from models.attention import Packed
from models.target import packed_features
from tests.test_loss import make_batch
from tests.tiny import make_artifact, make_eagle3, make_target
from train.flops import step_flops
from train.objectives.dflash import block_loss
from train.objectives.eagle3 import chain_loss
from train.objectives.slots import LossSettings
from train.objectives.trainee import Trainee

LARGE = {"hidden_size": 256, "num_heads": 8, "num_kv_heads": 4, "head_dim": 32, "mlp_size": 512, "vocab_size": 2048}
CHUNK = 32


MLP, MARKOV = {"markov_size": 256}, {"markov_rank": 128}


# Not the recurrent head: of its scan XLA counts one round.
@pytest.mark.parametrize(
    ("online", "kl", "head"),
    [(False, 0.0, {}), (False, 0.5, MLP), (False, 0.0, MARKOV), (True, 0.0, MLP), (True, 0.5, {}), (True, 0.5, MARKOV)]
    + [(False, 0.5, MARKOV | {"markov_head_type": kind}) for kind in ("gated", "xpress")],
)
def test_step_flops(online: bool, kl: float, head: dict[str, Any]):
    target = make_target(**LARGE)
    artifact = make_artifact(**LARGE, target_hidden_size=256, **head)
    trainee = Trainee(artifact.drafter("float32"), target, None, online=online)
    batch = make_batch(target, final=kl > 0)
    if online:
        del batch["features"]
    shares = {"ce": 1 - kl, "kl": kl, "tv": 0.0}
    settings = LossSettings("dpace", gamma=2.0, **shares, head_chunk=CHUNK, remat=False)  # one chunk a width: no loop

    @jax.jit
    def gradients(trainee, batch):
        return nnx.grad(lambda model: block_loss(model, batch, settings)[0])(trainee)

    counted = gradients.lower(trainee, batch).compile().cost_analysis()["flops"]
    rows, length = batch["tokens"].shape
    blocks = {6: batch["anchors_w6"].shape[1], 3: batch["anchors_w3"].shape[1]}
    shape = {"rows": rows, "row_length": length, "blocks": blocks}
    ours = step_flops(artifact.config, target.config, **shape, online=online, taught=kl > 0)
    assert 0.97 <= counted / ours <= 1.10


@pytest.mark.parametrize("kl", [0.0, 1.0])
def test_step_flops_of_eagle3(kl: float):
    target = make_target(**LARGE)
    artifact = make_eagle3(**LARGE, target_hidden_size=256, width=6)
    trainee = Trainee(artifact.drafter("float32"), target, None, online=False)
    batch = make_batch(target, final=False)
    where = Packed(batch["positions"], batch["segments"])
    taps = artifact.config.target_layer_ids
    batch["features"] = packed_features(target, batch["tokens"], where, taps=taps, final=kl > 0)
    settings = LossSettings("decay", gamma=4.5, ce=1 - kl, kl=kl, tv=0.0, head_chunk=CHUNK, remat=False)

    @jax.jit
    def gradients(trainee, batch):
        return nnx.grad(lambda model: chain_loss(model, batch, settings)[0])(trainee)

    counted = gradients.lower(trainee, batch).compile().cost_analysis()["flops"]
    rows, length = batch["tokens"].shape
    blocks = {6: batch["anchors_w6"].shape[1], 3: batch["anchors_w3"].shape[1]}
    shape = {"rows": rows, "row_length": length, "blocks": blocks}
    ours = step_flops(artifact.config, target.config, **shape, online=False, taught=kl > 0)
    assert 0.97 <= counted / ours <= 1.10
