"""Confidence is calibrated on held-out steps, by the chances the decoder itself would give."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from models.decode import make_engine, prefill, propose
from models.drafters import Draft
from models.drafters.artifact import Artifact, read_artifact, write_artifact
from models.sampling import keys
from models.verify import GREEDILY
from pipelines.batches import RowSource
from pipelines.records import Response
from tests.tiny import make_artifact, make_target
from tests.tiny_run import on_disk
from train.acceptance import heldout_acceptance
from train.calibration import calibration, ece
from train.export import measured_of
from train.objectives import objective_of
from train.objectives.dflash import leading_hits, read_rows
from train.objectives.trainee import Trainee


def test_by_hand():
    """Bins of .1 (one accepted of four) and .9 (three of four): each is .15 off."""
    stated, accepted = np.array([0.1] * 4 + [0.9] * 4), np.array([1, 0, 0, 0, 1, 1, 1, 0])
    assert ece(stated, accepted) == pytest.approx(0.15)
    fitted = calibration(stated, accepted)
    assert fitted is not None
    assert fitted.drafts == 8
    assert fitted.temperature == pytest.approx(np.log(9) / np.log(3), rel=0.03)  # .9 is to become .75
    assert fitted.ece_before == pytest.approx(0.15)
    assert fitted.ece_after < 0.01
    assert calibration([], []) is None


@pytest.mark.parametrize(
    ("head", "slots"),
    [
        ({}, 5),
        ({"confidence_head": True}, 5),
        ({"confidence_head": True, "markov_rank": 3}, 1),
        ({"markov_rank": 3}, 1),
    ],
)
def test_the_chances_are_the_decoders(head: dict, slots: int):
    """Of every slot where the tokens before it make no difference, else of the first."""
    target, artifact = make_target(), make_artifact(draft_vocab_size=40, **head)
    trainee = Trainee(artifact.drafter("float32"), target, artifact.draft_vocab, online=True)
    engine = make_engine(target, artifact)
    ids = np.random.default_rng(0).integers(3, 60, (1, 14)).astype(np.int32)
    batch = {"tokens": jnp.asarray(ids), "positions": jnp.arange(14)[None], "segments": jnp.ones((1, 14), jnp.int32)}
    anchors = jnp.array([[4, 9]])
    _, chances = leading_hits(trainee, batch, read_rows(trainee, batch), anchors, width=trainee.width, head_chunk=16)
    for index, anchor in enumerate(anchors[0].tolist()):
        length = np.array([anchor + 1], np.int32)
        state = prefill(engine, ids, length, length + 1, np.zeros(1, np.int32), capacity=32)
        key = keys(state.rows.seed, state.rows.length)
        proposal, _ = propose(engine, state, Draft("drafter", trainee.width), GREEDILY, key, "none")
        assert np.allclose(np.asarray(proposal.confidence)[0, :slots], chances[0, index, :slots], atol=1e-4)


def test_kept_in_the_artifact(tmp_path: Path):
    target, artifact = make_target(), make_artifact()
    trainee = Trainee(artifact.drafter("float32"), target, None, online=True)
    rng = np.random.default_rng(0)
    answers = [Response("t", str(i), (5, 6, 7), tuple(rng.integers(3, 60, 9).tolist()), True) for i in range(4)]
    rows = RowSource(on_disk(tmp_path, answers), None, 40)
    acceptance = heldout_acceptance(objective_of("dflash"), trainee, rows, trainee.width, head_chunk=16)
    runs = [run for walk in acceptance.walks for run in walk.runs[:-1]]  # the last is cut short by the answer's end
    assert acceptance.confidence is not None
    assert acceptance.confidence.drafts == sum(min(run, trainee.width - 1) for run in runs)
    kept = measured_of(json.loads(json.dumps(acceptance.to_dict())))
    write_artifact(Artifact(artifact.config, artifact.weights, None, artifact.origin | kept), tmp_path / "drafter")
    read = read_artifact(tmp_path / "drafter")
    assert read.bound(target).temperature == acceptance.confidence.temperature
    assert artifact.bound(target).temperature is None
    assert read.digest() == artifact.digest(), "the same drafter"
