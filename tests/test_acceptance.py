"""Held-out acceptance is the greedy walk: drafts one block at a time, moves on by what was accepted."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import whole
from models.layers import logits
from models.statistics import bootstrap_ratio, wilson
from models.target import packed_features
from pipelines.batches import RowSource
from pipelines.records import Response
from tests.tiny import make_artifact, make_target
from tests.tiny_run import on_disk
from train.acceptance import heldout_acceptance, walk
from train.objectives import objective_of
from train.objectives.dflash import block_hidden, draft_context
from train.objectives.trainee import Trainee


def test_walk_by_hand():
    """At 0 two drafts are right: to 3. At 3 none: to 4. At 4 one, but the answer ends at 5."""
    assert walk([2, 9, 9, 0, 1, 9], 0, 5) == [3, 1, 1]


def test_equals_one_block_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target, artifact = make_target(), make_artifact(draft_vocab_size=40)
    trainee = Trainee(artifact.drafter("float32"), target, artifact.draft_vocab, online=True)
    rng = np.random.default_rng(0)
    probe = [Response("ab"[i % 2], str(i), (5, 6, 7), tuple(rng.integers(3, 60, 9).tolist()), True) for i in range(5)]
    # Answers made of what the drafter says, so that something is accepted.
    responses = [Response(r.task, r.id, r.prompt_ids, tuple(_drafted(trainee, r)), True) for r in probe]
    monkeypatch.setattr("train.acceptance.ANCHORS", 8)
    acceptance = heldout_acceptance(
        objective_of("dflash"),
        trainee,
        RowSource(on_disk(tmp_path, responses), None, 40),
        width=trainee.width,
        head_chunk=16,
    )
    expected = sorted((r.task, _walk_alone(trainee, r)) for r in responses)
    assert sorted((walk.task, walk.runs) for walk in acceptance.walks) == expected
    assert max(max(runs) for _, runs in expected) > 1
    tasks = acceptance.tasks()
    runs = [run for task, runs in expected for run in runs if task == "a"]
    assert tasks["a"]["tau"] == pytest.approx(sum(runs) / len(runs))


def _drafts(trainee: Trainee, ids: list[int], anchor: int) -> list[int]:
    """Greedy drafts of the block at `anchor`, from the text alone."""
    tokens = jnp.asarray([ids])
    batch = {"tokens": tokens, "positions": jnp.arange(len(ids))[None], "segments": jnp.ones_like(tokens)}
    features = packed_features(trainee.target, tokens, whole(tokens), taps=trainee.drafter.config.target_layer_ids)
    context = draft_context(trainee, batch, features)
    hidden = block_hidden(trainee, batch, jnp.array([[anchor]]), trainee.drafter.config.width, context=context)
    best = np.asarray(logits(hidden[0, 0, 1:], trainee.head[...])).argmax(axis=-1)
    index = np.asarray(trainee.draft_index[...])
    return [int(np.flatnonzero(index == row)[0]) for row in best]


def _drafted(trainee: Trainee, response: Response) -> list[int]:
    """The response with its first five tokens replaced by what the drafter would say there."""
    ids = [*response.prompt_ids, *response.response_ids]
    for place in range(2, 7, 2):
        ids[place + 1 : place + 3] = _drafts(trainee, ids, place)[:2]
    return ids[3:]


def _walk_alone(trainee: Trainee, response: Response) -> list[int]:
    ids = [*response.prompt_ids, *response.response_ids]
    place, runs = 2, []
    while place < len(ids) - 1:
        right = 0
        for draft, token in zip(_drafts(trainee, ids, place), ids[place + 1 :], strict=False):
            if draft != token:
                break
            right += 1
        runs.append(min(right + 1, len(ids) - 1 - place))
        place += runs[-1]
    return runs


def test_intervals():
    assert wilson(5, 10) == pytest.approx([0.2366, 0.7634], abs=1e-4)
    assert wilson(0, 0) == [0.0, 1.0]
    low, high = bootstrap_ratio([(3.0, 2.0)] * 20)
    assert low == high == 1.5
    low, high = bootstrap_ratio([(1.0, 1.0), (3.0, 1.0)] * 50)
    assert 1.7 < low < 2.0 < high < 2.3
