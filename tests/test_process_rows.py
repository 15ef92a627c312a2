"""Each of several processes draws its own rows of every batch, and together they draw the batch of one."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipelines import shards
from pipelines.batches import RowSource, train_batches
from pipelines.records import Response
from tests.tiny_run import on_disk

BLOCKS = {3: 4, 5: 2}


@pytest.fixture
def source(tmp_path: Path) -> RowSource:
    """21 rows: batches of 6 go on from one epoch to the next."""
    rng = np.random.default_rng(0)
    written = [Response("t", str(n), (n,), tuple(rng.integers(0, 50, 9).tolist()), True) for n in range(84)]
    return RowSource(on_disk(tmp_path, written), None, 40)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_together_they_are_the_batch_of_one(source: RowSource, count: int):
    assert len(source) == 21
    alone = train_batches(source, BLOCKS, rows=6, seed=3)
    parts = [train_batches(source, BLOCKS, rows=6, seed=3, process=(index, count)) for index in range(count)]
    for _ in range(9):
        batch, drawn = next(alone), [next(part) for part in parts]
        for name, values in batch.items():
            assert {part[name].shape[0] for part in drawn} == {6 // count}
            assert np.array_equal(np.concatenate([part[name] for part in drawn]), values)
    assert all(part.get_state() == alone.get_state() for part in parts), "one checkpoint is everybody's"


def test_a_state_goes_on_where_it_stood(source: RowSource):
    first = train_batches(source, BLOCKS, rows=6, seed=3, process=(1, 2))
    for _ in range(5):
        next(first)
    fresh = train_batches(source, BLOCKS, rows=6, seed=3, process=(1, 2))
    fresh.set_state(first.get_state())
    for _ in range(5):
        expected, got = next(first), next(fresh)
        assert all(np.array_equal(expected[name], got[name]) for name in expected)


def test_nobody_reads_anothers_rows(source: RowSource, monkeypatch: pytest.MonkeyPatch):
    """The anchors of both epochs' rows are new, but a process that reads 1/3 of the rows reads 1/3 of the records."""
    reads: Counter[int] = Counter()
    read = shards.Records.__getitem__
    monkeypatch.setattr(shards.Records, "__getitem__", lambda self, n: (reads.update([n]), read(self, n))[1])
    part = train_batches(source, BLOCKS, rows=6, seed=3, process=(2, 3))
    drawn = [next(part) for _ in range(3)]
    own = {int(token) for batch in drawn for row in range(2) for token in batch["tokens"][row, ::10]}
    assert own <= set(reads)
    assert sum(reads.values()) < 84, "18 rows of 72 responses went by, and what is read ahead"


def test_processes_that_do_not_divide_a_batch(source: RowSource):
    with pytest.raises(ValueError, match=r"batches\.rows=6: expected a multiple of the 4 processes"):
        train_batches(source, BLOCKS, rows=6, seed=3, process=(0, 4))
