"""Held-out acceptance computes the target's features once a batch of rows, however many anchors the rows have."""

from pathlib import Path

import jax
import numpy as np
import pytest

from pipelines.batches import RowSource
from pipelines.responses import Response
from tests.tiny import make_artifact, make_target
from tests.tiny_run import on_disk
from train import acceptance
from train.objectives.dflash import Trainee


def test_features_once_a_batch_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Six rows of 30 anchors are two batches; at 8 anchors a call that is eight calls, and was as many forwards."""
    artifact, calls = make_artifact(), {"row_features": 0, "slot_hidden": 0}
    trainee = Trainee(artifact.drafter("float32"), make_target(), None, online=True)
    rng = np.random.default_rng(0)
    written = [Response("t", str(n), (5, 6), tuple(rng.integers(3, 60, 30).tolist()), True) for n in range(6)]
    source = RowSource(on_disk(tmp_path, written), None, 40)
    monkeypatch.setattr(acceptance, "ANCHORS", 8)
    expected = acceptance.heldout_acceptance(trainee, source, head_chunk=16)
    for name in calls:
        real = getattr(acceptance, name)

        def counted(*arguments, name=name, real=real, **options):
            calls[name] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(acceptance, name, counted)
    with jax.disable_jit():
        again = acceptance.heldout_acceptance(trainee, source, head_chunk=16)
    assert calls == {"row_features": 2, "slot_hidden": 8}
    assert [walk.runs for walk in again.walks] == [walk.runs for walk in expected.walks]
