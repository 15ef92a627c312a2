"""Held-out acceptance computes the target's features once a batch of rows, however many anchors the rows have."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.batches import RowSource
from pipelines.records import Response
from tests.tiny import make_artifact, make_target
from tests.tiny_run import on_disk
from train import acceptance
from train.objectives import dflash, objective_of
from train.objectives.trainee import Trainee


def test_features_once_a_batch_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Six rows of 30 anchors are two batches; at 8 anchors a call that is eight calls, and was as many forwards."""
    artifact, calls = make_artifact(), []
    trainee = Trainee(artifact.drafter("float32"), make_target(), None, online=True)
    rng = np.random.default_rng(0)
    written = [Response("t", str(n), (5, 6), tuple(rng.integers(3, 60, 30).tolist()), True) for n in range(6)]
    monkeypatch.setattr(acceptance, "ANCHORS", 8)
    for name in ("read_rows", "leading_hits", "row_features"):
        real = getattr(dflash, name)

        def noted(*arguments, name=name, real=real, **options):
            calls.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(dflash, name, noted)
    rows = RowSource(on_disk(tmp_path, written), None, 44)
    acceptance.heldout_acceptance(objective_of("dflash"), trainee, rows, trainee.width, head_chunk=16)
    first, second = ["read_rows", "row_features", *["leading_hits"] * 4], ["read_rows", *["leading_hits"] * 4]
    assert calls == first + second, "and the second batch runs what was traced for the first"
